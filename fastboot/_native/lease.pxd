# The lease table: addresses, who has them, until when. Pure operations on memory that the Responder owns.
# Times are monotonic nanoseconds and come in as arguments.
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from libc.string cimport memcmp, memcpy

from fastboot._native.digest cimport (
    NOWHERE, digest_key_t, digest_none, digest_of, digest_same, digest_spread, digest_t,
)

cdef enum:                      # what a client, or its relay, says of it
    LEASE_CLIENT_ID = 0
    LEASE_HOST
    LEASE_CIRCUIT
    LEASE_REMOTE
    LEASE_TEXTS

cdef enum:
    LEASE_LONGEST = 255         # octets of a text that are kept
    LEASE_HOST_LONGEST = 64     # of a host name

cdef enum:                      # states of an address
    LEASE_FREE = 0
    LEASE_OFFERED
    LEASE_BOUND
    LEASE_DECLINED              # in use, a client found (RFC 2131 3.1 step 5), or somebody was heard
    LEASE_STATES

cdef enum:                      # lists of free addresses, in the order in which strangers get them
    FREE_CLEAR = 1              # nobody answered for it lately
    FREE_UNKNOWN
    FREE_DOUBTFUL               # somebody may use it: no stranger's before it was found clear
    FREE_LISTS

cdef struct binding_t:          # what the store keeps of an address
    uint8_t state
    uint8_t htype
    uint8_t hlen
    uint8_t chaddr[16]
    digest_t who                # of the last client too, so that a machine that returns gets its address back
    int64_t starts
    int64_t expires             # of a binding its end, INT64_MAX: infinite; of a free address since when it is
    int64_t until               # end of the state; INT64_MAX where only an event ends it
    bint known                  # the client is a node
    digest_t port               # that it is behind; none: not known
    uint32_t relay              # through which it was asked for last, 0: none
    uint8_t *text               # client identifier, host name, circuit id, remote id; owned by the binding
    uint8_t size[LEASE_TEXTS]   # octets of each

cdef struct lease_t:
    uint32_t address
    int32_t subnet              # NOWHERE: in none of the configuration any more
    int32_t node                # the only node that may have it; NOWHERE: not kept for any
    bint pooled                 # may be given to strangers
    binding_t now
    binding_t kept              # what is on disk while `now` is not; restored where the commit fails
    uint64_t batch              # the commit that makes `now` durable; 0: it is
    uint32_t waiting_xid        # of the last reply that waits for that commit
    uint32_t told_offer         # tag of the last OFFER that an event told of, plus one
    uint32_t told_ack           # xid of the last ACK that an event told of
    int32_t heap                # where it is in the heap of ends, or NOWHERE
    int32_t older               # neighbours in the list of free addresses
    int32_t newer
    uint8_t counted             # the state in which it counts as a stranger's; 0: it does not
    int32_t port                # the port that it counts for, or NOWHERE
    uint8_t listed              # in which list of free addresses it is; 0: in none
    bint doubtful               # of a free address: goes to FREE_DOUBTFUL
    uint8_t probes              # sent since it was found clear, or listed
    int64_t probed              # when the last was sent, or it was found clear, or became doubtful
    int32_t next_address        # chains of the two indexes
    int32_t next_who

cdef struct leases_t:
    lease_t *at
    int32_t count
    int32_t room                # entries that `at`, `heap` and the buckets have memory for
    uint32_t mask               # buckets less one
    int32_t *by_address
    int32_t *by_who
    int32_t *heap               # of those whose state ends, the first to end at 0
    int32_t ending

cdef struct fifo_t:             # free addresses of a subnet, oldest first
    int32_t oldest
    int32_t newest
    int32_t count


# ---- who a client is

cdef inline digest_t lease_client(const digest_key_t *key, bint by_client_id, uint8_t htype, const uint8_t *mac,
                                  uint8_t hlen, const uint8_t *client_id, size_t id_size) noexcept nogil:
    # The hardware address, not option 61: firmware, iPXE and installer send three different ones from one machine,
    # which must keep its address (RFC 4361 6.3 allows that). Where the network wants it, or the hardware address says
    # nothing (InfiniBand, RFC 4390), option 61.
    cdef uint8_t octets[LEASE_LONGEST + 2]
    cdef bint by_id = hlen == 0 or htype == 32 or (by_client_id and id_size >= 2)
    octets[0], octets[1] = by_id, htype
    if by_id:
        id_size = min(id_size, <size_t>LEASE_LONGEST)
        memcpy(octets + 2, client_id, id_size)
        return digest_of(key, octets, id_size + 2)
    memcpy(octets + 2, mac, hlen)
    return digest_of(key, octets, hlen + 2)

cdef inline digest_t lease_port(const digest_key_t *key, uint32_t relay, const uint8_t *circuit, uint8_t circuit_size,
                                const uint8_t *remote, uint8_t remote_size) noexcept nogil:
    cdef uint8_t octets[6 + 2 * LEASE_LONGEST]
    cdef digest_t nothing
    if circuit_size == 0:
        nothing.a = nothing.b = 0
        return nothing
    octets[0], octets[5] = 2, circuit_size
    memcpy(octets + 1, &relay, 4)
    memcpy(octets + 6, circuit, circuit_size)
    if remote_size:
        memcpy(octets + 6 + circuit_size, remote, remote_size)
    return digest_of(key, octets, 6 + <size_t>circuit_size + remote_size)

