# Leases: how it changes who has an address, and which of that is not on disk yet. A LeaseKeeper owns one. No change
# of a binding counts before `settle_rows` is told that its row is on disk.

cdef enum:
    LEASES_ROWS = 256               # of one commit; larger ones only lengthen the wait of their first

# Kept beyond what was promised (RFC 2131 3.3): the client counts from its packet, and `now` may be of before that.
cdef int64_t LEASE_GRACE = SECOND // 10
cdef int64_t OFFER_FOR = 120 * SECOND       # the Raspberry Pi ROM boots from an OFFER and never sends REQUEST

cdef struct row_t:
    int32_t lease
    uint64_t batch

STATE_NAMES = ("free", "offered", "bound", "declined")


cdef class Leases(Addresses):
    cdef row_t *rows
    cdef int32_t row_count
    cdef int32_t row_room
    cdef int32_t flight             # rows of the batch in flight, the first of `rows`
    cdef uint64_t filling           # number of the batch that takes rows; numbers rise over restarts
    cdef int32_t filled
    cdef int64_t quarantine_for

    def __cinit__(self):
        self.filling = 1
        self.quarantine_for = 3600 * SECOND

    def __dealloc__(self):
        free(self.rows)

    cdef void tick(self, int64_t now) noexcept nogil:
        self.now = now
        self.expire()

    # ---- rows from elsewhere

    cdef load(self, list rows, int64_t now, uint64_t last):
        # Rows of the store, as Store.rows gives them, and the number of the last batch that it has. Returns how many
        # lie outside of every subnet: nobody gets these addresses, but a reload may bring their subnet back.
        cdef int32_t i, outside = 0
        self.now = now
        self.filling = last + 1
        for row in rows:
            i = self.entry(row[0])
            outside += self.table.at[i].subnet == NOWHERE
            self.take_row(i, row)
        with nogil:
            self.expire()
        self.list_free()
        return outside

    cdef adopt(self, list rows, int64_t now):
        # Leases that another server gave, all in one batch; its number, and the addresses that are not free.
        cdef int32_t i
        taken = []
        self.tick(now)
        self.filled -= len(rows)                        # the batch ends with the last of them
        for row in rows:
            i = self.entry(row[0])
            if self.table.at[i].now.state != LEASE_FREE or self.table.at[i].batch or not self.stage(i):
                self.filled += 1
                taken.append(row[0])
                continue
            self.unlist(i)
            self.take_row(i, row)
        return self.filling, taken

    cdef take_row(self, int32_t i, row):
        cdef lease_t *lease = &self.table.at[i]
        cdef text_t texts[LEASE_TEXTS]
        cdef bytes mac, client_id, host, circuit, remote
        cdef const char *hardware
        _, state, htype, mac, client_id, host, relay, circuit, remote, starts, expires = row
        hardware = mac
        lease.now.state = LEASE_DECLINED if state == "declined" else LEASE_BOUND
        lease.now.htype, lease.now.hlen = htype, min(len(mac), 16)
        memcpy(lease.now.chaddr, hardware, lease.now.hlen)
        lease.now.starts, lease.now.expires = starts, INT64_MAX if expires is None else expires
        lease.now.relay = relay
        text_take(&texts[LEASE_CLIENT_ID], client_id, LEASE_LONGEST)
        text_take(&texts[LEASE_HOST], host, LEASE_HOST_LONGEST)
        text_take(&texts[LEASE_CIRCUIT], circuit, LEASE_LONGEST)
        text_take(&texts[LEASE_REMOTE], remote, LEASE_LONGEST)
        self.forget_texts(&lease.now)
        self.set_texts(&lease.now, texts)
        self.set_port(&lease.now)
        if state != "declined":
            self.set_who(i, self.client_of(&lease.now, lease.subnet))
        if state == "released":
            lease.now.expires = min(lease.now.expires, self.now)
        lease_until(&self.table, i, lease.now.expires)

    cdef uint32_t rest(self, const lease_t *lease, digest_t who, const dhcp_msg_t *m, uint32_t wanted) noexcept nogil:
        # Seconds left of a lease in its first quarter, which is on disk; 0: a new one is due.
        cdef int64_t left
        cdef size_t host = host_of(m)
        if lease.now.state != LEASE_BOUND or not digest_same(lease.now.who, who):
            return 0
        if lease.now.expires == INT64_MAX:
            left = 0xFFFFFFFF
        else:
            left = (lease.now.expires - LEASE_GRACE - self.now) // SECOND
            if (self.now - lease.now.starts) * 4 >= lease.now.expires - LEASE_GRACE - lease.now.starts:
                return 0
        if left > wanted or (host and not lease_says(&lease.now, LEASE_HOST, dhcp_value(m, OPTION_HOST_NAME), host)):
            return 0
        if m.relay.heard and not (
                lease_says(&lease.now, LEASE_CIRCUIT, m.relay.circuit, m.relay.circuit_size)
                and lease_says(&lease.now, LEASE_REMOTE, m.relay.remote, m.relay.remote_size)):
            return 0                                    # it was moved, or put in another's place
        return left

    # ---- how a binding changes

    cdef void expire(self) noexcept nogil:
        cdef int32_t i
        while self.table.ending and self.table.at[self.table.heap[0]].now.until <= self.now:
            i = self.table.heap[0]
            if self.table.at[i].batch:
                lease_until(&self.table, i, self.now + SECOND)
                continue
            if self.table.at[i].now.state == LEASE_OFFERED:
                self.table.at[i].now.expires = self.now
            elif self.table.at[i].now.state == LEASE_DECLINED:
                self.suspect(i)
            self.retire(i)

    cdef void hold_offer(self, int32_t i, digest_t who, bint known, const dhcp_msg_t *m) noexcept nogil:
        # An offer holds the address in memory only: it costs no commit, and ends by itself.
        cdef lease_t *lease = &self.table.at[i]
        if lease.now.state == LEASE_BOUND and digest_same(lease.now.who, who):
            return
        if not digest_same(lease.now.who, who):
            self.set_who(i, who)
            self.forget_texts(&lease.now)
            lease.now.starts = 0                        # it never had it
        self.unlist(i)
        if lease.now.state == LEASE_DECLINED:
            self.suspect(i)                             # its user may have it, and may not take it
        lease.now.state, lease.now.htype, lease.now.hlen = LEASE_OFFERED, m.htype, m.hlen
        memcpy(lease.now.chaddr, m.chaddr, 16)
        lease.now.known, lease.now.port = known, self.port_of(m)
        self.count(i)
        lease_until(&self.table, i, self.now + OFFER_FOR)

    cdef bint stage(self, int32_t i) noexcept nogil:
        # Begins a durable change: the caller now changes `now`, whose text is nobody's yet.
        cdef lease_t *lease = &self.table.at[i]
        cdef row_t *more
        if self.row_count == self.row_room:
            more = <row_t *>realloc(self.rows, max(2 * self.row_room, 1024) * sizeof(row_t))
            if more == NULL:
                return False
            self.rows, self.row_room = more, max(2 * self.row_room, 1024)
        lease.kept = lease.now
        lease.now.text = NULL
        memset(lease.now.size, 0, sizeof(lease.now.size))
        lease.batch = self.filling
        self.rows[self.row_count].lease, self.rows[self.row_count].batch = i, self.filling
        self.row_count += 1
        self.filled += 1
        if self.filled == LEASES_ROWS:
            self.filling += 1
            self.filled = 0
        return True

    cdef bint bind(self, int32_t i, digest_t who, bint known, const dhcp_msg_t *m, uint32_t seconds) noexcept nogil:
        cdef lease_t *lease = &self.table.at[i]
        cdef const binding_t *before = &lease.kept if digest_same(lease.now.who, who) else NULL
        if not self.stage(i):
            return False
        self.unlist(i)
        self.set_who(i, who)
        lease.now.state, lease.now.htype, lease.now.hlen = LEASE_BOUND, m.htype, m.hlen
        memcpy(lease.now.chaddr, m.chaddr, 16)
        lease.now.starts, lease.doubtful = self.now, False
        lease.now.expires = INT64_MAX if seconds == <uint32_t>0xFFFFFFFF else self.now + seconds * SECOND + LEASE_GRACE
        self.set_texts_of(&lease.now, m, before)
        lease.now.known = known
        self.set_port(&lease.now)
        self.count(i)
        lease_until(&self.table, i, lease.now.expires)
        self.drop_others(i)
        return True

    cdef void drop_others(self, int32_t i) noexcept nogil:
        # A client has one address in a subnet.
        cdef digest_t nobody
        cdef int32_t other = lease_of(&self.table, self.table.at[i].now.who, self.table.at[i].subnet, i)
        cdef uint8_t state
        nobody.a = nobody.b = 0
        while other != NOWHERE and self.table.at[other].batch == 0:
            state = self.table.at[other].now.state
            if state == LEASE_BOUND and not self.free_durably(other):
                return
            self.set_who(other, nobody)
            if state == LEASE_OFFERED:
                self.retire(other)
            other = lease_of(&self.table, self.table.at[i].now.who, self.table.at[i].subnet, i)

    cdef bint free_durably(self, int32_t i) noexcept nogil:
        # It may be given again once that is on disk.
        cdef lease_t *lease = &self.table.at[i]
        cdef text_t texts[LEASE_TEXTS]
        cdef int what
        if not self.stage(i):
            return False
        for what in range(LEASE_TEXTS):
            texts[what] = text_of(&lease.kept, what)
        self.set_texts(&lease.now, texts)
        lease.now.expires = self.now
        self.retire(i)
        return True

    cdef bint quarantine(self, int32_t i, digest_t user, int64_t time) noexcept nogil:
        # Somebody uses it, and nobody else gets it.
        cdef lease_t *lease = &self.table.at[i]
        if not self.stage(i):
            return False
        self.unlist(i)
        self.set_who(i, user)
        lease.now.state, lease.now.starts, lease.now.expires = LEASE_DECLINED, self.now, self.now + time
        self.count(i)
        lease_until(&self.table, i, lease.now.expires)
        return True

    cdef void confirm(self, int32_t i, bint ok) noexcept nogil:
        cdef lease_t *lease = &self.table.at[i]
        cdef binding_t kept = lease.kept
        memset(&lease.kept, 0, sizeof(binding_t))
        lease.batch = 0
        if ok or lease.now.state == LEASE_DECLINED:         # a conflict stays one, on disk or not
            free(kept.text)
        else:
            lease_unlink(&self.table, i)
            free(lease.now.text)
            lease.now = kept
            self.count(i)
            lease_link(&self.table, i)
            lease_until(&self.table, i, kept.until)
        if lease.now.state == LEASE_FREE:
            self.retire(i)

    # ---- the way to the disk

    cdef batch(self, int64_t boot):
        cdef int32_t n = 0, i
        cdef pen_t p
        cdef uint8_t *memory
        cdef uint64_t number
        if self.flight or self.row_count == 0:
            return None
        number = self.rows[0].batch
        while n < self.row_count and self.rows[n].batch == number:
            n += 1
        if number == self.filling:
            self.filling += 1
            self.filled = 0
        memory = <uint8_t *>malloc(<size_t>n * ROW_OCTETS)
        if memory == NULL:
            raise MemoryError
        p = wire_pen(memory, <size_t>n * ROW_OCTETS)
        with nogil:
            for i in range(n):
                wire_put_u8(&p, c"," if i else c"{")
                row_put(&p, &self.table.at[self.rows[i].lease], boot, number)
            wire_put_u8(&p, c"}")
        self.flight = n
        try:
            return number, PyUnicode_DecodeASCII(<char *>memory, p.at - memory, NULL)
        finally:
            free(memory)

    cdef uint64_t settle_rows(self, bint ok) noexcept nogil:
        # The number of the batch that was in flight and no longer is.
        cdef int32_t i
        cdef uint64_t number = self.rows[0].batch
        for i in range(self.flight):
            self.confirm(self.rows[i].lease, ok)
        self.row_count -= self.flight
        memmove(self.rows, self.rows + self.flight, self.row_count * sizeof(row_t))
        self.flight = 0
        return number

    # ---- questions from Python

    cdef tuple lease_tuple(self, lease_t *lease, double zero):
        return (
            lease.address, STATE_NAMES[lease.now.state], (<uint8_t *>lease.now.chaddr)[:lease.now.hlen],
            text_bytes(&lease.now, LEASE_CLIENT_ID), text_bytes(&lease.now, LEASE_HOST),
            lease.now.starts / 1e9 + zero,
            float("inf") if lease.now.expires == INT64_MAX else lease.now.expires / 1e9 + zero,
            lease.now.relay, text_bytes(&lease.now, LEASE_CIRCUIT), text_bytes(&lease.now, LEASE_REMOTE),
        )

    cdef list leases(self, int64_t now, double wall):
        cdef int32_t i
        self.tick(now)
        return [
            self.lease_tuple(&self.table.at[i], wall - now / 1e9)
            for i in range(self.table.count) if self.table.at[i].now.state >= LEASE_BOUND
        ]

    cdef lease_at(self, uint32_t address, int64_t now, double wall):
        cdef int32_t i = lease_at(&self.table, address)
        if i == NOWHERE or self.table.at[i].now.state not in (LEASE_OFFERED, LEASE_BOUND):
            return None
        if self.table.at[i].now.until <= now:
            return None
        return self.lease_tuple(&self.table.at[i], wall - now / 1e9)

    cdef bint release(self, uint32_t address, int64_t now):
        cdef int32_t i = lease_at(&self.table, address)
        self.now = now
        if i == NOWHERE or self.table.at[i].now.state < LEASE_BOUND or self.table.at[i].batch:
            return False
        return self.free_durably(i)
