# Files by HTTP and FTP: one connection that is kept, and with FTP a second for each file. What comes is counted and
# thrown away by the kernel (MSG_TRUNC), but for what is to be kept.

cdef enum:
    CONTROL_SOCKET = 3          # in the high half of an epoll tag
    DATA_SOCKET = 4
    HEAD = 8192                 # octets of an HTTP head or of an FTP reply
    DRAUGHT = 1 << 20           # octets taken at one time

cdef enum:                      # what a connection is at
    CLOSED = 0
    CONNECTING
    OPEN
    HEARING                     # an HTTP head
    COUNTING                    # an HTTP body
    LISTENING                   # for an FTP reply
    RECEIVING                   # an FTP file, and the reply after it

cdef struct line_t:
    int fd                      # 0: none
    int data                    # of FTP
    int32_t state
    bint headless               # HEAD: there is no body
    bint emptied                # all of the FTP file has come
    int32_t code                # of the reply, once it has come
    int64_t left                # octets of the body
    int64_t patience
    uint8_t *head
    int32_t filled


cdef class _Tcp(_Dhcp):
    cdef line_t *lines_

    def __cinit__(self, int32_t count, **_):
        self.lines_ = <line_t *>calloc(count, sizeof(line_t))
        if self.lines_ == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int32_t i
        if self.lines_ != NULL:
            for i in range(self.count):
                self.hang(i)
        free(self.lines_)

    def dial(self, int32_t machine, uint32_t server, uint16_t port, *, double patience=60.0):
        cdef machine_t *m = self._idle(machine)
        cdef line_t *t = &self.lines_[machine]
        if not m.address:
            raise ValueError("a machine without an address has no connections")
        self.hang(machine)
        t.head = <uint8_t *>malloc(HEAD)
        if t.head == NULL:
            raise MemoryError
        t.fd = self.open(machine, server, port, CONTROL_SOCKET)
        if t.fd < 0:
            t.fd = 0
            raise OSError(errno, "connect")
        t.patience, t.state, m.server = <int64_t>(patience * 1e9), CONNECTING, server
        self.start(machine)

    def get(self, int32_t machine, bytes request not None, *, bint head=False, int64_t keep=0):
        self._talk(machine, request, HEARING, keep)
        self.lines_[machine].headless = head

    def say(self, int32_t machine, bytes line not None):
        self._talk(machine, line, LISTENING, HEAD)

    def retrieve(self, int32_t machine, uint16_t port, bytes line not None, *, int64_t keep=0):
        cdef line_t *t = &self.lines_[machine]
        self._talk(machine, line, RECEIVING, keep)
        t.emptied = False
        if t.state != RECEIVING:
            return
        t.data = self.open(machine, self.all[machine].server, port, DATA_SOCKET)
        if t.data < 0:
            t.data = 0
            raise OSError(errno, "connect")

    def hang_up(self, int32_t machine):
        self._idle(machine)
        self.hang(machine)

    cdef int _talk(self, int32_t machine, bytes words, int32_t state, int64_t keep) except -1:
        cdef machine_t *m = self._idle(machine)
        cdef line_t *t = &self.lines_[machine]
        cdef const char *octets = words
        if t.state != OPEN:
            self.start(machine)                             # the server hung up meanwhile: is told as silence
            self.act(machine, self.now)
            return 0
        if keep:
            m.content = <uint8_t *>malloc(keep)
            if m.content == NULL:
                raise MemoryError
        m.room, t.state, t.filled, t.code, t.left = keep, state, 0, 0, 0
        self.start(machine)
        if len(words) and send(t.fd, octets, len(words), MSG_NOSIGNAL | MSG_DONTWAIT) != len(words):
            self.act(machine, self.now)
        return 0

    cdef void start(self, int32_t i) noexcept nogil:
        cdef machine_t *m = &self.all[i]
        self.now = m.began = now_ns()
        m.task, m.first = TALKING, 0
        memset(&m.file, 0, sizeof(receiver_t))
        m.file.size = -1
        self.act(i, self.now + self.lines_[i].patience)

    cdef int open(self, int32_t i, uint32_t server, uint16_t port, uint64_t tag) noexcept nogil:
        # A connection from this machine's address on its way; -1 and errno.
        cdef sockaddr_in name
        cdef epoll_event event
        cdef int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        if fd < 0:
            return -1
        memset(&name, 0, sizeof(name))
        name.sin_family, name.sin_addr.s_addr = AF_INET, htonl(self.all[i].address)
        event.events, event.data.u64 = EPOLLOUT, tag << 32 | <uint64_t>i
        if bind(fd, <sockaddr *>&name, sizeof(name)) < 0 or epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
            c_close(fd)
            return -1
        name.sin_addr.s_addr, name.sin_port = htonl(server), htons(port)
        if connect(fd, <sockaddr *>&name, sizeof(name)) < 0 and errno != EINPROGRESS:
            c_close(fd)
            return -1
        return fd

    cdef void hang(self, int32_t i) noexcept nogil:
        cdef line_t *t = &self.lines_[i]
        if t.fd:
            c_close(t.fd)
        if t.data:
            c_close(t.data)
        free(t.head)
        t.head = NULL
        t.fd = t.data = 0
        t.state = CLOSED

    cdef void wake(self, uint64_t what, uint32_t events) noexcept nogil:
        cdef int32_t i = <int32_t><uint32_t>what
        cdef line_t *t
        if what >> 32 < CONTROL_SOCKET:
            _Dhcp.wake(self, what, events)
            return
        t = &self.lines_[i]
        if self.telling >= OUTCOMES or (t.fd == 0):
            return
        if what >> 32 == DATA_SOCKET:
            self.pour(i, events)
        elif t.state == CONNECTING:
            self.connected(i)
        elif self.all[i].task != TALKING:
            self.hang(i)                                    # closed, or chatter, while nobody asked
        elif t.state == COUNTING:
            self.count_body(i)
        else:
            self.listen(i)

    cdef int listening(self, int fd, uint64_t tag) noexcept nogil:
        # The error of a connection that was being made; 0: there is none, and what comes wakes us.
        cdef epoll_event event
        cdef int error = 0
        cdef unsigned int n = sizeof(error)
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n)
        event.events, event.data.u64 = EPOLLIN, tag
        epoll_ctl(self.epoll, EPOLL_CTL_MOD, fd, &event)
        return error

    cdef void connected(self, int32_t i) noexcept nogil:
        cdef line_t *t = &self.lines_[i]
        cdef int error = self.listening(t.fd, <uint64_t>CONTROL_SOCKET << 32 | <uint64_t>i)
        if error:
            self.hang(i)
            self.end(i, END_ERROR, error)
            return
        t.state = OPEN
        self.all[i].first = self.now
        self.end(i, END_DONE, 0)

    cdef void listen(self, int32_t i) noexcept nogil:
        # More of an HTTP head or of an FTP reply.
        cdef machine_t *m = &self.all[i]
        cdef line_t *t = &self.lines_[i]
        cdef ssize_t n = recv(t.fd, t.head + t.filled, HEAD - t.filled, MSG_DONTWAIT)
        if n < 0 and (errno == EAGAIN or errno == EINTR):
            return
        if n <= 0:
            self.cut(i)
            return
        if m.first == 0:
            m.first = self.now
        t.filled += n
        self.act(i, self.now + t.patience)
        if t.state == HEARING:
            self.read_head(i)
        else:
            self.read_reply(i)

    cdef void read_head(self, int32_t i) noexcept nogil:
        cdef machine_t *m = &self.all[i]
        cdef line_t *t = &self.lines_[i]
        cdef head_t head = head_in(t.head, t.filled)
        cdef int64_t extra
        if head.size == 0:
            if t.filled == HEAD:
                self.cut(i)
            return
        t.code, m.file.size = head.status, head.length
        extra = t.filled - head.size
        t.left = 0 if t.headless else max(<int64_t>0, head.length)
        if extra > t.left:
            self.cut(i)
            return
        self.take_body(i, t.head + head.size, extra)
        t.state = COUNTING
        if t.left == 0:
            self.answered(i)

    cdef void take_body(self, int32_t i, const uint8_t *p, int64_t n) noexcept nogil:
        # `p`: where it is; NULL: it is where it is to be kept, or nowhere.
        cdef machine_t *m = &self.all[i]
        cdef int64_t kept = min(n, m.room - m.kept)
        if p != NULL and kept > 0:
            memcpy(m.content + m.kept, p, kept)
        m.kept += max(<int64_t>0, kept)
        m.file.octets += n
        self.lines_[i].left -= n
        self.came(n)

    cdef ssize_t drink(self, int32_t i, int fd, int64_t most) noexcept nogil:
        cdef machine_t *m = &self.all[i]
        if m.kept < m.room:
            return recv(fd, m.content + m.kept, min(most, m.room - m.kept), MSG_DONTWAIT)
        return recv(fd, self.memory, min(most, <int64_t>DRAUGHT), MSG_DONTWAIT | MSG_TRUNC)

    cdef void count_body(self, int32_t i) noexcept nogil:
        cdef line_t *t = &self.lines_[i]
        cdef ssize_t n = self.drink(i, t.fd, t.left)
        if n < 0 and (errno == EAGAIN or errno == EINTR):
            return
        if n <= 0:
            self.cut(i)
            return
        self.take_body(i, NULL, n)
        self.act(i, self.now + t.patience)
        if t.left == 0:
            self.answered(i)

    cdef void read_reply(self, int32_t i) noexcept nogil:
        # RFC 959 section 4.2: the last line of a reply has a blank after its code. 1xx comes before the file.
        cdef machine_t *m = &self.all[i]
        cdef line_t *t = &self.lines_[i]
        cdef int32_t code = reply_in(t.head, t.filled)
        if code == 0:
            if t.filled == HEAD:
                self.cut(i)
            return
        if t.state == LISTENING:
            m.kept = min(<int64_t>t.filled, m.room)
            memcpy(m.content, t.head, m.kept)
            t.code = code
            self.answered(i)
        elif code >= 200:
            t.code = code
            if code >= 400:
                self.close_data(i)
                self.answered(i)
            elif t.emptied:
                self.answered(i)

    cdef void pour(self, int32_t i, uint32_t events) noexcept nogil:
        # The FTP file.
        cdef line_t *t = &self.lines_[i]
        cdef ssize_t n
        if t.data == 0 or self.all[i].task != TALKING:
            self.close_data(i)
            return
        if events & EPOLLOUT:
            if self.listening(t.data, <uint64_t>DATA_SOCKET << 32 | <uint64_t>i):
                self.close_data(i)                          # the reply says the rest
            return
        n = self.drink(i, t.data, DRAUGHT)
        if n < 0 and (errno == EAGAIN or errno == EINTR):
            return
        if n > 0:
            self.take_body(i, NULL, n)
            self.act(i, self.now + t.patience)
            return
        self.close_data(i)
        t.emptied = True
        if t.code:
            self.answered(i)

    cdef void close_data(self, int32_t i) noexcept nogil:
        if self.lines_[i].data:
            c_close(self.lines_[i].data)
            self.lines_[i].data = 0

    cdef void answered(self, int32_t i) noexcept nogil:
        self.lines_[i].state = OPEN
        self.end(i, END_DONE, self.lines_[i].code)

    cdef void cut(self, int32_t i) noexcept nogil:
        # The server hung up, or speaks no HTTP and no FTP.
        self.hang(i)
        self.end(i, END_NONSENSE, 0)

    cdef void expire(self, int32_t i) noexcept nogil:
        if self.all[i].task != TALKING:
            _Dhcp.expire(self, i)
            return
        self.hang(i)
        self.end(i, END_SILENT, 0)
