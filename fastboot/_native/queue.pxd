# A bounded ring of equal records on memory the caller owns. The lock is the caller's too.
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

cdef struct queue_t:
    uint8_t *records
    uint32_t record        # octets of one
    uint32_t capacity
    uint32_t head
    uint32_t count

cdef inline bint queue_push(queue_t *q, const void *record) noexcept nogil:
    if q.count == q.capacity:
        return False
    memcpy(q.records + <size_t>((q.head + q.count) % q.capacity) * q.record, record, q.record)
    q.count += 1
    return True

cdef inline bint queue_pop(queue_t *q, void *record) noexcept nogil:
    if q.count == 0:
        return False
    memcpy(record, q.records + <size_t>q.head * q.record, q.record)
    q.head = (q.head + 1) % q.capacity
    q.count -= 1
    if q.count == 0:
        q.head = 0                 # a ring made for the worst case must not pass through all of its memory
    return True
