# Leases: whose every address is, and which of that is not on disk yet. The Responder is built on it; the loop's
# thread calls it. No change of a binding counts before `durable` says that its row is on disk.

cdef enum:
    LEASES_NEAR = 16                # subnets of one link
    LEASES_ROWS = 256               # of one commit; larger ones only lengthen the wait of their first
    LEASES_ID = 255                 # octets of a client identifier
    LEASES_HOST = 64                # octets of a host name that are kept
    LEASES_SPARE = 4096             # addresses that only plans name
    LEASES_ROW = 1200               # octets of one row as JSON at most: 64 escaped, 255 and 16 in hex

cdef int64_t SECOND = 1000000000
cdef int64_t OFFER_FOR = 120 * SECOND       # the Raspberry Pi ROM boots from an OFFER and never sends REQUEST
cdef int64_t DECLINED_FOR = 3600 * SECOND

cdef struct near_t:                 # a subnet as one link sees it
    int32_t subnet
    uint32_t server                 # our address there

cdef struct link_t:
    int ifindex
    int fd
    uint32_t mtu
    uint32_t address                # the first of ours
    int32_t nears
    near_t near[LEASES_NEAR]

cdef struct subnet_t:
    uint32_t network
    uint32_t mask
    uint32_t lease
    bint exhausted                  # and told so
    fifo_t free

cdef struct node_t:
    uint32_t address

cdef struct node_mac_t:
    uint8_t mac[6]
    int32_t node
    int32_t next

cdef struct row_t:
    int32_t lease
    uint32_t batch

STATE_NAMES = ("free", "offered", "bound", "declined")


