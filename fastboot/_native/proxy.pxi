# Proxy: names the boot file where another server gives the addresses (PXE 2.1 section 2.2.3). It says nothing to who
# is no PXE or HTTP client, and never refuses anything. The second half of its links are the first once more, heard on
# port 4011: there it is the boot server that a client turns to when it has its address.

cdef enum:
    PROXY_OFFERS = 4                # EDK2 asks at 0, 4, 12 and 28 s, iPXE at 0, 1, 3 and 7 s
    PROXY_ROUNDS = 2

cdef int64_t PROXY_PATIENCE = 10 * SECOND   # dnsmasq pings for 3 s before its OFFER; iPXE has asked three times by then
cdef int64_t PROXY_FORGETS = 300 * SECOND   # a machine that asks again so late was switched on anew


cdef class Proxy(Decisions):
    cdef sightings_t seen

    def __cinit__(self, bytes seed not None):
        self.raw = False            # an offer without an address can not be addressed: it is broadcast
        self.seen.at = <sighting_t *>memory_for(SIGHTINGS_ROOM, sizeof(sighting_t))
        self.seen.by_who.places = <place_t *>memory_for(SIGHTINGS_PLACES, sizeof(place_t))
        self.seen.by_address.places = <place_t *>memory_for(SIGHTINGS_PLACES, sizeof(place_t))
        self.seen.by_who.mask = self.seen.by_address.mask = SIGHTINGS_PLACES - 1

    def __dealloc__(self):
        free(self.seen.at)
        free(self.seen.by_who.places)
        free(self.seen.by_address.places)

    cdef bint is_boot_server(self) noexcept nogil:
        # Whether the request came to port 4011.
        return self.link >= self.link_count // 2

    cdef void prefer(self) noexcept nogil:
        # The network of the address that it has, asks for, or had; ours there, or the one that it asked.
        cdef int32_t i = sighting_of(&self.seen, self.who)
        self.here = self.near[0]
        if not self.near_of(self.m.ciaddr or dhcp_address(&self.m, OPTION_REQUESTED) or self.source):
            self.near_of(self.seen.at[i].address if i != NOWHERE else 0)
        self.here.server = self.server_in(self.here.subnet)

    cdef void handle(self) noexcept nogil:
        cdef uint32_t server = dhcp_address(&self.m, OPTION_SERVER)
        cdef bint wants_boot = dhcp_boot_class(&self.m)
        self.note_address(wants_boot)
        if server and not self.is_server(server):
            self.counts[COUNT_OTHER_SERVER] += 1
        elif not wants_boot:
            self.counts[COUNT_NO_BOOT_CLIENT] += 1
        elif not (self.m.type in (DHCP_REQUEST, DHCP_INFORM) if self.is_boot_server()
                  else self.m.type == DHCP_DISCOVER):
            self.counts[COUNT_NO_ADDRESSES] += 1
        elif self.is_boot_server() and not self.source:
            self.counts[COUNT_NO_ADDRESS_ASKED] += 1
        elif dhcp_wants_credentials(&self.m):
            self.counts[COUNT_CREDENTIALS] += 1
        else:
            self.serve()

    cdef void note_address(self, bint wants_boot) noexcept nogil:
        # Who has which address, from what everybody hears: REQUESTs, and whoever says that it has one.
        cdef uint32_t server = dhcp_address(&self.m, OPTION_SERVER)
        cdef uint32_t address = self.m.ciaddr or dhcp_address(&self.m, OPTION_REQUESTED)
        cdef sighting_t *one
        cdef int32_t i
        if self.m.type == DHCP_DISCOVER or self.m.hlen != 6 or not address:
            return
        i = sighting_add(&self.seen, self.who, self.m.chaddr)
        one = &self.seen.at[i]
        self.note_port(one)
        if self.m.type in (DHCP_DECLINE, DHCP_RELEASE):
            sighting_address(&self.seen, i, 0)
            return
        sighting_address(&self.seen, i, address)
        if self.m.type != DHCP_REQUEST or not server or self.is_server(server) or one.xid == self.m.xid:
            return
        one.xid, one.server = self.m.xid, server
        if sighting_server(&self.seen, server):
            self.event(FACT_SERVER_SEEN, address, 0, server)
        if wants_boot:
            one.offers = 0
            one.rounds += 1
        if wants_boot or self.node != NOWHERE:
            self.event(FACT_REQUEST, address, 0, server)

    cdef void note_port(self, sighting_t *one) noexcept nogil:
        cdef relay_t *r = &self.m.relay
        if r.circuit_size or r.remote_size:
            memset(one.port, 0, sizeof(one.port))
        if r.circuit_size and r.remote_size:
            one.port[0] = node_digest(&self.key, NODE_PORT, r.circuit, r.circuit_size, r.remote, r.remote_size)
        if r.circuit_size:
            one.port[1] = node_digest(&self.key, NODE_CIRCUIT, r.circuit, r.circuit_size, NULL, 0)
        if r.remote_size:
            one.port[2] = node_digest(&self.key, NODE_REMOTE, r.remote, r.remote_size, NULL, 0)

    cdef void fulfil(self, dhcp_plan_t *plan) noexcept nogil:
        cdef int32_t i = sighting_add(&self.seen, self.who, self.m.chaddr) if self.m.hlen == 6 else NOWHERE
        cdef sighting_t *one = &self.seen.at[i] if i != NOWHERE else NULL
        cdef bint told = True
        cdef dhcp_reply_t reply
        if one != NULL:
            self.note_port(one)
        reply.server, reply.yiaddr, reply.lease, reply.message = self.here.server, 0, 0, NULL
        reply.type = DHCP_OFFER if self.m.type == DHCP_DISCOVER else DHCP_ACK
        if one != NULL and reply.type == DHCP_OFFER:
            told = self.offers(one, plan.tag)
        elif one != NULL:
            told = one.boot_xid != self.m.xid or one.rounds != 0 or one.offers != 0
            one.boot_xid = self.m.xid
            sighting_heeds(one)
        self.send(&reply, plan, 0, told)

    cdef bint offers(self, sighting_t *one, uint32_t tag) noexcept nogil:
        # Counts an offer, and says whether it is one to tell of: the same once more is none.
        cdef bint told
        cdef uint32_t address = one.address if one.rounds else 0
        if self.now - one.last > PROXY_FORGETS:
            one.offers = 0
        if one.offers == 0:
            one.first = self.now
        told = one.offers == 0 or one.tag != tag
        if not one.reported and (one.rounds >= PROXY_ROUNDS or (
                one.offers >= PROXY_OFFERS - 1 and self.now - one.first >= PROXY_PATIENCE)):
            one.reported = True
            self.event(FACT_UNHEEDED, address, tag, one.server)
        one.offers += 1
        one.last, one.tag = self.now, tag
        return told

    cdef dhcp_destination_t route(self, const dhcp_reply_t *reply) noexcept nogil:
        cdef dhcp_destination_t d
        if not self.is_boot_server():
            return dhcp_destination(&self.m, reply, self.source, self.port, self.raw)
        d.kind, d.address, d.port = DHCP_TO_ADDRESS, self.source, self.port
        return d

    # ---- questions from Python

    def mac_of(self, uint32_t address):
        cdef int32_t i = sighting_at(&self.seen, address)
        return self.seen.at[i].mac[:6] if i != NOWHERE else None

    def heeded(self, bytes mac not None):
        cdef int32_t i = self.seen_as(mac)
        if i != NOWHERE:
            sighting_heeds(&self.seen.at[i])

    def node_of_mac(self, bytes mac not None):
        cdef const char *octets = mac
        cdef uint8_t size = min(<int>len(mac), 16)
        cdef int32_t i = self.seen_as(mac), j
        cdef int32_t node = self.node_by(NODE_MAC, <const uint8_t *>octets, size, NULL, 0)
        for j in range(3):
            if node == NOWHERE and i != NOWHERE and not digest_none(self.seen.at[i].port[j]):
                node = self.node_with(self.seen.at[i].port[j])
        return node

    cdef int32_t seen_as(self, bytes mac):
        cdef const char *octets = mac
        if len(mac) != 6:
            return NOWHERE
        return sighting_of(&self.seen, lease_client(&self.key, False, 1, <const uint8_t *>octets, 6, NULL, 0))
