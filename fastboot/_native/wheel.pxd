# A timer wheel: 4096 slots of one tick, records known by index, on memory the caller owns. A deadline past
# the horizon waits in the last slot and is put in again when that comes up; so is one that moved later in the
# meantime: moving a deadline later costs nothing, which every acknowledgement does.
from libc.stdint cimport int32_t, int64_t, uint64_t

cdef enum:
    WHEEL_SLOTS = 4096
    WHEEL_WORDS = 64

cdef struct hand_t:
    int32_t next           # index plus one; 0 ends the list
    int32_t prev
    int64_t tick           # where it stands; -1 is nowhere

cdef struct wheel_t:
    int64_t now            # every slot before this tick is empty
    int32_t heads[WHEEL_SLOTS]
    uint64_t busy[WHEEL_WORDS]  # a bit for each slot that has a record
    uint64_t words         # a bit for each word of those that is not 0: mostly few are, and looking costs each packet
    hand_t *hands

cdef extern from *:
    int first_bit "__builtin_ctzll"(uint64_t) nogil

cdef inline void wheel_remove(wheel_t *w, int32_t i) noexcept nogil:
    cdef hand_t *h = &w.hands[i]
    cdef int32_t slot
    if h.tick < 0:
        return
    slot = <int32_t>(h.tick % WHEEL_SLOTS)
    if h.prev:
        w.hands[h.prev - 1].next = h.next
    else:
        w.heads[slot] = h.next
        if h.next == 0:
            w.busy[slot // 64] &= ~(<uint64_t>1 << (slot % 64))
            if w.busy[slot // 64] == 0:
                w.words &= ~(<uint64_t>1 << (slot // 64))
    if h.next:
        w.hands[h.next - 1].prev = h.prev
    h.tick = -1

cdef inline void wheel_set(wheel_t *w, int32_t i, int64_t tick) noexcept nogil:
    # Wake record i at `tick` or, where it stands earlier already, before: the caller looks again then.
    cdef hand_t *h = &w.hands[i]
    cdef int32_t slot
    if tick < w.now:
        tick = w.now
    if tick > w.now + WHEEL_SLOTS - 1:
        tick = w.now + WHEEL_SLOTS - 1
    if 0 <= h.tick <= tick:
        return
    wheel_remove(w, i)
    slot = <int32_t>(tick % WHEEL_SLOTS)
    h.tick = tick
    h.prev = 0
    h.next = w.heads[slot]
    if h.next:
        w.hands[h.next - 1].prev = i + 1
    w.heads[slot] = i + 1
    w.busy[slot // 64] |= <uint64_t>1 << (slot % 64)
    w.words |= <uint64_t>1 << (slot // 64)

cdef inline int64_t wheel_next(wheel_t *w) noexcept nogil:
    # The first tick with a record, or -1.
    cdef int32_t slot = <int32_t>(w.now % WHEEL_SLOTS)
    cdef int32_t word = slot // 64
    cdef uint64_t bits = w.busy[word] & (~<uint64_t>0 << (slot % 64))
    cdef uint64_t later
    if bits == 0:
        if w.words == 0:
            return -1
        # The words after this one, else from the first on; at last this one again, for the slots before `now`.
        later = w.words & (~<uint64_t>1 << word)
        word = first_bit(later if later else w.words)
        bits = w.busy[word]
    slot = word * 64 + first_bit(bits)
    return w.now + ((slot - w.now) % WHEEL_SLOTS + WHEEL_SLOTS) % WHEEL_SLOTS

cdef inline int32_t wheel_pop(wheel_t *w, int64_t now) noexcept nogil:
    # One record whose tick is not after `now`, taken out; or -1, and the wheel stands at `now`.
    cdef int64_t tick = wheel_next(w)
    cdef int32_t i
    if tick < 0 or tick > now:
        if now > w.now:
            w.now = now
        return -1
    w.now = tick
    i = w.heads[tick % WHEEL_SLOTS] - 1
    wheel_remove(w, i)
    return i
