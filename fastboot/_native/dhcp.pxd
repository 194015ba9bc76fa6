# DHCP on the wire: what a packet says (RFC 2131, 2132, 3396), what a reply holds and where it goes.
# IPv4 addresses are host-order integers.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from fastboot._native.relay cimport relay_read, relay_t
from fastboot._native.udp cimport UDP_HEADERS
from fastboot._native.wire cimport (
    cursor_t, pen_t, wire_cursor, wire_left, wire_pen, wire_put, wire_put_u8, wire_put_u16, wire_put_u32,
    wire_take, wire_u16, wire_u32,
)

cdef enum:
    DHCP_HEADER = 240           # fixed fields and the magic cookie
    DHCP_COOKIE = 0x63825363
    DHCP_LONGEST = 2048         # octets of a request that are looked at; no client seen sends over 600
    DHCP_SHORTEST_REPLY = 300   # RFC 1542 2.1: old relays and ROMs drop less
    DHCP_LONGEST_REPLY = 1472   # EDK2 ignores longer ones (PXEBC_DHCP4_PACKET_MAX_SIZE)
    DHCP_DEFAULT_REPLY = 548    # 576 octets of IP datagram (RFC 2131 2), less IP and UDP headers
    DHCP_BROADCAST = 0x8000

cdef enum:                      # option 53, RFC 2132 9.6
    DHCP_DISCOVER = 1
    DHCP_OFFER = 2
    DHCP_REQUEST = 3
    DHCP_DECLINE = 4
    DHCP_ACK = 5
    DHCP_NAK = 6
    DHCP_RELEASE = 7
    DHCP_INFORM = 8

cdef enum:
    OPTION_PAD = 0
    OPTION_MASK = 1
    OPTION_HOST_NAME = 12
    OPTION_VENDOR = 43
    OPTION_REQUESTED = 50
    OPTION_LEASE = 51
    OPTION_OVERLOAD = 52
    OPTION_TYPE = 53
    OPTION_SERVER = 54
    OPTION_WANTED = 55
    OPTION_MESSAGE = 56
    OPTION_MAX_SIZE = 57
    OPTION_T1 = 58
    OPTION_T2 = 59
    OPTION_VENDOR_CLASS = 60
    OPTION_CLIENT_ID = 61
    OPTION_BOOT_FILE = 67
    OPTION_USER_CLASS = 77
    OPTION_RELAY = 82
    OPTION_ARCHITECTURE = 93
    OPTION_MACHINE_ID = 97
    OPTION_SUBNET = 118
    OPTION_IPXE = 175
    OPTION_END = 255

cdef enum:                      # in option 43 of PXE clients and servers (PXE 2.1 table 2-1)
    PXE_DISCOVERY_CONTROL = 6
    PXE_BOOT_ITEM = 71
    PXE_DOWNLOAD = 8            # of discovery control: fetch the boot file named here, look for no boot server

cdef enum:                      # why a packet is no DHCP message; returned negative
    DHCP_SHORT = 1
    DHCP_LONG
    DHCP_NO_COOKIE
    DHCP_BAD_HLEN
    DHCP_OPTION_OVERRUN
    DHCP_BAD_OVERLOAD
    DHCP_BAD_TYPE
    DHCP_BAD_ADDRESS_OPTION
    DHCP_BAD_CHADDR

cdef struct dhcp_msg_t:
    const uint8_t *data         # the packet as received; not owned
    size_t size
    uint8_t op
    uint8_t htype
    uint8_t hlen
    uint8_t type                # option 53; 0: BOOTP
    uint16_t flags
    uint32_t xid
    uint32_t ciaddr
    uint32_t yiaddr
    uint32_t siaddr
    uint32_t giaddr
    const uint8_t *chaddr
    uint8_t overload
    relay_t relay
    uint16_t seen[256]          # octets of an option's joined value, plus one; 0: absent
    uint16_t at[256]            # where it is in `values`
    uint8_t codes[256]          # the options that are there
    uint16_t kinds
    uint8_t values[DHCP_LONGEST]

