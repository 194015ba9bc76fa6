# Transfers: all that are under way. Whose each is, when its timer comes, whether it has blocks to send, whether its
# client was heard of yet, and how it ended. What Python is told waits here. The Sender is built on it, and on that
# the Engine.
#
# The thread in Engine.run() owns it all. Other threads touch only the queue, under its mutex, and read counters and
# progress without it. A request takes a slot (WAITING), Python's answer makes it LIVE or REFUSED, and its end frees it.

@cython.internal
cdef class Transfers:
    cdef slot_t *slots
    cdef int32_t *free
    cdef int32_t free_count
    cdef uint32_t capacity
    cdef table_t table           # by the client's address and port
    cdef wheel_t *wheel
    cdef recent_t *recent
    cdef Interfaces interfaces
    cdef egress_t *egresses      # one for each of those
    cdef wheel_t *turns          # theirs
    cdef hand_t *hands           # in them
    cdef tie_t *ties             # of those that wait for a socket, then of the unproven
    cdef chain_t unproven        # LIVE, and nothing came back from their clients yet
    cdef endpoint_t endpoints[MAX_SOCKETS]
    cdef int endpoint_count
    cdef Crossing told
    cdef bint untold             # events wait in there, and Python was not woken for them
    cdef int64_t tell_from       # see _tell
    cdef counts_t counts
    cdef bint draining

    def __cinit__(self):
        self.wheel = <wheel_t *>memory_for(1, sizeof(wheel_t))
        self.recent = <recent_t *>memory_for(RECENT, sizeof(recent_t))

    cdef int _make_room(self, uint32_t max_transfers, uint32_t events, Interfaces interfaces) except -1:
        # calloc leaves pages that no transfer used untouched, so a big table costs address space only.
        cdef uint32_t places = 4
        cdef uint32_t i
        while places < 2 * max_transfers:
            places *= 2
        self.slots = <slot_t *>memory_for(max_transfers, sizeof(slot_t))
        self.capacity = max_transfers
        self.free = <int32_t *>memory_for(max_transfers, sizeof(int32_t))
        self.ties = <tie_t *>memory_for(2 * max_transfers, sizeof(tie_t))
        self.unproven.ties = self.ties + max_transfers
        self.table.places = <place_t *>memory_for(places, sizeof(place_t))
        self.table.mask = places - 1
        self.wheel.hands = <hand_t *>memory_for(max_transfers, sizeof(hand_t))
        self.hands = <hand_t *>memory_for(max_transfers, sizeof(hand_t))
        self.egresses = <egress_t *>memory_for(interfaces.count, sizeof(egress_t))
        self.turns = <wheel_t *>memory_for(interfaces.count, sizeof(wheel_t))
        self.interfaces = interfaces
        for i in range(<uint32_t>interfaces.count):
            self.turns[i].hands = self.hands           # a transfer is in one of them
            self.egresses[i].turns = &self.turns[i]
            self.egresses[i].delivery = &interfaces.deliveries[i]
        for i in range(max_transfers):
            self.wheel.hands[i].tick = self.hands[i].tick = -1
            self.free[i] = max_transfers - 1 - i
        self.free_count = max_transfers
        self.told = Crossing(sizeof(event_t), events)
        return 0

    def __dealloc__(self):
        cdef uint32_t i
        cdef event_t event
        for i in range(self.capacity):
            if self.slots[i].state != SLOT_FREE:
                self._release(&self.slots[i])
        free(self.slots)
        if self.told is not None:
            while self.told.take(&event):
                free(event.packet)
        if self.wheel != NULL:
            free(self.wheel.hands)
        free(self.wheel)
        free(self.free)
        free(self.egresses)
        free(self.turns)
        free(self.hands)
        free(self.ties)
        free(self.table.places)
        free(self.recent)

    # --- the other threads' side ---

    def fileno(self):
        return self.told.fd

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

    # --- what Python is told ---

    cdef void _note(self, const event_t *event) noexcept nogil:
        self.told.add(event)
        self.untold = True

    cdef int64_t _tell(self, int64_t now) noexcept nogil:
        # Wake Python for what was noted. To be woken for each of 2,500 requests a second costs it more than all of them
        # do. So wakes are GATHER apart, but of TELL_AT_ONCE that may come sooner: whoever asks while little is going on
        # waits for nothing. Returns when to call again where that is to wait; -1 where nothing is left.
        self.untold = self.untold and not self.told.is_empty()
        if not self.untold:
            return -1
        if now < self.tell_from - TELL_AT_ONCE * GATHER:
            return self.tell_from - TELL_AT_ONCE * GATHER
        self.tell_from = max(self.tell_from, now) + GATHER
        self.untold = False
        self.told.wake()
        return -1

    # --- a transfer's life ---

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

    cdef slot_t *_take(self, uint64_t hash, sockaddr_storage *peer, uint32_t length, int64_t now) noexcept nogil:
        # A slot for a client that has none, WAITING; NULL where there is no room.
        cdef slot_t *s
        cdef uint64_t generation
        cdef int32_t i
        if self.free_count == 0 and not self._evict(now):
            return NULL
        self.free_count -= 1
        i = self.free[self.free_count]
        s = &self.slots[i]
        generation = (s.id >> 32) + 1
        memset(s, 0, sizeof(slot_t))
        s.id = (generation << 32) | <uint64_t>i
        memcpy(&s.peer, peer, length)
        s.peer_length = length
        s.state = SLOT_WAITING
        s.segmented = True
        s.flight.beyond = -1
        s.began = now
        s.x.deadline = now + ms(PATIENCE_ANSWER)
        table_put(&self.table, hash, i)
        self._arm(s)
        return s

    cdef bint _evict(self, int64_t now) noexcept nogil:
        # A flood of requests that nobody goes on with must not keep out who does: the oldest answer that nothing came
        # back to makes room. No question does: were floods quicker than Python, every answer would come too late.
        cdef slot_t *s
        if self.unproven.first == 0:
            return False
        s = &self.slots[self.unproven.first - 1]
        if now - s.x.heard < ms(GRACE):
            return False
        self.counts.evicted += 1
        self._end(s, END_EVICTED, 0, now)
        return True

    cdef void _arm(self, slot_t *s) noexcept nogil:
        wheel_set(self.wheel, <int32_t>(s - self.slots), s.x.deadline // TICK + 1)

    cdef void _make_ready(self, slot_t *s) noexcept nogil:
        cdef int64_t due = tftp_due(&s.x) if s.state == SLOT_LIVE else 1
        egress_ready(&self.egresses[s.interface], &s.flight, <int32_t>(s - self.slots), due)

    cdef bint _acknowledged(self, slot_t *s, uint16_t block, int64_t now) noexcept nogil:
        # False: an acknowledgement of nothing under way.
        cdef egress_t *e = &self.egresses[s.interface]
        cdef int64_t base = s.x.base
        cdef bint proven = s.x.proven
        if not tftp_on_ack(&s.x, block, now):
            return False
        if not proven:
            chain_remove(&self.unproven, <int32_t>(s - self.slots))
        egress_acknowledged(e, &s.flight, s.x.base - base, s.x.trip)
        self._progressed(s, now)
        return True

    cdef void _progressed(self, slot_t *s, int64_t now) noexcept nogil:
        # After anything that moved a live transfer: it ended, or it may have blocks to send.
        if s.x.outcome != TFTP_SENDING:
            self._end(s, s.x.outcome, 0, now)
            return
        egress_count(&self.egresses[s.interface], &s.flight, tftp_in_flight(&s.x))
        if tftp_due(&s.x) > 0:
            self._make_ready(s)
        self._arm(s)

    cdef void _fire(self, int64_t now) noexcept nogil:
        cdef int32_t i = wheel_pop(self.wheel, now // TICK)
        cdef slot_t *s
        while i >= 0:
            s = &self.slots[i]
            if s.state == SLOT_WAITING and now >= s.x.deadline:
                self.counts.unanswered += 1
                self._free(s, now)
            elif s.state == SLOT_LIVE and now >= s.x.deadline:
                self.counts.timeouts += tftp_on_timer(&s.x, now)
                self._progressed(s, now)
            elif s.state != SLOT_REFUSED:
                self._arm(s)
            i = wheel_pop(self.wheel, now // TICK)

    cdef void _end(self, slot_t *s, uint8_t outcome, uint16_t code, int64_t now) noexcept nogil:
        cdef event_t event = transfer_end(s, outcome, code, now)
        self._note(&event)
        self._free(s, now)

    cdef void _free(self, slot_t *s, int64_t now) noexcept nogil:
        cdef int32_t i = <int32_t>(s - self.slots)
        cdef uint64_t hash = peer_hash(&s.peer, s.peer_length)
        cdef recent_t *r = &self.recent[hash % RECENT]
        cdef egress_t *e = &self.egresses[s.interface]
        r.hash = hash
        r.when = now
        if s.state == SLOT_LIVE:
            egress_join(e, -1)
        egress_leave(e, &s.flight, i)
        table_remove(&self.table, hash, i)
        wheel_remove(self.wheel, i)
        chain_remove(&self.endpoints[s.socket].waiting, i)
        chain_remove(&self.unproven, i)
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
            self._note(&event)
