# Requests: how packets come in, and the one at hand: what it says, whose it is, where that machine is, and the reply
# to it. One thread (the loop's) calls it; nothing here blocks. It works without any socket: packets come in by
# `receive` and replies are collected until `replies` takes them.

cdef enum:
    REQUESTS_ROUNDS = 4             # batches a call of `readable` takes before the loop has its turn

cdef struct arrival_t:              # how a packet came in
    int32_t link
    uint32_t source
    uint16_t port                   # of the source
    uint32_t destination

cdef class Requests(Replies):
    cdef public bint bootp          # whether clients of BOOTP are answered
    cdef public bint snooping       # whether switches insert option 82 that are no relays
    cdef dhcp_msg_t m
    cdef int32_t link
    cdef uint32_t source
    cdef uint16_t port              # whence it came
    cdef uint32_t destination
    cdef bint unicast               # it was sent to us alone
    cdef int32_t node
    cdef digest_t who
    cdef int32_t nears
    cdef near_t near[NETWORK_NEAR]  # the subnets it may be in
    cdef near_t here                # the one it is answered in
    cdef digest_t class_key
    cdef digest_t machine_key
    cdef out_t scratch
    cdef signs_t mac_signs          # what `classify` sees beside the classes
    cdef signs_t id_signs

    # ---- what a server makes of it

    cdef void tick(self) noexcept nogil:
        # It is `now`.
        pass

    cdef void recognise(self) noexcept nogil:
        # Sets `node`, NOWHERE where the configuration does not know the machine.
        cdef relay_t *r = &self.m.relay
        self.node = self.node_of(self.m.hlen, self.m.chaddr, r.circuit, r.circuit_size, r.remote, r.remote_size)

    cdef void prefer(self) noexcept nogil:
        # Sets `here` to one of the subnets near by.
        self.here = self.near[0]

    cdef void handle(self) noexcept nogil:
        # A request has come in.
        pass

    def distinguish(self, list macs not None, list machine_ids not None):
        cdef signs_t new_macs = signs_of(macs)
        cdef signs_t new_ids = signs_of(machine_ids)
        self.mac_signs, self.id_signs = new_macs, new_ids

    # ---- a packet comes in

    def receive(self, bytes data not None, int link, uint32_t source, uint32_t destination, int64_t now,
                uint16_t port=68):
        cdef const char *octets = data
        cdef size_t n = len(data)
        cdef arrival_t came
        if not 0 <= link < self.link_count:
            raise IndexError(link)
        came.link, came.source, came.port, came.destination = link, source, port, destination
        with nogil:
            self.take(<const uint8_t *>octets, n, &came, now)

    def readable(self, int link, int64_t now):
        cdef int i, n, rounds = 0, total = 0
        cdef bint more = True
        cdef arrival_t came
        if not 0 <= link < self.link_count:
            raise IndexError(link)
        came.link = link
        with nogil:
            while more and rounds < REQUESTS_ROUNDS:
                traffic_expect(self.traffic)
                n = recvmmsg(self.links[link].fd, self.traffic.vec, RESPONDER_BATCH, MSG_DONTWAIT, NULL)
                for i in range(n):
                    if self.traffic.vec[i].msg_hdr.msg_flags & MSG_TRUNC:
                        self.counts[COUNT_RECEIVED] += 1
                        self.counts[DHCP_LONG] += 1
                        continue
                    came.source = ntohl(self.traffic.name[i].sin_addr.s_addr)
                    came.port = ntohs(self.traffic.name[i].sin_port)
                    came.destination = traffic_destination(&self.traffic.vec[i].msg_hdr)
                    self.take(self.traffic.data[i], self.traffic.vec[i].msg_len, &came, now)
                total += max(n, 0)
                rounds += 1
                more = n == RESPONDER_BATCH
        return total

    cdef void take(self, const uint8_t *data, size_t n, const arrival_t *came, int64_t now) noexcept nogil:
        cdef int rc
        self.now = now
        self.tick()
        self.link = came.link
        self.counts[COUNT_RECEIVED] += 1
        rc = self.prepare(data, n, came)
        if rc == 0:
            self.counts[requests_counter(self.m.type)] += 1
            self.handle()
        else:
            self.counts[rc] += 1
            if rc not in (COUNT_OWN_PROBE, COUNT_NOT_A_REQUEST, COUNT_UNKNOWN_TYPE):
                self.unanswered(rc, data, n, self.m.giaddr if rc > COUNT_NOT_A_REQUEST else 0)

    cdef int prepare(self, const uint8_t *data, size_t n, const arrival_t *came) noexcept nogil:
        # Reads the packet and whence it is; 0, or the counter that says why there is nothing to do.
        cdef dhcp_msg_t *m = &self.m
        cdef int rc = dhcp_parse(data, n, m)
        if rc < 0:
            return -rc
        if m.op != 1:
            return COUNT_NOT_A_REQUEST
        if m.type == 0 and not self.bootp:
            return COUNT_BOOTP
        if m.type > DHCP_INFORM or m.type in (DHCP_OFFER, DHCP_ACK, DHCP_NAK):
            return COUNT_UNKNOWN_TYPE
        if (m.hlen == 0 or m.htype == 32) and dhcp_size(m, OPTION_CLIENT_ID) < 2:
            return COUNT_NO_IDENTITY
        self.link, self.source, self.port, self.destination = came.link, came.source, came.port, came.destination
        self.unicast = m.relay.unicast if m.giaddr else self.is_own(self.destination)
        if self.snooping and not m.giaddr:
            dhcp_hear_relay(m)
        if not self.locate():
            return COUNT_NO_SUBNET
        self.who = lease_client(&self.key, self.subnets[self.near[0].subnet].by_client_id, m.htype, m.chaddr, m.hlen,
                                dhcp_value(m, OPTION_CLIENT_ID), dhcp_size(m, OPTION_CLIENT_ID))
        self.recognise()
        if self.node == NETWORK_SELF:                   # came back from a relay, or from another link of ours
            return COUNT_OWN_PROBE
        self.prefer()
        self.classify()
        return 0

    cdef bint locate(self) noexcept nogil:
        # The subnets it may be in: those of the link that a relay, or it itself, says it is on; those of the address
        # with which it comes through a router; those of our link.
        cdef link_t *link = &self.links[self.link]
        cdef uint32_t at = dhcp_subnet(&self.m)
        cdef int32_t first, i
        memcpy(self.near, link.near, sizeof(self.near))
        self.nears = link.nears
        if not at and self.unicast and self.m.ciaddr and not self.near_of(self.m.ciaddr):
            first = self.subnet_of(self.m.ciaddr)
            if first == NOWHERE:
                return self.nears > 0
        elif at:
            first = self.subnet_of(at)
        else:
            return self.nears > 0
        self.nears = 0
        i = first
        while i != NOWHERE and self.nears < NETWORK_NEAR:
            self.near[self.nears].subnet, self.near[self.nears].server = i, self.server_in(i)
            self.nears += 1
            i = self.subnets[i].beside if self.subnets[i].beside != first else NOWHERE
        return self.nears > 0

    cdef uint32_t server_in(self, int32_t subnet) noexcept nogil:
        # Our address for clients of a subnet: the one that was asked, else one of the link.
        cdef link_t *link = &self.links[self.link]
        cdef int32_t i
        if self.is_own(self.destination):
            return self.destination
        for i in range(link.nears):
            if link.near[i].subnet == subnet:
                return link.near[i].server
        return link.address

    cdef bint near_of(self, uint32_t address) noexcept nogil:
        # Sets `here` to the subnet near by that holds the address.
        cdef int32_t i
        if address:
            for i in range(self.nears):
                if address & self.subnets[self.near[i].subnet].mask == self.subnets[self.near[i].subnet].network:
                    self.here = self.near[i]
                    return True
        return False

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
        wire_put_u32(&p, self.m.giaddr)
        for i in range(4):
            wire_put_u16(&p, self.m.seen[codes[i]])
            wire_put(&p, dhcp_value(&self.m, codes[i]), dhcp_size(&self.m, codes[i]))
        wire_put_u16(&p, signs_find(&self.mac_signs, self.m.chaddr, self.m.hlen))
        wire_put_u16(&p, signs_find(&self.id_signs, dhcp_value(&self.m, OPTION_MACHINE_ID),
                                    dhcp_size(&self.m, OPTION_MACHINE_ID)))
        self.class_key = digest_of(&self.key, octets, p.at - octets)
        p = wire_pen(octets, sizeof(octets))
        wire_put_u8(&p, 1)
        wire_put(&p, &self.class_key, sizeof(digest_t))
        wire_put(&p, &self.who, sizeof(digest_t))
        wire_put_u8(&p, self.m.relay.circuit_size)
        wire_put(&p, self.m.relay.circuit, self.m.relay.circuit_size)
        wire_put(&p, self.m.relay.remote, self.m.relay.remote_size)
        self.machine_key = digest_of(&self.key, octets, p.at - octets)

    cdef bint is_server(self, uint32_t address) noexcept nogil:
        # Whether that is we, under one of our addresses or the one that the client's relay gave us (RFC 5107 4).
        return self.is_own(address) or (self.m.relay.server and address == self.m.relay.server)

    cdef bytes option(self, uint8_t code):
        return dhcp_value(&self.m, code)[:dhcp_size(&self.m, code)]

    # ---- the reply to it

    cdef dhcp_destination_t route(self, const dhcp_reply_t *reply) noexcept nogil:
        return dhcp_destination(&self.m, reply, self.source, self.port, self.raw)

    cdef void send(self, const dhcp_reply_t *reply, const dhcp_plan_t *plan, uint64_t batch,
                   bint told) noexcept nogil:
        cdef out_t *o = &self.scratch
        cdef out_t *copy
        cdef dhcp_destination_t d = self.route(reply)
        cdef size_t n = dhcp_emit(o.frame + UDP_HEADERS, &self.m, reply, plan, self.links[self.link].mtu)
        o.batch, o.link, o.kind, o.type, o.size = batch, self.link, d.kind, reply.type, n
        o.address, o.port = d.address, d.port
        o.source = self.destination if self.is_own(self.destination) else reply.server
        memcpy(o.hardware, self.m.chaddr, 6)
        if d.kind == DHCP_TO_HARDWARE:
            udp_frame(o.frame, o.source, 67, d.address, d.port, n)
        o.told = told
        if told:
            self.note(&o.event, reply, plan)
        copy = <out_t *>malloc(sizeof(out_t) - sizeof(o.frame) + UDP_HEADERS + n)
        if copy == NULL:
            self.counts[COUNT_NO_MEMORY] += 1
            return
        memcpy(copy, o, sizeof(out_t) - sizeof(o.frame) + UDP_HEADERS + n)
        if batch:
            if not outs_push(&self.waiting, copy):
                self.silent(COUNT_WAITING_FULL, 0)
        else:
            self.leave(copy)

    cdef void note(self, fact_t *e, const dhcp_reply_t *reply, const dhcp_plan_t *plan) noexcept nogil:
        cdef uint32_t address
        cdef uint32_t tag = plan.tag if plan != NULL else 0
        cdef uint8_t kind = FACT_OFFER if reply.type == DHCP_OFFER else FACT_ACK
        if reply.type == DHCP_NAK:
            kind = FACT_NAK
        elif reply.type == 0:
            kind = FACT_BOOTP
        elif self.m.type == DHCP_INFORM:
            kind = FACT_INFORM
        address = reply.yiaddr or self.m.ciaddr or dhcp_address(&self.m, OPTION_REQUESTED)
        self.fill(e, kind, address, tag, reply.lease)
        if reply.message != NULL:
            e.text_size = snprintf(<char *>e.text, FACTS_TEXT, b"%s", reply.message)

    cdef void fill(self, fact_t *e, uint8_t kind, uint32_t address, uint32_t tag, uint32_t value) noexcept nogil:
        cdef uint8_t code = OPTION_MESSAGE if kind in (FACT_NAK, FACT_DECLINE) else OPTION_HOST_NAME
        e.kind, e.hlen, e.address, e.tag, e.value = kind, self.m.hlen, address, tag, value
        e.link, e.node = self.link, self.node
        memcpy(e.chaddr, self.m.chaddr, 16)
        e.text_size = min(dhcp_size(&self.m, code), <size_t>FACTS_TEXT)
        memcpy(e.text, dhcp_value(&self.m, code), e.text_size)
        if kind == FACT_LIMIT:
            e.text_size = min(self.m.relay.circuit_size, <uint8_t>FACTS_TEXT)
            memcpy(e.text, self.m.relay.circuit, e.text_size)

    cdef void silent(self, int why, uint32_t about) noexcept nogil:
        # The request gets no answer. `about`: the server, network or relay that it is about.
        self.counts[why] += 1
        self.unanswered(why, self.m.data, self.m.size, about)

    cdef void unanswered(self, int why, const uint8_t *data, size_t n, uint32_t about) noexcept nogil:
        # Tells of a packet, which may be malformed, that gets no answer, where its machine can be told.
        cdef fact_t e
        cdef uint64_t key = 0
        if n < 34 or data[2] != 6:
            return
        memcpy(&key, data + 28, 6)
        if not silence_is_news(self.silences, table_mix(key << 16 | <uint64_t>why), self.now):
            return
        memset(&e, 0, sizeof(e))
        e.kind, e.hlen, e.link, e.address, e.value = FACT_UNANSWERED, 6, self.link, about, why
        memcpy(e.chaddr, data + 28, 6)
        e.tag = self.m.data == data and why > COUNT_NOT_A_REQUEST and dhcp_boot_class(&self.m)
        e.node = self.node_by(NODE_MAC, e.chaddr, 6, NULL, 0)
        self.push(&e)

    cdef void event(self, uint8_t kind, uint32_t address, uint32_t tag, uint32_t value) noexcept nogil:
        cdef fact_t e
        self.fill(&e, kind, address, tag, value)
        self.push(&e)


cdef signs_t signs_of(list prefixes) except *:
    cdef signs_t made
    cdef int32_t i
    if len(prefixes) > SIGNS_ROOM:
        raise ValueError(f"more than {SIGNS_ROOM} beginnings of addresses")
    made.count = len(prefixes)
    for i, prefix in enumerate(prefixes):
        if not 0 < len(prefix) <= SIGN_SIZE:
            raise ValueError(f"{prefix!r} has not 1 to {SIGN_SIZE} octets")
        made.at[i].size = len(prefix)
        memcpy(made.at[i].octets, <const char *>prefix, made.at[i].size)
    return made

cdef int requests_counter(uint8_t type) noexcept nogil:
    if type == DHCP_DISCOVER:
        return COUNT_DISCOVER
    if type == DHCP_REQUEST:
        return COUNT_REQUEST
    if type == DHCP_DECLINE:
        return COUNT_DECLINE
    if type == DHCP_RELEASE:
        return COUNT_RELEASE
    return COUNT_INFORM if type == DHCP_INFORM else COUNT_BOOTP_REQUEST