cdef struct dhcp_plan_t:        # what Python decided, encoded once (services/dhcp.py)
    bint ignore
    uint32_t address            # 0: from the pools
    uint32_t siaddr
    uint32_t lease              # seconds; 0xFFFFFFFF: infinite
    uint32_t tag                # the decider's own number of it, given back in events
    uint16_t file_size
    uint16_t must_size          # octets of `always` that are sent before all else: options 1 and 67
    uint16_t always_size
    uint16_t asked_size
    const uint8_t *file         # boot file for the header, at most 127 octets
    const uint8_t *always       # encoded options, in the order of sending
    const uint8_t *asked        # encoded options, sent where option 55 lists them or is missing

cdef struct dhcp_reply_t:
    uint8_t type                # 0: BOOTP
    uint32_t server             # option 54, unless a relay says another
    uint32_t yiaddr
    uint32_t lease              # seconds; 0: no lease (INFORM, NAK)
    const char *message         # option 56, or NULL

cdef enum:
    DHCP_TO_ADDRESS = 1         # an ordinary datagram
    DHCP_TO_ALL                 # 255.255.255.255 on the link
    DHCP_TO_HARDWARE            # a frame to chaddr: the client has no address yet, hence answers no ARP

cdef struct dhcp_destination_t:
    uint8_t kind
    uint32_t address
    uint16_t port


# ---- parsing

cdef inline bint dhcp_has(const dhcp_msg_t *m, uint8_t code) noexcept nogil:
    return m.seen[code] != 0

cdef inline size_t dhcp_size(const dhcp_msg_t *m, uint8_t code) noexcept nogil:
    return m.seen[code] - 1 if m.seen[code] else 0

cdef inline const uint8_t *dhcp_value(const dhcp_msg_t *m, uint8_t code) noexcept nogil:
    return m.values + m.at[code]

cdef inline uint32_t dhcp_address(const dhcp_msg_t *m, uint8_t code) noexcept nogil:
    # Of 50 and 54, whose length dhcp_parse has checked; 0 where absent.
    return wire_u32(dhcp_value(m, code)) if dhcp_has(m, code) else 0

cdef inline int dhcp_next(cursor_t *c, uint8_t *code, size_t *n, const uint8_t **value) noexcept nogil:
    # 1: one option taken; 0: END, or an end without it; negative: drop reason.
    cdef const uint8_t *p
    while True:
        p = wire_take(c, 1)
        if p == NULL or p[0] == OPTION_END:
            return 0
        if p[0] != OPTION_PAD:
            break
    code[0] = p[0]
    p = wire_take(c, 1)
    if p == NULL:
        return -DHCP_OPTION_OVERRUN
    n[0] = p[0]
    value[0] = wire_take(c, n[0])
    return -DHCP_OPTION_OVERRUN if value[0] == NULL else 1

cdef inline int dhcp_measure(dhcp_msg_t *m, cursor_t area, bint overloaded) noexcept nogil:
    cdef uint8_t code
    cdef size_t n
    cdef const uint8_t *value
    cdef int rc = dhcp_next(&area, &code, &n, &value)
    while rc > 0:
        if code == OPTION_OVERLOAD:
            # RFC 2132 9.3; in `file` and `sname` the option says nothing (RFC 3396 5).
            if not overloaded:
                if n != 1 or value[0] < 1 or value[0] > 3 or m.overload:
                    return -DHCP_BAD_OVERLOAD
                m.overload = value[0]
        if m.seen[code] == 0:
            m.codes[m.kinds] = code
            m.kinds += 1
            m.seen[code] = 1
        m.seen[code] += n
        rc = dhcp_next(&area, &code, &n, &value)
    return rc

cdef inline void dhcp_join(dhcp_msg_t *m, cursor_t area) noexcept nogil:
    # RFC 3396 7: values of one code are one value. `at` runs ahead here and is set back by dhcp_parse.
    cdef uint8_t code
    cdef size_t n
    cdef const uint8_t *value
    while dhcp_next(&area, &code, &n, &value) > 0:
        memcpy(m.values + m.at[code], value, n)
        m.at[code] += n

