# Leases: whose every address is, and which of that is not on disk yet. A Responder owns one; the loop's thread calls
# it. No change of a binding counts before `settle_rows` is told that its row is on disk.

cdef enum:
    LEASES_ROWS = 256               # of one commit; larger ones only lengthen the wait of their first
    LEASES_HOST = 64                # octets of a host name that are kept
    LEASES_SPARE = 4096             # addresses that only plans name

# Kept beyond what was promised (RFC 2131 3.3): the client counts from its packet, and `now` may be of before that.
cdef int64_t LEASE_GRACE = SECOND // 10
cdef int64_t OFFER_FOR = 120 * SECOND       # the Raspberry Pi ROM boots from an OFFER and never sends REQUEST
cdef int64_t DOUBT_FOR = 600 * SECOND       # where nobody can be asked

cdef struct pool_t:                 # the addresses of a subnet that may be given to strangers
    fifo_t free[FREE_LISTS]
    uint64_t links                  # a bit for each on which it is asked who uses them
    bint exhausted                  # and told so

cdef struct text_t:
    const uint8_t *at
    uint8_t size

cdef struct row_t:
    int32_t lease
    uint64_t batch

cdef struct turn_t:                 # of a free address, to be given
    int64_t since
    uint32_t address
    int32_t lease

STATE_NAMES = ("free", "offered", "bound", "declined")


