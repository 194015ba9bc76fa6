# Addresses by DHCP: DISCOVER, OFFER, REQUEST, ACK (RFC 2131 section 4.4), as frames of a link or behind a relay.

cdef enum:
    WIRES = 16
    WIRE_SOCKET = 2             # in the high half of an epoll tag

cdef struct wire_t:             # where DHCP packets leave and come
    int fd
    bint frames
    uint32_t giaddr
    uint64_t source             # the MAC that all frames have; 0: each its machine's
    box_t *outbox

cdef struct asking_t:           # what a machine sends
    uint64_t mac
    uint8_t *request            # ours; options 50 and 54 are written into it
    int32_t request_size
    int32_t requested_at
    int32_t server_at
    const uint8_t *discover
    int32_t discover_size
    int32_t wire
    int64_t collects            # nanoseconds that it waits for more offers
    bint hasty                  # but not after one that says it is the only one
    uint32_t offered


cdef class _Dhcp(_Tftp):
    cdef wire_t wires[WIRES]
    cdef int32_t wired
    cdef asking_t *askings
    cdef int32_t *by_mac        # number plus one, by the hash of a MAC
    cdef uint64_t mask
    cdef box_t *letters

    def __cinit__(self, int32_t count, **_):
        cdef uint64_t size = 4
        while size < 2 * <uint64_t>count:
            size *= 2
        self.mask = size - 1
        self.askings = <asking_t *>calloc(count, sizeof(asking_t))
        self.by_mac = <int32_t *>calloc(size, sizeof(int32_t))
        self.letters = <box_t *>calloc(1, sizeof(box_t))
        if not (self.askings and self.by_mac and self.letters):
            raise MemoryError
        box_prepare(self.letters, False)

    def __dealloc__(self):
        cdef int32_t i
        if self.askings != NULL:
            for i in range(self.count):
                free(self.askings[i].request)
        for i in range(self.wired):
            free(self.wires[i].outbox)
        free(self.askings)
        free(self.by_mac)
        free(self.letters)

    def wire(self, int fd, *, bint frames, uint32_t giaddr=0, uint64_t source=0):
        cdef epoll_event event
        cdef wire_t *w = &self.wires[self.wired]
        if self.wired == WIRES:
            raise ValueError(f"there are at most {WIRES} wires")
        w.outbox = <box_t *>calloc(1, sizeof(box_t))
        if w.outbox == NULL:
            raise MemoryError
        box_prepare(w.outbox, False)
        w.fd, w.frames, w.giaddr, w.source = fd, frames, giaddr, source
        event.events, event.data.u64 = EPOLLIN, <uint64_t>WIRE_SOCKET << 32 | <uint64_t>self.wired
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        self.wired += 1
        return self.wired - 1

    def lease(self, int32_t machine, int32_t wire, bytes discover not None, bytes request not None,
              Manner manner not None, *, double collects=0.0, bint hasty=False):
        cdef machine_t *m = self._idle(machine)
        cdef asking_t *a = &self.askings[machine]
        cdef const char *octets = discover
        if not 0 <= wire < self.wired:
            raise ValueError(f"there is no wire {wire}")
        if not DHCP_HEADER <= len(discover) <= DHCP_LONGEST_REPLY:
            raise ValueError("a DISCOVER is a whole DHCP message")
        self._compose(machine, request)
        self.holds[machine] = (discover, manner)
        a.discover, a.discover_size = <const uint8_t *>octets, len(discover)
        a.wire, a.collects, a.hasty, a.offered = wire, <int64_t>(collects * 1e9), hasty, 0
        self._know(machine, mac_in(a.discover))
        self.errands[machine].waits, self.errands[machine].tries = manner.waits, manner.tries
        self.settle(machine, 0)
        m.task, m.tries = SELECTING, 0
        self.now = m.began = now_ns()
        m.first = 0
        self.post(machine)
        self.act(machine, m.began + manner.waits[0])

    cdef int _compose(self, int32_t machine, bytes request) except -1:
        # Takes a copy of the REQUEST and looks up where the offer's address and server go.
        cdef asking_t *a = &self.askings[machine]
        cdef const char *octets = request
        cdef cursor_t c
        cdef uint8_t code
        cdef size_t n
        cdef const uint8_t *value
        free(a.request)
        a.request, a.request_size, a.requested_at, a.server_at = NULL, len(request), 0, 0
        if not DHCP_HEADER <= len(request) <= DHCP_LONGEST_REPLY:
            raise ValueError("a REQUEST is a whole DHCP message")
        a.request = <uint8_t *>malloc(len(request))
        if a.request == NULL:
            raise MemoryError
        memcpy(a.request, octets, len(request))
        c = wire_cursor(a.request + DHCP_HEADER, a.request_size - DHCP_HEADER)
        while dhcp_next(&c, &code, &n, &value) > 0:
            if code == OPTION_REQUESTED and n == 4:
                a.requested_at = value - a.request
            elif code == OPTION_SERVER and n == 4:
                a.server_at = value - a.request
        if not (a.requested_at and a.server_at):
            raise ValueError("a REQUEST has options 50 and 54")
        return 0

    cdef int _know(self, int32_t machine, uint64_t mac) except -1:
        cdef uint64_t at = mac_hash(mac) & self.mask
        if self.askings[machine].mac == mac:
            return 0
        if self.askings[machine].mac:
            raise ValueError("a machine keeps its MAC address")
        while self.by_mac[at]:
            at = (at + 1) & self.mask
        self.by_mac[at], self.askings[machine].mac = machine + 1, mac
        return 0

    cdef int32_t known_as(self, uint64_t mac) noexcept nogil:
        cdef uint64_t at = mac_hash(mac) & self.mask
        while self.by_mac[at]:
            if self.askings[self.by_mac[at] - 1].mac == mac:
                return self.by_mac[at] - 1
            at = (at + 1) & self.mask
        return -1

    cdef void wake(self, uint64_t what, uint32_t events) noexcept nogil:
        cdef wire_t *w
        cdef int32_t k, got
        cdef size_t n
        cdef const uint8_t *p
        if what >> 32 != WIRE_SOCKET:
            _Tftp.wake(self, what, events)
            return
        if self.telling > OUTCOMES - BOX:
            return
        w = &self.wires[<int32_t><uint32_t>what]
        got = box_receive(self.letters, w.fd)
        for k in range(got):
            n = self.letters.vec[k].msg_len
            p = datagram_in(self.letters.data[k], &n, CLIENT_PORT) if w.frames else self.letters.data[k]
            if p != NULL and not self.unlucky():
                self.read(p, n)

    cdef void read(self, const uint8_t *p, size_t n) noexcept nogil:
        cdef int32_t i
        cdef machine_t *m
        cdef asking_t *a
        cdef offer_t offer
        if n < DHCP_HEADER or p[0] != 2 or wire_u32(p + 236) != DHCP_COOKIE:
            return
        i = self.known_as(mac_in(p))
        if i < 0:
            return                                          # another's: the link is shared
        m, a = &self.all[i], &self.askings[i]
        if m.task < SELECTING or memcmp(p + 4, a.discover + 4, 4):
            return
        offer = offer_in(p, n)
        if offer.type == DHCP_OFFER and m.task == SELECTING and not a.offered and offer.server and offer.address:
            a.offered, m.first = offer.address, self.now
            put_u32(a.request + a.requested_at, offer.address)
            put_u32(a.request + a.server_at, offer.server)
            self.act(i, self.now if a.hasty and offer.sole else max(self.now, m.began + a.collects))
        elif offer.type == DHCP_ACK and m.task == REQUESTING and offer.address == a.offered:
            self.keep_packet(m, p, n)
            self.settle(i, offer.address)
            self.end(i, END_DONE, DHCP_ACK)
        elif offer.type == DHCP_NAK and m.task == REQUESTING:
            self.keep_packet(m, p, n)
            self.end(i, END_ERROR, DHCP_NAK)

    cdef void keep_packet(self, machine_t *m, const uint8_t *p, size_t n) noexcept nogil:
        m.content = <uint8_t *>malloc(n)
        if m.content != NULL:
            memcpy(m.content, p, n)
            m.room = m.kept = n

    cdef void expire(self, int32_t i) noexcept nogil:
        cdef machine_t *m = &self.all[i]
        cdef errand_t *e = &self.errands[i]
        if m.task < SELECTING:
            _Tftp.expire(self, i)
            return
        if m.task == SELECTING and self.askings[i].offered:
            m.task, m.tries = REQUESTING, 0
        else:
            m.tries += 1
            if m.tries >= e.tries:
                self.end(i, END_SILENT, 0)
                return
        self.post(i)
        self.act(i, self.now + e.waits[m.tries])

    cdef void post(self, int32_t i) noexcept nogil:
        # DISCOVER or REQUEST.
        cdef asking_t *a = &self.askings[i]
        cdef wire_t *w = &self.wires[a.wire]
        cdef bint first = self.all[i].task == SELECTING
        cdef int32_t size = a.discover_size if first else a.request_size
        cdef uint8_t *frame
        cdef uint8_t *out
        if self.unlucky():
            return
        if w.outbox.n == BOX:
            self.unsent += box_send(w.outbox, w.fd, not w.frames)
        frame = w.outbox.data[w.outbox.n]
        out = frame + (ETHERNET + UDP_HEADERS if w.frames else 0)
        memcpy(out, a.discover if first else a.request, size)
        if w.giaddr:
            put_u32(out + 24, w.giaddr)
            out[3] = 1                                      # hops
        w.outbox.iov[w.outbox.n].iov_len = size
        if w.source:
            out[10] |= 0x80                                 # broadcast: a frame to its own MAC would not come here
        if w.frames:
            memset(frame, 0xff, 6)
            put_mac(frame + 6, w.source or a.mac)
            frame[12], frame[13] = 8, 0
            udp_frame(frame + ETHERNET, 0, CLIENT_PORT, 0xFFFFFFFF, SERVER_PORT, size)
            w.outbox.iov[w.outbox.n].iov_len += ETHERNET + UDP_HEADERS
        w.outbox.n += 1

    cdef void flush(self) noexcept nogil:
        cdef int32_t k
        for k in range(self.wired):
            if self.wires[k].outbox.n:
                self.unsent += box_send(self.wires[k].outbox, self.wires[k].fd, not self.wires[k].frames)
        _Tftp.flush(self)