cdef inline int dhcp_parse(const uint8_t *data, size_t n, dhcp_msg_t *m) noexcept nogil:
    # 0, or a negative drop reason. `m` points into `data`.
    cdef cursor_t areas[3]
    cdef int count = 1, i, rc
    cdef uint16_t used = 0
    if n < DHCP_HEADER:
        return -DHCP_SHORT
    if n > DHCP_LONGEST:
        return -DHCP_LONG
    if wire_u32(data + 236) != DHCP_COOKIE:
        return -DHCP_NO_COOKIE
    if data[2] > 16:
        return -DHCP_BAD_HLEN
    m.data, m.size = data, n
    m.op, m.htype, m.hlen = data[0], data[1], data[2]
    m.xid, m.flags = wire_u32(data + 4), wire_u16(data + 10)
    m.ciaddr, m.yiaddr = wire_u32(data + 12), wire_u32(data + 16)
    m.siaddr, m.giaddr = wire_u32(data + 20), wire_u32(data + 24)
    m.chaddr = data + 28
    m.type = m.overload = m.kinds = 0
    memset(m.seen, 0, sizeof(m.seen))
    memset(m.at, 0, sizeof(m.at))
    memset(&m.relay, 0, sizeof(m.relay))
    areas[0] = wire_cursor(data + DHCP_HEADER, n - DHCP_HEADER)
    rc = dhcp_measure(m, areas[0], False)
    if rc < 0:
        return rc
    if m.overload & 1:
        areas[count] = wire_cursor(data + 108, 128)
        count += 1
    if m.overload & 2:
        areas[count] = wire_cursor(data + 44, 64)
        count += 1
    for i in range(1, count):
        rc = dhcp_measure(m, areas[i], True)
        if rc < 0:
            return rc
    for i in range(m.kinds):
        m.at[m.codes[i]] = used
        used += dhcp_size(m, m.codes[i])
    for i in range(count):
        dhcp_join(m, areas[i])
    for i in range(m.kinds):
        m.at[m.codes[i]] -= dhcp_size(m, m.codes[i])
    return dhcp_check(m)

cdef inline int dhcp_check_hardware(const dhcp_msg_t *m) noexcept nogil:
    # Ethernet's addresses; of other networks none is known to be wrong. No octets: option 61 says who it is. Sixteen:
    # EDK2 with SendGUID sends the machine's GUID, or zeros where there is none. A card whose memory is blank has zeros
    # or ones; one with the group bit takes no frame that is sent to it.
    cdef uint8_t i, ored = 0
    if m.htype != 1 or m.hlen == 0:
        return 0
    if m.hlen != 6 and m.hlen != 16:
        return -DHCP_BAD_HLEN
    for i in range(m.hlen):
        ored |= m.chaddr[i]
    return -DHCP_BAD_CHADDR if ored == 0 or (m.hlen == 6 and m.chaddr[0] & 1) else 0

cdef inline int dhcp_check(dhcp_msg_t *m) noexcept nogil:
    if dhcp_has(m, OPTION_TYPE):
        if dhcp_size(m, OPTION_TYPE) != 1 or dhcp_value(m, OPTION_TYPE)[0] == 0:
            return -DHCP_BAD_TYPE
        m.type = dhcp_value(m, OPTION_TYPE)[0]
    if dhcp_has(m, OPTION_REQUESTED) and dhcp_size(m, OPTION_REQUESTED) != 4:
        return -DHCP_BAD_ADDRESS_OPTION
    if dhcp_has(m, OPTION_SERVER) and dhcp_size(m, OPTION_SERVER) != 4:
        return -DHCP_BAD_ADDRESS_OPTION
    if m.giaddr:
        dhcp_hear_relay(m)
    return dhcp_check_hardware(m)

cdef inline void dhcp_hear_relay(dhcp_msg_t *m) noexcept nogil:
    # Takes option 82 for what somebody on the way says. Without a relay's address it may be the client's own: then it
    # is believed only where the network is known to have switches that insert it, and from these only whence it came.
    if dhcp_has(m, OPTION_RELAY):
        relay_read(&m.relay, dhcp_value(m, OPTION_RELAY), dhcp_size(m, OPTION_RELAY))
    if not m.giaddr:
        m.relay.subnet = m.relay.server = 0
        m.relay.own_port = m.relay.unicast = False

