# Silences: which machines that got no answer were told of, so that each is told once in a while for each reason, and
# a flood costs no more than so many a second. Memory is Replies'.
from libc.stdint cimport int32_t, int64_t, uint64_t

cdef enum:
    SILENCES_ROOM = 4096            # a power of two
    SILENCES_A_SECOND = 256
    SILENCE_AGAIN = 60              # seconds

cdef struct silence_t:
    uint64_t key                    # of machine and reason
    int64_t told

cdef struct silences_t:             # zeroed by the caller
    silence_t at[SILENCES_ROOM]
    int64_t since
    int32_t told

cdef inline bint silence_is_news(silences_t *s, uint64_t key, int64_t now) noexcept nogil:
    # One machine takes the place of another with the same low bits: then both are told more often.
    cdef silence_t *one = &s.at[key % SILENCES_ROOM]
    if one.key == key and now - one.told < SILENCE_AGAIN * <int64_t>1000000000:
        return False
    if now - s.since >= 1000000000:
        s.since, s.told = now, 0
    if s.told >= SILENCES_A_SECOND:
        return False
    s.told += 1
    one.key, one.told = key, now
    return True