cdef class Leases:
    cdef digest_key_t key
    cdef subnet_t *subnets
    cdef pool_t *pools              # of each subnet
    cdef int32_t subnet_count
    cdef leases_t table
    cdef int32_t held[LEASE_STATES]  # addresses of strangers, in each state
    cdef ports_t ports
    cdef row_t *rows
    cdef int32_t row_count
    cdef int32_t row_room
    cdef int32_t flight             # rows of the batch in flight, the first of `rows`
    cdef uint64_t filling           # number of the batch that takes rows; numbers rise over restarts
    cdef int32_t filled
    cdef int64_t now                # of the call at hand
    cdef int64_t quarantine_for
    cdef bint vacant                # the lists have changed

    def __cinit__(self):
        self.filling = 1
        self.quarantine_for = 3600 * SECOND

    def __dealloc__(self):
        cdef int32_t i
        for i in range(self.table.count):
            free(self.table.at[i].now.text)
            free(self.table.at[i].kept.text)
        free(self.subnets)
        free(self.pools)
        free(self.rows)
        free(self.table.at)
        free(self.table.heap)
        free(self.table.by_address)
        free(self.table.by_who)
        free(self.ports.at)
        free(self.ports.buckets)

    cdef void tick(self, int64_t now) noexcept nogil:
        self.now = now
        self.expire()

    # ---- configuration

    cdef settle(self, list subnets, list nodes):
        # Gives every address its place in the new configuration; bindings stay.
        cdef subnet_t *new_subnets = subnets_of(subnets)
        cdef int32_t i, before
        cdef lease_t *lease
        cdef uint32_t address
        for i in range(self.table.count):
            lease = &self.table.at[i]
            before, lease.subnet = lease.subnet, subnet_at(new_subnets, len(subnets), lease.address)
            if (lease.subnet != NOWHERE and lease.now.state != LEASE_OFFERED and not digest_none(lease.now.who)
                    and (before == NOWHERE
                         or self.subnets[before].by_client_id != new_subnets[lease.subnet].by_client_id)):
                self.set_who(i, lease_holder(&self.key, new_subnets[lease.subnet].by_client_id, &lease.now))
                if lease.batch and not digest_none(lease.kept.who):
                    lease.kept.who = lease_holder(&self.key, new_subnets[lease.subnet].by_client_id, &lease.kept)
        free(self.subnets)
        self.subnets, self.subnet_count = new_subnets, 0
        free(self.pools)
        self.pools = <pool_t *>memory_for(len(subnets), sizeof(pool_t))
        self.subnet_count = len(subnets)
        ranges = [each for entry in subnets for each in entry[3]]
        self.make_room(sum(last - first + 1 for first, last in ranges) + len(nodes) + LEASES_SPARE)
        for i in range(self.table.count):
            lease = &self.table.at[i]
            lease.node, lease.pooled = NOWHERE, False
        for first, last in ranges:
            self.pool(first, last)
        for node, (fixed, _, _, _) in enumerate(nodes):
            if fixed:
                self.table.at[self.entry(fixed)].node = node
        self.list_free()

    cdef void pool(self, uint32_t first, uint32_t last) noexcept nogil:
        # Makes addresses ones that strangers may have; there is room for them.
        cdef uint64_t address
        for address in range(first, <uint64_t>last + 1):
            self.table.at[self.add(<uint32_t>address)].pooled = True

    cdef list_free(self):
        # Oldest-free first; those never used are the oldest, in the order of the addresses.
        cdef int32_t i, n = 0
        cdef int which
        cdef turn_t *turns = <turn_t *>memory_for(self.table.count, sizeof(turn_t))
        for i in range(self.subnet_count):
            for which in range(FREE_LISTS):
                self.pools[i].free[which].oldest = self.pools[i].free[which].newest = NOWHERE
                self.pools[i].free[which].count = 0
        for i in range(self.table.count):
            self.table.at[i].listed = 0
            self.table.at[i].older = self.table.at[i].newer = NOWHERE
            if self.table.at[i].now.state == LEASE_FREE:
                turns[n].since, turns[n].address = self.table.at[i].now.expires, self.table.at[i].address
                turns[n].lease = i
                n += 1
        qsort(turns, n, sizeof(turn_t), by_turn)
        for i in range(n):
            self.retire(turns[i].lease)
        free(turns)

    cdef int32_t entry(self, uint32_t address) except -1:
        if self.table.count == self.table.room:
            self.make_room(1)
        return self.add(address)

    cdef int32_t add(self, uint32_t address) noexcept nogil:
        # As entry, in the room there is.
        cdef int32_t i = lease_at(&self.table, address)
        if i == NOWHERE and self.table.count < self.table.room:
            i = lease_add(&self.table, address)
            self.table.at[i].subnet = self.subnet_of(address)
        return i

    cdef make_room(self, more):
        cdef leases_t *t = &self.table
        cdef leases_t new
        cdef int32_t i
        cdef uint32_t bucket
        if t.count + more <= t.room:
            return
        memset(&new, 0, sizeof(new))
        new.room = power_of_two(t.count + more)
        new.mask, new.count, new.ending = new.room - 1, t.count, t.ending
        new.at = <lease_t *>memory_for(new.room, sizeof(lease_t))
        new.heap = <int32_t *>memory_for(new.room, sizeof(int32_t))
        new.by_address = <int32_t *>memory_for(new.room, sizeof(int32_t))
        new.by_who = <int32_t *>memory_for(new.room, sizeof(int32_t))
        memset(new.by_address, 0xff, new.room * sizeof(int32_t))
        memset(new.by_who, 0xff, new.room * sizeof(int32_t))
        if t.count:
            memcpy(new.at, t.at, t.count * sizeof(lease_t))
            memcpy(new.heap, t.heap, t.ending * sizeof(int32_t))
        for i in range(t.count):
            bucket = digest_spread(new.at[i].address) & new.mask
            new.at[i].next_address = new.by_address[bucket]
            new.by_address[bucket] = i
            new.at[i].next_who = NOWHERE
            lease_link(&new, i)
        free(t.at)
        free(t.heap)
        free(t.by_address)
        free(t.by_who)
        t[0] = new
        self.make_ports()

    cdef make_ports(self):
        # Room for a port for each address; all count anew.
        cdef int32_t i
        free(self.ports.at)
        free(self.ports.buckets)
        memset(&self.ports, 0, sizeof(self.ports))
        memset(self.held, 0, sizeof(self.held))
        self.ports.at = <port_t *>memory_for(self.table.room, sizeof(port_t))
        self.ports.buckets = <int32_t *>memory_for(self.table.room, sizeof(int32_t))
        memset(self.ports.buckets, 0xff, self.table.room * sizeof(int32_t))
        self.ports.mask, self.ports.unused = self.table.mask, NOWHERE
        for i in range(self.table.count):
            self.table.at[i].counted, self.table.at[i].port = 0, NOWHERE
            self.count(i)

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
        self.now = now
        self.tick(now)
        self.filled -= len(rows)
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
        text_take(&texts[LEASE_HOST], host, LEASES_HOST)
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

    # ---- whose an address is

    cdef int32_t subnet_of(self, uint32_t address) noexcept nogil:
        return subnet_at(self.subnets, self.subnet_count, address)

    cdef digest_t client_of(self, const binding_t *b, int32_t subnet) noexcept nogil:
        return lease_holder(&self.key, subnet != NOWHERE and self.subnets[subnet].by_client_id, b)

    cdef void set_who(self, int32_t i, digest_t who) noexcept nogil:
        lease_unlink(&self.table, i)
        self.table.at[i].now.who = who
        lease_link(&self.table, i)

    cdef void set_texts(self, binding_t *b, const text_t *texts) noexcept nogil:
        # `b.text` is nobody's yet.
        cdef size_t n = 0
        cdef int i
        for i in range(LEASE_TEXTS):
            n += texts[i].size
        b.text = <uint8_t *>malloc(n) if n else NULL
        memset(b.size, 0, sizeof(b.size))
        if b.text == NULL:
            return
        n = 0
        for i in range(LEASE_TEXTS):
            if texts[i].size:
                memcpy(b.text + n, texts[i].at, texts[i].size)
            b.size[i] = texts[i].size
            n += texts[i].size

    cdef void set_texts_of(self, binding_t *b, const dhcp_msg_t *m, const binding_t *before) noexcept nogil:
        # `before`: what is known of the same client; where nobody on the way says anything, it is where it was.
        cdef text_t texts[LEASE_TEXTS]
        texts[LEASE_CLIENT_ID].at = dhcp_value(m, OPTION_CLIENT_ID)
        texts[LEASE_CLIENT_ID].size = min(dhcp_size(m, OPTION_CLIENT_ID), <size_t>LEASE_LONGEST)
        texts[LEASE_HOST].at, texts[LEASE_HOST].size = dhcp_value(m, OPTION_HOST_NAME), host_of(m)
        if m.relay.heard or before == NULL:
            b.relay = m.giaddr
            texts[LEASE_CIRCUIT].at, texts[LEASE_CIRCUIT].size = m.relay.circuit, m.relay.circuit_size
            texts[LEASE_REMOTE].at, texts[LEASE_REMOTE].size = m.relay.remote, m.relay.remote_size
        else:
            b.relay = before.relay
            texts[LEASE_CIRCUIT] = text_of(before, LEASE_CIRCUIT)
            texts[LEASE_REMOTE] = text_of(before, LEASE_REMOTE)
        self.set_texts(b, texts)

    cdef void forget_texts(self, binding_t *b) noexcept nogil:
        free(b.text)
        b.text = NULL
        memset(b.size, 0, sizeof(b.size))

    cdef bint allowed(self, int32_t i, uint32_t fixed, int32_t node) noexcept nogil:
        # Whether a client may have this address, if it is free or its own; `fixed`: the one it must have, or 0.
        cdef lease_t *lease = &self.table.at[i]
        if lease.subnet == NOWHERE:
            return False
        if fixed:
            return lease.address == fixed
        return lease.node == node if lease.node != NOWHERE else lease.pooled

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

    # ---- what strangers hold

    cdef void count(self, int32_t i) noexcept nogil:
        # Brings the counts up to date with an address whose state, client or port has changed.
        cdef lease_t *lease = &self.table.at[i]
        cdef bint held = lease.now.state in (LEASE_OFFERED, LEASE_BOUND) and not lease.now.known
        if lease.counted:
            self.held[lease.counted] -= 1
        if lease.port != NOWHERE:
            ports_give(&self.ports, lease.port)
        lease.counted = lease.now.state if held else 0
        lease.port = ports_take(&self.ports, lease.now.port) if held and not digest_none(lease.now.port) else NOWHERE
        if lease.counted:
            self.held[lease.counted] += 1

    # ---- how a binding changes

    cdef void retire(self, int32_t i) noexcept nogil:
        cdef lease_t *lease = &self.table.at[i]
        if lease.now.state != LEASE_FREE:
            lease.probed = self.now                     # who releases an address may have it a moment longer
        lease.now.state = LEASE_FREE
        self.count(i)
        lease_until(&self.table, i, INT64_MAX)
        if lease.pooled and lease.node == NOWHERE and lease.subnet != NOWHERE and lease.batch == 0:
            fifo_push(&self.table, self.pools[lease.subnet].free, i,
                      FREE_DOUBTFUL if lease.doubtful else FREE_UNKNOWN)
            self.pools[lease.subnet].exhausted, self.vacant = False, True

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

    cdef void suspect(self, int32_t i) noexcept nogil:
        # Somebody used it: where that can be asked, it is asked before a stranger gets it.
        cdef lease_t *lease = &self.table.at[i]
        lease.doubtful = lease.subnet != NOWHERE and self.pools[lease.subnet].links != 0

    cdef bint doubt(self, int32_t i) noexcept nogil:
        # A free address is no stranger's until it is found clear. Whether it is free.
        if i == NOWHERE or not self.table.at[i].listed:
            return False
        self.unlist(i)
        self.table.at[i].doubtful, self.table.at[i].probed = True, self.now
        self.retire(i)
        return True

    cdef int32_t next_free(self, int32_t subnet) noexcept nogil:
        # What a stranger gets: what nobody was heard to use, else what nobody was asked about yet. A doubtful one
        # waits for an answer, or, where nobody can be asked, for the owner to renew it.
        cdef pool_t *pool = &self.pools[subnet]
        cdef int32_t i = pool.free[FREE_CLEAR].oldest
        if i == NOWHERE:
            i = pool.free[FREE_UNKNOWN].oldest
        if i == NOWHERE and pool.links == 0:
            i = pool.free[FREE_DOUBTFUL].oldest
            if i != NOWHERE and self.now - self.table.at[i].probed < DOUBT_FOR:
                return NOWHERE
        return i

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

    cdef void unlist(self, int32_t i) noexcept nogil:
        if self.table.at[i].listed:
            fifo_remove(&self.table, self.pools[self.table.at[i].subnet].free, i)
            self.vacant = True

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

    cdef void set_port(self, binding_t *b) noexcept nogil:
        b.port = lease_port(&self.key, b.relay, lease_text(b, LEASE_CIRCUIT), b.size[LEASE_CIRCUIT],
                            lease_text(b, LEASE_REMOTE), b.size[LEASE_REMOTE])

    cdef digest_t port_of(self, const dhcp_msg_t *m) noexcept nogil:
        return lease_port(&self.key, m.giaddr, m.relay.circuit, m.relay.circuit_size, m.relay.remote,
                          m.relay.remote_size)

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


