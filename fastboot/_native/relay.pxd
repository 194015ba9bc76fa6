# What a relay, or a switch on the way, says of a request in option 82 (RFC 3046).
from libc.stdint cimport uint8_t, uint32_t

from fastboot._native.wire cimport cursor_t, wire_cursor, wire_take, wire_u32

cdef enum:                      # sub-options
    RELAY_CIRCUIT_ID = 1
    RELAY_REMOTE_ID = 2
    RELAY_LINK_SELECTION = 5    # RFC 3527
    RELAY_FLAGS = 10            # RFC 5010
    RELAY_SERVER_ID = 11        # RFC 5107
    RELAY_SOURCE_PORT = 19      # RFC 8357

cdef struct relay_t:
    bint heard                  # there is an option 82 that is believed, hence sent back
    bint unicast                # the client had sent it to its server alone
    bint own_port               # the relay wants replies at the port that it sends from
    uint8_t circuit_size
    uint8_t remote_size
    uint32_t subnet             # an address of the client's link; 0: not said
    uint32_t server             # who the client shall take for its server; 0: us
    const uint8_t *circuit      # not owned
    const uint8_t *remote

cdef inline void relay_read(relay_t *r, const uint8_t *value, size_t n) noexcept nogil:
    # Sub-options in front of a malformed one count. The last of a kind does: dhcrelay appends its own to those that
    # the client has made up.
    cdef cursor_t c = wire_cursor(value, n)
    cdef const uint8_t *head
    cdef const uint8_t *part
    r.heard = True
    while True:
        head = wire_take(&c, 2)
        part = wire_take(&c, head[1]) if head != NULL else NULL
        if part == NULL:
            return
        if head[0] == RELAY_CIRCUIT_ID:
            r.circuit, r.circuit_size = part, head[1]
        elif head[0] == RELAY_REMOTE_ID:
            r.remote, r.remote_size = part, head[1]
        elif head[0] == RELAY_LINK_SELECTION and head[1] == 4:
            r.subnet = wire_u32(part)
        elif head[0] == RELAY_SERVER_ID and head[1] == 4:
            r.server = wire_u32(part)
        elif head[0] == RELAY_FLAGS and head[1] == 1:
            r.unicast = part[0] & 0x80
        elif head[0] == RELAY_SOURCE_PORT:
            r.own_port = True
