# A row of the store: words with a space between them, the last a check that only the same octets pass. Rows are
# members of a JSON object, for SQLite, and hold nothing that JSON would escape.
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t

from fastboot._native.lease cimport (
    LEASE_BOUND, LEASE_CIRCUIT, LEASE_CLIENT_ID, LEASE_DECLINED, LEASE_HOST, LEASE_REMOTE, binding_t, lease_t,
    lease_text,
)
from fastboot._native.wire cimport pen_t, wire_put, wire_put_number, wire_put_u8

cdef enum:
    ROW_OCTETS = 2300               # at most: three texts of 255 in hex, a host name of 64 escaped
    MILLISECOND = 1000000

cdef inline void _put_address(pen_t *p, uint32_t address) noexcept nogil:
    cdef int shift
    for shift in range(24, -8, -8):
        wire_put_number(p, (address >> shift) & 0xff)
        wire_put_u8(p, c"." if shift else c" ")

cdef inline void _put_octets(pen_t *p, const uint8_t *data, size_t n, char between) noexcept nogil:
    cdef const char *digits = b"0123456789abcdef"
    cdef size_t i
    for i in range(n):
        if i and between:
            wire_put_u8(p, between)
        wire_put_u8(p, digits[data[i] >> 4])
        wire_put_u8(p, digits[data[i] & 15])

cdef inline void _put_hex(pen_t *p, const binding_t *b, int what) noexcept nogil:
    _put_octets(p, lease_text(b, what), b.size[what], 0)
    wire_put_u8(p, c" ")

cdef inline void _put_host(pen_t *p, const uint8_t *data, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if 32 < data[i] < 127 and data[i] != c'"' and data[i] != c"\\" and data[i] != c"%":
            wire_put_u8(p, data[i])
        else:
            wire_put_u8(p, c"%")
            _put_octets(p, data + i, 1, 0)
    wire_put_u8(p, c" ")

cdef inline void _put_number(pen_t *p, int64_t v) noexcept nogil:
    wire_put_number(p, v)
    wire_put_u8(p, c" ")

cdef inline uint32_t row_check(const uint8_t *data, size_t n) noexcept nogil:
    # CRC-32 as zlib has it, half an octet at a time.
    cdef uint32_t table[16]
    cdef uint32_t crc = 0xFFFFFFFF
    cdef size_t i
    cdef int _bit
    for i in range(16):
        table[i] = i
        for _bit in range(4):
            table[i] = (table[i] >> 1) ^ (<uint32_t>0xEDB88320 if table[i] & 1 else 0)
    for i in range(n):
        crc ^= data[i]
        crc = (crc >> 4) ^ table[crc & 15]
        crc = (crc >> 4) ^ table[crc & 15]
    return ~crc

cdef inline void row_put(pen_t *p, const lease_t *lease, int64_t boot, uint64_t batch) noexcept nogil:
    # A member of the object: the address as a number, and the row. An end is rounded up to milliseconds, so that no
    # restart takes anything from a lease.
    cdef uint8_t *begin
    wire_put_u8(p, c'"')
    wire_put_number(p, lease.address)
    wire_put(p, b'":"', 3)
    begin = p.at
    _put_number(p, batch)
    _put_number(p, boot)
    _put_address(p, lease.address)
    if lease.now.state == LEASE_BOUND:
        wire_put(p, b"bound ", 6)
    elif lease.now.state == LEASE_DECLINED:
        wire_put(p, b"declined ", 9)
    else:
        wire_put(p, b"released ", 9)
    _put_number(p, lease.now.htype)
    _put_octets(p, lease.now.chaddr, lease.now.hlen, c":")
    wire_put_u8(p, c" ")
    _put_hex(p, &lease.now, LEASE_CLIENT_ID)
    _put_host(p, lease_text(&lease.now, LEASE_HOST), lease.now.size[LEASE_HOST])
    _put_address(p, lease.now.relay)
    _put_hex(p, &lease.now, LEASE_CIRCUIT)
    _put_hex(p, &lease.now, LEASE_REMOTE)
    _put_number(p, lease.now.starts // MILLISECOND)
    if lease.now.expires == INT64_MAX:
        wire_put(p, b"never ", 6)
    else:
        _put_number(p, (lease.now.expires + MILLISECOND - 1) // MILLISECOND)
    wire_put_number(p, row_check(begin, p.at - begin - 1))
    wire_put_u8(p, c'"')
