# Prober: finds out ahead of time which free addresses somebody uses (RFC 5227), so that no OFFER waits for it. It
# says what to ask by ARP and when, and judges what is heard; a Responder owns it, with the Leases that it looks at.

cdef enum:
    PROBER_WINDOW = 32              # addresses of each subnet that are known to be unused, or being asked about
    PROBER_TIMES = 3                # RFC 5227 1.1 PROBE_NUM
    PROBER_CLAIMERS = 64            # machines that are told apart
    PROBER_CLAIMS = 32              # addresses that one may have; beyond, it answers for others: proxy ARP

cdef int64_t PROBER_GAP = SECOND            # RFC 5227 1.1 PROBE_MIN; also the wait after the last
cdef int64_t CLEAR_FOR = 300 * SECOND       # then it is asked about again

cdef enum:                          # what a frame tells
    HEARD_NOTHING = 0
    HEARD_SAME                      # the machine that had the address may use it still
    HEARD_CONFLICT
    HEARD_PROXY

cdef struct claimer_t:
    uint8_t mac[6]
    int32_t claims
    int64_t since


cdef class Prober:
    cdef Leases book
    cdef claimer_t claimers[PROBER_CLAIMERS]

    cdef due(self, int64_t now, int most):
        # ([(links, address)], nanoseconds until there is more to do). Of each subnet the addresses that strangers get
        # next are looked at and no others, whatever the size of its pools.
        cdef int32_t s, i, after, room
        cdef int which
        cdef int64_t wait = CLEAR_FOR
        cdef pool_t *pool
        cdef bint ask
        asks = []
        for s in range(self.book.subnet_count):
            pool = &self.book.pools[s]
            room = PROBER_WINDOW if pool.links else 0
            for which in range(FREE_CLEAR, FREE_LISTS):
                i = pool.free[which].oldest
                while i != NOWHERE and room:
                    after = self.book.table.at[i].newer
                    room -= 1
                    ask = len(asks) < most
                    wait = min(wait, self.step(pool, i, now, &ask) - now)
                    if ask:
                        asks.append((pool.links, self.book.table.at[i].address))
                    i = after
        self.book.vacant = False
        return asks, wait

    cdef int64_t step(self, pool_t *pool, int32_t i, int64_t now, bint *ask) noexcept nogil:
        # When there is more to do about an address; `ask`: whether it may be asked about, and is to be.
        cdef bint may = ask[0]
        cdef lease_t *lease = &self.book.table.at[i]
        cdef bint rests = lease.probes == 0 and lease.listed == FREE_CLEAR
        cdef int64_t at = lease.probed + (CLEAR_FOR if rests else PROBER_GAP)
        ask[0] = False
        if at > now:
            return at
        if lease.probes == PROBER_TIMES:
            lease.probes, lease.probed, lease.doubtful = 0, now, False
            if lease.listed != FREE_CLEAR:
                fifo_remove(&self.book.table, pool.free, i)
                fifo_push(&self.book.table, pool.free, i, FREE_CLEAR)
            return now + CLEAR_FOR
        if not may:
            return now
        ask[0] = True
        lease.probes, lease.probed = lease.probes + 1, now
        return now + PROBER_GAP

    cdef void again(self) noexcept nogil:
        # Nobody can have heard the last questions.
        cdef int32_t s, i
        cdef int which
        for s in range(self.book.subnet_count):
            for which in range(FREE_CLEAR, FREE_LISTS):
                i = self.book.pools[s].free[which].oldest
                while i != NOWHERE and self.book.table.at[i].probes:
                    self.book.table.at[i].probes = 0
                    i = self.book.table.at[i].newer

    cdef int heard(self, int32_t i, const uint8_t *mac, bint same) noexcept nogil:
        # The machine `mac` uses a pool's address that it has no lease of; `same`: it is the one that had it last.
        cdef claimer_t *c
        if same:
            # A frame of its last moments is no answer. One that answers keeps it until it is asked again.
            if self.book.table.at[i].probes == 0:
                return HEARD_SAME if not self.book.table.at[i].doubtful and self.book.doubt(i) else HEARD_NOTHING
            return HEARD_SAME if self.set_aside(i, mac, CLEAR_FOR) else HEARD_NOTHING
        c = self.claimer(mac)
        if c.claims > PROBER_CLAIMS:
            return HEARD_NOTHING
        c.claims += 1
        if c.claims > PROBER_CLAIMS:
            self.acquit(mac)
            return HEARD_PROXY
        return HEARD_CONFLICT if self.set_aside(i, mac, self.book.quarantine_for) else HEARD_NOTHING

    cdef bint set_aside(self, int32_t i, const uint8_t *mac, int64_t time) noexcept nogil:
        cdef lease_t *lease = &self.book.table.at[i]
        cdef digest_t who = lease_client(&self.book.key, False, 1, mac, 6, NULL, 0)
        if lease_of(&self.book.table, who, lease.subnet, i) != NOWHERE:
            who.a = who.b = 0                           # it has an address, and should use that
        if not self.book.quarantine(i, who, time):
            return False
        lease.now.htype, lease.now.hlen = 1, 6
        memset(lease.now.chaddr, 0, 16)
        memcpy(lease.now.chaddr, mac, 6)
        return True

    cdef claimer_t *claimer(self, const uint8_t *mac) noexcept nogil:
        cdef int i
        cdef claimer_t *c = &self.claimers[0]
        for i in range(PROBER_CLAIMERS):
            if self.claimers[i].claims and memcmp(self.claimers[i].mac, mac, 6) == 0:
                c = &self.claimers[i]
                break
            if self.claimers[i].since < c.since:
                c = &self.claimers[i]
        if memcmp(c.mac, mac, 6) != 0 or self.book.now - c.since > self.book.quarantine_for:
            memcpy(c.mac, mac, 6)
            c.claims, c.since = 0, self.book.now
        return c

    cdef void acquit(self, const uint8_t *mac) noexcept nogil:
        # Its answers proved nothing.
        cdef int32_t i
        cdef lease_t *lease
        for i in range(self.book.table.count):
            lease = &self.book.table.at[i]
            if lease.now.state == LEASE_DECLINED and lease.batch == 0 and memcmp(lease.now.chaddr, mac, 6) == 0:
                lease.doubtful = False
                self.book.free_durably(i)
