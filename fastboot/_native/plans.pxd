# The plan table: what was decided for a class of machines, or for one. Memory is the Responder's.
from libc.stdint cimport int32_t, uint32_t

from fastboot._native.dhcp cimport dhcp_plan_t
from fastboot._native.digest cimport NOWHERE, digest_same, digest_t

cdef enum:
    PLANS_ROOM = 65536
    PLANS_BUCKETS = 65536

cdef struct plan_entry_t:
    digest_t key
    uint32_t generation         # of the configuration it was decided under
    int32_t next
    dhcp_plan_t *plan

cdef struct plans_t:
    plan_entry_t *at            # PLANS_ROOM
    int32_t *buckets            # PLANS_BUCKETS
    int32_t used
    int32_t turn                # the oldest entry, where all are used

cdef inline int32_t _find(const plans_t *t, digest_t key) noexcept nogil:
    cdef int32_t i = t.buckets[key.b & (PLANS_BUCKETS - 1)]
    while i != NOWHERE and not digest_same(t.at[i].key, key):
        i = t.at[i].next
    return i

cdef inline dhcp_plan_t *plans_find(const plans_t *t, digest_t key, uint32_t generation) noexcept nogil:
    cdef int32_t i = _find(t, key)
    return t.at[i].plan if i != NOWHERE and t.at[i].generation == generation else NULL

cdef inline dhcp_plan_t *plans_put(plans_t *t, digest_t key, uint32_t generation, dhcp_plan_t *plan) noexcept nogil:
    # The table takes `plan` over; returns the plan that it displaces, or NULL.
    cdef int32_t i = _find(t, key)
    cdef int32_t *place
    cdef dhcp_plan_t *old
    if i == NOWHERE:
        if t.used < PLANS_ROOM:
            i = t.used
            t.used += 1
        else:
            i = t.turn
            t.turn = (t.turn + 1) % PLANS_ROOM
            place = &t.buckets[t.at[i].key.b & (PLANS_BUCKETS - 1)]
            while place[0] != i:
                place = &t.at[place[0]].next
            place[0] = t.at[i].next
        t.at[i].key = key
        place = &t.buckets[key.b & (PLANS_BUCKETS - 1)]
        t.at[i].next = place[0]
        place[0] = i
    old = t.at[i].plan
    t.at[i].plan, t.at[i].generation = plan, generation
    return old
