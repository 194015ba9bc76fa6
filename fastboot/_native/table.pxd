# An open-addressing hash from 64-bit hashes to indices of the caller's records, on memory the caller owns.
# Equality is the caller's: two records may share a hash, so a lookup walks the candidates:
#
#     at = hash
#     i = table_next(t, hash, &at)
#     while i >= 0 and not same(records[i]):
#         i = table_next(t, hash, &at)
from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef struct place_t:
    uint32_t hash
    int32_t index          # of the record, plus one; 0 is empty

cdef struct table_t:
    place_t *places        # zeroed by the caller
    uint32_t mask          # places less one; a power of two less one, at least twice the records

cdef inline uint64_t table_mix(uint64_t h) noexcept nogil:
    # The finaliser of MurmurHash3: every bit of the input reaches the bits that the mask keeps.
    h ^= h >> 33
    h *= <uint64_t>0xff51afd7ed558ccd
    h ^= h >> 33
    h *= <uint64_t>0xc4ceb9fe1a85ec53
    return h ^ (h >> 33)

cdef inline int32_t table_next(table_t *t, uint64_t hash, uint64_t *at) noexcept nogil:
    # The next candidate from *at on (start with *at = hash), or -1.
    cdef place_t *p
    while True:
        p = &t.places[at[0] & t.mask]
        if p.index == 0:
            return -1
        at[0] += 1
        if p.hash == <uint32_t>hash:
            return p.index - 1

cdef extern from *:
    void fetch "__builtin_prefetch"(const void *) nogil

cdef inline void table_fetch(table_t *t, uint64_t hash) noexcept nogil:
    # A lookup comes soon.
    fetch(&t.places[hash & t.mask])

cdef inline int32_t table_guess(table_t *t, uint64_t hash) noexcept nogil:
    # What the lookup will find, most likely; -1: nothing.
    return t.places[hash & t.mask].index - 1

cdef inline void table_put(table_t *t, uint64_t hash, int32_t index) noexcept nogil:
    cdef uint64_t at = hash
    while t.places[at & t.mask].index:
        at += 1
    t.places[at & t.mask].hash = <uint32_t>hash
    t.places[at & t.mask].index = index + 1

cdef inline void table_remove(table_t *t, uint64_t hash, int32_t index) noexcept nogil:
    # Moves later members of the run back, so no tombstones pile up.
    cdef uint32_t hole = <uint32_t>hash & t.mask
    cdef uint32_t at, home
    while t.places[hole].index != index + 1:
        if t.places[hole].index == 0:
            return
        hole = (hole + 1) & t.mask
    at = hole
    while True:
        at = (at + 1) & t.mask
        if t.places[at].index == 0:
            break
        home = t.places[at].hash & t.mask
        if ((at - home) & t.mask) >= ((at - hole) & t.mask):
            t.places[hole] = t.places[at]
            hole = at
    t.places[hole].index = 0
