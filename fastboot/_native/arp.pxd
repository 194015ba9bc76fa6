# ARP on Ethernet (RFC 826): who says of itself that it has which address.
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy

from fastboot._native.wire cimport cursor_t, wire_cursor, wire_take, wire_u16, wire_u32

cdef struct arp_t:
    uint32_t address
    uint8_t mac[6]

cdef inline bint arp_parse(const uint8_t *data, size_t n, arp_t *arp) noexcept nogil:
    # False: no ARP of IPv4, or of a sender that has no address (a probe, RFC 5227 2.1.1) or is no one machine.
    cdef cursor_t c = wire_cursor(data, n)
    cdef const uint8_t *p = wire_take(&c, 28)
    if p == NULL or memcmp(p, b"\x00\x01\x08\x00\x06\x04", 6) != 0 or wire_u16(p + 6) not in (1, 2):
        return False
    arp.address = wire_u32(p + 14)
    memcpy(arp.mac, p + 8, 6)
    return arp.address != 0 and not arp.mac[0] & 1 and memcmp(arp.mac, b"\0\0\0\0\0\0", 6) != 0
