# Replies: they wait for the disk where they promise what must be on it, then for the sockets; without any they
# are collected until `replies` takes them. What happened waits here for Python too.

cdef enum:
    RESPONDER_BATCH = 64            # packets a system call takes
    RESPONDER_WAITING = 65536       # replies that wait for a commit or a socket

cdef enum:                          # counters; the first are dhcp_parse's drop reasons
    COUNT_RECEIVED = 0
    COUNT_NOT_A_REQUEST = 10
    COUNT_BOOTP
    COUNT_UNKNOWN_TYPE
    COUNT_NO_IDENTITY
    COUNT_NO_SUBNET
    COUNT_OWN_PROBE
    COUNT_DISCOVER
    COUNT_REQUEST
    COUNT_DECLINE
    COUNT_RELEASE
    COUNT_INFORM
    COUNT_BOOTP_REQUEST
    COUNT_OFFER
    COUNT_ACK
    COUNT_NAK
    COUNT_BOOTP_REPLY
    COUNT_MISS
    COUNT_HELD_REPLACED
    COUNT_HELD_FULL
    COUNT_DECISION_LATE
    COUNT_DECISION_STALE
    COUNT_IGNORED
    COUNT_OTHER_SERVER
    COUNT_UNKNOWN_CLIENT
    COUNT_OTHER_NETWORK
    COUNT_NO_ADDRESS_ASKED
    COUNT_NO_BOOT_CLIENT
    COUNT_NO_ADDRESSES
    COUNT_CREDENTIALS
    COUNT_EXHAUSTED
    COUNT_DOUBTFUL
    COUNT_CONFLICT
    COUNT_ADDRESS_TAKEN
    COUNT_ADDRESS_OFF_LINK
    COUNT_DECLINED
    COUNT_RELEASED
    COUNT_DECLINE_BY_STRANGER
    COUNT_RELEASE_BY_STRANGER
    COUNT_BOOTP_UNKNOWN
    COUNT_PORT_LIMIT
    COUNT_OFFER_LIMIT
    COUNT_LEASE_LIMIT
    COUNT_IN_FLIGHT
    COUNT_ALREADY_WAITING
    COUNT_WAITING_FULL
    COUNT_COMMIT_FAILED
    COUNT_RENEWED_WITHOUT_COMMIT
    COUNT_SEND_FAILED
    COUNT_EVENTS_LOST
    COUNT_NO_MEMORY
    COUNTERS

RESPONDER_COUNTERS = (
    "received", "short", "long", "no_cookie", "bad_hlen", "option_overrun", "bad_overload", "bad_type",
    "bad_address_option", "bad_chaddr", "not_a_request", "bootp", "unknown_type", "no_identity", "no_subnet",
    "own_probe", "discover", "request", "decline", "release", "inform", "bootp_request", "offer", "ack", "nak",
    "bootp_reply", "miss", "held_replaced", "held_full", "decision_late", "decision_stale", "ignored", "other_server",
    "unknown_client", "other_network", "no_address_asked", "no_boot_client", "no_addresses_here", "credentials",
    "exhausted", "doubtful", "conflict", "address_taken", "address_off_link", "declined", "released",
    "decline_by_stranger", "release_by_stranger", "bootp_unknown", "port_limit", "offer_limit", "lease_limit",
    "in_flight", "already_waiting", "waiting_full", "commit_failed", "renewed_without_commit", "send_failed",
    "events_lost", "no_memory",
)

cdef struct out_t:                  # one reply; allocated no longer than its frame
    uint64_t batch                  # the commit that it waits for
    int32_t link
    uint8_t kind
    uint8_t type
    uint8_t hardware[6]
    uint32_t source
    uint32_t address
    uint16_t port
    uint16_t size                   # octets of payload
    bint told
    fact_t event
    uint8_t frame[UDP_HEADERS + DHCP_LONGEST_REPLY]

cdef struct outs_t:
    out_t **at
    int32_t count
    int32_t room

cdef struct traffic_t:              # memory of the system calls
    mmsghdr vec[RESPONDER_BATCH]
    iovec iov[RESPONDER_BATCH]
    sockaddr_in name[RESPONDER_BATCH]
    sockaddr_ll link[RESPONDER_BATCH]
    uint8_t control[RESPONDER_BATCH][64]
    out_t *out[RESPONDER_BATCH]
    uint8_t data[RESPONDER_BATCH][DHCP_LONGEST]