cdef class Leases:
    cdef digest_key_t key
    cdef link_t *links
    cdef int32_t link_count
    cdef subnet_t *subnets
    cdef int32_t subnet_count
    cdef node_t *nodes
    cdef node_mac_t *macs
    cdef int32_t *mac_buckets
    cdef uint32_t mac_mask
    cdef uint32_t *own              # addresses of this host
    cdef int32_t own_count
    cdef bint authoritative         # no other DHCP server is meant to be here
    cdef leases_t table
    cdef row_t *rows
    cdef int32_t row_count
    cdef int32_t row_room
    cdef int32_t flight             # rows of the batch in flight, the first of `rows`
    cdef uint32_t filling           # number of the batch that takes rows
    cdef int32_t filled
    cdef int64_t now                # of the call at hand

    def __cinit__(self, bytes seed not None):
        cdef const char *octets = seed
        if len(seed) != sizeof(self.key):
            raise ValueError(f"the seed is {sizeof(self.key)} octets")
        memcpy(&self.key, octets, sizeof(self.key))
        self.filling = 1

    def __dealloc__(self):
        cdef int32_t i
        for i in range(self.table.count):
            free(self.table.at[i].now.text)
            free(self.table.at[i].kept.text)
        free(self.links)
        free(self.subnets)
        free(self.nodes)
        free(self.macs)
        free(self.mac_buckets)
        free(self.own)
        free(self.rows)
        free(self.table.at)
        free(self.table.heap)
        free(self.table.by_address)
        free(self.table.by_who)

    # ---- configuration

    def configure(self, list links not None, list subnets not None, list nodes not None, list own not None,
                  bint authoritative):
        cdef int32_t i, j, node
        cdef uint32_t bucket
        cdef list macs = [(mac, i) for i, (_, macs_of) in enumerate(nodes) for mac in macs_of]
        if any(len(entry[3]) > LEASES_NEAR for entry in links):
            raise ValueError(f"more than {LEASES_NEAR} subnets on one interface")
        cdef uint32_t buckets = power_of_two(len(macs))
        cdef link_t *new_links = <link_t *>memory_for(len(links), sizeof(link_t))
        cdef subnet_t *new_subnets = <subnet_t *>memory_for(len(subnets), sizeof(subnet_t))
        cdef node_t *new_nodes = <node_t *>memory_for(len(nodes), sizeof(node_t))
        cdef node_mac_t *new_macs = <node_mac_t *>memory_for(len(macs), sizeof(node_mac_t))
        cdef int32_t *new_buckets = <int32_t *>memory_for(buckets, sizeof(int32_t))
        cdef uint32_t *new_own = <uint32_t *>memory_for(len(own), sizeof(uint32_t))
        for i, (ifindex, mtu, address, nears) in enumerate(links):
            new_links[i].ifindex, new_links[i].mtu, new_links[i].address = ifindex, mtu, address
            new_links[i].fd = self.links[i].fd if i < self.link_count else -1
            new_links[i].nears = len(nears)
            for j, (subnet, server) in enumerate(nears):
                new_links[i].near[j].subnet, new_links[i].near[j].server = subnet, server
        for i, (network, mask, lease, _) in enumerate(subnets):
            new_subnets[i].network, new_subnets[i].mask, new_subnets[i].lease = network, mask, lease
            new_subnets[i].free.oldest = new_subnets[i].free.newest = NOWHERE
        for i, (address, _) in enumerate(nodes):
            new_nodes[i].address = address
        memset(new_buckets, 0xff, buckets * sizeof(int32_t))
        for i, (mac, node) in enumerate(macs):
            memcpy(new_macs[i].mac, <const char *>mac, 6)
            new_macs[i].node = node
            bucket = digest_spread(wire_u32(new_macs[i].mac + 2)) & (buckets - 1)
            new_macs[i].next = new_buckets[bucket]
            new_buckets[bucket] = i
        for i, address in enumerate(own):
            new_own[i] = address
        free(self.links)
        free(self.subnets)
        free(self.nodes)
        free(self.macs)
        free(self.mac_buckets)
        free(self.own)
        self.links, self.subnets, self.nodes, self.macs = new_links, new_subnets, new_nodes, new_macs
        self.mac_buckets, self.mac_mask, self.own = new_buckets, buckets - 1, new_own
        self.link_count, self.subnet_count, self.own_count = len(links), len(subnets), len(own)
        self.authoritative = authoritative
        self.settle(subnets, nodes)

    cdef settle(self, list subnets, list nodes):
        # Gives every address its place in the new configuration; bindings stay.
        cdef int32_t i
        cdef lease_t *lease
        cdef uint32_t address
        wanted = sum(last - first + 1 for entry in subnets for first, last in entry[3])
        self.make_room(wanted + len(nodes) + LEASES_SPARE)
        for i in range(self.table.count):
            lease = &self.table.at[i]
            lease.subnet = self.subnet_of(lease.address)
            lease.node = lease.older = lease.newer = NOWHERE
            lease.pooled = lease.listed = False
        for entry in subnets:
            for first, last in entry[3]:
                for address in range(first, last + 1):
                    self.table.at[self.entry(address)].pooled = True
        for node, (fixed, _) in enumerate(nodes):
            if fixed:
                self.table.at[self.entry(fixed)].node = node
        self.list_free()

    cdef list_free(self):
        # Oldest-free first; those never used are the oldest, in the order of the addresses.
        cdef int32_t i
        order = sorted(
            (self.table.at[i].now.expires, self.table.at[i].address, i)
            for i in range(self.table.count) if self.table.at[i].now.state == LEASE_FREE
        )
        for _, _, i in order:
            self.retire(i)

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

    def load(self, list rows not None, int64_t now, double wall):
        # Rows of the store, as Store.rows gives them. Returns how many lie outside of every subnet.
        cdef int32_t i, outside = 0
        cdef lease_t *lease
        cdef bytes mac, client_id, host
        cdef const char *p
        cdef const char *h
        cdef size_t id_size, host_size
        cdef digest_t who
        self.now = now
        for address, state, htype, mac, client_id, host, starts, expires in rows:
            if self.subnet_of(address) == NOWHERE:
                outside += 1
                continue
            i = self.entry(address)
            lease = &self.table.at[i]
            lease.now.state = LEASE_DECLINED if state == "declined" else LEASE_BOUND
            lease.now.htype, lease.now.hlen = htype, min(len(mac), 16)
            p = mac
            memcpy(lease.now.chaddr, p, lease.now.hlen)
            # A clock that was set back must not make a lease longer than it was given.
            left = expires - wall
            lease.now.starts = now - max(0, int((wall - starts) * 1e9))
            lease.now.expires = INT64_MAX if left == float("inf") else now + int(min(left, expires - starts) * 1e9)
            if state != "declined":
                p, h = host, client_id
                id_size, host_size = min(len(client_id), LEASES_ID), min(len(host), LEASES_HOST)
                self.set_text(&lease.now, <const uint8_t *>h, id_size, <const uint8_t *>p, host_size)
                p = mac
                who = self.identity(lease.now.htype, <const uint8_t *>p, lease.now.hlen, <const uint8_t *>h, id_size)
                self.set_who(i, who)
            if state == "released":
                lease.now.expires = min(lease.now.expires, now)
            lease_until(&self.table, i, lease.now.expires)
        with nogil:
            self.expire()
        for i in range(self.subnet_count):
            self.subnets[i].free.oldest = self.subnets[i].free.newest = NOWHERE
            self.subnets[i].free.count = 0
        for i in range(self.table.count):
            self.table.at[i].listed = False
            self.table.at[i].older = self.table.at[i].newer = NOWHERE
        self.list_free()
        return outside

    # ---- whose an address is

    cdef int32_t subnet_of(self, uint32_t address) noexcept nogil:
        cdef int32_t i
        for i in range(self.subnet_count):
            if address & self.subnets[i].mask == self.subnets[i].network:
                return i
        return NOWHERE

    cdef bint is_own(self, uint32_t address) noexcept nogil:
        cdef int32_t i
        for i in range(self.own_count):
            if self.own[i] == address:
                return True
        return False

    cdef int32_t node_of(self, uint8_t hlen, const uint8_t *mac) noexcept nogil:
        cdef int32_t i
        if hlen != 6 or self.mac_buckets == NULL:
            return NOWHERE
        i = self.mac_buckets[digest_spread(wire_u32(mac + 2)) & self.mac_mask]
        while i != NOWHERE:
            if memcmp(self.macs[i].mac, mac, 6) == 0:
                return self.macs[i].node
            i = self.macs[i].next
        return NOWHERE

    cdef digest_t identity(self, uint8_t htype, const uint8_t *mac, uint8_t hlen, const uint8_t *client_id,
                           size_t id_size) noexcept nogil:
        # The hardware address, not option 61: firmware, iPXE and installer send three different ones from one
        # machine, which must keep its address. Where the hardware address says nothing, option 61 must do
        # (InfiniBand, RFC 4390).
        cdef uint8_t octets[LEASES_ID + 2]
        cdef bint by_id = hlen == 0 or htype == 32
        octets[0], octets[1] = by_id, htype
        if by_id:
            id_size = min(id_size, <size_t>LEASES_ID)
            memcpy(octets + 2, client_id, id_size)
            return digest_of(&self.key, octets, id_size + 2)
        memcpy(octets + 2, mac, hlen)
        return digest_of(&self.key, octets, hlen + 2)

    cdef void set_who(self, int32_t i, digest_t who) noexcept nogil:
        lease_unlink(&self.table, i)
        self.table.at[i].now.who = who
        lease_link(&self.table, i)

    cdef void set_text(self, binding_t *b, const uint8_t *client_id, size_t id_size, const uint8_t *host,
                       size_t host_size) noexcept nogil:
        free(b.text)
        b.id_size, b.host_size = id_size, host_size
        b.text = <uint8_t *>malloc(id_size + host_size) if id_size + host_size else NULL
        if b.text == NULL:
            b.id_size = b.host_size = 0
            return
        memcpy(b.text, client_id, id_size)
        memcpy(b.text + id_size, host, host_size)

    cdef bint allowed(self, int32_t i, uint32_t fixed, int32_t node) noexcept nogil:
        # Whether this client may have this address at all; `fixed`: the one that it must have, or 0.
        cdef lease_t *lease = &self.table.at[i]
        if lease.subnet == NOWHERE or lease.now.state == LEASE_DECLINED:
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
            left = (lease.now.expires - self.now) // SECOND
            if (self.now - lease.now.starts) * 4 >= lease.now.expires - lease.now.starts:
                return 0
        if left > wanted or (host and not self.same_host(lease, m, host)):
            return 0
        return left

    cdef bint same_host(self, const lease_t *lease, const dhcp_msg_t *m, size_t size) noexcept nogil:
        return (lease.now.host_size == size
                and memcmp(lease.now.text + lease.now.id_size, dhcp_value(m, OPTION_HOST_NAME), size) == 0)

    # ---- how a binding changes

    cdef void retire(self, int32_t i) noexcept nogil:
        cdef lease_t *lease = &self.table.at[i]
        lease.now.state = LEASE_FREE
        lease_until(&self.table, i, INT64_MAX)
        if lease.pooled and lease.node == NOWHERE and lease.subnet != NOWHERE and lease.batch == 0:
            fifo_push(&self.table, &self.subnets[lease.subnet].free, i)
            self.subnets[lease.subnet].exhausted = False

    cdef void expire(self) noexcept nogil:
        cdef int32_t i
        while self.table.ending and self.table.at[self.table.heap[0]].now.until <= self.now:
            i = self.table.heap[0]
            if self.table.at[i].batch:
                lease_until(&self.table, i, self.now + SECOND)
                continue
            if self.table.at[i].now.state == LEASE_OFFERED:
                self.table.at[i].now.expires = self.now
            self.retire(i)

    cdef void hold_offer(self, int32_t i, digest_t who, const dhcp_msg_t *m) noexcept nogil:
        # An offer holds the address in memory only: it costs no commit, and ends by itself.
        cdef lease_t *lease = &self.table.at[i]
        if lease.now.state == LEASE_BOUND and digest_same(lease.now.who, who):
            return
        if not digest_same(lease.now.who, who):
            self.set_who(i, who)
            free(lease.now.text)
            lease.now.text = NULL
            lease.now.id_size = lease.now.host_size = 0
        if lease.listed:
            fifo_remove(&self.table, &self.subnets[lease.subnet].free, i)
        lease.now.state, lease.now.htype, lease.now.hlen = LEASE_OFFERED, m.htype, m.hlen
        memcpy(lease.now.chaddr, m.chaddr, 16)
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
        lease.now.id_size = lease.now.host_size = 0
        lease.batch = self.filling
        self.rows[self.row_count].lease, self.rows[self.row_count].batch = i, self.filling
        self.row_count += 1
        self.filled += 1
        if self.filled == LEASES_ROWS:
            self.filling += 1
            self.filled = 0
        return True

    cdef bint bind(self, int32_t i, digest_t who, const dhcp_msg_t *m, uint32_t seconds) noexcept nogil:
        cdef lease_t *lease = &self.table.at[i]
        cdef size_t id_size = min(dhcp_size(m, OPTION_CLIENT_ID), <size_t>LEASES_ID)
        cdef size_t host_size = host_of(m)
        if not self.stage(i):
            return False
        if lease.listed:
            fifo_remove(&self.table, &self.subnets[lease.subnet].free, i)
        self.set_who(i, who)
        lease.now.state, lease.now.htype, lease.now.hlen = LEASE_BOUND, m.htype, m.hlen
        memcpy(lease.now.chaddr, m.chaddr, 16)
        lease.now.starts = self.now
        lease.now.expires = INT64_MAX if seconds == <uint32_t>0xFFFFFFFF else self.now + seconds * SECOND
        self.set_text(&lease.now, dhcp_value(m, OPTION_CLIENT_ID), id_size, dhcp_value(m, OPTION_HOST_NAME), host_size)
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
        if not self.stage(i):
            return False
        self.set_text(&lease.now, lease.kept.text, lease.kept.id_size, lease.kept.text + lease.kept.id_size,
                      lease.kept.host_size)
        lease.now.expires = self.now
        self.retire(i)
        return True

    cdef bint quarantine(self, int32_t i) noexcept nogil:
        cdef lease_t *lease = &self.table.at[i]
        cdef digest_t nobody
        nobody.a = nobody.b = 0
        if not self.stage(i):
            return False
        self.set_who(i, nobody)
        lease.now.state, lease.now.starts, lease.now.expires = LEASE_DECLINED, self.now, self.now + DECLINED_FOR
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
            lease_link(&self.table, i)
            lease_until(&self.table, i, kept.until)
        if lease.now.state == LEASE_FREE:
            self.retire(i)

    # ---- the way to the disk

    def batch(self, int64_t now, double wall):
        cdef int32_t n = 0, i
        cdef pen_t p
        cdef uint8_t *memory
        if self.flight or self.row_count == 0:
            return None
        while n < self.row_count and self.rows[n].batch == self.rows[0].batch:
            n += 1
        if self.rows[0].batch == self.filling:
            self.filling += 1
            self.filled = 0
        memory = <uint8_t *>memory_for(n, LEASES_ROW)
        p = wire_pen(memory, <size_t>n * LEASES_ROW)
        with nogil:
            for i in range(n):
                wire_put_u8(&p, c"," if i else c"[")
                self.put_row(&p, &self.table.at[self.rows[i].lease], wall - now / 1e9)
            wire_put_u8(&p, c"]")
        self.flight = n
        try:
            return self.rows[0].batch, PyUnicode_DecodeASCII(<char *>memory, p.at - memory, NULL)
        finally:
            free(memory)

    cdef void put_row(self, pen_t *p, lease_t *lease, double zero) noexcept nogil:
        cdef char text[96]
        cdef int n
        wire_put(p, b'["', 2)
        text_put_address(p, lease.address)
        wire_put(p, b'","', 3)
        if lease.now.state == LEASE_BOUND:
            wire_put(p, b"bound", 5)
        elif lease.now.state == LEASE_DECLINED:
            wire_put(p, b"declined", 8)
        else:
            wire_put(p, b"released", 8)
        n = snprintf(text, sizeof(text), b'",%d,"', <int>lease.now.htype)
        wire_put(p, text, n)
        text_put_hex(p, lease.now.chaddr, lease.now.hlen, c":")
        wire_put(p, b'","', 3)
        text_put_hex(p, lease.now.text, lease.now.id_size, 0)
        wire_put(p, b'","', 3)
        text_put_json(p, lease.now.text + lease.now.id_size, lease.now.host_size)
        # Milliseconds: a locale can make a comma of a decimal point.
        n = snprintf(text, sizeof(text), b'",%lld,', <long long>((lease.now.starts / 1e9 + zero) * 1e3))
        wire_put(p, text, n)
        if lease.now.expires == INT64_MAX:
            wire_put(p, b"null]", 5)
        else:
            n = snprintf(text, sizeof(text), b"%lld]", <long long>((lease.now.expires / 1e9 + zero) * 1e3))
            wire_put(p, text, n)

    cdef uint32_t settle_rows(self, bint ok) noexcept nogil:
        # The number of the batch that was in flight and no longer is.
        cdef int32_t i
        cdef uint32_t number = self.rows[0].batch
        for i in range(self.flight):
            self.confirm(self.rows[i].lease, ok)
        self.row_count -= self.flight
        memmove(self.rows, self.rows + self.flight, self.row_count * sizeof(row_t))
        self.flight = 0
        return number

    # ---- questions from Python

    @property
    def committing(self):
        return self.row_count

    cdef tuple lease_tuple(self, lease_t *lease, double zero):
        cdef bytes text = lease.now.text[:lease.now.id_size + lease.now.host_size] if lease.now.text != NULL else b""
        return (
            lease.address, STATE_NAMES[lease.now.state], (<uint8_t *>lease.now.chaddr)[:lease.now.hlen],
            text[:lease.now.id_size], text[lease.now.id_size:], lease.now.starts / 1e9 + zero,
            float("inf") if lease.now.expires == INT64_MAX else lease.now.expires / 1e9 + zero,
        )

    def leases(self, int64_t now, double wall):
        cdef int32_t i
        self.now = now
        self.expire()
        return [
            self.lease_tuple(&self.table.at[i], wall - now / 1e9)
            for i in range(self.table.count) if self.table.at[i].now.state >= LEASE_BOUND
        ]

    def lease_at(self, uint32_t address, int64_t now, double wall):
        cdef int32_t i = lease_at(&self.table, address)
        if i == NOWHERE or self.table.at[i].now.state not in (LEASE_OFFERED, LEASE_BOUND):
            return None
        if self.table.at[i].now.until <= now:
            return None
        return self.lease_tuple(&self.table.at[i], wall - now / 1e9)

    def release(self, uint32_t address, int64_t now):
        cdef int32_t i = lease_at(&self.table, address)
        self.now = now
        if i == NOWHERE or self.table.at[i].now.state < LEASE_BOUND or self.table.at[i].batch:
            return False
        return self.free_durably(i)


