# What a DHCP client looks up in a reply before it answers it.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastboot._native.dhcp cimport (
    DHCP_HEADER, OPTION_IPXE, OPTION_SERVER, OPTION_TYPE, OPTION_VENDOR_CLASS, dhcp_next,
)
from fastboot._native.wire cimport cursor_t, wire_cursor, wire_u32

cdef enum:
    NO_PROXY = 176                  # sub-option of iPXE's option 175

cdef struct offer_t:
    uint8_t type
    uint32_t address
    uint32_t server                 # option 54
    bint sole                       # iPXE need not wait for a proxy's (dhcp_discovery_rx)

cdef inline offer_t offer_in(const uint8_t *p, size_t n) noexcept nogil:
    cdef offer_t offer
    cdef cursor_t c = wire_cursor(p + DHCP_HEADER, n - DHCP_HEADER)
    cdef uint8_t code
    cdef size_t size
    cdef const uint8_t *value
    memset(&offer, 0, sizeof(offer))
    offer.address = wire_u32(p + 16)
    while dhcp_next(&c, &code, &size, &value) > 0:
        if code == OPTION_TYPE and size == 1:
            offer.type = value[0]
        elif code == OPTION_SERVER and size == 4:
            offer.server = wire_u32(value)
        elif code == OPTION_VENDOR_CLASS or (code == OPTION_IPXE and size >= 3 and value[0] == NO_PROXY):
            offer.sole = True
    return offer

cdef inline uint64_t mac_in(const uint8_t *p) noexcept nogil:
    # Of a whole DHCP message.
    cdef uint64_t mac = 0
    cdef int i
    for i in range(6):
        mac = mac << 8 | p[28 + i]
    return mac

cdef inline uint64_t mac_hash(uint64_t mac) noexcept nogil:
    return (mac * <uint64_t>0x9E3779B97F4A7C15) >> 20