cdef inline uint32_t dhcp_subnet(const dhcp_msg_t *m) noexcept nogil:
    # An address of the link that the client is on (RFC 3527 3, RFC 3011 2); 0: where the packet came in.
    if m.relay.subnet:
        return m.relay.subnet
    if dhcp_size(m, OPTION_SUBNET) == 4:
        return wire_u32(dhcp_value(m, OPTION_SUBNET))
    return m.giaddr


# ---- PXE

cdef inline bint dhcp_boot_class(const dhcp_msg_t *m) noexcept nogil:
    # Whether a PXE or UEFI HTTP boot client asks.
    cdef const uint8_t *text = dhcp_value(m, OPTION_VENDOR_CLASS)
    cdef size_t n = dhcp_size(m, OPTION_VENDOR_CLASS)
    return ((n >= 9 and memcmp(text, b"PXEClient", 9) == 0)
            or (n >= 10 and memcmp(text, b"HTTPClient", 10) == 0))

cdef inline const uint8_t *dhcp_boot_item(const dhcp_msg_t *m) noexcept nogil:
    # The four octets of the boot item, type and layer, that a PXE client asks for, or NULL.
    cdef cursor_t area = wire_cursor(dhcp_value(m, OPTION_VENDOR), dhcp_size(m, OPTION_VENDOR))
    cdef uint8_t code
    cdef size_t n
    cdef const uint8_t *value
    if dhcp_boot_class(m):
        while dhcp_next(&area, &code, &n, &value) > 0:
            if code == PXE_BOOT_ITEM and n == 4:
                return value
    return NULL

cdef inline bint dhcp_wants_credentials(const dhcp_msg_t *m) noexcept nogil:
    # The top bit of the layer asks for the signature of boot integrity services, which we have none of.
    cdef const uint8_t *item = dhcp_boot_item(m)
    return item != NULL and item[2] & 0x80


# ---- replying

cdef inline size_t dhcp_limit(const dhcp_msg_t *m, uint32_t mtu) noexcept nogil:
    # Octets of payload that this client takes: option 57 counts the IP datagram (RFC 2132 9.10).
    cdef size_t limit = DHCP_DEFAULT_REPLY
    if m.type == 0:
        limit = min(max(m.size, <size_t>DHCP_SHORTEST_REPLY), limit)    # BOOTP knows 64 octets of options (RFC 951)
    if dhcp_size(m, OPTION_MAX_SIZE) == 2:
        limit = max(wire_u16(dhcp_value(m, OPTION_MAX_SIZE)), <uint16_t>576) - UDP_HEADERS
    if mtu >= UDP_HEADERS + DHCP_SHORTEST_REPLY:
        limit = min(limit, <size_t>(mtu - UDP_HEADERS))
    return min(limit, <size_t>DHCP_LONGEST_REPLY)