cdef int by_turn(const void *a, const void *b) noexcept nogil:
    cdef const turn_t *one = <const turn_t *>a
    cdef const turn_t *other = <const turn_t *>b
    if one.since != other.since:
        return -1 if one.since < other.since else 1
    return -1 if one.address < other.address else one.address > other.address

cdef text_t text_of(const binding_t *b, int what) noexcept nogil:
    cdef text_t text
    text.at, text.size = lease_text(b, what), b.size[what]
    return text

cdef void text_take(text_t *text, bytes value, size_t most):
    # `value` must outlive it.
    cdef const char *octets = value
    text.at, text.size = <const uint8_t *>octets, min(<size_t>len(value), most)

cdef bytes text_bytes(const binding_t *b, int what):
    return lease_text(b, what)[:b.size[what]] if b.size[what] else b""

cdef size_t host_of(const dhcp_msg_t *m) noexcept nogil:
    # Octets of the host name: some clients end it with a NUL (RFC 2132 3.14 knows none).
    cdef const uint8_t *name = dhcp_value(m, OPTION_HOST_NAME)
    cdef size_t n = min(dhcp_size(m, OPTION_HOST_NAME), <size_t>LEASES_HOST)
    cdef const void *end = memchr(name, 0, n)
    return n if end == NULL else <const uint8_t *>end - name
