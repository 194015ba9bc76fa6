# Queues of records known by index, whose ties lie in an array of the caller's: a record is in one chain, or none,
# of those that share the array. Oldest first.
from libc.stdint cimport int32_t

cdef struct tie_t:
    int32_t next           # indices plus one; 0 is the end
    int32_t prev
    bint tied

cdef struct chain_t:
    tie_t *ties           # zeroed by the caller
    int32_t first          # index plus one; 0 where it is empty
    int32_t last

cdef inline void chain_put(chain_t *c, int32_t i) noexcept nogil:
    # At the end; where it stands already, it stays.
    cdef tie_t *t = &c.ties[i]
    if t.tied:
        return
    t.tied = True
    t.next = 0
    t.prev = c.last
    if c.last:
        c.ties[c.last - 1].next = i + 1
    else:
        c.first = i + 1
    c.last = i + 1

cdef inline void chain_remove(chain_t *c, int32_t i) noexcept nogil:
    cdef tie_t *t = &c.ties[i]
    if not t.tied:
        return
    t.tied = False
    if t.prev:
        c.ties[t.prev - 1].next = t.next
    else:
        c.first = t.next
    if t.next:
        c.ties[t.next - 1].prev = t.prev
    else:
        c.last = t.prev
