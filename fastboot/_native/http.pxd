# HTTP/1.1 (RFC 9112): requests of the one plain kind that a storm is made of, and the head of their answer.
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp

from fastboot._native.wire cimport wire_is

cdef extern from "<time.h>":
    ctypedef int64_t time_t
    struct tm:
        int tm_sec, tm_min, tm_hour, tm_mday, tm_mon, tm_year, tm_wday
    tm *gmtime_r(const time_t *seconds, tm *result) nogil

cdef enum:
    HTTP_LONGEST = 4096         # octets of a plain request
    HTTP_FIELDS = 32            # fields of one
    HTTP_HEAD = 512             # octets of the longest head
    HTTP_TYPE = 64              # octets of the longest media type
    HTTP_DATE = 64              # room for a date, whatever the year
    HTTP_LAST = 253402300799    # the end of the year 9999
    HTTP_HOST = 1
    HTTP_CONNECTION = 2
    HTTP_OWN = 256              # of somebody's own (X-), of which there may be several


cdef inline bint http_is_alnum(uint8_t c) noexcept nogil:
    return c'a' <= (c | 0x20) <= c'z' or c'0' <= c <= c'9'

cdef inline bint http_in_target(uint8_t c) noexcept nogil:
    # What stands for itself: no escape, no query, no backslash.
    return http_is_alnum(c) or c in (c'/', c'-', c'.', c'_', c'~', c'+', c'=', c':', c',', c'@', c'^')

cdef inline bint http_in_host(uint8_t c) noexcept nogil:
    return http_is_alnum(c) or c in (c'.', c'-', c':', c'_', c'[', c']')

cdef inline int http_field(const uint8_t *name, size_t n) noexcept nogil:
    # Which of the fields this is that change nothing in the answer to a plain request; 0 for any other.
    if wire_is(name, n, b"host", 4):
        return HTTP_HOST
    if wire_is(name, n, b"connection", 10):
        return HTTP_CONNECTION
    if wire_is(name, n, b"user-agent", 10):
        return 4
    if wire_is(name, n, b"accept", 6):
        return 8
    if wire_is(name, n, b"accept-encoding", 15):
        return 16
    if wire_is(name, n, b"accept-language", 15):
        return 32
    if wire_is(name, n, b"cache-control", 13):
        return 64
    if wire_is(name, n, b"pragma", 6):
        return 128
    if n > 2 and name[0] | 0x20 == c'x' and name[1] == c'-':
        return HTTP_OWN
    return 0

cdef inline bint http_value_fits(int field, const uint8_t *p, size_t n) noexcept nogil:
    cdef size_t i
    if field == HTTP_CONNECTION:
        return wire_is(p, n, b"keep-alive", 10)
    if field == HTTP_HOST:
        for i in range(n):
            if not http_in_host(p[i]):
                return False
        return n > 0
    return True

cdef inline size_t http_plain(const uint8_t *p, size_t n) noexcept nogil:
    # Returns how long the target is, from p + 4 on, where the octets are one whole request, and nothing more, that
    # asks for no more than a file: GET, one Host, no body, no condition, a connection that is kept. 0: it is for
    # the parser, which knows what is right and what is not; whatever is unusual here is.
    cdef size_t at = 4, name, value, target
    cdef int seen = 0, field = 0, _line
    if n > HTTP_LONGEST or n < 26 or memcmp(p, b"GET /", 5) != 0 or memcmp(p + n - 4, b"\r\n\r\n", 4) != 0:
        return 0
    # No loop passes a CR, and the last octets are CR LF: all end before n.
    while http_in_target(p[at]):
        if p[at] == c'/' and p[at + 1] == c'/':
            return 0
        at += 1
    target = at - 4
    if n - at < 13 or memcmp(p + at, b" HTTP/1.1\r\n", 11) != 0:
        return 0
    at += 11
    for _line in range(HTTP_FIELDS):
        if p[at] == c'\r':
            break
        name = at
        while http_is_alnum(p[at]) or p[at] == c'-':
            at += 1
        field = http_field(p + name, at - name)
        if p[at] != c':' or field == 0 or (seen & field and field != HTTP_OWN):
            return 0
        seen |= field
        at += 2 if p[at + 1] == c' ' else 1
        value = at
        while 0x20 <= p[at] < 0x7F:
            at += 1
        if n - at < 4 or p[at] != c'\r' or p[at + 1] != c'\n' or not http_value_fits(field, p + value, at - value):
            return 0
        at += 2
    return target if seen & HTTP_HOST and at + 2 == n else 0

cdef inline void http_date(int64_t seconds, char *out) noexcept nogil:
    # Writes up to HTTP_DATE octets with a NUL at their end (RFC 9110 section 5.6.7).
    cdef const char *days = b"SunMonTueWedThuFriSat"
    cdef const char *months = b"JanFebMarAprMayJunJulAugSepOctNovDec"
    cdef tm t
    gmtime_r(&seconds, &t)
    snprintf(out, HTTP_DATE, b"%.3s, %02d %.3s %04d %02d:%02d:%02d GMT", days + 3 * t.tm_wday, t.tm_mday,
             months + 3 * t.tm_mon, t.tm_year + 1900, t.tm_hour, t.tm_min, t.tm_sec)

cdef inline int http_head(char *out, uint64_t inode, int64_t changed, int64_t offset, int64_t size, int64_t modified,
                          const char *media_type, int64_t now) noexcept nogil:
    # Writes the head of a whole file, HTTP_HEAD octets at most; returns how many. Times are not below 0 and not
    # after the year 9999; `changed` in nanoseconds, the others in seconds. `http_answer` writes it for all others.
    cdef char last[HTTP_DATE]
    cdef char date[HTTP_DATE]
    http_date(modified, last)
    http_date(now, date)
    return snprintf(
        out, HTTP_HEAD,
        b"HTTP/1.1 200 OK\r\nETag: \"%llx-%llx-%llx-%llx\"\r\nLast-Modified: %s\r\nAccept-Ranges: bytes\r\n"
        b"Content-Type: %s\r\nServer: fastboot\r\nContent-Length: %lld\r\nDate: %s\r\n\r\n",
        <unsigned long long>inode, <unsigned long long>changed, <unsigned long long>offset, <unsigned long long>size,
        last, media_type, <long long>size, date)
