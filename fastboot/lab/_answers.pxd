# What the beginning of an HTTP answer and an FTP reply say.
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memset
from posix.strings cimport strncasecmp

cdef struct head_t:
    int32_t size                # octets with the empty line; 0: it has not all come
    int32_t status
    int64_t length              # Content-Length; -1: not told

cdef inline int64_t digits_at(const uint8_t *p, const uint8_t *end) noexcept nogil:
    cdef int64_t value = 0
    cdef const uint8_t *at = p
    while at < end and c"0" <= at[0] <= c"9" and at - p < 18:
        value = 10 * value + at[0] - c"0"
        at += 1
    return value if at > p else -1

cdef inline head_t head_in(const uint8_t *p, int32_t n) noexcept nogil:
    cdef head_t head
    cdef int32_t at = 0, k
    memset(&head, 0, sizeof(head))
    head.length = -1
    for k in range(3, n):
        if p[k] == c"\n" and p[k - 1] == c"\r" and p[k - 2] == c"\n" and p[k - 3] == c"\r":
            head.size = k + 1
            break
    if head.size == 0:
        return head
    if n > 12:
        head.status = <int32_t>max(<int64_t>0, digits_at(p + 9, p + 12))        # HTTP/1.1 200
    for at in range(head.size - 16):
        if p[at] == c"\n" and strncasecmp(<const char *>p + at + 1, b"content-length:", 15) == 0:
            k = at + 16
            while k < head.size and p[k] == c" ":
                k += 1
            head.length = digits_at(p + k, p + head.size)
    return head

cdef inline int32_t reply_in(const uint8_t *p, int32_t n) noexcept nogil:
    # The code of the last whole line that ends a reply; 0: none has come.
    cdef int32_t begin = 0, at, code = 0
    for at in range(n):
        if p[at] == c"\n":
            if at - begin > 3 and p[begin + 3] == c" " and digits_at(p + begin, p + begin + 3) >= 100:
                code = <int32_t>digits_at(p + begin, p + begin + 3)
            begin = at + 1
    return code
