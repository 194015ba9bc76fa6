# Signs: how MAC addresses or machine ids (option 97) begin that set machines apart within the classes they send.
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memcmp

from fastboot._native.digest cimport NOWHERE

cdef enum:
    SIGNS_ROOM = 256
    SIGN_SIZE = 17              # a whole option 97: its type and a GUID (RFC 4578 2.3)

cdef struct sign_t:
    uint8_t size
    uint8_t octets[SIGN_SIZE]

cdef struct signs_t:
    int32_t count
    sign_t at[SIGNS_ROOM]

cdef inline int32_t signs_find(const signs_t *s, const uint8_t *octets, size_t n) noexcept nogil:
    # The longest that these octets begin with: it tells which shorter ones they begin with too.
    cdef int32_t i, found = NOWHERE
    for i in range(s.count):
        if s.at[i].size <= n and memcmp(s.at[i].octets, octets, s.at[i].size) == 0 and (
                found == NOWHERE or s.at[i].size > s.at[found].size):
            found = i
    return found
