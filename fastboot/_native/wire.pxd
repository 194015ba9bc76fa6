# A cursor over received octets and a pen over octets to send. Every read and write is checked here,
# so no other file compares pointers with ends.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.strings cimport strncasecmp

cdef struct cursor_t:
    const uint8_t *at
    const uint8_t *end

cdef struct pen_t:
    uint8_t *at
    uint8_t *end
    bint full              # something did not fit; `at` stands where it would have begun

cdef inline bint wire_is(const uint8_t *text, size_t length, const char *word, size_t n) noexcept nogil:
    # Whether a text of a protocol is a word, in capitals or not.
    return length == n and strncasecmp(<const char *>text, word, n) == 0

cdef inline cursor_t wire_cursor(const uint8_t *data, size_t n) noexcept nogil:
    cdef cursor_t c
    c.at = data
    c.end = data + n
    return c

cdef inline size_t wire_left(cursor_t *c) noexcept nogil:
    return c.end - c.at

cdef inline const uint8_t *wire_take(cursor_t *c, size_t n) noexcept nogil:
    # The next n octets, or NULL and the cursor unmoved.
    cdef const uint8_t *p = c.at
    if wire_left(c) < n:
        return NULL
    c.at += n
    return p

cdef inline uint16_t wire_u16(const uint8_t *p) noexcept nogil:
    return (<uint16_t>p[0] << 8) | p[1]

cdef inline uint32_t wire_u32(const uint8_t *p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]

cdef inline pen_t wire_pen(uint8_t *data, size_t n) noexcept nogil:
    cdef pen_t p
    p.at = data
    p.end = data + n
    p.full = False
    return p

cdef inline void wire_put(pen_t *p, const void *data, size_t n) noexcept nogil:
    if p.full or <size_t>(p.end - p.at) < n:
        p.full = True
    elif n:                                 # nothing may be at NULL, from which memcpy takes not even nothing
        memcpy(p.at, data, n)
        p.at += n

cdef inline void wire_put_u8(pen_t *p, uint8_t v) noexcept nogil:
    wire_put(p, &v, 1)

cdef inline void wire_put_u16(pen_t *p, uint16_t v) noexcept nogil:
    cdef uint8_t b[2]
    b[0] = v >> 8
    b[1] = v & 0xff
    wire_put(p, b, 2)

cdef inline void wire_put_u32(pen_t *p, uint32_t v) noexcept nogil:
    cdef uint8_t b[4]
    b[0] = v >> 24
    b[1] = (v >> 16) & 0xff
    b[2] = (v >> 8) & 0xff
    b[3] = v & 0xff
    wire_put(p, b, 4)

cdef inline void wire_put_number(pen_t *p, int64_t v) noexcept nogil:
    # In decimal digits, which snprintf takes ten times as long for.
    cdef uint8_t text[20]
    cdef size_t at = sizeof(text)
    cdef uint64_t left = -<uint64_t>v if v < 0 else <uint64_t>v
    while True:
        at -= 1
        text[at] = c"0" + left % 10
        left //= 10
        if left == 0:
            break
    if v < 0:
        at -= 1
        text[at] = c"-"
    wire_put(p, text + at, sizeof(text) - at)
