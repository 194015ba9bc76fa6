# LeaseKeeper: the leases of a server, whose they are in its configuration, their way to the disk, and who uses the
# addresses that nobody was given.

cdef class LeaseKeeper(Decisions):
    cdef Leases book
    cdef Prober prober
    cdef uint64_t probing           # a bit for each link on which ARP is spoken

    def __cinit__(self, bytes seed not None):
        self.book = Leases()
        self.book.key = self.key
        self.prober = Prober()
        self.prober.book = self.book

    def configure(self, list links not None, list subnets not None, list nodes not None, list own not None,
                  bint authoritative):
        Decisions.configure(self, links, subnets, nodes, own, authoritative)
        self.book.settle(subnets, nodes)
        self.know_holders()
        self.reach()

    cdef void know_holders(self) noexcept nogil:
        # Which addresses nodes have, in this configuration.
        cdef int32_t i
        cdef lease_t *lease
        for i in range(self.book.table.count):
            lease = &self.book.table.at[i]
            lease.now.known = self.node_of_lease(&lease.now) != NOWHERE
            lease.kept.known = self.node_of_lease(&lease.kept) != NOWHERE
            self.book.count(i)

    cdef void tick(self) noexcept nogil:
        Decisions.tick(self)
        self.book.tick(self.now)

    cdef int32_t node_of_lease(self, const binding_t *b) noexcept nogil:
        return self.node_of(
            b.hlen, b.chaddr, lease_text(b, LEASE_CIRCUIT), b.size[LEASE_CIRCUIT],
            lease_text(b, LEASE_REMOTE), b.size[LEASE_REMOTE])

    cdef void recognise(self) noexcept nogil:
        # What renews by itself says nothing of the port that it is known by.
        cdef int32_t i
        Requests.recognise(self)
        if self.node == NOWHERE and self.m.ciaddr and not self.m.relay.heard:
            i = lease_at(&self.book.table, self.m.ciaddr)
            if i != NOWHERE and digest_same(self.book.table.at[i].now.who, self.who):
                self.node = self.node_of_lease(&self.book.table.at[i].now)

    # ---- the leases, for Python

    def load(self, list rows not None, int64_t now, uint64_t last=0):
        outside = self.book.load(rows, now, last)
        self.know_holders()
        return outside

    def adopt(self, list rows not None, int64_t now):
        adopted = self.book.adopt(rows, now)
        self.know_holders()
        return adopted

    def batch(self, int64_t boot):
        return self.book.batch(boot)

    def durable(self, uint64_t number, bint ok, int64_t now):
        if self.book.flight == 0 or self.book.rows[0].batch != number:
            raise ValueError(f"batch {number} is not in flight")
        self.now = now
        with nogil:
            self.tick()
            self.book.settle_rows(ok)
            self.let_go(number, ok)

    @property
    def committing(self):
        return self.book.row_count

    def leases(self, int64_t now, double wall):
        return self.book.leases(now, wall)

    def lease_at(self, uint32_t address, int64_t now, double wall):
        return self.book.lease_at(address, now, wall)

    def node_of_mac(self, bytes mac not None):
        # By what the configuration says, else by the port of its lease.
        cdef const char *octets = mac
        cdef uint8_t size = min(<int>len(mac), 16)
        cdef digest_t who = lease_client(&self.key, False, 1, <const uint8_t *>octets, size, NULL, 0)
        cdef int32_t node = self.node_by(NODE_MAC, <const uint8_t *>octets, size, NULL, 0)
        cdef int32_t i, at
        for i in range(self.subnet_count):
            at = lease_of(&self.book.table, who, i, NOWHERE)
            if node == NOWHERE and at != NOWHERE:
                node = self.node_of_lease(&self.book.table.at[at].now)
        return node

    def release(self, uint32_t address, int64_t now):
        return self.book.release(address, now)

    # ---- who uses free addresses

    cdef void reach(self) noexcept nogil:
        # On which links it is asked who uses the addresses of each pool.
        cdef int32_t i, s
        cdef pool_t *pools = self.book.pools
        for s in range(self.subnet_count):
            pools[s].links = 0
        for i in range(min(self.link_count, 64)):
            if self.probing >> i & 1:
                for s in range(self.links[i].nears):
                    pools[self.links[i].near[s].subnet].links |= <uint64_t>1 << i

    def speak_arp(self, int link, bint on):
        if not 0 <= link < self.link_count:
            raise IndexError(link)
        if link < 64:
            self.probing = self.probing & ~(<uint64_t>1 << link) | (<uint64_t>on << link)
        self.reach()
        self.prober.again()

    def probes(self, int64_t now, int most):
        self.now = now
        self.tick()
        asks, wait = self.prober.due(now, most)
        return [(i, address) for links, address in asks for i in range(self.link_count) if links >> i & 1], wait

    def receive_arp(self, bytes data not None, int link, int64_t now):
        cdef const char *octets = data
        if not 0 <= link < self.link_count:
            raise IndexError(link)
        self.now = now
        self.tick()
        return self.heard(link, <const uint8_t *>octets, len(data))

    def readable_arp(self, int link, int fd, int64_t now):
        cdef int i, n, found = 0
        if not 0 <= link < self.link_count:
            raise IndexError(link)
        with nogil:
            self.now = now
            self.tick()
            traffic_expect(self.traffic)
            n = recvmmsg(fd, self.traffic.vec, RESPONDER_BATCH, MSG_DONTWAIT, NULL)
            for i in range(n):
                found += self.heard(link, self.traffic.data[i], self.traffic.vec[i].msg_len)
            if n < 0 and errno != EAGAIN and errno != EINTR:
                found = -1
        return found

    cdef bint heard(self, int32_t link, const uint8_t *data, size_t n) noexcept nogil:
        # Whether it changed anything.
        cdef arp_t arp
        cdef fact_t e
        cdef int32_t i
        cdef int verdict
        cdef bint same
        cdef lease_t *lease
        if link >= 64 or not arp_parse(data, n, &arp):
            return False
        i = lease_at(&self.book.table, arp.address)
        if i == NOWHERE:
            return False
        lease = &self.book.table.at[i]
        if (not lease.pooled or lease.node != NOWHERE or lease.subnet == NOWHERE or lease.batch
                or lease.now.state in (LEASE_BOUND, LEASE_DECLINED)
                or not self.book.pools[lease.subnet].links >> link & 1):
            return False
        same = lease.now.hlen == 6 and self.one_machine(lease.now.chaddr, arp.mac)
        if same and lease.now.state == LEASE_OFFERED:
            return False
        verdict = self.prober.heard(i, arp.mac, same)
        self.counts[COUNT_CONFLICT] += verdict == HEARD_CONFLICT
        if verdict in (HEARD_CONFLICT, HEARD_PROXY):
            memset(&e, 0, sizeof(e))
            e.kind = FACT_CONFLICT if verdict == HEARD_CONFLICT else FACT_PROXY_ARP
            e.hlen, e.address, e.link, e.node = 6, arp.address, link, self.node_by(NODE_MAC, arp.mac, 6, NULL, 0)
            memcpy(e.chaddr, arp.mac, 6)
            self.push(&e)
        return verdict != HEARD_NOTHING

    cdef bint one_machine(self, const uint8_t *mac, const uint8_t *other) noexcept nogil:
        cdef int32_t node = self.node_by(NODE_MAC, mac, 6, NULL, 0)
        return memcmp(mac, other, 6) == 0 or (node != NOWHERE and node == self.node_by(NODE_MAC, other, 6, NULL, 0))

    def doubt(self, list addresses, int64_t now):
        cdef int32_t i
        self.now = now
        self.tick()
        if addresses is None:
            return sum(self.book.doubt(i) for i in range(self.book.table.count))
        return sum(self.book.doubt(lease_at(&self.book.table, address)) for address in addresses)

    @property
    def vacant(self):
        return self.book.vacant

    @property
    def quarantine(self):
        return self.book.quarantine_for // SECOND

    @quarantine.setter
    def quarantine(self, uint32_t seconds):
        self.book.quarantine_for = seconds * SECOND
