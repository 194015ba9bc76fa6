# How many addresses the machines behind each switch port hold. Memory is the owner's: as many entries as there are
# leases, for a port is there only while it holds one.
from libc.stdint cimport int32_t, uint32_t

from fastboot._native.digest cimport NOWHERE, digest_same, digest_t

cdef struct port_t:
    digest_t key
    int32_t held                # addresses
    int32_t next                # in its bucket, or in the list of unused entries

cdef struct ports_t:
    port_t *at
    int32_t *buckets
    uint32_t mask               # buckets less one
    int32_t used                # entries that were ever used
    int32_t unused              # the first of those that are no more

cdef inline int32_t ports_find(const ports_t *t, digest_t key) noexcept nogil:
    cdef int32_t i = t.buckets[key.b & t.mask]
    while i != NOWHERE and not digest_same(t.at[i].key, key):
        i = t.at[i].next
    return i

cdef inline int32_t ports_held(const ports_t *t, digest_t key) noexcept nogil:
    cdef int32_t i = ports_find(t, key) if t.at != NULL else NOWHERE
    return t.at[i].held if i != NOWHERE else 0

cdef inline int32_t ports_take(ports_t *t, digest_t key) noexcept nogil:
    # One address more; returns the entry.
    cdef int32_t *head = &t.buckets[key.b & t.mask]
    cdef int32_t i = ports_find(t, key)
    if i == NOWHERE:
        i = t.unused
        if i != NOWHERE:
            t.unused = t.at[i].next
        else:
            i = t.used
            t.used += 1
        t.at[i].key, t.at[i].held, t.at[i].next = key, 0, head[0]
        head[0] = i
    t.at[i].held += 1
    return i

cdef inline void ports_give(ports_t *t, int32_t i) noexcept nogil:
    cdef int32_t *place = &t.buckets[t.at[i].key.b & t.mask]
    t.at[i].held -= 1
    if t.at[i].held:
        return
    while place[0] != i:
        place = &t.at[place[0]].next
    place[0] = t.at[i].next
    t.at[i].next = t.unused
    t.unused = i