cdef inline const uint8_t *lease_text(const binding_t *b, int what) noexcept nogil:
    cdef const uint8_t *p = b.text
    cdef int i
    for i in range(what):
        p += b.size[i]
    return p

cdef inline digest_t lease_holder(const digest_key_t *key, bint by_client_id, const binding_t *b) noexcept nogil:
    return lease_client(key, by_client_id, b.htype, b.chaddr, b.hlen, lease_text(b, LEASE_CLIENT_ID),
                        b.size[LEASE_CLIENT_ID])

cdef inline bint lease_says(const binding_t *b, int what, const uint8_t *text, size_t size) noexcept nogil:
    return b.size[what] == size and (size == 0 or memcmp(lease_text(b, what), text, size) == 0)


# ---- the two indexes

cdef inline int32_t lease_at(const leases_t *t, uint32_t address) noexcept nogil:
    cdef int32_t i
    if t.room == 0:
        return NOWHERE
    i = t.by_address[digest_spread(address) & t.mask]
    while i != NOWHERE and t.at[i].address != address:
        i = t.at[i].next_address
    return i

cdef inline int32_t lease_of(const leases_t *t, digest_t who, int32_t subnet, int32_t but) noexcept nogil:
    # The address of a client in a subnet, other than `but`.
    cdef int32_t i
    if t.room == 0:
        return NOWHERE
    i = t.by_who[who.b & t.mask]
    while i != NOWHERE:
        if i != but and t.at[i].subnet == subnet and digest_same(t.at[i].now.who, who):
            break
        i = t.at[i].next_who
    return i

cdef inline void lease_link(leases_t *t, int32_t i) noexcept nogil:
    cdef int32_t *head = &t.by_who[t.at[i].now.who.b & t.mask]
    if not digest_none(t.at[i].now.who):
        t.at[i].next_who = head[0]
        head[0] = i

cdef inline void lease_unlink(leases_t *t, int32_t i) noexcept nogil:
    cdef int32_t *place = &t.by_who[t.at[i].now.who.b & t.mask]
    if digest_none(t.at[i].now.who):
        return
    while place[0] != i:
        place = &t.at[place[0]].next_who
    place[0] = t.at[i].next_who

cdef inline int32_t lease_add(leases_t *t, uint32_t address) noexcept nogil:
    # The caller has made room. `at` is zeroed memory.
    cdef int32_t i = t.count
    cdef int32_t *head = &t.by_address[digest_spread(address) & t.mask]
    cdef lease_t *lease = &t.at[i]
    t.count += 1
    lease.address = address
    lease.subnet = lease.node = lease.heap = lease.port = lease.older = lease.newer = lease.next_who = NOWHERE
    lease.now.until = INT64_MAX
    lease.next_address = head[0]
    head[0] = i
    return i


# ---- the heap of ends

cdef inline void _place(leases_t *t, int32_t position, int32_t i) noexcept nogil:
    t.heap[position] = i
    t.at[i].heap = position

cdef inline void _sift(leases_t *t, int32_t position) noexcept nogil:
    cdef int32_t i = t.heap[position], other
    cdef int64_t until = t.at[i].now.until
    while position > 0:
        other = (position - 1) // 2
        if t.at[t.heap[other]].now.until <= until:
            break
        _place(t, position, t.heap[other])
        position = other
    while True:
        other = 2 * position + 1
        if other + 1 < t.ending and t.at[t.heap[other + 1]].now.until < t.at[t.heap[other]].now.until:
            other += 1
        if other >= t.ending or t.at[t.heap[other]].now.until >= until:
            break
        _place(t, position, t.heap[other])
        position = other
    _place(t, position, i)

cdef inline void lease_until(leases_t *t, int32_t i, int64_t until) noexcept nogil:
    cdef int32_t position = t.at[i].heap
    t.at[i].now.until = until
    if until != INT64_MAX:
        if position == NOWHERE:
            position = t.ending
            t.ending += 1
            _place(t, position, i)
        _sift(t, position)
    elif position != NOWHERE:
        t.ending -= 1
        t.at[i].heap = NOWHERE
        if position != t.ending:
            _place(t, position, t.heap[t.ending])
            _sift(t, position)


# ---- the lists of free addresses

cdef inline void fifo_push(leases_t *t, fifo_t *lists, int32_t i, uint8_t which) noexcept nogil:
    cdef lease_t *lease = &t.at[i]
    cdef fifo_t *f = &lists[which]
    if lease.listed:
        return
    lease.listed = which
    lease.probes = 0
    lease.older, lease.newer = f.newest, NOWHERE
    if f.newest == NOWHERE:
        f.oldest = i
    else:
        t.at[f.newest].newer = i
    f.newest = i
    f.count += 1

cdef inline void fifo_remove(leases_t *t, fifo_t *lists, int32_t i) noexcept nogil:
    cdef lease_t *lease = &t.at[i]
    cdef fifo_t *f = &lists[lease.listed]
    if not lease.listed:
        return
    lease.listed = 0
    if lease.older == NOWHERE:
        f.oldest = lease.newer
    else:
        t.at[lease.older].newer = lease.newer
    if lease.newer == NOWHERE:
        f.newest = lease.older
    else:
        t.at[lease.newer].older = lease.older
    lease.older = lease.newer = NOWHERE
    f.count -= 1
