# Addresses: each that the configuration or a lease names, who has it, and the free ones in the order in which strangers
# get them. Memory belongs to it; the loop's thread calls it.

cdef enum:
    ADDRESSES_SPARE = 4096          # that only plans name

cdef int64_t DOUBT_FOR = 600 * SECOND       # where nobody can be asked

cdef struct pool_t:                 # the addresses of a subnet that may be given to strangers
    fifo_t free[FREE_LISTS]
    uint64_t links                  # a bit for each on which it is asked who uses them
    bint exhausted                  # and told so

cdef struct text_t:
    const uint8_t *at
    uint8_t size

cdef struct turn_t:                 # of a free address, to be given
    int64_t since
    uint32_t address
    int32_t lease


cdef class Addresses:
    cdef digest_key_t key
    cdef subnet_t *subnets
    cdef pool_t *pools              # of each subnet
    cdef int32_t subnet_count
    cdef leases_t table
    cdef int32_t held[LEASE_STATES]  # addresses of strangers, in each state
    cdef ports_t ports
    cdef int64_t now                # of the call at hand
    cdef bint vacant                # the lists have changed

    def __dealloc__(self):
        cdef int32_t i
        for i in range(self.table.count):
            free(self.table.at[i].now.text)
            free(self.table.at[i].kept.text)
        free(self.subnets)
        free(self.pools)
        free(self.table.at)
        free(self.table.heap)
        free(self.table.by_address)
        free(self.table.by_who)
        free(self.ports.at)
        free(self.ports.buckets)

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
        self.pools = NULL
        self.pools = <pool_t *>memory_for(len(subnets), sizeof(pool_t))
        self.subnet_count = len(subnets)
        ranges = [each for entry in subnets for each in entry[3]]
        self.make_room(sum(last - first + 1 for first, last in ranges) + len(nodes) + ADDRESSES_SPARE)
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

    cdef void set_port(self, binding_t *b) noexcept nogil:
        b.port = lease_port(&self.key, b.relay, lease_text(b, LEASE_CIRCUIT), b.size[LEASE_CIRCUIT],
                            lease_text(b, LEASE_REMOTE), b.size[LEASE_REMOTE])

    cdef digest_t port_of(self, const dhcp_msg_t *m) noexcept nogil:
        return lease_port(&self.key, m.giaddr, m.relay.circuit, m.relay.circuit_size, m.relay.remote,
                          m.relay.remote_size)

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

    # ---- free addresses

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

    cdef void unlist(self, int32_t i) noexcept nogil:
        if self.table.at[i].listed:
            fifo_remove(&self.table, self.pools[self.table.at[i].subnet].free, i)
            self.vacant = True

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
    cdef size_t n = min(dhcp_size(m, OPTION_HOST_NAME), <size_t>LEASE_HOST_LONGEST)
    cdef const void *end = memchr(name, 0, n)
    return n if end == NULL else <const uint8_t *>end - name
