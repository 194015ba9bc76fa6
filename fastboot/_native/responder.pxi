# Responder: the DHCP server. One thread (the loop's) calls it; nothing here blocks. Per packet no Python object
# is made except where Python must decide (a miss) or is told (an event). It works without any socket: packets
# come in by `receive` and replies are collected until `replies` takes them.

cdef enum:
    RESPONDER_ROUNDS = 4            # batches a call of `readable` takes before the loop has its turn
    RESPONDER_HELD = 4096           # requests that wait for a decision

cdef int64_t HELD_FOR = 2 * SECOND

cdef struct held_t:
    uint64_t id                     # 0: nothing here
    digest_t who
    int32_t link
    int32_t next
    int64_t since
    uint32_t source
    uint32_t destination
    uint16_t size
    uint8_t *data

cdef struct miss_t:                 # what `answer` needs to know of a request, whatever became of it since
    uint64_t id
    digest_t class_key
    digest_t machine_key
    uint32_t generation
    int32_t known


cdef class Responder(Replies):
    cdef uint32_t generation
    cdef plans_t plans
    cdef held_t *held
    cdef int32_t *held_buckets
    cdef uint64_t held_first        # ids in use are held_first <= id < held_next
    cdef uint64_t held_next
    cdef uint64_t *untold           # ids that Python must be asked for, a ring
    cdef uint32_t untold_first
    cdef uint32_t untold_count
    cdef uint32_t strangers[16]     # servers that were told of
    cdef int32_t stranger_count
    cdef out_t scratch
    # the packet at hand
    cdef dhcp_msg_t m
    cdef int32_t link
    cdef uint32_t source
    cdef uint32_t destination
    cdef int32_t node
    cdef digest_t who
    cdef int32_t nears
    cdef near_t near[LEASES_NEAR]
    cdef near_t here                # the subnet it is answered in
    cdef digest_t class_key
    cdef digest_t machine_key
    cdef dhcp_plan_t *once          # a plan that holds for `once_key` in this call only
    cdef digest_t once_key

    def __cinit__(self, bytes seed not None):
        self.held_first = self.held_next = 1
        self.plans.at = <plan_entry_t *>memory_for(PLANS_ROOM, sizeof(plan_entry_t))
        self.plans.buckets = <int32_t *>memory_for(PLANS_BUCKETS, sizeof(int32_t))
        self.held = <held_t *>memory_for(RESPONDER_HELD, sizeof(held_t))
        self.held_buckets = <int32_t *>memory_for(RESPONDER_HELD, sizeof(int32_t))
        self.untold = <uint64_t *>memory_for(RESPONDER_HELD, sizeof(uint64_t))
        memset(self.plans.buckets, 0xff, PLANS_BUCKETS * sizeof(int32_t))
        memset(self.held_buckets, 0xff, RESPONDER_HELD * sizeof(int32_t))

    def __dealloc__(self):
        cdef int32_t i
        if self.plans.at != NULL:
            for i in range(self.plans.used):
                free(self.plans.at[i].plan)
        if self.held != NULL:
            for i in range(RESPONDER_HELD):
                free(self.held[i].data)
        free(self.plans.at)
        free(self.plans.buckets)
        free(self.held)
        free(self.held_buckets)
        free(self.untold)

    def configure(self, list links not None, list subnets not None, list nodes not None, list own not None,
                  bint authoritative):
        Leases.configure(self, links, subnets, nodes, own, authoritative)
        self.forget()

    def forget(self):
        self.generation += 1

    # ---- a packet comes in

    def receive(self, bytes data not None, int link, uint32_t source, uint32_t destination, int64_t now):
        cdef const char *octets = data
        cdef size_t n = len(data)
        if not 0 <= link < self.link_count:
            raise IndexError(link)
        with nogil:
            self.take(<const uint8_t *>octets, n, link, source, destination, now)

    def readable(self, int link, int64_t now):
        cdef int i, n, rounds = 0, total = 0
        cdef bint more = True
        if not 0 <= link < self.link_count:
            raise IndexError(link)
        with nogil:
            while more and rounds < RESPONDER_ROUNDS:
                traffic_expect(self.traffic)
                n = recvmmsg(self.links[link].fd, self.traffic.vec, RESPONDER_BATCH, MSG_DONTWAIT, NULL)
                for i in range(n):
                    if self.traffic.vec[i].msg_hdr.msg_flags & MSG_TRUNC:
                        self.counts[COUNT_RECEIVED] += 1
                        self.counts[DHCP_LONG] += 1
                        continue
                    self.take(self.traffic.data[i], self.traffic.vec[i].msg_len, link,
                              ntohl(self.traffic.name[i].sin_addr.s_addr),
                              traffic_destination(&self.traffic.vec[i].msg_hdr), now)
                total += max(n, 0)
                rounds += 1
                more = n == RESPONDER_BATCH
        return total

    cdef void take(self, const uint8_t *data, size_t n, int32_t link, uint32_t source, uint32_t destination,
                   int64_t now) noexcept nogil:
        cdef int rc
        self.now = now
        self.counts[COUNT_RECEIVED] += 1
        self.expire()
        rc = self.prepare(data, n, link, source, destination)
        if rc:
            self.counts[rc] += 1
            return
        if self.m.type == DHCP_DISCOVER:
            self.counts[COUNT_DISCOVER] += 1
        elif self.m.type == DHCP_REQUEST:
            self.counts[COUNT_REQUEST] += 1
            if dhcp_has(&self.m, OPTION_SERVER) and not self.is_own(dhcp_address(&self.m, OPTION_SERVER)):
                self.other_chosen()
                return
        elif self.m.type == DHCP_DECLINE:
            self.counts[COUNT_DECLINE] += 1
            self.on_decline()
            return
        elif self.m.type == DHCP_RELEASE:
            self.counts[COUNT_RELEASE] += 1
            self.on_release()
            return
        else:
            self.counts[COUNT_INFORM] += 1
        self.serve()

    cdef int prepare(self, const uint8_t *data, size_t n, int32_t link, uint32_t source,
                     uint32_t destination) noexcept nogil:
        # Reads the packet and whence it is; 0, or the counter that says why there is nothing to do.
        cdef dhcp_msg_t *m = &self.m
        cdef int rc = dhcp_parse(data, n, m)
        if rc < 0:
            return -rc
        if m.op != 1:
            return COUNT_NOT_A_REQUEST
        if m.type == 0:
            return COUNT_BOOTP
        if m.type > DHCP_INFORM or m.type in (DHCP_OFFER, DHCP_ACK, DHCP_NAK):
            return COUNT_UNKNOWN_TYPE
        if (m.hlen == 0 or m.htype == 32) and dhcp_size(m, OPTION_CLIENT_ID) < 2:
            return COUNT_NO_IDENTITY
        self.link, self.source, self.destination = link, source, destination
        if not self.locate():
            return COUNT_NO_SUBNET
        self.who = self.identity(m.htype, m.chaddr, m.hlen, dhcp_value(m, OPTION_CLIENT_ID),
                                 dhcp_size(m, OPTION_CLIENT_ID))
        self.node = self.node_of(m.hlen, m.chaddr)
        self.prefer()
        self.classify()
        return 0

    cdef bint locate(self) noexcept nogil:
        # The subnets it may be in: that of its relay, or those of the link.
        cdef link_t *link = &self.links[self.link]
        if self.m.giaddr:
            self.near[0].subnet = self.subnet_of(self.m.giaddr)
            self.near[0].server = self.destination if self.is_own(self.destination) else link.address
            self.nears = self.near[0].subnet != NOWHERE
        else:
            memcpy(self.near, link.near, sizeof(self.near))
            self.nears = link.nears
        return self.nears > 0

    cdef bint near_of(self, uint32_t address) noexcept nogil:
        # Sets `here` to the subnet near by that holds the address.
        cdef int32_t i
        if address:
            for i in range(self.nears):
                if address & self.subnets[self.near[i].subnet].mask == self.subnets[self.near[i].subnet].network:
                    self.here = self.near[i]
                    return True
        return False

    cdef void prefer(self) noexcept nogil:
        # Of several subnets on one wire: the one of the address it has, must have, had, or wants.
        cdef uint32_t asked = dhcp_address(&self.m, OPTION_REQUESTED)
        cdef int32_t i
        if self.m.type != DHCP_DISCOVER and self.near_of(self.m.ciaddr or asked):
            return
        if self.node != NOWHERE and self.near_of(self.nodes[self.node].address):
            return
        for i in range(self.nears):
            if lease_of(&self.table, self.who, self.near[i].subnet, NOWHERE) != NOWHERE:
                self.here = self.near[i]
                return
        if self.near_of(asked):
            return
        self.here = self.near[0]
        for i in range(self.nears):
            if self.subnets[self.near[i].subnet].free.count:
                self.here = self.near[i]
                return

    cdef void classify(self) noexcept nogil:
        cdef uint8_t octets[DHCP_LONGEST + 64]
        cdef uint8_t codes[4]
        cdef pen_t p = wire_pen(octets, sizeof(octets))
        cdef int i
        codes[0], codes[1] = OPTION_VENDOR_CLASS, OPTION_USER_CLASS
        codes[2], codes[3] = OPTION_ARCHITECTURE, OPTION_IPXE
        wire_put_u8(&p, 0)
        wire_put_u32(&p, self.subnets[self.here.subnet].network)
        wire_put_u32(&p, self.here.server)
        wire_put_u16(&p, self.link)
        for i in range(4):
            wire_put_u16(&p, self.m.seen[codes[i]])
            wire_put(&p, dhcp_value(&self.m, codes[i]), dhcp_size(&self.m, codes[i]))
        self.class_key = digest_of(&self.key, octets, p.at - octets)
        octets[0] = 1
        wire_put(&p, &self.who, sizeof(digest_t))
        self.machine_key = digest_of(&self.key, octets, p.at - octets)

    # ---- which plan

    cdef void serve(self) noexcept nogil:
        cdef dhcp_plan_t *plan = self.find_plan()
        if plan == NULL:
            self.hold()
        elif plan.ignore:
            self.counts[COUNT_IGNORED] += 1
        elif self.m.type == DHCP_DISCOVER:
            self.on_discover(plan)
        elif self.m.type == DHCP_REQUEST:
            self.on_request(plan)
        else:
            self.on_inform(plan)

    cdef dhcp_plan_t *find_plan(self) noexcept nogil:
        cdef dhcp_plan_t *plan
        if self.once != NULL and digest_same(self.once_key, self.machine_key):
            return self.once
        plan = plans_find(&self.plans, self.machine_key, self.generation)
        if plan == NULL and self.node == NOWHERE:
            # A machine that the configuration knows never gets what was decided for its class.
            plan = plans_find(&self.plans, self.class_key, self.generation)
        return plan

    cdef void hold(self) noexcept nogil:
        # One request of a client waits, its last; it goes on in `answer`.
        cdef held_t *h
        cdef int32_t i
        self.expire_held()
        i = self.held_buckets[self.who.b % RESPONDER_HELD]
        while i != NOWHERE and not (digest_same(self.held[i].who, self.who) and self.held[i].link == self.link):
            i = self.held[i].next
        if i != NOWHERE:
            self.counts[COUNT_HELD_REPLACED] += 1
            self.keep(&self.held[i])
            return
        if self.held_next - self.held_first == RESPONDER_HELD:
            self.counts[COUNT_HELD_FULL] += 1
            return
        self.counts[COUNT_MISS] += 1
        i = self.held_next % RESPONDER_HELD
        h = &self.held[i]
        h.id, h.who, h.link, h.since = self.held_next, self.who, self.link, self.now
        h.next = self.held_buckets[self.who.b % RESPONDER_HELD]
        self.held_buckets[self.who.b % RESPONDER_HELD] = i
        self.held_next += 1
        self.keep(h)
        self.tell(h.id)

    cdef void keep(self, held_t *h) noexcept nogil:
        free(h.data)
        h.data = <uint8_t *>malloc(self.m.size)
        h.size = self.m.size if h.data != NULL else 0
        h.source, h.destination = self.source, self.destination
        if h.data != NULL:
            memcpy(h.data, self.m.data, self.m.size)

    cdef void tell(self, uint64_t id) noexcept nogil:
        if self.untold_count < RESPONDER_HELD:
            self.untold[(self.untold_first + self.untold_count) % RESPONDER_HELD] = id
            self.untold_count += 1

    cdef void unhold(self, held_t *h) noexcept nogil:
        cdef int32_t *place = &self.held_buckets[h.who.b % RESPONDER_HELD]
        while place[0] != h - self.held:
            place = &self.held[place[0]].next
        place[0] = h.next
        free(h.data)
        h.data = NULL
        h.id = 0

    cdef void expire_held(self) noexcept nogil:
        cdef held_t *h
        while self.held_first < self.held_next:
            h = &self.held[self.held_first % RESPONDER_HELD]
            if h.id:
                if self.now - h.since < HELD_FOR:
                    return
                self.counts[COUNT_DECISION_LATE] += 1
                self.unhold(h)
            self.held_first += 1

    cdef held_t *held_by(self, uint64_t id) noexcept nogil:
        cdef held_t *h = &self.held[id % RESPONDER_HELD]
        return h if h.id == id else NULL

    def misses(self, int most=RESPONDER_HELD):
        cdef held_t *h
        cdef miss_t miss
        cdef list told = []
        cdef uint32_t server
        while self.untold_count and len(told) < most:
            h = self.held_by(self.untold[self.untold_first])
            self.untold_first = (self.untold_first + 1) % RESPONDER_HELD
            self.untold_count -= 1
            if h == NULL or self.prepare(h.data, h.size, h.link, h.source, h.destination):
                continue
            if self.find_plan() != NULL:
                self.go_on(h)                           # it was decided for another meanwhile
                continue
            memset(&miss, 0, sizeof(miss))
            miss.id, miss.class_key, miss.machine_key = h.id, self.class_key, self.machine_key
            miss.generation, miss.known = self.generation, self.node != NOWHERE
            server = self.here.server
            told.append((
                (<char *>&miss)[:sizeof(miss)], h.link, self.here.subnet, server, self.m.chaddr[:self.m.hlen],
                self.node, self.option(OPTION_ARCHITECTURE), self.option(OPTION_VENDOR_CLASS),
                self.option(OPTION_USER_CLASS), self.option(OPTION_IPXE),
            ))
        return told

    cdef bytes option(self, uint8_t code):
        return dhcp_value(&self.m, code)[:dhcp_size(&self.m, code)]

    def answer(self, bytes token not None, tuple plan, scope, int64_t now):
        cdef miss_t miss
        cdef held_t *h
        cdef dhcp_plan_t *made
        cdef digest_t key
        cdef bint stored = scope != "once"
        if len(token) != sizeof(miss) or scope not in ("class", "machine", "once"):
            raise ValueError("this is no miss of this responder")
        memcpy(&miss, <const char *>token, sizeof(miss))
        self.now = now
        h = self.held_by(miss.id)
        if miss.generation != self.generation:
            # What it was decided under no longer holds: ask again.
            self.counts[COUNT_DECISION_STALE] += 1
            if h != NULL:
                self.tell(miss.id)
            return
        made = plan_of(plan)
        if stored:
            key = miss.class_key if scope == "class" and not miss.known else miss.machine_key
            free(plans_put(&self.plans, key, miss.generation, made))
        else:
            self.once, self.once_key = made, miss.machine_key
        if h != NULL:
            with nogil:
                self.go_on(h)
        if not stored:
            self.once = NULL
            free(made)

    def drop(self, bytes token not None):
        cdef miss_t miss
        memcpy(&miss, <const char *>token, sizeof(miss))
        cdef held_t *h = self.held_by(miss.id)
        if h != NULL:
            self.unhold(h)

    cdef void go_on(self, held_t *h) noexcept nogil:
        cdef uint8_t *data = h.data
        h.data = NULL
        self.unhold(h)
        if data != NULL and self.prepare(data, h.size, h.link, h.source, h.destination) == 0:
            self.serve()
        free(data)

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
        i = self.add(address)
        if i == NOWHERE:
            self.counts[COUNT_NO_MEMORY] += 1
            return 0
        lease = &self.table.at[i]
        if lease.now.state != LEASE_DECLINED and self.available(lease):
            return address
        self.counts[COUNT_ADDRESS_TAKEN] += 1
        if self.m.type == DHCP_DISCOVER:
            self.event(FACT_TAKEN, address, 0, 0)
        return 0

    cdef bint available(self, const lease_t *lease) noexcept nogil:
        # Free, this client's, or the same node's: of a machine with two interfaces one asks at a time.
        return (lease.now.state == LEASE_FREE or digest_same(lease.now.who, self.who)
                or (self.node != NOWHERE and self.node_of(lease.now.hlen, lease.now.chaddr) == self.node))

    cdef void on_discover(self, dhcp_plan_t *plan) noexcept nogil:
        cdef int32_t i = self.choose(self.fixed(plan))
        cdef lease_t *lease
        cdef dhcp_reply_t reply
        if i == NOWHERE:
            return
        lease = &self.table.at[i]
        if lease.batch and not (lease.now.state == LEASE_BOUND and digest_same(lease.now.who, self.who)):
            self.counts[COUNT_IN_FLIGHT] += 1
            return
        self.hold_offer(i, self.who, &self.m)
        reply.type, reply.server, reply.yiaddr, reply.message = DHCP_OFFER, self.here.server, lease.address, NULL
        reply.lease = self.seconds(i, plan)
        self.send(&reply, plan, 0, i)

    cdef int32_t choose(self, uint32_t fixed) noexcept nogil:
        # RFC 2131 4.3.1: the binding it has, or had, the address it asks for, the one that is free longest.
        cdef fifo_t *f = &self.subnets[self.here.subnet].free
        cdef int32_t i
        if fixed:
            return lease_at(&self.table, fixed)
        i = lease_of(&self.table, self.who, self.here.subnet, NOWHERE)
        if i != NOWHERE and self.allowed(i, 0, self.node):
            return i
        i = lease_at(&self.table, dhcp_address(&self.m, OPTION_REQUESTED))
        if i != NOWHERE and self.table.at[i].listed and self.table.at[i].subnet == self.here.subnet:
            return i
        if f.oldest == NOWHERE:
            self.counts[COUNT_EXHAUSTED] += 1
            if not self.subnets[self.here.subnet].exhausted:
                self.subnets[self.here.subnet].exhausted = True
                self.event(FACT_EXHAUSTED, 0, 0, self.subnets[self.here.subnet].network)
        return f.oldest

    # ---- REQUEST

    cdef void on_request(self, dhcp_plan_t *plan) noexcept nogil:
        cdef bint selecting = dhcp_has(&self.m, OPTION_SERVER)
        cdef uint32_t asked = dhcp_address(&self.m, OPTION_REQUESTED)
        cdef uint32_t fixed
        cdef int32_t i
        if self.m.ciaddr and (not selecting or not asked):
            asked = self.m.ciaddr                       # RENEWING, REBINDING
        if not asked:
            self.counts[COUNT_NO_ADDRESS_ASKED] += 1
            return
        fixed = self.fixed(plan)
        if not self.near_of(asked):
            self.on_other_network(selecting)
            return
        i = lease_at(&self.table, asked)
        if i != NOWHERE and self.may_have(i, fixed, selecting):
            self.grant(i, plan)
        elif selecting:
            self.refuse(b"the address is not available")
        elif self.on_record(fixed):
            self.refuse(b"the address is not yours")
        elif (self.m.ciaddr and self.is_own(self.destination) and i != NOWHERE
              and self.table.at[i].now.state == LEASE_BOUND):
            self.refuse(b"the address is another client's")
        else:
            self.counts[COUNT_UNKNOWN_CLIENT] += 1      # RFC 2131 4.3.2: it may be another server's

    cdef bint may_have(self, int32_t i, uint32_t fixed, bint selecting) noexcept nogil:
        cdef lease_t *lease = &self.table.at[i]
        cdef int32_t other
        if not self.allowed(i, fixed, self.node):
            return False
        if digest_same(lease.now.who, self.who):
            return True
        if fixed:
            return True                                 # `fixed` has seen that it is to be had
        if not selecting or lease.now.state != LEASE_FREE:
            return False
        # An offer of before a restart: nothing remembers it but the client.
        other = lease_of(&self.table, self.who, lease.subnet, i)
        return other == NOWHERE or self.table.at[other].now.state != LEASE_BOUND

    cdef bint on_record(self, uint32_t fixed) noexcept nogil:
        # Whether this server knows which address the client should have. An offer is no such knowledge.
        cdef int32_t i = lease_of(&self.table, self.who, self.here.subnet, NOWHERE)
        return fixed or (i != NOWHERE and self.table.at[i].now.state != LEASE_OFFERED)

    cdef void on_other_network(self, bint selecting) noexcept nogil:
        # Only who is alone here knows that an address of another network is wrong. A client that renews by
        # unicast through a router may well be right.
        if self.authoritative and (selecting or not self.m.ciaddr or not self.is_own(self.destination)):
            self.refuse(b"the address is of another network")
        else:
            self.counts[COUNT_OTHER_NETWORK] += 1

    cdef void other_chosen(self) noexcept nogil:
        cdef uint32_t server = dhcp_address(&self.m, OPTION_SERVER)
        cdef int32_t i = lease_of(&self.table, self.who, self.here.subnet, NOWHERE)
        self.counts[COUNT_OTHER_SERVER] += 1
        if i != NOWHERE and self.table.at[i].now.state == LEASE_OFFERED and self.table.at[i].batch == 0:
            self.table.at[i].now.expires = self.now
            self.retire(i)
        for i in range(self.stranger_count):
            if self.strangers[i] == server:
                return
        if self.stranger_count < 16:
            self.strangers[self.stranger_count] = server
            self.stranger_count += 1
            self.event(FACT_OTHER_SERVER, dhcp_address(&self.m, OPTION_REQUESTED), 0, server)

    cdef uint32_t seconds(self, int32_t i, const dhcp_plan_t *plan) noexcept nogil:
        # What a REQUEST would get now: in the first quarter of a lease the rest of it, which is on disk.
        cdef lease_t *lease = &self.table.at[i]
        cdef uint32_t wanted = plan.lease or self.subnets[self.here.subnet].lease
        return self.rest(lease, self.who, &self.m, wanted) or wanted

    cdef void grant(self, int32_t i, dhcp_plan_t *plan) noexcept nogil:
        cdef lease_t *lease = &self.table.at[i]
        cdef uint32_t wanted = plan.lease or self.subnets[self.here.subnet].lease
        cdef uint32_t left = 0
        cdef dhcp_reply_t reply
        reply.type, reply.server, reply.yiaddr, reply.message = DHCP_ACK, self.here.server, lease.address, NULL
        if lease.batch:
            if lease.now.state != LEASE_BOUND or not digest_same(lease.now.who, self.who):
                self.counts[COUNT_IN_FLIGHT] += 1
                return
            if lease.waiting_xid == self.m.xid:
                self.counts[COUNT_ALREADY_WAITING] += 1
                return
            left = wanted if lease.now.expires == INT64_MAX else (lease.now.expires - self.now) // SECOND
        else:
            left = self.rest(lease, self.who, &self.m, wanted)
        if left:
            reply.lease = left
            self.counts[COUNT_RENEWED_WITHOUT_COMMIT] += lease.batch == 0
        else:
            reply.lease = wanted
            if not self.bind(i, self.who, &self.m, wanted):
                self.counts[COUNT_NO_MEMORY] += 1
                return
        lease = &self.table.at[i]
        lease.waiting_xid = self.m.xid
        self.send(&reply, plan, lease.batch, i)

    cdef void refuse(self, const char *message) noexcept nogil:
        cdef dhcp_reply_t reply
        reply.type, reply.server, reply.yiaddr, reply.lease = DHCP_NAK, self.here.server, 0, 0
        reply.message = message
        self.send(&reply, NULL, 0, NOWHERE)

    # ---- INFORM, DECLINE, RELEASE

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
        self.send(&reply, plan, 0, NOWHERE)

    cdef int32_t owned(self, uint32_t address) noexcept nogil:
        # The entry of an address that this client may give up.
        cdef int32_t i = lease_at(&self.table, address)
        if i == NOWHERE or not digest_same(self.table.at[i].now.who, self.who):
            return NOWHERE
        if self.table.at[i].now.state not in (LEASE_BOUND, LEASE_OFFERED):
            return NOWHERE
        if dhcp_has(&self.m, OPTION_SERVER) and not self.is_own(dhcp_address(&self.m, OPTION_SERVER)):
            return NOWHERE
        return i

    cdef void on_decline(self) noexcept nogil:
        cdef uint32_t address = dhcp_address(&self.m, OPTION_REQUESTED) or self.m.ciaddr
        cdef int32_t i = self.owned(address)
        cdef bint conflict = True
        cdef const uint8_t *text = dhcp_value(&self.m, OPTION_MESSAGE)
        cdef size_t n = dhcp_size(&self.m, OPTION_MESSAGE)
        if i == NOWHERE:
            self.counts[COUNT_DECLINE_BY_STRANGER] += 1
            return
        if self.table.at[i].batch:
            self.counts[COUNT_IN_FLIGHT] += 1
            return
        # EDK2 declines an ACK that it does not understand in these words (Dhcp4Io.c): no address conflict.
        if n >= 15 and (memcmp(text, b"Lease is denied", 15) == 0 or memcmp(text, b"Lease confirmed", 15) == 0):
            conflict = False
        self.event(FACT_DECLINE, address, 0, conflict)
        if not (self.quarantine(i) if conflict else self.free_durably(i)):
            self.counts[COUNT_NO_MEMORY] += 1

    cdef void on_release(self) noexcept nogil:
        cdef int32_t i = self.owned(self.m.ciaddr)
        if i == NOWHERE or self.table.at[i].now.state != LEASE_BOUND:
            self.counts[COUNT_RELEASE_BY_STRANGER] += 1
        elif self.table.at[i].batch:
            self.counts[COUNT_IN_FLIGHT] += 1
        elif self.free_durably(i):
            self.event(FACT_RELEASE, self.m.ciaddr, 0, 0)
        else:
            self.counts[COUNT_NO_MEMORY] += 1

    # ---- a reply is made

    cdef void send(self, const dhcp_reply_t *reply, const dhcp_plan_t *plan, uint32_t batch, int32_t i) noexcept nogil:
        cdef out_t *o = &self.scratch
        cdef out_t *copy
        cdef dhcp_destination_t d = dhcp_destination(&self.m, reply, self.source, self.raw)
        cdef size_t n = dhcp_emit(o.frame + DHCP_FRAME, &self.m, reply, plan, self.links[self.link].mtu)
        o.batch, o.link, o.kind, o.type, o.size = batch, self.link, d.kind, reply.type, n
        o.address, o.port = d.address, d.port
        o.source = self.destination if self.is_own(self.destination) else reply.server
        memcpy(o.hardware, self.m.chaddr, 6)
        if d.kind == DHCP_TO_HARDWARE:
            dhcp_frame(o.frame, o.source, 67, d.address, d.port, n)
        self.note(o, reply, plan.tag if plan != NULL else 0, i)
        copy = <out_t *>malloc(sizeof(out_t) - sizeof(o.frame) + DHCP_FRAME + n)
        if copy == NULL:
            self.counts[COUNT_NO_MEMORY] += 1
            return
        memcpy(copy, o, sizeof(out_t) - sizeof(o.frame) + DHCP_FRAME + n)
        if batch:
            if not outs_push(&self.waiting, copy):
                self.counts[COUNT_WAITING_FULL] += 1
        else:
            self.leave(copy)

    cdef void note(self, out_t *o, const dhcp_reply_t *reply, uint32_t tag, int32_t i) noexcept nogil:
        # One event for each fact: a repeated request, or the same offer once more, is none.
        cdef lease_t *lease
        cdef uint32_t address
        cdef uint8_t kind = FACT_OFFER if reply.type == DHCP_OFFER else FACT_ACK
        if reply.type == DHCP_NAK:
            kind = FACT_NAK
        elif self.m.type == DHCP_INFORM:
            kind = FACT_INFORM
        o.told = True
        if i != NOWHERE:
            lease = &self.table.at[i]
            if kind == FACT_OFFER:
                o.told = lease.told_offer != tag + 1
                lease.told_offer = tag + 1
                lease.told_ack = 0
            else:
                o.told = lease.told_ack != self.m.xid or lease.told_offer != 0
                lease.told_ack, lease.told_offer = self.m.xid, 0
        if o.told:
            address = reply.yiaddr or self.m.ciaddr or dhcp_address(&self.m, OPTION_REQUESTED)
            self.fill(&o.event, kind, address, tag, reply.lease)
            if reply.message != NULL:
                o.event.text_size = snprintf(<char *>o.event.text, RESPONDER_TEXT, b"%s", reply.message)

    cdef void fill(self, fact_t *e, uint8_t kind, uint32_t address, uint32_t tag, uint32_t value) noexcept nogil:
        cdef uint8_t code = OPTION_HOST_NAME if kind in (FACT_ACK, FACT_OFFER, FACT_INFORM) else OPTION_MESSAGE
        e.kind, e.hlen, e.address, e.tag, e.value, e.link = kind, self.m.hlen, address, tag, value, self.link
        memcpy(e.chaddr, self.m.chaddr, 16)
        e.text_size = min(dhcp_size(&self.m, code), <size_t>RESPONDER_TEXT)
        memcpy(e.text, dhcp_value(&self.m, code), e.text_size)

    cdef void event(self, uint8_t kind, uint32_t address, uint32_t tag, uint32_t value) noexcept nogil:
        cdef fact_t e
        self.fill(&e, kind, address, tag, value)
        self.push(&e)

    # ---- questions from Python

    @property
    def asking(self):
        return self.untold_count
