# Responder: the DHCP server that gives leases (RFC 2131 4.3), state by state.

cdef enum:
    RESPONDER_STRANGERS = 16        # other servers that are told of in one TELL_AGAIN

cdef int64_t TELL_AGAIN = 60 * SECOND

cdef struct stranger_t:             # a server that a client chose instead of us
    uint32_t server                 # 0: nothing here
    int32_t link
    int64_t told


cdef class Responder(LeaseKeeper):
    cdef public int32_t max_per_port        # addresses that strangers may have behind one port,
    cdef public int32_t max_offers          # on offer,
    cdef public int32_t max_leases          # and leased
    cdef int64_t limit_told                 # when the next event of a limit may come
    cdef stranger_t strangers[RESPONDER_STRANGERS]

    def __cinit__(self, bytes seed not None):
        self.max_per_port = self.max_offers = self.max_leases = INT32_MAX

    cdef void prefer(self) noexcept nogil:
        # Of several subnets on one wire: the one of the address it has, must have, had, or wants.
        cdef uint32_t asked = dhcp_address(&self.m, OPTION_REQUESTED)
        cdef int32_t i
        if self.m.type != DHCP_DISCOVER and self.near_of(self.m.ciaddr or asked):
            return
        if self.node != NOWHERE and self.near_of(self.nodes[self.node].address):
            return
        for i in range(self.nears):
            if lease_of(&self.book.table, self.who, self.near[i].subnet, NOWHERE) != NOWHERE:
                self.here = self.near[i]
                return
        if self.near_of(asked):
            return
        self.here = self.near[0]
        for i in range(self.nears):
            if self.book.next_free(self.near[i].subnet) != NOWHERE:
                self.here = self.near[i]
                return

    cdef void handle(self) noexcept nogil:
        if self.m.type == DHCP_DECLINE:
            self.on_decline()
        elif self.m.type == DHCP_RELEASE:
            self.on_release()
        elif (self.m.type == DHCP_REQUEST and dhcp_has(&self.m, OPTION_SERVER)
                and not self.is_server(dhcp_address(&self.m, OPTION_SERVER))):
            self.other_chosen()
        else:
            self.serve()

    cdef void fulfil(self, dhcp_plan_t *plan) noexcept nogil:
        if self.m.type == DHCP_DISCOVER:
            self.on_discover(plan)
        elif self.m.type == DHCP_REQUEST:
            self.on_request(plan)
        elif self.m.type == DHCP_INFORM:
            self.on_inform(plan)
        else:
            self.on_bootp(plan)

    # ---- DISCOVER

    cdef uint32_t fixed(self, const dhcp_plan_t *plan) noexcept nogil:
        # The only address this client may have, or 0. One that is of no use here is none: an address of the pool
        # boots the machine all the same.
        cdef uint32_t address = plan.address
        cdef int32_t i
        cdef lease_t *lease
        if not address and self.node != NOWHERE:
            address = self.nodes[self.node].address
        if not address:
            return 0
        if not self.near_of(address):
            self.counts[COUNT_ADDRESS_OFF_LINK] += 1
            return 0
        i = self.book.add(address)
        if i == NOWHERE:
            self.counts[COUNT_NO_MEMORY] += 1
            return 0
        lease = &self.book.table.at[i]
        if lease.now.state != LEASE_DECLINED and self.available(lease):
            return address
        self.counts[COUNT_ADDRESS_TAKEN] += 1
        if self.m.type == DHCP_DISCOVER:
            self.event(FACT_TAKEN, address, 0, 0)
        return 0

    cdef bint available(self, const lease_t *lease) noexcept nogil:
        # Free, this client's, or the same node's: of a machine with two interfaces one asks at a time.
        return (lease.now.state == LEASE_FREE or digest_same(lease.now.who, self.who)
                or (self.node != NOWHERE and self.node_of_lease(&lease.now) == self.node))

    cdef void on_discover(self, dhcp_plan_t *plan) noexcept nogil:
        cdef int32_t i = self.choose(self.fixed(plan))
        cdef lease_t *lease
        cdef dhcp_reply_t reply
        cdef int limit
        if i == NOWHERE:
            return
        lease = &self.book.table.at[i]
        if lease.batch and not (lease.now.state == LEASE_BOUND and digest_same(lease.now.who, self.who)):
            self.counts[COUNT_IN_FLIGHT] += 1
            return
        limit = self.over_limit(i)
        if limit:
            self.silent(limit, 0)
            return
        self.book.hold_offer(i, self.who, self.node != NOWHERE, &self.m)
        reply.type, reply.server, reply.yiaddr, reply.message = DHCP_OFFER, self.here.server, lease.address, NULL
        reply.lease = self.seconds(i, plan)
        self.send(&reply, plan, 0, self.first_told(i, plan.tag, True))

    cdef int32_t choose(self, uint32_t fixed) noexcept nogil:
        # RFC 2131 4.3.1: the binding it has, or had, the address it asks for, the one that is free longest.
        cdef pool_t *pool = &self.book.pools[self.here.subnet]
        cdef lease_t *lease
        cdef int32_t i
        if fixed:
            return lease_at(&self.book.table, fixed)
        i = lease_of(&self.book.table, self.who, self.here.subnet, NOWHERE)
        if i != NOWHERE and self.book.allowed(i, 0, self.node):
            return i
        i = lease_at(&self.book.table, dhcp_address(&self.m, OPTION_REQUESTED))
        if i != NOWHERE:
            lease = &self.book.table.at[i]
            if lease.listed and lease.listed != FREE_DOUBTFUL and lease.subnet == self.here.subnet:
                return i
        i = self.book.next_free(self.here.subnet)
        if i == NOWHERE and pool.free[FREE_DOUBTFUL].count:
            self.silent(COUNT_DOUBTFUL, self.subnets[self.here.subnet].network)
        elif i == NOWHERE:
            self.silent(COUNT_EXHAUSTED, self.subnets[self.here.subnet].network)
            if not pool.exhausted:
                pool.exhausted = True
                self.event(FACT_EXHAUSTED, 0, 0, self.subnets[self.here.subnet].network)
        return i

    cdef int over_limit(self, int32_t i) noexcept nogil:
        # The counter that says why the address would be one too many for strangers, or 0. What one has is left to it,
        # nodes are always served, and who comes back is no new one, though not for an offer that it had.
        cdef lease_t *lease = &self.book.table.at[i]
        cdef bint same = digest_same(lease.now.who, self.who)
        cdef digest_t port
        cdef int limit = 0
        if self.node != NOWHERE or (same and lease.now.state == LEASE_BOUND):
            return 0
        port = self.book.port_of(&self.m)
        if self.book.held[LEASE_BOUND] >= self.max_leases:
            limit = COUNT_LEASE_LIMIT
        elif same and lease.now.state == LEASE_OFFERED:
            return 0
        elif not digest_none(port) and ports_held(&self.book.ports, port) >= self.max_per_port:
            limit = COUNT_PORT_LIMIT
        elif self.m.type == DHCP_DISCOVER and self.book.held[LEASE_OFFERED] >= self.max_offers:
            if not (same and lease.now.starts):
                limit = COUNT_OFFER_LIMIT
        if limit and self.now >= self.limit_told:
            self.limit_told = self.now + TELL_AGAIN
            self.event(FACT_LIMIT, self.m.giaddr, 0, limit)
        return limit

    # ---- REQUEST

    cdef void on_request(self, dhcp_plan_t *plan) noexcept nogil:
        cdef bint selecting = dhcp_has(&self.m, OPTION_SERVER)
        cdef uint32_t asked = dhcp_address(&self.m, OPTION_REQUESTED)
        cdef uint32_t fixed
        cdef int32_t i
        cdef int limit
        if self.m.ciaddr and (not selecting or not asked):
            asked = self.m.ciaddr                       # RENEWING, REBINDING
        if not asked:
            self.silent(COUNT_NO_ADDRESS_ASKED, 0)
            return
        fixed = self.fixed(plan)
        if not self.near_of(asked):
            self.on_other_network(selecting)
            return
        i = lease_at(&self.book.table, asked)
        if i != NOWHERE and self.may_have(i, fixed, selecting):
            limit = self.over_limit(i)
            if not limit:
                self.grant(i, plan)
            elif selecting:
                self.refuse(b"there are too many machines here")
            else:
                self.silent(limit, 0)
        elif selecting:
            self.refuse(b"the address is not available")
        elif self.on_record(fixed):
            self.refuse(b"the address is not yours")
        elif (self.m.ciaddr and self.unicast and i != NOWHERE
              and self.book.table.at[i].now.state == LEASE_BOUND):
            self.refuse(b"the address is another client's")
        else:
            self.silent(COUNT_UNKNOWN_CLIENT, asked)    # RFC 2131 4.3.2: it may be another server's

    cdef bint may_have(self, int32_t i, uint32_t fixed, bint selecting) noexcept nogil:
        cdef lease_t *lease = &self.book.table.at[i]
        cdef int32_t other
        if not self.book.allowed(i, fixed, self.node):
            return False
        if digest_same(lease.now.who, self.who):
            return True
        if fixed:
            return True                                 # `fixed` has seen that it is to be had
        if lease.now.state != LEASE_FREE or not (selecting or (self.m.ciaddr and lease.doubtful)):
            return False
        # An offer of before a restart, or a lease that a damaged store has lost: nothing remembers it but the client.
        other = lease_of(&self.book.table, self.who, lease.subnet, i)
        return other == NOWHERE or self.book.table.at[other].now.state != LEASE_BOUND

    cdef bint on_record(self, uint32_t fixed) noexcept nogil:
        # Whether this server knows which address the client should have. An offer is no such knowledge, nor is that
        # it was heard to use one.
        cdef int32_t i = lease_of(&self.book.table, self.who, self.here.subnet, NOWHERE)
        return fixed or (i != NOWHERE and self.book.table.at[i].now.state not in (LEASE_OFFERED, LEASE_DECLINED))

    cdef void on_other_network(self, bint selecting) noexcept nogil:
        # Only who is alone here knows that an address of another network is wrong. A client that renews by
        # unicast through a router may well be right.
        if self.authoritative and (selecting or not self.m.ciaddr or not self.unicast):
            self.refuse(b"the address is of another network")
        else:
            self.silent(COUNT_OTHER_NETWORK, 0)

    cdef void other_chosen(self) noexcept nogil:
        cdef uint32_t server = dhcp_address(&self.m, OPTION_SERVER)
        cdef int32_t i = lease_of(&self.book.table, self.who, self.here.subnet, NOWHERE)
        self.silent(COUNT_OTHER_SERVER, server)
        if i != NOWHERE and self.book.table.at[i].now.state == LEASE_OFFERED and self.book.table.at[i].batch == 0:
            self.book.table.at[i].now.expires = self.now
            self.book.retire(i)
        if self.stranger_is_news(server):
            self.event(FACT_OTHER_SERVER, dhcp_address(&self.m, OPTION_REQUESTED), 0, server)

    cdef bint stranger_is_news(self, uint32_t server) noexcept nogil:
        # Python learns at intervals that a server is still there. Whoever makes servers up makes few events.
        cdef int32_t i
        cdef stranger_t *s = &self.strangers[0]
        for i in range(RESPONDER_STRANGERS):
            if self.strangers[i].server == server and self.strangers[i].link == self.link:
                s = &self.strangers[i]
                break
            if self.strangers[i].told < s.told:
                s = &self.strangers[i]
        if s.server and self.now - s.told < TELL_AGAIN:
            return False
        s.server, s.link, s.told = server, self.link, self.now
        return True

    cdef uint32_t seconds(self, int32_t i, const dhcp_plan_t *plan) noexcept nogil:
        # What a REQUEST would get now: in the first quarter of a lease the rest of it, which is on disk.
        cdef lease_t *lease = &self.book.table.at[i]
        cdef uint32_t wanted = plan.lease or self.subnets[self.here.subnet].lease
        return self.book.rest(lease, self.who, &self.m, wanted) or wanted

    cdef bint in_flight(self, int32_t i) noexcept nogil:
        # Whether a change of the address is on its way to the disk that this request can not join.
        cdef lease_t *lease = &self.book.table.at[i]
        if not lease.batch:
            return False
        # A disk that took longer than the lease lasts leaves nothing of it to join.
        if (lease.now.state != LEASE_BOUND or not digest_same(lease.now.who, self.who)
                or lease.now.expires <= self.now + LEASE_GRACE + SECOND):
            self.counts[COUNT_IN_FLIGHT] += 1
            return True
        if lease.waiting_xid == self.m.xid:
            self.counts[COUNT_ALREADY_WAITING] += 1
            return True
        return False

    cdef void grant(self, int32_t i, dhcp_plan_t *plan) noexcept nogil:
        cdef lease_t *lease = &self.book.table.at[i]
        cdef uint32_t wanted = plan.lease or self.subnets[self.here.subnet].lease
        cdef uint32_t left = 0
        cdef dhcp_reply_t reply
        reply.type, reply.server, reply.yiaddr, reply.message = DHCP_ACK, self.here.server, lease.address, NULL
        if self.in_flight(i):
            return
        if lease.batch:
            left = wanted if lease.now.expires == INT64_MAX else (lease.now.expires - LEASE_GRACE - self.now) // SECOND
        else:
            left = self.book.rest(lease, self.who, &self.m, wanted)
        if left:
            reply.lease = left
            self.counts[COUNT_RENEWED_WITHOUT_COMMIT] += lease.batch == 0
        else:
            reply.lease = wanted
            if not self.book.bind(i, self.who, self.node != NOWHERE, &self.m, wanted):
                self.counts[COUNT_NO_MEMORY] += 1
                return
        lease = &self.book.table.at[i]
        lease.waiting_xid = self.m.xid
        self.send(&reply, plan, lease.batch, self.first_told(i, plan.tag, False))

    cdef bint first_told(self, int32_t i, uint32_t tag, bint offer) noexcept nogil:
        # One event for each fact: a repeated request, or the same offer once more, is none.
        cdef lease_t *lease = &self.book.table.at[i]
        cdef bint first
        if offer:
            first = lease.told_offer != tag + 1
            lease.told_offer, lease.told_ack = tag + 1, 0
        else:
            first = lease.told_ack != self.m.xid or lease.told_offer != 0
            lease.told_ack, lease.told_offer = self.m.xid, 0
        return first

    cdef void refuse(self, const char *message) noexcept nogil:
        cdef dhcp_reply_t reply
        reply.type, reply.server, reply.yiaddr, reply.lease = DHCP_NAK, self.here.server, 0, 0
        reply.message = message
        self.send(&reply, NULL, 0, True)

    # ---- BOOTP, INFORM, DECLINE, RELEASE

    cdef void on_bootp(self, dhcp_plan_t *plan) noexcept nogil:
        # RFC 1534 2: only an address that is kept for it, since it never tells that it is done with one. A lease all
        # the same, so that the address is known to be its while it boots.
        cdef uint32_t address = self.fixed(plan)
        cdef uint32_t wanted = plan.lease or self.subnets[self.here.subnet].lease
        cdef dhcp_reply_t reply
        cdef int32_t i
        if not address:
            self.silent(COUNT_BOOTP_UNKNOWN, 0)
            return
        i = lease_at(&self.book.table, address)
        if self.in_flight(i):
            return
        if (self.book.table.at[i].batch == 0 and not self.book.rest(&self.book.table.at[i], self.who, &self.m, wanted)
                and not self.book.bind(i, self.who, True, &self.m, wanted)):
            self.counts[COUNT_NO_MEMORY] += 1
            return
        reply.type, reply.server, reply.yiaddr, reply.lease = 0, self.here.server, address, 0
        reply.message = NULL
        self.book.table.at[i].waiting_xid = self.m.xid
        self.send(&reply, plan, self.book.table.at[i].batch, self.first_told(i, plan.tag, False))

    cdef void on_inform(self, dhcp_plan_t *plan) noexcept nogil:
        cdef dhcp_reply_t reply
        if not self.m.giaddr:
            if not (self.m.ciaddr or self.source):
                self.counts[COUNT_NO_ADDRESS_ASKED] += 1
                return
            if not self.near_of(self.m.ciaddr or self.source):
                # Whoever writes a far address into it wants somebody else to get our answer.
                self.counts[COUNT_OTHER_NETWORK] += 1
                return
        reply.type, reply.server, reply.yiaddr, reply.lease = DHCP_ACK, self.here.server, 0, 0
        reply.message = NULL
        self.send(&reply, plan, 0, True)

    cdef int32_t owned(self, uint32_t address) noexcept nogil:
        # The entry of an address that this client may give up.
        cdef int32_t i = lease_at(&self.book.table, address)
        if i == NOWHERE or not digest_same(self.book.table.at[i].now.who, self.who):
            return NOWHERE
        if self.book.table.at[i].now.state not in (LEASE_BOUND, LEASE_OFFERED):
            return NOWHERE
        if dhcp_has(&self.m, OPTION_SERVER) and not self.is_server(dhcp_address(&self.m, OPTION_SERVER)):
            return NOWHERE
        return i

    cdef void on_decline(self) noexcept nogil:
        cdef uint32_t address = dhcp_address(&self.m, OPTION_REQUESTED) or self.m.ciaddr
        cdef int32_t i = self.owned(address)
        cdef bint conflict = True
        cdef digest_t nobody
        cdef const uint8_t *text = dhcp_value(&self.m, OPTION_MESSAGE)
        cdef size_t n = dhcp_size(&self.m, OPTION_MESSAGE)
        if i == NOWHERE:
            self.counts[COUNT_DECLINE_BY_STRANGER] += 1
            return
        if self.book.table.at[i].batch:
            self.counts[COUNT_IN_FLIGHT] += 1
            return
        # EDK2 declines an ACK that it does not understand in these words (Dhcp4Io.c): no address conflict.
        if n >= 15 and (memcmp(text, b"Lease is denied", 15) == 0 or memcmp(text, b"Lease confirmed", 15) == 0):
            conflict = False
        self.event(FACT_DECLINE, address, 0, conflict)
        nobody.a = nobody.b = 0
        if self.book.quarantine(i, nobody, self.book.quarantine_for) if conflict else self.book.free_durably(i):
            self.counts[COUNT_DECLINED] += 1
        else:
            self.counts[COUNT_NO_MEMORY] += 1

    cdef void on_release(self) noexcept nogil:
        cdef int32_t i = self.owned(self.m.ciaddr)
        if i == NOWHERE or self.book.table.at[i].now.state != LEASE_BOUND:
            self.counts[COUNT_RELEASE_BY_STRANGER] += 1
        elif self.book.table.at[i].batch:
            self.counts[COUNT_IN_FLIGHT] += 1
        elif self.book.free_durably(i):
            self.counts[COUNT_RELEASED] += 1
            self.event(FACT_RELEASE, self.m.ciaddr, 0, 0)
        else:
            self.counts[COUNT_NO_MEMORY] += 1
