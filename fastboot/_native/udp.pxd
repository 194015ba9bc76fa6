# A datagram with its headers, for frames to machines that have no address yet (RFC 791, 768).
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastboot._native.wire cimport pen_t, wire_pen, wire_put_u16, wire_put_u32, wire_u16

cdef enum:
    UDP_HEADERS = 28            # octets of those of IP and UDP


cdef inline uint32_t udp_sum(const uint8_t *data, size_t n, uint32_t start) noexcept nogil:
    cdef size_t i
    cdef uint32_t total = start
    for i in range(0, n & ~<size_t>1, 2):
        total += wire_u16(data + i)
    if n & 1:
        total += <uint32_t>data[n - 1] << 8
    return total

cdef inline uint16_t udp_fold(uint32_t total) noexcept nogil:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

cdef inline void udp_frame(uint8_t *out, uint32_t source, uint16_t source_port, uint32_t destination,
                           uint16_t destination_port, size_t n) noexcept nogil:
    # Writes the headers of a datagram whose n octets of payload stand at out + UDP_HEADERS.
    cdef pen_t p = wire_pen(out, UDP_HEADERS)
    cdef uint16_t total
    wire_put_u32(&p, 0x45000000 | (n + UDP_HEADERS))    # version 4, 5 words, length
    wire_put_u32(&p, 0)                                 # never a fragment
    wire_put_u32(&p, 0x40110000)                        # TTL 64, UDP, checksum to come
    wire_put_u32(&p, source)
    wire_put_u32(&p, destination)
    wire_put_u16(&p, source_port)
    wire_put_u16(&p, destination_port)
    wire_put_u16(&p, n + 8)
    wire_put_u16(&p, 0)
    total = udp_fold(udp_sum(out, 20, 0))
    out[10], out[11] = total >> 8, total & 0xFF
    # The pseudo header is the addresses, the protocol and the length once more.
    total = udp_fold(udp_sum(out + 12, n + 16, 17 + n + 8))
    if total == 0:
        total = 0xFFFF                                  # RFC 768: zero would say "no checksum"
    out[26], out[27] = total >> 8, total & 0xFF