cdef class Replies(Network):
    cdef public bint raw            # whether frames may be sent
    cdef int raw_fd
    cdef outs_t ready               # for the sockets
    cdef outs_t waiting             # for a commit
    cdef facts_t facts              # what Python is to be told
    cdef uint64_t counts[COUNTERS]
    cdef traffic_t *traffic
    cdef silences_t *silences       # what was told of who got no answer

    def __cinit__(self, bytes seed not None):
        self.raw = True
        self.raw_fd = -1
        self.traffic = <traffic_t *>memory_for(1, sizeof(traffic_t))
        self.silences = <silences_t *>memory_for(1, sizeof(silences_t))

    def __dealloc__(self):
        outs_free(&self.ready)
        outs_free(&self.waiting)
        free(self.facts.at)
        free(self.traffic)
        free(self.silences)

    def attach(self, int link, int fd):
        if not 0 <= link < self.link_count:
            raise IndexError(link)
        self.links[link].fd = fd

    def attach_raw(self, int fd):
        self.raw_fd = fd
        self.raw = fd >= 0

    # ---- the way out

    cdef void push(self, const fact_t *fact) noexcept nogil:
        self.counts[COUNT_EVENTS_LOST] += not facts_push(&self.facts, fact)

    cdef void leave(self, out_t *o) noexcept nogil:
        if o.type == DHCP_OFFER:
            self.counts[COUNT_OFFER] += 1
        elif o.type == 0:
            self.counts[COUNT_BOOTP_REPLY] += 1
        else:
            self.counts[COUNT_NAK if o.type == DHCP_NAK else COUNT_ACK] += 1
        if o.told:
            self.push(&o.event)
        if not outs_push(&self.ready, o):
            self.counts[COUNT_SEND_FAILED] += 1

    cdef void let_go(self, uint64_t number, bint ok) noexcept nogil:
        # The replies that waited for a commit leave, or none of them does.
        cdef int32_t i, kept = 0
        cdef out_t *o
        for i in range(self.waiting.count):
            o = self.waiting.at[i]
            if o.batch != number:
                self.waiting.at[kept] = o
                kept += 1
            elif ok:
                self.leave(o)
            else:
                self.counts[COUNT_COMMIT_FAILED] += 1
                o.event.kind, o.event.tag, o.event.value = FACT_UNANSWERED, 0, COUNT_COMMIT_FAILED
                if o.told:
                    self.push(&o.event)
                free(o)
        self.waiting.count = kept

    def flush(self):
        # Sends what is ready; returns how many the sockets did not take yet.
        cdef int32_t i
        with nogil:
            if self.ready.count:
                if self.raw_fd >= 0:
                    self.flush_to(self.raw_fd, NOWHERE)
                for i in range(self.link_count):
                    if self.links[i].fd >= 0:
                        self.flush_to(self.links[i].fd, i)
        return self.ready.count

    cdef void flush_to(self, int fd, int32_t link) noexcept nogil:
        # `link` NOWHERE: the packet socket. What is sent leaves the list, in which the rest keeps its order.
        cdef int32_t i = 0, kept = 0, n, sent, j
        cdef bint blocked = False
        cdef out_t *o
        while i < self.ready.count:
            n = 0
            while i < self.ready.count and n < RESPONDER_BATCH:
                o = self.ready.at[i]
                i += 1
                if not blocked and o.link == (o.link if link == NOWHERE else link) and (
                        o.kind == DHCP_TO_HARDWARE) == (link == NOWHERE):
                    self.address_out(n, o)
                    n += 1
                else:
                    self.ready.at[kept] = o
                    kept += 1
            sent = self.send_batch(fd, n)
            for j in range(sent):
                free(self.traffic.out[j])
            for j in range(sent, n):
                self.ready.at[kept] = self.traffic.out[j]
                kept += 1
                blocked = True
        self.ready.count = kept

    cdef int32_t send_batch(self, int fd, int32_t n) noexcept nogil:
        # How many are done with: sent, or refused by the kernel for good.
        cdef int32_t done = 0
        cdef int rc
        while done < n:
            rc = sendmmsg(fd, self.traffic.vec + done, n - done, MSG_DONTWAIT)
            if rc > 0:
                done += rc
            elif errno == EAGAIN or errno == ENOBUFS:
                break
            elif errno != EINTR:
                self.counts[COUNT_SEND_FAILED] += 1
                done += 1
        return done

    cdef void address_out(self, int32_t n, out_t *o) noexcept nogil:
        cdef traffic_t *t = self.traffic
        cdef msghdr *h = &t.vec[n].msg_hdr
        cdef cmsghdr *c
        cdef in_pktinfo *info
        t.out[n] = o
        memset(&t.vec[n], 0, sizeof(mmsghdr))
        h.msg_iov, h.msg_iovlen = &t.iov[n], 1
        if o.kind == DHCP_TO_HARDWARE:
            t.iov[n].iov_base, t.iov[n].iov_len = o.frame, o.size + UDP_HEADERS
            h.msg_name, h.msg_namelen = &t.link[n], sizeof(sockaddr_ll)
            memset(&t.link[n], 0, sizeof(sockaddr_ll))
            t.link[n].sll_family, t.link[n].sll_protocol = AF_PACKET, htons(ETH_P_IP)
            t.link[n].sll_ifindex, t.link[n].sll_halen = self.links[o.link].ifindex, 6
            memcpy(t.link[n].sll_addr, o.hardware, 6)
            return
        t.iov[n].iov_base, t.iov[n].iov_len = o.frame + UDP_HEADERS, o.size
        h.msg_name, h.msg_namelen = &t.name[n], sizeof(sockaddr_in)
        memset(&t.name[n], 0, sizeof(sockaddr_in))
        t.name[n].sin_family, t.name[n].sin_port = AF_INET, htons(o.port)
        t.name[n].sin_addr.s_addr = htonl(o.address)
        h.msg_control, h.msg_controllen = t.control[n], CMSG_SPACE(sizeof(in_pktinfo))
        memset(t.control[n], 0, sizeof(t.control[n]))
        c = CMSG_FIRSTHDR(h)
        c.cmsg_level, c.cmsg_type, c.cmsg_len = IPPROTO_IP, IP_PKTINFO, CMSG_LEN(sizeof(in_pktinfo))
        info = <in_pktinfo *>CMSG_DATA(c)
        info.ipi_ifindex = self.links[o.link].ifindex
        info.ipi_spec_dst.s_addr = htonl(o.source)

    # ---- questions from Python

    def replies(self):
        cdef int32_t i
        cdef out_t *o
        cdef list taken = []
        for i in range(self.ready.count):
            o = self.ready.at[i]
            start = 0 if o.kind == DHCP_TO_HARDWARE else UDP_HEADERS
            taken.append((
                RESPONDER_WAYS[o.kind - 1], o.link, o.source, o.address, o.port, o.hardware[:6],
                o.frame[start:UDP_HEADERS + o.size],
            ))
            free(o)
        self.ready.count = 0
        return taken

    def events(self):
        return facts_of(&self.facts)

    def counters(self):
        return {name: self.counts[i] for i, name in enumerate(RESPONDER_COUNTERS)}


