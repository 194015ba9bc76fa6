# Files by TFTP. All machines share a few sockets, so that one system call takes what came for many of them; each
# has its own address (routes of type local, see lab/network.py), and its next file comes by the next socket.

cdef enum:
    WAYS = 4
    BATCH = 64                  # datagrams of a system call
    WIDE = 65536                # octets of one, with all that UDP_GRO put together
    LINE = 512                  # octets of a request (RFC 2347)
    CONTROL = 64
    UDP_SOCKET = 1              # in the high half of an epoll tag

cdef struct datagrams_t:        # of one system call
    mmsghdr vec[BATCH]
    iovec iov[BATCH]
    sockaddr_in name[BATCH]
    uint8_t control[BATCH][CONTROL]
    int32_t n


cdef class Manner:
    """See _machines.pyi."""
    cdef int64_t *waits
    cdef readonly int32_t tries
    cdef readonly int32_t blksize
    cdef readonly int32_t window
    cdef readonly bint sized
    cdef readonly bint insists
    cdef int64_t slow

    def __init__(self, waits, *, int32_t blksize=512, int32_t window=1, bint sized=False, bint insists=True,
                 double slow=0.0):
        cdef int32_t k
        if self.waits != NULL:
            raise ValueError("this manner is what it is")
        if not waits or min(waits) <= 0 or not 8 <= blksize <= 65464 or not 1 <= window <= 65535 or slow < 0:
            raise ValueError("waits are seconds; blksize is 8 to 65464, window 1 to 65535")
        self.tries, self.blksize, self.window, self.sized, self.insists = len(waits), blksize, window, sized, insists
        self.slow = <int64_t>(slow * 1e9)
        self.waits = <int64_t *>calloc(self.tries, sizeof(int64_t))
        if self.waits == NULL:
            raise MemoryError
        for k in range(self.tries):
            self.waits[k] = <int64_t>(waits[k] * 1e9)

    def __dealloc__(self):
        free(self.waits)


cdef struct errand_t:           # what a machine fetches
    const uint8_t *request
    uint32_t size
    const int64_t *waits
    int32_t tries
    bint insists
    int64_t slow