cdef uint32_t power_of_two(size_t n):
    cdef uint32_t size = 16
    while size < n:
        size *= 2
    return size

cdef void *memory_for(size_t n, size_t size) except NULL:
    cdef void *memory = calloc(max(n, <size_t>1), size)
    if memory == NULL:
        raise MemoryError
    return memory

cdef size_t host_of(const dhcp_msg_t *m) noexcept nogil:
    # Octets of the host name: some clients end it with a NUL (RFC 2132 3.14 knows none).
    cdef const uint8_t *name = dhcp_value(m, OPTION_HOST_NAME)
    cdef size_t n = min(dhcp_size(m, OPTION_HOST_NAME), <size_t>LEASES_HOST)
    cdef const void *end = memchr(name, 0, n)
    return n if end == NULL else <const uint8_t *>end - name

cdef void text_put_address(pen_t *p, uint32_t address) noexcept nogil:
    cdef char text[16]
    wire_put(p, text, snprintf(text, sizeof(text), b"%u.%u.%u.%u", address >> 24, (address >> 16) & 0xff,
                               (address >> 8) & 0xff, address & 0xff))

cdef void text_put_hex(pen_t *p, const uint8_t *data, size_t n, char between) noexcept nogil:
    cdef const char *digits = b"0123456789abcdef"
    cdef size_t i
    for i in range(n):
        if i and between:
            wire_put_u8(p, between)
        wire_put_u8(p, digits[data[i] >> 4])
        wire_put_u8(p, digits[data[i] & 15])

cdef void text_put_json(pen_t *p, const uint8_t *data, size_t n) noexcept nogil:
    cdef char text[8]
    cdef size_t i
    for i in range(n):
        if 32 <= data[i] < 127 and data[i] != c'"' and data[i] != c"\\":
            wire_put_u8(p, data[i])
        else:
            wire_put(p, text, snprintf(text, sizeof(text), b"\\u%04x", <unsigned int>data[i]))