RESPONDER_WAYS = ("address", "all", "hardware")


cdef bint outs_push(outs_t *list_, out_t *o) noexcept nogil:
    # Takes `o` over; frees it where there is no room.
    cdef out_t **more
    cdef int32_t room
    if list_.count == list_.room:
        room = max(2 * list_.room, 256)
        more = NULL
        if room <= RESPONDER_WAITING:
            more = <out_t **>realloc(list_.at, room * sizeof(out_t *))
        if more == NULL:
            free(o)
            return False
        list_.at, list_.room = more, room
    list_.at[list_.count] = o
    list_.count += 1
    return True

cdef void outs_free(outs_t *list_) noexcept nogil:
    cdef int32_t i
    for i in range(list_.count):
        free(list_.at[i])
    free(list_.at)

cdef void traffic_expect(traffic_t *t) noexcept nogil:
    cdef int i
    for i in range(RESPONDER_BATCH):
        t.iov[i].iov_base, t.iov[i].iov_len = t.data[i], DHCP_LONGEST
        memset(&t.vec[i], 0, sizeof(mmsghdr))
        t.vec[i].msg_hdr.msg_iov, t.vec[i].msg_hdr.msg_iovlen = &t.iov[i], 1
        t.vec[i].msg_hdr.msg_name, t.vec[i].msg_hdr.msg_namelen = &t.name[i], sizeof(sockaddr_in)
        t.vec[i].msg_hdr.msg_control, t.vec[i].msg_hdr.msg_controllen = t.control[i], sizeof(t.control[i])

cdef uint32_t traffic_destination(msghdr *h) noexcept nogil:
    cdef cmsghdr *c = CMSG_FIRSTHDR(h)
    while c != NULL:
        if c.cmsg_level == IPPROTO_IP and c.cmsg_type == IP_PKTINFO:
            return ntohl((<in_pktinfo *>CMSG_DATA(c)).ipi_addr.s_addr)
        c = CMSG_NXTHDR(h, c)
    return 0xFFFFFFFF
