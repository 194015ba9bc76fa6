# One TFTP download as its client sees it (RFC 1350, 2347, 2348, 2349, 7440): pure, no clock and no socket.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libc.string cimport memchr, memset
from posix.strings cimport strcasecmp

from fastboot._native.wire cimport cursor_t, wire_cursor, wire_left, wire_u16

cdef enum:
    TFTP_DATA = 3
    TFTP_ACK = 4
    TFTP_ERROR = 5
    TFTP_OACK = 6

cdef enum:                      # what a packet calls for
    HEARD_NOTHING = 0
    HEARD_ANSWER                # acknowledge `next` - 1
    HEARD_SIZE                  # a probe has its answer: send ERROR 8 and leave
    HEARD_END                   # acknowledge, and the file is whole
    HEARD_ERROR                 # the server's ERROR
    HEARD_NONSENSE              # an OACK that a firmware refuses, or no TFTP

cdef struct receiver_t:
    int64_t next                # block that is due, counted without end
    int64_t octets
    int64_t size                # tsize; -1: not told
    int64_t again               # blocks that came twice or out of order
    int32_t blksize             # asked, then granted
    int32_t window
    int32_t unanswered          # blocks since the last acknowledgement
    bint probe                  # only asks for the size
    bint sized                  # asks for it at all
    bint open                   # the server has answered

cdef inline receiver_t receiver_of(int32_t blksize, int32_t window, bint sized, bint probe) noexcept nogil:
    cdef receiver_t r
    memset(&r, 0, sizeof(r))
    r.next, r.size = 1, -1
    r.blksize, r.window, r.sized, r.probe = blksize, window, sized, probe
    return r

cdef inline const char *receiver_word(cursor_t *c) noexcept nogil:
    # The next text that ends in NUL, or NULL.
    cdef const uint8_t *begin = c.at
    cdef const uint8_t *end = <const uint8_t *>memchr(begin, 0, wire_left(c))
    if end == NULL:
        return NULL
    c.at = end + 1
    return <const char *>begin

cdef inline int64_t receiver_number(const char *text) noexcept nogil:
    cdef int64_t value = 0
    cdef int32_t digits = 0
    while c"0" <= text[digits] <= c"9" and digits < 18:
        value = 10 * value + text[digits] - c"0"
        digits += 1
    return value if digits and text[digits] == 0 else -1

cdef inline int receiver_options(receiver_t *r, const uint8_t *p, size_t n) noexcept nogil:
    # EDK2 (Mtftp4RrqOackValid) and PXELINUX refuse an option that they did not ask for, or more than they asked.
    cdef cursor_t c = wire_cursor(p, n)
    cdef const char *name
    cdef const char *text
    cdef int64_t value
    cdef int32_t blksize = 512, window = 1
    while wire_left(&c):
        name, text = receiver_word(&c), receiver_word(&c)
        value = receiver_number(text) if text != NULL else -1
        if value < 0:
            return HEARD_NONSENSE
        if strcasecmp(name, b"blksize") == 0 and 8 <= value <= r.blksize:
            blksize = <int32_t>value
        elif strcasecmp(name, b"windowsize") == 0 and r.window > 1 and 1 <= value <= r.window:
            window = <int32_t>value
        elif strcasecmp(name, b"tsize") == 0 and r.sized:
            r.size = value
        else:
            return HEARD_NONSENSE
    r.blksize, r.window, r.open = blksize, window, True
    if r.probe:
        return HEARD_SIZE if r.size >= 0 else HEARD_NONSENSE        # PXE-E53
    return HEARD_ANSWER

cdef inline int receiver_data(receiver_t *r, uint16_t block, size_t n) noexcept nogil:
    if not r.open:                                  # RFC 2347: the server knows no options
        r.open, r.blksize, r.window = True, 512, 1
        if r.probe:
            return HEARD_NONSENSE                   # EDK2 wants an OACK (PxeBcMtftp4GetFileSize)
    if block != <uint16_t>r.next:
        r.again += 1
        r.unanswered = 0
        return HEARD_ANSWER                         # EDK2, PXELINUX, GRUB and iPXE all do, at every such block
    if n > <size_t>r.blksize:
        return HEARD_NONSENSE
    r.next += 1
    r.octets += n
    r.unanswered += 1
    if n < <size_t>r.blksize:
        return HEARD_END
    if r.unanswered >= r.window:
        r.unanswered = 0
        return HEARD_ANSWER
    return HEARD_NOTHING

cdef inline int receiver_take(receiver_t *r, const uint8_t *p, size_t n) noexcept nogil:
    cdef uint16_t code
    if n < 4:
        return HEARD_NONSENSE
    code = wire_u16(p)
    if code == TFTP_DATA:
        return receiver_data(r, wire_u16(p + 2), n - 4)
    if code == TFTP_ERROR:
        return HEARD_ERROR
    if code != TFTP_OACK:
        return HEARD_NONSENSE
    if r.open:
        return HEARD_ANSWER if r.next == 1 else HEARD_NOTHING       # a second OACK: ACK 0 once more
    return receiver_options(r, p + 2, n - 2)
