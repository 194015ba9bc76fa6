# Engine: one thread that answers TFTP. It asks Python once per request and moves every block itself. Here is the
# way in: the thread, what it receives, and Python's answers.

cdef class Engine(Sender):
    cdef uint32_t asked          # questions to Python that it has not answered
    cdef uint32_t most_asked
    cdef inbox_t *inbox
    cdef int next_socket
    cdef int64_t tell_drops      # not before
    cdef uint32_t max_blksize
    cdef uint16_t max_window
    cdef object sockets
    cdef bint ran
    cdef bint gathering          # the answers of take(), of which so many wait for a wake
    cdef int gathered

    def __cinit__(self, listen not None, data not None, Interfaces interfaces not None, *, uint32_t max_transfers=32768,
                  uint32_t max_blksize=1468, uint16_t max_windowsize=64):
        if not 1 <= max_transfers <= 65536:
            raise ValueError("max_transfers is 1 to 65536")
        if not 8 <= max_blksize <= 65464:
            raise ValueError("max_blksize is 8 to 65464 (RFC 2348 section 2)")
        if not 1 <= max_windowsize <= BATCH_BLOCKS:
            raise ValueError(f"max_windowsize is 1 to {BATCH_BLOCKS}")
        if not listen or len(listen) + len(data) > MAX_SOCKETS:
            raise ValueError(f"an Engine takes 1 to {MAX_SOCKETS} sockets")
        self.inbox = <inbox_t *>memory_for(1, sizeof(inbox_t))
        inbox_set_up(self.inbox)
        self.max_blksize = max_blksize
        self.max_window = max_windowsize
        # A client that asks for something else every moment leaves questions behind: these are bounded, not the slots,
        # and to what Python answers in a few seconds, for after that the others have given up.
        self.most_asked = min(2 * max_transfers + 8, <uint32_t>MOST_ASKED)
        self.commands = Crossing(sizeof(command_t), self.most_asked + 2 * max_transfers + 8)
        self.cold = Crossing(sizeof(piece_t), 2 * max_transfers)
        # Every question, an end for every answer and every slot, and notices.
        self._make_room(max_transfers, 2 * self.most_asked + max_transfers + 16, interfaces)
        self.sockets = (list(listen), list(data))
        for each in listen:
            self._add(each.fileno(), True, not data)
        for each in data:
            self._add(each.fileno(), False, True)
        self._watch(MAX_SOCKETS, self.commands.fd)

    def __dealloc__(self):
        cdef command_t command
        cdef piece_t piece
        if self.commands is not None:
            while self.commands.take(&command):
                if command.file != NULL:
                    file_drop(command.file)
        if self.cold is not None:
            while self.cold.take(&piece):
                file_drop(piece.file)
        free(self.inbox)

    # --- the other threads' side ---

    def start(self, uint64_t id, Source source not None, *, bint tsize=True, uint16_t windowsize=65535):
        cdef command_t command
        if windowsize == 0:
            raise ValueError("windowsize is 1 to 65535 (RFC 7440 section 3)")
        memset(&command, 0, sizeof(command))
        source.ensure_map()
        command.kind = COMMAND_START
        command.id = id
        command.file = source.file
        command.offset = source.offset
        command.size = source.size
        command.unsized = not tsize
        command.window = windowsize
        file_hold(source.file)
        self._command(&command)

    def refuse(self, uint64_t id, int code, str text not None):
        cdef command_t command
        memset(&command, 0, sizeof(command))
        cdef bytes message = text.encode("ascii", "replace")[:sizeof(command.text) - 1]
        command.kind = COMMAND_REFUSE
        command.id = id
        command.code = code
        command.length = len(message)
        memcpy(command.text, <const char *>message, command.length)
        self._command(&command)

    def ignore(self, uint64_t id):
        self._say(COMMAND_IGNORE, id)

    def drain(self):
        self._say(COMMAND_DRAIN, 0)

    def halt(self):
        self._say(COMMAND_HALT, 0)

    cdef int _say(self, uint8_t kind, uint64_t id) except -1:
        cdef command_t command
        memset(&command, 0, sizeof(command))
        command.kind = kind
        command.id = id
        return self._command(&command)

    cdef int _command(self, command_t *command) except -1:
        # Room is never short: one answer per question, and the two that stop.
        if not (self.commands.add(command) if self.gathering else self.commands.put(command)):
            if command.file != NULL:
                file_drop(command.file)
            raise RuntimeError("more answers than requests")
        if self.gathering:
            self.gathered += 1
            self._wake_engine(ANSWERS)
        return 0

    cdef void _wake_engine(self, int many) noexcept:
        if self.gathered >= many:
            self.gathered = 0
            self.commands.wake()

    def take(self, handle not None):
        self.gathering = True
        try:
            for event in self.events():
                handle(event)
        finally:
            self.gathering = False
            self._wake_engine(1)

    # --- the engine's thread ---

    def run(self):
        if self.ran:
            raise RuntimeError("an Engine runs once")
        self.ran = True
        with nogil:
            self._loop()

    cdef void _loop(self) noexcept nogil:
        cdef epoll_event ready[MAX_SOCKETS + 1]
        cdef int n, i
        cdef int64_t now = now_ns()
        self.wheel.now = now // TICK
        self.now = now
        while not self.halted:
            n = epoll_wait(self.epoll, ready, MAX_SOCKETS + 1, self._patience(now, self._tell(now)))
            now = now_ns()
            self._tick(now)
            for i in range(n):
                if ready[i].data.u64 == MAX_SOCKETS:
                    self._take_commands(now)
                    continue
                if ready[i].events & EPOLLOUT:
                    self._set_blocked(<int>ready[i].data.u64, False)
                if ready[i].events & (EPOLLIN | EPOLLERR):
                    # First what a client said, then that it has gone: its last acknowledgement may wait to be read.
                    if self._receive(<int>ready[i].data.u64, now) and ready[i].events & EPOLLERR:
                        self._hear_errors(<int>ready[i].data.u64, now)
                    self._flush(now)
            self._fire(now)
            self._flush(now)
        self.told.wake()
        self._wake_readers()

    cdef int _patience(self, int64_t now, int64_t tell) noexcept nogil:
        # Milliseconds until something is to be done; -1 where nothing is.
        cdef int64_t tick = wheel_next(self.wheel)
        cdef int64_t left = tick - now // TICK
        if self.unsent:
            return 0
        if tick < 0:
            left = -1
        elif left < 0:
            left = 0
        if self.held and not 0 <= left < SPAN // TICK:
            left = SPAN // TICK                        # by then what is lost no longer counts as under way
        if tell >= 0 and not 0 <= left <= (tell - now) // TICK:
            left = (tell - now) // TICK + 1
        return <int>left

    # --- receiving ---

    cdef bint _receive(self, int socket, int64_t now) noexcept nogil:
        # Whether that was all there is.
        cdef inbox_t *box = self.inbox
        cdef msghdr *h
        cdef slot_t *s
        cdef int n, i
        n = recvmmsg(self.endpoints[socket].fd, box.messages, BATCH, MSG_DONTWAIT, NULL)
        if n < 0 and errno != EAGAIN:                  # an ICMP error, which is told once in place of the packets
            n = recvmmsg(self.endpoints[socket].fd, box.messages, BATCH, MSG_DONTWAIT, NULL)
        if n > 0:
            self._count_drops(&self.endpoints[socket], drops_of(&box.messages[n - 1].msg_hdr), now)
        # Each transfer's memory is on its way while others are served: the kernel has had the cache since. (Of all that
        # the engine itself takes, finding them was a quarter.)
        for i in range(n):
            box.hashes[i] = peer_hash(&box.peers[i], box.messages[i].msg_hdr.msg_namelen)
            table_fetch(&self.table, box.hashes[i])
        for i in range(n):
            s = self.slots + table_guess(&self.table, box.hashes[i])
            fetch(&s.x)
            fetch(&s.x.deadline)
            fetch(&s.peer)
        for i in range(n):
            h = &box.messages[i].msg_hdr
            # Nobody can be answered at port 0.
            if h.msg_flags & MSG_TRUNC or box.messages[i].msg_len < 4 or (<sockaddr_in *>h.msg_name).sin_port == 0:
                self.counts.malformed += 1
                continue
            self._packet(socket, h, box.hashes[i], box.packets[i], box.messages[i].msg_len, now)
        if n > 0:
            inbox_empty(box, n)
        return 0 <= n < BATCH or n < 0 and errno == EAGAIN

    cdef void _hear_errors(self, int socket, int64_t now) noexcept nogil:
        # A client whose port is closed has gone. Nothing else that ICMP says ends a transfer: a host may be out of
        # reach for a moment (a Raspberry Pi answers no ARP while it loads).
        cdef uint8_t control[256]
        cdef sockaddr_storage peer
        cdef msghdr h
        cdef slot_t *s
        cdef int i
        for i in range(BATCH):
            memset(&h, 0, sizeof(h))
            memset(&peer, 0, sizeof(peer))
            h.msg_name, h.msg_namelen = &peer, sizeof(peer)
            h.msg_control, h.msg_controllen = control, sizeof(control)
            if recvmsg(self.endpoints[socket].fd, &h, MSG_ERRQUEUE | MSG_DONTWAIT) < 0:
                return
            s = self._find(peer_hash(&peer, h.msg_namelen), &peer, h.msg_namelen)
            if s != NULL and s.socket == socket and s.state == SLOT_LIVE and port_is_closed(&h):
                self._end(s, END_UNCONFIRMED if s.x.high > s.x.last else END_GONE, 0, now)

    cdef void _count_drops(self, endpoint_t *e, uint32_t drops, int64_t now) noexcept nogil:
        cdef event_t event
        if drops == e.dropped:
            return
        self.counts.dropped += <uint32_t>(drops - e.dropped)
        e.dropped = drops
        if now >= self.tell_drops:
            self.tell_drops = now + ms(DROPPED_EVERY)
            memset(&event, 0, sizeof(event))
            event.kind = EVENT_DROPPED
            self._note(&event)

    cdef void _packet(
        self, int socket, msghdr *h, uint64_t hash, const uint8_t *data, size_t n, int64_t now,
    ) noexcept nogil:
        cdef sockaddr_storage *peer = <sockaddr_storage *>h.msg_name
        cdef slot_t *s = self._find(hash, peer, h.msg_namelen)
        cdef uint16_t op = wire_u16(data), code = wire_u16(data + 2)
        if op == TFTP_RRQ or op == TFTP_WRQ:
            if self.endpoints[socket].requests:
                self._request(socket, s, hash, h, data, n, now)
            else:
                self.counts.stranger += 1
            return
        if s == NULL or s.socket != socket or s.state != SLOT_LIVE:
            self._stranger(socket, h, hash, op, now)
        elif op == TFTP_ACK:
            if not self._acknowledged(s, code, now):
                self.counts.stray_ack += 1
        elif op == TFTP_ERROR:
            # The size probe of EDK2 ends with ERROR 8; GRUB, PXELINUX and iPXE close early with ERROR 0.
            if s.x.base == 0 and s.sized and code == TFTP_REFUSED:
                self._end(s, END_PROBE, code, now)
            else:
                self._end(s, END_CANCELLED, code, now)
        else:
            self.counts.malformed += 1

    cdef void _stranger(self, int socket, msghdr *h, uint64_t hash, uint16_t op, int64_t now) noexcept nogil:
        # RFC 1350 section 4: ERROR 5 to the stranger, no harm to the transfer. But none to a client that has
        # just finished: U-Boot starts its download over for every ERROR but 1 and 2.
        cdef recent_t *r = &self.recent[hash % RECENT]
        cdef in_pktinfo *info = pktinfo_of(h)
        if info == NULL or self.interfaces.find(info.ipi_ifindex) < 0:
            self.counts.foreign_interface += 1
            return
        if r.hash == hash and now - r.when < ms(RECENT_FOR):
            self.counts.late += 1
            return
        self.counts.stranger += 1
        if op != TFTP_ERROR:
            self._answer_error(socket, h, TFTP_UNKNOWN_ID, b"unknown transfer")

    cdef void _request(
        self, int socket, slot_t *s, uint64_t hash, msghdr *h, const uint8_t *data, size_t n, int64_t now,
    ) noexcept nogil:
        cdef in_pktinfo *info = pktinfo_of(h)
        cdef uint64_t request_hash = octets_hash(data, n)
        cdef tftp_request_t request
        cdef int interface
        if info == NULL:
            self.counts.malformed += 1
            return
        interface = self.interfaces.find(info.ipi_ifindex)
        if interface < 0:
            self.counts.foreign_interface += 1
            return
        if info.ipi_addr.s_addr != info.ipi_spec_dst.s_addr:
            self.counts.broadcast_request += 1        # RFC 1123 section 4.2.3.5
            return
        if s != NULL and self._is_copy(s, request_hash, now):
            return
        if self.draining:
            self.counts.draining += 1
            return
        if wire_u16(data) == TFTP_WRQ:
            self.counts.write_request += 1
            self._answer_error(socket, h, TFTP_ACCESS, b"read-only")
            return
        if not tftp_parse_request(&request, data, n):
            self.counts.malformed += 1
            self._answer_error(socket, h, TFTP_ILLEGAL, b"malformed request")
            return
        if request.mode == TFTP_MAIL:
            self.counts.malformed += 1
            self._answer_error(socket, h, TFTP_ILLEGAL, b"mail is not served")
            return
        if s != NULL:
            if s.state == SLOT_LIVE:
                self._end(s, END_REPLACED, 0, now)
            else:
                self._free(s, now)
        self._open(socket, hash, h, info, interface, data, n, request_hash, now)

    cdef bint _is_copy(self, slot_t *s, uint64_t request_hash, int64_t now) noexcept nogil:
        # A request that repeats the one being served is answered again if it was not, else ignored: it was
        # under way. One that comes later, or for something else, is a new start from the same port (U-Boot).
        if s.request_hash != request_hash:
            return False
        if s.state == SLOT_LIVE and s.x.proven and now - s.began > ms(COPY):
            return False
        self.counts.duplicate_request += 1
        if s.state == SLOT_LIVE and not s.x.proven and s.x.next > s.x.base:
            tftp_rewind(&s.x)
            self._make_ready(s)
        return True

    cdef void _open(
        self, int socket, uint64_t hash, msghdr *h, in_pktinfo *info, int interface, const uint8_t *data, size_t n,
        uint64_t request_hash, int64_t now,
    ) noexcept nogil:
        cdef uint8_t *kept = <uint8_t *>malloc(n)
        cdef slot_t *s = NULL
        cdef event_t event
        memset(&event, 0, sizeof(event))
        event.packet = <uint8_t *>malloc(n)
        if self.asked < self.most_asked and kept != NULL and event.packet != NULL:
            s = self._take(hash, <sockaddr_storage *>h.msg_name, h.msg_namelen, now)
        if s == NULL:
            free(kept)
            free(event.packet)
            self.counts.full += 1
            return
        memcpy(kept, data, n)
        s.request = kept
        s.request_length = <uint16_t>n
        s.request_hash = request_hash
        s.local = info.ipi_spec_dst
        s.interface = interface
        s.socket = self._pick_socket(socket)
        self.counts.requests += 1
        self.asked += 1
        memcpy(event.packet, data, n)
        event.kind = EVENT_REQUEST
        event.id = s.id
        event.length = s.request_length
        event.peer = s.peer
        event.local = s.local
        event.ifindex = info.ipi_ifindex
        self._note(&event)

    cdef int _pick_socket(self, int socket) noexcept nogil:
        # In turn, so that a late ACK of a client's last transfer misses the next one. With a single port, that.
        if self.endpoints[socket].data:
            return socket
        while True:
            self.next_socket = (self.next_socket + 1) % self.endpoint_count
            if self.endpoints[self.next_socket].data:
                return self.next_socket

    # --- Python's answers ---

    cdef void _take_commands(self, int64_t now) noexcept nogil:
        cdef command_t command
        self.commands.quiet()
        while self.commands.take(&command):
            self._obey(&command, now)

    cdef void _obey(self, command_t *command, int64_t now) noexcept nogil:
        cdef slot_t *s = &self.slots[<uint32_t>command.id]
        cdef uint32_t i
        if command.kind in (COMMAND_START, COMMAND_REFUSE, COMMAND_IGNORE) and self.asked > 0:
            self.asked -= 1
        if command.kind == COMMAND_DRAIN:
            self.draining = True
            self._tell_drained()
        elif command.kind == COMMAND_HALT:
            for i in range(self.capacity):
                if self.slots[i].state == SLOT_LIVE:
                    self._end(&self.slots[i], END_STOPPED, 0, now)
            self.halted = True
        elif command.kind == COMMAND_READ:
            if s.id == command.id and s.state == SLOT_LIVE:
                s.reading = False
                s.known = max(s.known, command.size)
                self._progressed(s, now)
        elif s.id != command.id or s.state != SLOT_WAITING:
            if command.kind == COMMAND_START:
                self._too_late(command, END_REPLACED if s.id != command.id else END_SILENT)
        elif command.kind == COMMAND_REFUSE:
            s.state = SLOT_REFUSED
            s.packet_length = <uint8_t>tftp_emit_error(
                s.packet, sizeof(s.packet), command.code, command.text, command.length)
            self._make_ready(s)
        elif command.kind == COMMAND_IGNORE:
            self._free(s, now)
        else:
            self._start(s, command, now)

    cdef void _too_late(self, command_t *command, uint8_t outcome) noexcept nogil:
        # Python holds the file until it hears of an end.
        cdef event_t event
        memset(&event, 0, sizeof(event))
        event.kind = EVENT_END
        event.outcome = outcome
        event.id = command.id
        self._note(&event)
        file_drop(command.file)

    cdef void _start(self, slot_t *s, command_t *command, int64_t now) noexcept nogil:
        cdef tftp_request_t request
        cdef uint32_t blksize, window
        cdef int64_t *sent
        cdef int64_t tsize = -1 if command.unsized else command.size
        tftp_parse_request(&request, s.request, s.request_length)
        transfer_negotiate(
            s, &request, self.interfaces.mtus[s.interface], self.max_blksize,
            min(self.max_window, command.window), tsize, &blksize, &window)
        sent = <int64_t *>calloc(tftp_ring(window), sizeof(int64_t))
        if sent == NULL:
            self._too_late(command, END_SILENT)
            self._free(s, now)
            return
        free(s.request)
        s.request = NULL
        s.file = command.file
        s.offset = command.offset
        s.state = SLOT_LIVE
        tftp_begin(&s.x, command.size, blksize, window, s.packet_length > 0, sent, now)
        chain_put(&self.unproven, <int32_t>(s - self.slots))
        egress_join(&self.egresses[s.interface], 1)
        self._look_ahead(s, 0)                         # the disk works while the OACK is under way
        self._progressed(s, now)