cdef inline bint dhcp_put_option(pen_t *p, uint8_t code, const uint8_t *value, size_t n) noexcept nogil:
    # Whole or not at all; over 255 octets in consecutive parts (RFC 3396 6). EDK2 drops a packet that holds an
    # option of no octets.
    cdef size_t part
    if n == 0 or <size_t>(p.end - p.at) < n + 2 * ((n + 254) // 255):
        return False
    while n:
        part = min(n, <size_t>255)
        wire_put_u8(p, code)
        wire_put_u8(p, part)
        wire_put(p, value, part)
        value += part
        n -= part
    return True

cdef inline bint dhcp_put_number(pen_t *p, uint8_t code, uint32_t value) noexcept nogil:
    cdef uint8_t octets[4]
    cdef pen_t inner = wire_pen(octets, 4)
    wire_put_u32(&inner, value)
    return dhcp_put_option(p, code, octets, 4)

cdef inline size_t dhcp_run(const uint8_t *blob, size_t n) noexcept nogil:
    # Octets of the first option of an encoded blob: its parts, and the PADs behind it.
    cdef size_t i = 0
    while i + 1 < n and blob[i] == blob[0]:
        i += 2 + blob[i + 1]
    while i < n and blob[i] == OPTION_PAD:
        i += 1
    return min(i, n)

cdef inline void dhcp_put_boot_item(pen_t *p, const uint8_t *item) noexcept nogil:
    cdef uint8_t octets[10]
    cdef pen_t inner = wire_pen(octets, sizeof(octets))
    wire_put_u8(&inner, PXE_DISCOVERY_CONTROL)
    wire_put_u8(&inner, 1)
    wire_put_u8(&inner, PXE_DOWNLOAD)
    wire_put_u8(&inner, PXE_BOOT_ITEM)
    wire_put_u8(&inner, 4)
    wire_put(&inner, item, 4)
    wire_put_u8(&inner, OPTION_END)
    dhcp_put_option(p, OPTION_VENDOR, octets, sizeof(octets))

cdef inline void dhcp_put_blob(pen_t *p, const uint8_t *blob, size_t n, const uint8_t *item=NULL) noexcept nogil:
    # Options that do not fit are left out, later ones that fit are sent. `item` is the boot item that was asked for,
    # which option 43 then names.
    cdef size_t run
    while n:
        run = dhcp_run(blob, n)
        if item != NULL and blob[0] == OPTION_VENDOR:
            dhcp_put_boot_item(p, item)
        elif <size_t>(p.end - p.at) >= run:
            wire_put(p, blob, run)
        blob += run
        n -= run

cdef inline void dhcp_put_asked(pen_t *p, const dhcp_msg_t *m, const dhcp_plan_t *plan) noexcept nogil:
    # In the client's order of preference, which is also the order in which they are worth their room.
    cdef const uint8_t *wanted = dhcp_value(m, OPTION_WANTED)
    cdef uint8_t done[256]
    cdef size_t i, at, run
    if not dhcp_has(m, OPTION_WANTED):
        # GRUB's DISCOVER has no option but 53.
        dhcp_put_blob(p, plan.asked, plan.asked_size)
        return
    memset(done, 0, sizeof(done))
    for i in range(dhcp_size(m, OPTION_WANTED)):
        if done[wanted[i]]:
            continue
        done[wanted[i]] = 1
        at = 0
        while at < plan.asked_size:
            run = dhcp_run(plan.asked + at, plan.asked_size - at)
            if plan.asked[at] == wanted[i]:
                dhcp_put_blob(p, plan.asked + at, run)
                break
            at += run

cdef inline void dhcp_put_header(pen_t *p, const dhcp_msg_t *m, const dhcp_reply_t *reply,
                                 const dhcp_plan_t *plan) noexcept nogil:
    cdef uint8_t *out = p.at
    cdef uint16_t flags = m.flags
    if m.giaddr and (reply.type == DHCP_NAK or not (reply.yiaddr or m.ciaddr)):
        # Behind the relay it must be broadcast: the client has no address that is right (RFC 2131 4.3.2).
        flags |= DHCP_BROADCAST
    memset(out, 0, DHCP_HEADER)
    wire_put_u8(p, 2)
    wire_put(p, m.data + 1, 2)                          # htype, hlen
    wire_put_u8(p, 0)
    wire_put_u32(p, m.xid)
    wire_put_u16(p, 0)
    wire_put_u16(p, flags)
    wire_put_u32(p, m.ciaddr if reply.type == DHCP_ACK else 0)
    wire_put_u32(p, reply.yiaddr)
    wire_put_u32(p, plan.siaddr if plan != NULL else 0)
    wire_put_u32(p, m.giaddr)
    wire_put(p, m.chaddr, 16)
    if plan != NULL:
        memcpy(out + 108, plan.file, plan.file_size)
    p.at = out + DHCP_HEADER - 4
    wire_put_u32(p, DHCP_COOKIE)

cdef inline void dhcp_put_timers(pen_t *p, uint32_t seconds) noexcept nogil:
    # The defaults of RFC 2131 4.4.5, said aloud; an infinite lease has none.
    if seconds != <uint32_t>0xFFFFFFFF:
        dhcp_put_number(p, OPTION_T1, seconds // 2)
        dhcp_put_number(p, OPTION_T2, seconds - seconds // 8)

cdef inline size_t dhcp_emit(uint8_t *out, const dhcp_msg_t *m, const dhcp_reply_t *reply, const dhcp_plan_t *plan,
                             uint32_t mtu) noexcept nogil:
    # Octets of the reply to `m`, written to `out`, which holds DHCP_LONGEST_REPLY. `plan` is NULL for a NAK.
    # The order is the order of worth: what no longer fits is left out, never 53, 54, 51, 1, 67.
    cdef size_t limit = dhcp_limit(m, mtu), relay = dhcp_size(m, OPTION_RELAY) if m.relay.heard else 0
    cdef size_t must = DHCP_HEADER + 15 + (plan.must_size if plan != NULL else 0) + 1
    cdef pen_t p = wire_pen(out, limit)
    cdef const uint8_t *text = <const uint8_t *>reply.message
    cdef uint32_t server = m.relay.server or reply.server
    cdef size_t n = 0
    if relay and must + relay + 2 * ((relay + 254) // 255) > limit:
        relay = 0                                       # RFC 3046 2.1: the option is dropped, not the packet
    p.end -= 1 + (relay + 2 * ((relay + 254) // 255))
    dhcp_put_header(&p, m, reply, plan)
    if reply.type:
        dhcp_put_option(&p, OPTION_TYPE, &reply.type, 1)
        dhcp_put_number(&p, OPTION_SERVER, server)
    if reply.lease:
        dhcp_put_number(&p, OPTION_LEASE, reply.lease)
    if plan != NULL:
        dhcp_put_blob(&p, plan.always, plan.must_size)
    dhcp_put_option(&p, OPTION_CLIENT_ID, dhcp_value(m, OPTION_CLIENT_ID), dhcp_size(m, OPTION_CLIENT_ID))
    dhcp_put_option(&p, OPTION_SUBNET, dhcp_value(m, OPTION_SUBNET), dhcp_size(m, OPTION_SUBNET))
    if text != NULL:
        while text[n]:
            n += 1
        dhcp_put_option(&p, OPTION_MESSAGE, text, n)
    if plan != NULL:
        dhcp_put_blob(&p, plan.always + plan.must_size, plan.always_size - plan.must_size, dhcp_boot_item(m))
        # Other types than 0, a GUID, are nobody's (RFC 4578 2.3).
        if dhcp_size(m, OPTION_MACHINE_ID) == 17 and dhcp_value(m, OPTION_MACHINE_ID)[0] == 0:
            dhcp_put_option(&p, OPTION_MACHINE_ID, dhcp_value(m, OPTION_MACHINE_ID), 17)
        if reply.lease:
            dhcp_put_timers(&p, reply.lease)
        dhcp_put_asked(&p, m, plan)
    p.end += relay + 2 * ((relay + 254) // 255)
    dhcp_put_option(&p, OPTION_RELAY, dhcp_value(m, OPTION_RELAY), relay)
    p.end += 1
    wire_put_u8(&p, OPTION_END)
    n = p.at - out
    if n < DHCP_SHORTEST_REPLY:
        memset(out + n, 0, DHCP_SHORTEST_REPLY - n)
        n = DHCP_SHORTEST_REPLY
    return n

cdef inline dhcp_destination_t dhcp_destination(const dhcp_msg_t *m, const dhcp_reply_t *reply, uint32_t source,
                                                uint16_t port, bint raw) noexcept nogil:
    # RFC 2131 4.1. The request came from `source` and `port`; `raw`: whether frames can be sent.
    cdef dhcp_destination_t d
    d.kind, d.address, d.port = DHCP_TO_ADDRESS, 0xFFFFFFFF, 68
    if m.giaddr:
        d.address, d.port = m.giaddr, port if m.relay.own_port else 67
    elif reply.type == DHCP_NAK:
        d.kind = DHCP_TO_ALL
    elif m.ciaddr and m.type != DHCP_DISCOVER:
        d.address = m.ciaddr
    elif m.type == DHCP_INFORM and source:
        d.address = source
    elif m.flags & DHCP_BROADCAST or not raw or m.htype != 1 or m.hlen != 6:
        d.kind = DHCP_TO_ALL
    else:
        d.kind, d.address = DHCP_TO_HARDWARE, reply.yiaddr
    return d
