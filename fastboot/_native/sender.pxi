# Sender: the way out. What transfers may send is planned, in the order of their turns, into a batch for each socket,
# sent by one call, and counted as sent only when the kernel took it; what it refused is planned again or ends its
# transfer.

@cython.internal
cdef class Sender(Reader):
    cdef outbox_t *outboxes      # one for each socket, empty outside of _flush
    cdef int64_t planned         # blocks in them
    cdef bint unsent             # they had no room for all
    cdef bint held               # an egress waits for its budget
    cdef int64_t now             # of the last _tick
    cdef int epoll               # tells when a full socket has room again, and the Engine what came in
    cdef bint segmentation

    def __cinit__(self):
        self.epoll = -1
        self.segmentation = True
        self.outboxes = <outbox_t *>memory_for(MAX_SOCKETS, sizeof(outbox_t))
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        if self.outboxes != NULL and self.epoll >= 0:     # without those, nothing is open yet
            c_close(self.epoll)
        free(self.outboxes)

    cdef int _add(self, int fd, bint requests, bint data) except -1:
        cdef endpoint_t *e = &self.endpoints[self.endpoint_count]
        e.fd = fd
        e.waiting.ties = self.ties
        e.requests = requests
        e.data = data
        self._watch(self.endpoint_count, fd)
        self.endpoint_count += 1
        return 0

    cdef int _watch(self, int tag, int fd) except -1:
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.u64 = tag
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        return 0

    cdef void _set_blocked(self, int socket, bint blocked) noexcept nogil:
        cdef endpoint_t *e = &self.endpoints[socket]
        cdef epoll_event event
        cdef int32_t i
        if e.blocked == blocked:
            return
        e.blocked = blocked
        event.events = EPOLLIN | EPOLLOUT if blocked else EPOLLIN
        event.data.u64 = socket
        epoll_ctl(self.epoll, EPOLL_CTL_MOD, e.fd, &event)
        while e.waiting.first and not blocked:
            i = e.waiting.first - 1
            chain_remove(&e.waiting, i)
            self._make_ready(&self.slots[i])

    cdef void _tick(self, int64_t now) noexcept nogil:
        cdef int i
        for i in range(self.interfaces.count):
            if self.egresses[i].held:
                self.counts.held_back_us += (now - self.now) // 1000
            egress_tick(&self.egresses[i], now)
        self.now = now

    cdef void _flush(self, int64_t now) noexcept nogil:
        # A batch for each socket at most: what comes in meanwhile is heard before the next, so that whoever gets little
        # need not wait for whoever gets much.
        cdef int i
        self.unsent = self.held = False
        for i in range(self.interfaces.count):
            self._fill(&self.egresses[i], now)
            self.held = self.held or self.egresses[i].held
        if self.planned:
            self.planned = 0
            for i in range(self.endpoint_count):
                if self.outboxes[i].n:
                    self._send(i, now)

    cdef void _fill(self, egress_t *e, int64_t now) noexcept nogil:
        cdef int64_t before = self.planned
        cdef int32_t i = egress_next(e, 0)
        cdef slot_t *s
        while i >= 0:
            s = &self.slots[i]
            egress_begin(e, &s.flight)
            if self.endpoints[s.socket].blocked:
                chain_put(&self.endpoints[s.socket].waiting, i)
            elif not self._plan(s, now):
                self._make_ready(s)
                self.unsent = True
                return
            i = egress_next(e, self.planned - before)

    cdef bint _plan(self, slot_t *s, int64_t now) noexcept nogil:
        # Put what the slot may send into its socket's batch. False: no room, send first and ask again.
        cdef outbox_t *b = &self.outboxes[s.socket]
        cdef int64_t first, due, count, most
        if s.state == SLOT_REFUSED or (s.state == SLOT_LIVE and s.x.base == 0 and s.x.next == 0):
            if b.n == BATCH or b.segments == BATCH_BLOCKS:
                return False
            self._add_packet(s)
            return True
        if s.state != SLOT_LIVE:
            return True
        due = self._readable(s, tftp_due(&s.x))
        first = s.x.next
        if due > 0 and first + due > s.x.last and not file_unchanged(s.file):
            self._spoilt(s, now)
            return True
        most = SEGMENT_OCTETS // (s.x.blksize + 4)
        if most > SEGMENTS:
            most = SEGMENTS
        if not (self.segmentation and s.segmented):
            most = 1
        # A slot's blocks go into one batch or wait for the next: no part of a window is planned twice.
        if due > 0 and (BATCH_BLOCKS - b.segments < due or BATCH - b.n < (due + most - 1) // most):
            if b.n:
                return False
            if due > BATCH * most:
                due = BATCH * most
        while due > 0:
            count = due if due < most else most
            self._add_blocks(s, first, count)
            first += count
            due -= count
        return True

    cdef void _add_packet(self, slot_t *s) noexcept nogil:
        cdef msghdr *h = self._message(s, 1, 0)
        outbox_add(&self.outboxes[s.socket], h, s.packet, s.packet_length)

    cdef void _add_blocks(self, slot_t *s, int64_t first, int64_t count) noexcept nogil:
        # Whatever is added here is added for each block: nothing is looked up twice.
        cdef outbox_t *b = &self.outboxes[s.socket]
        cdef uint8_t *header = b.headers[b.segments]
        cdef msghdr *h = self._message(s, count, <uint16_t>(s.x.blksize + 4) if count > 1 else 0)
        cdef iovec *v = h.msg_iov
        cdef int64_t at = (first - 1) * s.x.blksize, blksize = s.x.blksize
        cdef uint8_t *data = s.file.map + s.offset + at
        cdef int64_t block, left = s.x.size - at
        for block in range(first, first + count):
            header[0], header[1], header[2], header[3] = 0, TFTP_DATA, (block >> 8) & 0xff, block & 0xff
            v[0].iov_base, v[0].iov_len = header, 4
            v[1].iov_base, v[1].iov_len = data, blksize if left > blksize else left
            header += 4
            v += 2
            data += blksize
            left -= blksize
        h.msg_iovlen = 2 * count
        b.vectors_used += 2 * count

    cdef msghdr *_message(self, slot_t *s, int64_t count, uint16_t segment) noexcept nogil:
        self.planned += count
        return outbox_message(
            &self.outboxes[s.socket], <int32_t>(s - self.slots), <int32_t>count, &s.peer, s.peer_length, s.local,
            segment)

    cdef void _send(self, int socket, int64_t now) noexcept nogil:
        cdef outbox_t *b = &self.outboxes[socket]
        cdef int done = 0, heard = -1, n, i
        while done < b.n:
            n = sendmmsg(self.endpoints[socket].fd, &b.messages[done], b.n - done, MSG_DONTWAIT)
            self.counts.batches += 1
            if n > 0:
                for i in range(done, done + n):
                    self._sent(b, i, now)
                done += n
            elif errno == EAGAIN:
                # What is left is planned again when there is room.
                self.counts.socket_full += 1
                for i in range(done, b.n):
                    chain_put(&self.endpoints[socket].waiting, b.owners[i])
                self._set_blocked(socket, True)
                break
            elif errno in (ECONNREFUSED, EHOSTUNREACH, ENETUNREACH) and heard < done:
                heard = done                           # perhaps what ICMP said of another's packet: try once more
            elif errno != EINTR:
                done = self._failed(b, done, errno, now)
        b.n = b.segments = b.vectors_used = 0

    cdef void _sent(self, outbox_t *b, int at, int64_t now) noexcept nogil:
        cdef slot_t *s = &self.slots[b.owners[at]]
        cdef int32_t count = b.counts[at]
        cdef int64_t repeats = s.x.repeats
        if s.state == SLOT_REFUSED:
            self._free(s, now)
        elif s.state == SLOT_LIVE:
            tftp_on_sent(&s.x, count, now)
            self.counts.blocks += count
            self.counts.repeats += s.x.repeats - repeats
            egress_sent(&self.egresses[s.interface], &s.flight, count, tftp_in_flight(&s.x))
            self._arm(s)
            if tftp_due(&s.x) > 0 and (at + 1 == b.n or b.owners[at + 1] != b.owners[at]):
                self._make_ready(s)

    cdef int _failed(self, outbox_t *b, int at, int error, int64_t now) noexcept nogil:
        # One message was refused. Returns which to try next: where the slot is planned anew or ends, not the
        # rest of its blocks in this batch.
        cdef int32_t index = b.owners[at]
        cdef slot_t *s = &self.slots[index]
        cdef bint segmented = b.counts[at] > 1
        cdef event_t event
        if s.state == SLOT_LIVE and error == EFAULT:
            self._spoilt(s, now)                       # past the end of a file that became shorter, or a bad disk
        elif segmented and error in (EMSGSIZE, EINVAL):
            s.segmented = False                        # the path is narrower than the interface (older kernels: EINVAL)
            self._make_ready(s)
        elif segmented and error in (EIO, EOPNOTSUPP):
            if self.segmentation:
                self.segmentation = False
                memset(&event, 0, sizeof(event))
                event.kind = EVENT_NO_SEGMENTATION
                event.ifindex = self.interfaces.indices[s.interface]
                event.code = <uint16_t>error
                self._note(&event)
            self._make_ready(s)
        else:
            # As if lost on the wire: a firewall's EPERM, no route for a moment, no room in the interface's queue
            # (ENOBUFS). The timer goes on.
            self.counts.send_failed += 1
            self._sent(b, at, now)
            return at + 1
        while at < b.n and b.owners[at] == index:
            at += 1
        return at

    cdef void _spoilt(self, slot_t *s, int64_t now) noexcept nogil:
        cdef bint broken = file_unchanged(s.file)
        cdef const char *text = b"file can not be read" if broken else b"file changed while it was sent"
        self._send_error(s.socket, &s.peer, s.peer_length, s.local, 0, text)
        self._end(s, END_BROKEN if broken else END_CHANGED, 0, now)

    cdef void _send_error(
        self, int socket, sockaddr_storage *peer, uint32_t peer_length, in_addr local, uint16_t code, const char *text,
    ) noexcept nogil:
        # Once, outside of any batch; lost if the socket's buffer is full.
        cdef uint8_t packet[64]
        cdef uint8_t control[CONTROL]
        cdef iovec vector
        cdef msghdr out
        vector.iov_base = packet
        vector.iov_len = tftp_emit_error(packet, sizeof(packet), code, text, strlen(text))
        memset(&out, 0, sizeof(out))
        out.msg_name = peer
        out.msg_namelen = peer_length
        out.msg_iov = &vector
        out.msg_iovlen = 1
        out.msg_control = control
        out.msg_controllen = put_control(control, local, 0)
        sendmsg(self.endpoints[socket].fd, &out, MSG_DONTWAIT)

    cdef void _answer_error(self, int socket, msghdr *h, uint16_t code, const char *text) noexcept nogil:
        cdef in_pktinfo *info = pktinfo_of(h)
        if info != NULL:
            self._send_error(
                socket, <sockaddr_storage *>h.msg_name, h.msg_namelen, info.ipi_spec_dst, code, text)
