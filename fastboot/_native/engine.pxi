# Engine: one thread that answers TFTP. It asks Python once per request and moves every block itself.
#
# The thread that calls run() owns the transfers, tables and sockets. Other threads touch only the two queues,
# under the mutex, and read counters and progress without it. A request takes a slot (WAITING) and an event;
# Python answers with a command; the end of the transfer is an event again, whose place is kept from the moment
# the slot is taken.

cdef class Engine:
    cdef slot_t *slots
    cdef int32_t *free
    cdef int32_t free_count
    cdef uint32_t capacity
    cdef uint32_t asked          # questions to Python that it has not answered
    cdef uint32_t most_asked
    cdef table_t table           # by the client's address and port
    cdef wheel_t *wheel
    cdef recent_t *recent
    cdef outbox_t *batch
    cdef inbox_t *inbox
    cdef endpoint_t endpoints[MAX_SOCKETS]
    cdef int endpoint_count
    cdef int next_socket
    cdef mtu_t mtus[MAX_LINKS]
    cdef int mtu_count
    cdef uint32_t max_blksize
    cdef uint16_t max_window
    cdef int epoll
    cdef Crossing commands
    cdef Crossing told
    cdef counts_t counts
    cdef bint segmentation
    cdef bint draining
    cdef bint halted
    cdef object sockets
    cdef bint ran

    def __cinit__(self):
        self.epoll = -1

    def __init__(self, listen not None, data not None, links not None, *, uint32_t max_transfers=4096,
                 uint32_t max_blksize=1468, uint16_t max_windowsize=64):
        cdef uint32_t places = 4
        cdef uint32_t i
        if self.slots != NULL:
            raise RuntimeError("an Engine is initialised once")
        if not 1 <= max_transfers <= 65536:
            raise ValueError("max_transfers is 1 to 65536")
        if not 8 <= max_blksize <= 65464:
            raise ValueError("max_blksize is 8 to 65464 (RFC 2348 section 2)")
        if not 1 <= max_windowsize <= BATCH_BLOCKS:
            raise ValueError(f"max_windowsize is 1 to {BATCH_BLOCKS}")
        if not listen or len(listen) + len(data) > MAX_SOCKETS or len(links) > MAX_LINKS:
            raise ValueError(f"an Engine takes 1 to {MAX_SOCKETS} sockets and {MAX_LINKS} links")
        while places < 2 * max_transfers:
            places *= 2
        self.capacity = max_transfers
        self.max_blksize = max_blksize
        self.max_window = max_windowsize
        self.segmentation = True
        # calloc leaves pages that no transfer used untouched, so a big table costs address space only.
        self.slots = <slot_t *>calloc(max_transfers, sizeof(slot_t))
        self.free = <int32_t *>calloc(max_transfers, sizeof(int32_t))
        self.table.places = <place_t *>calloc(places, sizeof(place_t))
        self.table.mask = places - 1
        self.wheel = <wheel_t *>calloc(1, sizeof(wheel_t))
        self.recent = <recent_t *>calloc(RECENT, sizeof(recent_t))
        self.batch = <outbox_t *>calloc(1, sizeof(outbox_t))
        self.inbox = <inbox_t *>calloc(1, sizeof(inbox_t))
        # A client that asks for something else every moment leaves questions behind: these are bounded, not the slots.
        self.most_asked = 2 * max_transfers + 8
        self.commands = Crossing(sizeof(command_t), self.most_asked + 8)
        # Every question, an end for every answer and every slot, and notices.
        self.told = Crossing(sizeof(event_t), 2 * self.most_asked + max_transfers + 16)
        if (self.slots == NULL or self.free == NULL or self.table.places == NULL or self.wheel == NULL
                or self.recent == NULL or self.batch == NULL or self.inbox == NULL):
            raise MemoryError
        self.wheel.hands = <hand_t *>calloc(max_transfers, sizeof(hand_t))
        if self.wheel.hands == NULL:
            raise MemoryError
        for i in range(max_transfers):
            self.wheel.hands[i].tick = -1
            self.free[i] = max_transfers - 1 - i
        self.free_count = max_transfers
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self.sockets = (list(listen), list(data))
        for link in links:
            self.mtus[self.mtu_count].ifindex = link[0]
            self.mtus[self.mtu_count].mtu = link[1]
            self.mtu_count += 1
        for each in listen:
            self._add(each.fileno(), True, not data)
        for each in data:
            self._add(each.fileno(), False, True)
        self._watch(MAX_SOCKETS, self.commands.fd)

    cdef int _add(self, int fd, bint requests, bint data) except -1:
        cdef endpoint_t *e = &self.endpoints[self.endpoint_count]
        e.fd = fd
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

    def __dealloc__(self):
        cdef uint32_t i
        cdef command_t command
        cdef event_t event
        if self.slots != NULL:
            for i in range(self.capacity):
                if self.slots[i].state != SLOT_FREE:
                    self._release(&self.slots[i])
            free(self.slots)
        if self.commands is not None:
            while self.commands.take(&command):
                if command.file != NULL:
                    file_drop(command.file)
        if self.told is not None:
            while self.told.take(&event):
                free(event.packet)
        if self.wheel != NULL:
            free(self.wheel.hands)
        free(self.wheel)
        free(self.free)
        free(self.table.places)
        free(self.recent)
        free(self.batch)
        free(self.inbox)
        if self.epoll >= 0:
            c_close(self.epoll)

    # --- the other threads' side ---------------------------------------------------------------------------

    def fileno(self):
        return self.told.fd

    def start(self, uint64_t id, Source source not None, *, bint tsize=True):
        cdef command_t command
        memset(&command, 0, sizeof(command))
        source.ensure_map()
        command.kind = COMMAND_START
        command.id = id
        command.file = source.file
        command.offset = source.offset
        command.size = source.size
        command.unsized = not tsize
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

    def drain(self):
        cdef command_t command
        memset(&command, 0, sizeof(command))
        command.kind = COMMAND_DRAIN
        self._command(&command)

    def halt(self):
        cdef command_t command
        memset(&command, 0, sizeof(command))
        command.kind = COMMAND_HALT
        self._command(&command)

    cdef int _command(self, command_t *command) except -1:
        # Room is never short: one answer per question, and the two that stop.
        if not self.commands.put(command):
            if command.file != NULL:
                file_drop(command.file)
            raise RuntimeError("more answers than requests")
        return 0

    def events(self):
        cdef event_t event
        cdef list out = []
        self.told.quiet()
        while self.told.take(&event):
            out.append(event_to_python(&event))
        return out

    def counters(self):
        cdef dict out = self.counts
        return out

    def transfers(self):
        # Racy by design: a figure for people, read while the engine goes on.
        cdef uint32_t i
        cdef slot_t *s
        cdef list out = []
        for i in range(self.capacity):
            s = &self.slots[i]
            if s.state == SLOT_LIVE:
                out.append((s.id, octets_done(&s.x), s.x.size))
        return out

    # --- the engine's thread -------------------------------------------------------------------------------

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
        while not self.halted:
            n = epoll_wait(self.epoll, ready, MAX_SOCKETS + 1, self._patience(now))
            now = now_ns()
            for i in range(n):
                if ready[i].data.u64 == MAX_SOCKETS:
                    self._take_commands(now)
                    continue
                if ready[i].events & EPOLLOUT:
                    self._set_blocked(<int>ready[i].data.u64, False)
                if ready[i].events & (EPOLLIN | EPOLLERR):
                    self._receive(<int>ready[i].data.u64, now)
                    self._flush(<int>ready[i].data.u64, now)
            self._fire(now)
            for i in range(self.endpoint_count):
                self._flush(i, now)

    cdef int _patience(self, int64_t now) noexcept nogil:
        # Milliseconds until the next timer; -1 without one.
        cdef int64_t tick = wheel_next(self.wheel)
        cdef int64_t left
        if tick < 0:
            return -1
        left = tick - now // TICK
        return <int>left if left > 0 else 0

    cdef void _fire(self, int64_t now) noexcept nogil:
        cdef int32_t i = wheel_pop(self.wheel, now // TICK)
        cdef slot_t *s
        while i >= 0:
            s = &self.slots[i]
            if s.state == SLOT_WAITING and now >= s.x.deadline:
                self.counts.unanswered += 1
                self._free(s, now)
            elif s.state == SLOT_LIVE:
                if now >= s.x.deadline:
                    self.counts.timeouts += 1
                    tftp_on_timer(&s.x, now)
                self._progressed(s, now)
            elif s.state == SLOT_WAITING:
                self._arm(s)
            i = wheel_pop(self.wheel, now // TICK)

    cdef void _arm(self, slot_t *s) noexcept nogil:
        wheel_set(self.wheel, <int32_t>(s - self.slots), s.x.deadline // TICK + 1)

    cdef void _progressed(self, slot_t *s, int64_t now) noexcept nogil:
        # After anything that moved a live transfer: it ended, or it may have blocks to send.
        if s.x.outcome != TFTP_SENDING:
            self._end(s, s.x.outcome, 0, now)
            return
        if tftp_due(&s.x) > 0:
            ready_put(&self.endpoints[s.socket], self.slots, s)
        self._arm(s)

    # --- receiving ---

    cdef void _receive(self, int socket, int64_t now) noexcept nogil:
        cdef inbox_t *box = self.inbox
        cdef msghdr *h
        cdef int n, i
        inbox_prepare(box)
        n = recvmmsg(self.endpoints[socket].fd, box.messages, BATCH, MSG_DONTWAIT, NULL)
        for i in range(n):
            h = &box.messages[i].msg_hdr
            # Nobody can be answered at port 0.
            if h.msg_flags & MSG_TRUNC or box.messages[i].msg_len < 4 or (<sockaddr_in *>h.msg_name).sin_port == 0:
                self.counts.malformed += 1
                continue
            self._packet(socket, h, box.packets[i], box.messages[i].msg_len, now)

    cdef void _packet(self, int socket, msghdr *h, const uint8_t *data, size_t n, int64_t now) noexcept nogil:
        cdef sockaddr_storage *peer = <sockaddr_storage *>h.msg_name
        cdef uint64_t hash = peer_hash(peer, h.msg_namelen)
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
            if tftp_on_ack(&s.x, code, now):
                self._progressed(s, now)
            else:
                self.counts.stray_ack += 1
        elif op == TFTP_ERROR:
            # The size probe of EDK2 ends with ERROR 8; GRUB, PXELINUX and iPXE close early with ERROR 0.
            if s.x.base == 0 and s.sized and code == TFTP_REFUSED:
                self._end(s, END_PROBE, code, now)
            else:
                self._end(s, END_CANCELLED, code, now)
        else:
            self.counts.malformed += 1

    cdef slot_t *_find(self, uint64_t hash, sockaddr_storage *peer, uint32_t length) noexcept nogil:
        cdef uint64_t at = hash
        cdef slot_t *s
        cdef int32_t i = table_next(&self.table, hash, &at)
        while i >= 0:
            s = &self.slots[i]
            if s.peer_length == length and memcmp(&s.peer, peer, length) == 0:
                return s
            i = table_next(&self.table, hash, &at)
        return NULL

    cdef void _stranger(self, int socket, msghdr *h, uint64_t hash, uint16_t op, int64_t now) noexcept nogil:
        # RFC 1350 section 4: ERROR 5 to the stranger, no harm to the transfer. But none to a client that has
        # just finished: U-Boot starts its download over for every ERROR but 1 and 2.
        cdef recent_t *r = &self.recent[hash % RECENT]
        cdef in_pktinfo *info = pktinfo_of(h)
        if info == NULL or self._mtu(info.ipi_ifindex) == 0:
            self.counts.foreign_interface += 1
            return
        if r.hash == hash and now - r.when < ms(RECENT_FOR):
            self.counts.late += 1
            return
        self.counts.stranger += 1
        if op != TFTP_ERROR:
            self._reply_error_to_sender(socket, h, TFTP_UNKNOWN_ID, b"unknown transfer")

    cdef void _reply_error(
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

    cdef void _reply_error_to_sender(self, int socket, msghdr *h, uint16_t code, const char *text) noexcept nogil:
        cdef in_pktinfo *info = pktinfo_of(h)
        if info != NULL:
            self._reply_error(
                socket, <sockaddr_storage *>h.msg_name, h.msg_namelen, info.ipi_spec_dst, code, text)

    cdef void _request(
        self, int socket, slot_t *s, uint64_t hash, msghdr *h, const uint8_t *data, size_t n, int64_t now,
    ) noexcept nogil:
        cdef in_pktinfo *info = pktinfo_of(h)
        cdef uint64_t request_hash = octets_hash(data, n)
        cdef tftp_request_t request
        cdef uint32_t mtu
        if info == NULL:
            self.counts.malformed += 1
            return
        mtu = self._mtu(info.ipi_ifindex)
        if mtu == 0:
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
            self._reply_error_to_sender(socket, h, TFTP_ACCESS, b"read-only")
            return
        if not tftp_parse_request(&request, data, n):
            self.counts.malformed += 1
            self._reply_error_to_sender(socket, h, TFTP_ILLEGAL, b"malformed request")
            return
        if request.mode == TFTP_MAIL:
            self.counts.malformed += 1
            self._reply_error_to_sender(socket, h, TFTP_ILLEGAL, b"mail is not served")
            return
        if s != NULL:
            if s.state == SLOT_LIVE:
                self._end(s, END_REPLACED, 0, now)
            else:
                self._free(s, now)
        self._open(socket, hash, h, info, mtu, data, n, request_hash, now)

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
            ready_put(&self.endpoints[s.socket], self.slots, s)
        return True

    cdef void _open(
        self, int socket, uint64_t hash, msghdr *h, in_pktinfo *info, uint32_t mtu, const uint8_t *data, size_t n,
        uint64_t request_hash, int64_t now,
    ) noexcept nogil:
        cdef slot_t *s
        cdef uint64_t generation
        cdef event_t event
        cdef int32_t i
        if self.free_count == 0 or self.asked == self.most_asked:
            self.counts.full += 1
            return
        memset(&event, 0, sizeof(event))
        event.packet = <uint8_t *>malloc(n)
        if event.packet == NULL:
            self.counts.full += 1
            return
        memcpy(event.packet, data, n)
        self.free_count -= 1
        i = self.free[self.free_count]
        s = &self.slots[i]
        generation = (s.id >> 32) + 1
        memset(s, 0, sizeof(slot_t))
        s.id = (generation << 32) | <uint64_t>i
        s.request = <uint8_t *>malloc(n)
        if s.request == NULL:
            free(event.packet)
            self.free_count += 1
            self.counts.full += 1
            return
        memcpy(s.request, data, n)
        s.request_length = <uint16_t>n
        s.request_hash = request_hash
        memcpy(&s.peer, h.msg_name, h.msg_namelen)
        s.peer_length = h.msg_namelen
        s.local = info.ipi_spec_dst
        s.ifindex = info.ipi_ifindex
        s.mtu = mtu
        s.socket = self._pick_socket(socket)
        s.state = SLOT_WAITING
        s.segmented = True
        s.began = now
        s.x.deadline = now + ms(PATIENCE_ANSWER)
        table_put(&self.table, hash, i)
        self._arm(s)
        self.counts.requests += 1
        event.kind = EVENT_REQUEST
        event.id = s.id
        event.length = s.request_length
        event.peer = s.peer
        event.local = s.local
        event.ifindex = s.ifindex
        self.asked += 1
        self.told.put(&event)

    cdef int _pick_socket(self, int socket) noexcept nogil:
        # In turn, so that a late ACK of a client's last transfer misses the next one. With a single port, that.
        if self.endpoints[socket].data:
            return socket
        while True:
            self.next_socket = (self.next_socket + 1) % self.endpoint_count
            if self.endpoints[self.next_socket].data:
                return self.next_socket

    cdef uint32_t _mtu(self, int ifindex) noexcept nogil:
        cdef int i
        for i in range(self.mtu_count):
            if self.mtus[i].ifindex == ifindex:
                return self.mtus[i].mtu
        return 0

    # --- Python's answers ---

    cdef void _take_commands(self, int64_t now) noexcept nogil:
        cdef command_t command
        self.commands.quiet()
        while self.commands.take(&command):
            self._obey(&command, now)

    cdef void _obey(self, command_t *command, int64_t now) noexcept nogil:
        cdef slot_t *s = &self.slots[<uint32_t>command.id]
        cdef uint32_t i
        if command.kind in (COMMAND_START, COMMAND_REFUSE) and self.asked > 0:
            self.asked -= 1
        if command.kind == COMMAND_DRAIN:
            self.draining = True
            self._tell_drained()
        elif command.kind == COMMAND_HALT:
            for i in range(self.capacity):
                if self.slots[i].state == SLOT_LIVE:
                    self._end(&self.slots[i], END_STOPPED, 0, now)
            self.halted = True
        elif s.id != command.id or s.state != SLOT_WAITING:
            if command.kind == COMMAND_START:
                self._too_late(command, END_REPLACED if s.id != command.id else END_SILENT)
        elif command.kind == COMMAND_REFUSE:
            s.state = SLOT_REFUSED
            s.packet_length = <uint8_t>tftp_emit_error(
                s.packet, sizeof(s.packet), command.code, command.text, command.length)
            ready_put(&self.endpoints[s.socket], self.slots, s)
        else:
            self._start(s, command, now)

    cdef void _too_late(self, command_t *command, uint8_t outcome) noexcept nogil:
        # Python holds the file until it hears of an end.
        cdef event_t event
        memset(&event, 0, sizeof(event))
        event.kind = EVENT_END
        event.outcome = outcome
        event.id = command.id
        self.told.put(&event)
        file_drop(command.file)

    cdef void _start(self, slot_t *s, command_t *command, int64_t now) noexcept nogil:
        cdef tftp_request_t request
        cdef uint32_t blksize = 512, most = self.max_blksize
        cdef uint32_t window = 1
        cdef int64_t *sent
        cdef int64_t tsize = -1 if command.unsized else command.size
        tftp_parse_request(&request, s.request, s.request_length)
        if most > s.mtu - 32 and s.mtu > 40:           # IPv4, UDP and TFTP headers
            most = s.mtu - 32
        if request.options[TFTP_BLKSIZE].asked:
            blksize = most
            if request.options[TFTP_BLKSIZE].value < most:
                blksize = <uint32_t>request.options[TFTP_BLKSIZE].value
        if request.options[TFTP_WINDOWSIZE].asked:
            window = self.max_window
            if request.options[TFTP_WINDOWSIZE].value < window:
                window = <uint32_t>request.options[TFTP_WINDOWSIZE].value
        sent = <int64_t *>calloc(window, sizeof(int64_t))
        if sent == NULL:
            file_drop(command.file)
            self._free(s, now)
            return
        s.packet_length = <uint8_t>tftp_emit_oack(
            s.packet, sizeof(s.packet), &request, blksize, window, tsize)
        s.sized = request.options[TFTP_TSIZE].asked
        free(s.request)
        s.request = NULL
        s.file = command.file
        s.offset = command.offset
        s.state = SLOT_LIVE
        tftp_begin(&s.x, command.size, blksize, window, s.packet_length > 0, sent, now)
        self._progressed(s, now)

    # --- sending ---

    cdef void _set_blocked(self, int socket, bint blocked) noexcept nogil:
        cdef endpoint_t *e = &self.endpoints[socket]
        cdef epoll_event event
        if e.blocked == blocked:
            return
        e.blocked = blocked
        event.events = EPOLLIN | EPOLLOUT if blocked else EPOLLIN
        event.data.u64 = socket
        epoll_ctl(self.epoll, EPOLL_CTL_MOD, e.fd, &event)

    cdef void _flush(self, int socket, int64_t now) noexcept nogil:
        # Everything that the slots of one socket may send, in as few calls as possible; round robin, one
        # batch's share per slot and turn.
        cdef endpoint_t *e = &self.endpoints[socket]
        cdef slot_t *s
        while e.first_ready and not e.blocked:
            s = &self.slots[e.first_ready - 1]
            if not self._plan(s, now):
                self._send(socket, now)
                continue
            ready_remove(e, self.slots, s)
        self._send(socket, now)

    cdef bint _plan(self, slot_t *s, int64_t now) noexcept nogil:
        # Put what the slot may send into the batch. False: no room, send first and ask again.
        cdef int64_t first, due, count, most
        if s.state == SLOT_REFUSED or (s.state == SLOT_LIVE and s.x.base == 0 and s.x.next == 0):
            if self.batch.n == BATCH or self.batch.segments == BATCH_BLOCKS:
                return False
            self._add_packet(s)
            return True
        if s.state != SLOT_LIVE:
            return True
        due = tftp_due(&s.x)
        first = s.x.next
        if due > 0 and first + due > s.x.last and not file_unchanged(s.file):
            self._changed(s, now)
            return True
        most = SEGMENT_OCTETS // (s.x.blksize + 4)
        if most > SEGMENTS:
            most = SEGMENTS
        if not (self.segmentation and s.segmented):
            most = 1
        # A slot's blocks go into one batch or wait for the next: no part of a window is planned twice.
        if due > 0 and (BATCH_BLOCKS - self.batch.segments < due
                        or BATCH - self.batch.n < (due + most - 1) // most):
            if self.batch.n:
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
        outbox_add(self.batch, h, s.packet, s.packet_length)

    cdef void _add_blocks(self, slot_t *s, int64_t first, int64_t count) noexcept nogil:
        cdef int used = self.batch.segments
        cdef msghdr *h = self._message(s, count, <uint16_t>(s.x.blksize + 4) if count > 1 else 0)
        cdef uint8_t *header
        cdef int64_t block, at, n
        for block in range(first, first + count):
            header = self.batch.headers[used]
            used += 1
            header[0] = 0
            header[1] = TFTP_DATA
            header[2] = (block >> 8) & 0xff
            header[3] = block & 0xff
            outbox_add(self.batch, h, header, 4)
            at = (block - 1) * s.x.blksize
            n = s.x.size - at
            if n > s.x.blksize:
                n = s.x.blksize
            if n > 0:
                outbox_add(self.batch, h, s.file.map + s.offset + at, n)

    cdef msghdr *_message(self, slot_t *s, int64_t count, uint16_t segment) noexcept nogil:
        return outbox_message(
            self.batch, <int32_t>(s - self.slots), <int32_t>count, &s.peer, s.peer_length, s.local, segment)

    cdef void _send(self, int socket, int64_t now) noexcept nogil:
        cdef outbox_t *b = self.batch
        cdef int done = 0, n, i
        if b.n == 0:
            return
        while done < b.n:
            n = sendmmsg(self.endpoints[socket].fd, &b.messages[done], b.n - done, MSG_DONTWAIT)
            self.counts.batches += 1
            if n > 0:
                for i in range(done, done + n):
                    self._sent(&self.slots[b.owners[i]], b.counts[i], now)
                done += n
            elif errno == EAGAIN or errno == ENOBUFS:
                # What is left is planned again when there is room; its slots keep their place in the queue.
                self.counts.socket_full += 1
                for i in range(done, b.n):
                    ready_put(&self.endpoints[socket], self.slots, &self.slots[b.owners[i]])
                self._set_blocked(socket, True)
                break
            elif errno != EINTR:
                done = self._failed(done, errno, now)
        b.n = b.segments = b.vectors_used = 0

    cdef void _sent(self, slot_t *s, int32_t count, int64_t now) noexcept nogil:
        if s.state == SLOT_REFUSED:
            self._free(s, now)
        elif s.state == SLOT_LIVE:
            self.counts.blocks += count
            tftp_on_sent(&s.x, count, now)
            self._arm(s)
            if tftp_due(&s.x) > 0:
                ready_put(&self.endpoints[s.socket], self.slots, s)

    cdef int _failed(self, int at, int error, int64_t now) noexcept nogil:
        # One message was refused. Returns which to try next: where the slot is planned anew or ends, not the
        # rest of its blocks in this batch.
        cdef outbox_t *b = self.batch
        cdef int32_t index = b.owners[at]
        cdef slot_t *s = &self.slots[index]
        cdef bint segmented = b.counts[at] > 1
        cdef event_t event
        if s.state == SLOT_LIVE and error == EFAULT:
            self._changed(s, now)                      # a map past the end of a file that became shorter
        elif segmented and error in (EMSGSIZE, EINVAL):
            s.segmented = False                        # the path is narrower than the interface (older kernels: EINVAL)
            ready_put(&self.endpoints[s.socket], self.slots, s)
        elif segmented and error in (EIO, EOPNOTSUPP):
            if self.segmentation:
                self.segmentation = False
                memset(&event, 0, sizeof(event))
                event.kind = EVENT_NO_SEGMENTATION
                event.ifindex = s.ifindex
                event.code = <uint16_t>error
                self.told.put(&event)
            ready_put(&self.endpoints[s.socket], self.slots, s)
        else:
            # As if lost on the wire: a firewall's EPERM, no route for a moment. The timer goes on.
            self.counts.send_failed += 1
            self._sent(s, b.counts[at], now)
            return at + 1
        while at < b.n and b.owners[at] == index:
            at += 1
        return at

    # --- ends ---

    cdef void _changed(self, slot_t *s, int64_t now) noexcept nogil:
        self._reply_error(s.socket, &s.peer, s.peer_length, s.local, 0, b"file changed while it was sent")
        self._end(s, END_CHANGED, 0, now)

    cdef void _end(self, slot_t *s, uint8_t outcome, uint16_t code, int64_t now) noexcept nogil:
        cdef event_t event
        memset(&event, 0, sizeof(event))
        event.kind = EVENT_END
        event.outcome = outcome
        event.code = code
        event.id = s.id
        event.octets = octets_done(&s.x)
        event.blocks = s.x.high - 1 if s.x.high else 0
        event.repeats = s.x.repeats
        event.nanoseconds = now - s.began
        event.blksize = s.x.blksize
        event.window = s.x.window
        self.told.put(&event)
        self._free(s, now)

    cdef void _free(self, slot_t *s, int64_t now) noexcept nogil:
        cdef int32_t i = <int32_t>(s - self.slots)
        cdef uint64_t hash = peer_hash(&s.peer, s.peer_length)
        cdef recent_t *r = &self.recent[hash % RECENT]
        r.hash = hash
        r.when = now
        table_remove(&self.table, hash, i)
        wheel_remove(self.wheel, i)
        ready_remove(&self.endpoints[s.socket], self.slots, s)
        self._release(s)
        self.free[self.free_count] = i
        self.free_count += 1
        if self.draining:
            self._tell_drained()

    cdef void _release(self, slot_t *s) noexcept nogil:
        s.state = SLOT_FREE
        free(s.request)
        s.request = NULL
        free(s.x.sent)
        s.x.sent = NULL
        if s.file != NULL:
            file_drop(s.file)
            s.file = NULL

    cdef void _tell_drained(self) noexcept nogil:
        cdef event_t event
        if self.free_count == <int32_t>self.capacity:
            memset(&event, 0, sizeof(event))
            event.kind = EVENT_DRAINED
            self.told.put(&event)