cdef class _Tftp(_Table):
    cdef int sockets[WAYS]
    cdef int32_t ways
    cdef errand_t *errands
    cdef datagrams_t *inbox
    cdef uint8_t *memory
    cdef datagrams_t *outbox    # one for each way
    cdef uint8_t *lines
    cdef readonly int64_t unsent

    def __cinit__(self, int32_t count, **_):
        self.errands = <errand_t *>calloc(count, sizeof(errand_t))
        self.inbox = <datagrams_t *>calloc(1, sizeof(datagrams_t))
        self.memory = <uint8_t *>malloc(BATCH * WIDE)
        self.outbox = <datagrams_t *>calloc(WAYS, sizeof(datagrams_t))
        self.lines = <uint8_t *>malloc(WAYS * BATCH * LINE)
        if not (self.errands and self.inbox and self.memory and self.outbox and self.lines):
            raise MemoryError

    def __dealloc__(self):
        free(self.errands)
        free(self.inbox)
        free(self.memory)
        free(self.outbox)
        free(self.lines)

    def speak_through(self, fds):
        cdef epoll_event event
        cdef int fd
        if self.ways or not 1 <= len(fds) <= WAYS:
            raise ValueError(f"machines speak through 1 to {WAYS} sockets, which are named once")
        for fd in fds:
            event.events, event.data.u64 = EPOLLIN, <uint64_t>UDP_SOCKET << 32 | <uint64_t>self.ways
            if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
                raise OSError(errno, "epoll_ctl")
            self.sockets[self.ways] = fd
            self.ways += 1

    def fetch(self, int32_t machine, uint32_t server, uint16_t port, bytes request not None, Manner manner not None,
              *, bint probe=False, int64_t keep=0):
        cdef machine_t *m = self._idle(machine)
        cdef errand_t *e = &self.errands[machine]
        cdef const char *octets = request
        if not self.ways or not m.address or len(request) > LINE or keep < 0:
            raise ValueError("a machine with an address and sockets sends a request of at most 512 octets")
        if keep:
            m.content = <uint8_t *>malloc(keep)
            if m.content == NULL:
                raise MemoryError
        self.holds[machine] = (request, manner)
        e.request, e.size, e.waits, e.tries = <const uint8_t *>octets, len(request), manner.waits, manner.tries
        e.insists, e.slow = manner.insists, manner.slow
        m.task, m.room, m.server, m.port, m.tries, m.owes = FETCHING, keep, server, port, 0, False
        m.way = (m.way + 1) % self.ways
        m.file = receiver_of(manner.blksize, manner.window, manner.sized, probe)
        self.now = m.began = now_ns()
        m.first = 0
        self.ask(machine)
        self.act(machine, m.began + e.waits[0])

    cdef void wake(self, uint64_t what, uint32_t events) noexcept nogil:
        if what >> 32 == UDP_SOCKET:
            self.receive(<int32_t><uint32_t>what)

    cdef void receive(self, int32_t way) noexcept nogil:
        # Once: what is left wakes us again, and other sockets have their turn.
        cdef datagrams_t *box = self.inbox
        cdef int32_t k, got
        if self.telling > OUTCOMES - BATCH:
            return
        for k in range(BATCH):
            box.iov[k].iov_base, box.iov[k].iov_len = self.memory + <int64_t>k * WIDE, WIDE
            memset(&box.vec[k], 0, sizeof(mmsghdr))
            box.vec[k].msg_hdr.msg_iov, box.vec[k].msg_hdr.msg_iovlen = &box.iov[k], 1
            box.vec[k].msg_hdr.msg_name, box.vec[k].msg_hdr.msg_namelen = &box.name[k], sizeof(sockaddr_in)
            box.vec[k].msg_hdr.msg_control, box.vec[k].msg_hdr.msg_controllen = box.control[k], CONTROL
        got = recvmmsg(self.sockets[way], box.vec, BATCH, MSG_DONTWAIT, NULL)
        for k in range(got):
            self.deliver(way, k)

    cdef void deliver(self, int32_t way, int32_t k) noexcept nogil:
        # One datagram, or several of one sender that UDP_GRO put together.
        cdef datagrams_t *box = self.inbox
        cdef msghdr *head = &box.vec[k].msg_hdr
        cdef cmsghdr *c = CMSG_FIRSTHDR(head)
        cdef int32_t i = -1
        cdef size_t at = 0, n = box.vec[k].msg_len, step = n
        while c != NULL:
            if c.cmsg_level == IPPROTO_IP and c.cmsg_type == IP_PKTINFO:
                i = self.holder(ntohl((<in_pktinfo *>CMSG_DATA(c)).ipi_addr.s_addr))
            elif c.cmsg_level == SOL_UDP and c.cmsg_type == UDP_GRO:
                step = (<int *>CMSG_DATA(c))[0]
            c = CMSG_NXTHDR(head, c)
        if i < 0 or self.all[i].task != FETCHING or self.all[i].way != way \
                or ntohl(box.name[k].sin_addr.s_addr) != self.all[i].server \
                or (self.all[i].file.open and ntohs(box.name[k].sin_port) != self.all[i].port):
            self.strange += 1
            return
        while at < n and self.all[i].task == FETCHING:
            if not self.unlucky():
                self.hear(i, ntohs(box.name[k].sin_port), self.memory + <int64_t>k * WIDE + at, min(step, n - at))
            at += step

    cdef void hear(self, int32_t i, uint16_t port, const uint8_t *p, size_t n) noexcept nogil:
        cdef machine_t *m = &self.all[i]
        cdef receiver_t *file = &m.file
        cdef int64_t before = file.octets, next_ = file.next
        cdef int heard = receiver_take(file, p, n)
        m.port = port                       # the first answer fixes it (RFC 1350 section 4)
        if m.first == 0:
            m.first = self.now
        if file.octets > before:
            self.came(file.octets - before)
            if before < m.room:
                m.kept = min(file.octets, m.room)
                memcpy(m.content + before, p + 4, m.kept - before)
        if heard == HEARD_ERROR:
            self.keep_text(m, p + 4, n - 4)
            self.end(i, END_ERROR, wire_u16(p + 2))
        elif heard == HEARD_NONSENSE:
            self.refuse(i, 8, b"not what was asked for")
            self.end(i, END_NONSENSE, 0)
        elif heard == HEARD_SIZE:
            self.refuse(i, 8, b"User aborted the transfer")
            self.end(i, END_DONE, 0)
        elif heard == HEARD_END:
            self.acknowledge(i)
            self.end(i, END_DONE, 0)
        else:
            self.proceed(i, heard != HEARD_NOTHING, file.next > next_)

    cdef void proceed(self, int32_t i, bint answer, bint forward) noexcept nogil:
        cdef machine_t *m = &self.all[i]
        cdef errand_t *e = &self.errands[i]
        if forward:
            m.tries = 0
        if answer and e.slow and not m.owes:
            m.owes = True
            self.act(i, self.now + e.slow)
        elif answer and not e.slow:
            self.acknowledge(i)
        if not m.owes:
            self.act(i, self.now + e.waits[min(m.tries, e.tries - 1)])

    cdef void expire(self, int32_t i) noexcept nogil:
        cdef machine_t *m = &self.all[i]
        cdef errand_t *e = &self.errands[i]
        if m.task != FETCHING:
            _Table.expire(self, i)
            return
        if m.owes:
            m.owes = False
            self.acknowledge(i)
        else:
            m.tries += 1
            if m.tries >= e.tries:
                self.end(i, END_SILENT, 0)
                return
            if not m.file.open:
                self.ask(i)
            elif e.insists:
                self.acknowledge(i)
        self.act(i, self.now + e.waits[m.tries])

    cdef void keep_text(self, machine_t *m, const uint8_t *p, size_t n) noexcept nogil:
        # The words of an ERROR, in place of what it fetched.
        free(m.content)
        m.room = m.kept = 0
        while n and p[n - 1] == 0:
            n -= 1
        m.content = <uint8_t *>malloc(max(n, <size_t>1))
        if m.content != NULL:
            memcpy(m.content, p, n)
            m.room = m.kept = n

    cdef void ask(self, int32_t i) noexcept nogil:
        cdef uint8_t *line = self.write(i, self.errands[i].size)
        if line != NULL:
            memcpy(line, self.errands[i].request, self.errands[i].size)

    cdef void acknowledge(self, int32_t i) noexcept nogil:
        cdef uint16_t block = <uint16_t>(self.all[i].file.next - 1)
        cdef uint8_t *line = self.write(i, 4)
        if line != NULL:
            line[0], line[1], line[2], line[3] = 0, TFTP_ACK, block >> 8, block & 0xff

    cdef void refuse(self, int32_t i, uint8_t code, const char *text) noexcept nogil:
        cdef uint32_t n = 0
        cdef uint8_t *line
        while text[n]:
            n += 1
        line = self.write(i, 5 + n)
        if line != NULL:
            line[0], line[1], line[2], line[3] = 0, TFTP_ERROR, 0, code
            memcpy(line + 4, text, n + 1)

    cdef uint8_t *write(self, int32_t i, uint32_t size) noexcept nogil:
        # Room for a datagram of this machine to its server; NULL: it is lost on the way.
        cdef machine_t *m = &self.all[i]
        cdef datagrams_t *box = &self.outbox[m.way]
        cdef int32_t k
        cdef msghdr *head
        cdef cmsghdr *c
        cdef in_pktinfo *from_
        if self.unlucky():
            return NULL
        if box.n == BATCH:
            self.send(m.way)
        k = box.n
        head = &box.vec[k].msg_hdr
        memset(head, 0, sizeof(msghdr))
        memset(box.control[k], 0, CONTROL)
        box.name[k].sin_family = AF_INET
        box.name[k].sin_addr.s_addr, box.name[k].sin_port = htonl(m.server), htons(m.port)
        box.iov[k].iov_base, box.iov[k].iov_len = self.lines + (<int64_t>m.way * BATCH + k) * LINE, size
        head.msg_name, head.msg_namelen = &box.name[k], sizeof(sockaddr_in)
        head.msg_iov, head.msg_iovlen = &box.iov[k], 1
        head.msg_control, head.msg_controllen = box.control[k], CMSG_SPACE(sizeof(in_pktinfo))
        c = CMSG_FIRSTHDR(head)
        c.cmsg_level, c.cmsg_type, c.cmsg_len = IPPROTO_IP, IP_PKTINFO, CMSG_LEN(sizeof(in_pktinfo))
        from_ = <in_pktinfo *>CMSG_DATA(c)
        from_.ipi_spec_dst.s_addr = htonl(m.address)
        box.n += 1
        return <uint8_t *>box.iov[k].iov_base

    cdef void flush(self) noexcept nogil:
        cdef int32_t way
        for way in range(self.ways):
            if self.outbox[way].n:
                self.send(way)

    cdef void send(self, int32_t way) noexcept nogil:
        cdef datagrams_t *box = &self.outbox[way]
        cdef int32_t done = 0
        cdef int rc
        while done < box.n:
            rc = sendmmsg(self.sockets[way], box.vec + done, box.n - done, MSG_DONTWAIT)
            if rc > 0:
                done += rc
            elif errno == EAGAIN or errno == ENOBUFS:
                wait_for(self.sockets[way], POLLOUT, 1000000)
            elif errno != EINTR:
                done += 1
                self.unsent += 1
        box.n = 0
