# TFTP: the packets (RFC 1350, 2347, 2348, 2349, 7440) and the sender's state machine. Pure: time is an
# argument, in nanoseconds of any monotonic clock.
#
# Blocks are numbered from 1 in 64 bits and cut to 16 on the wire, where 65535 is followed by 0. An OACK is
# block 0: it is sent, acknowledged by ACK 0 and repeated like every other, so a transfer with options begins
# at block 0 and one without at block 1. Lockstep is window 1.
from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memchr

from fastboot._native.wire cimport (
    cursor_t, pen_t, wire_cursor, wire_is, wire_left, wire_pen, wire_put, wire_put_u16, wire_take,
)

cdef enum:
    TFTP_RRQ = 1
    TFTP_WRQ = 2
    TFTP_DATA = 3
    TFTP_ACK = 4
    TFTP_ERROR = 5
    TFTP_OACK = 6

    TFTP_NOT_FOUND = 1
    TFTP_ACCESS = 2
    TFTP_ILLEGAL = 4
    TFTP_UNKNOWN_ID = 5
    TFTP_REFUSED = 8        # "option negotiation": EDK2 ends its size probe with it

    TFTP_OCTET = 0
    TFTP_NETASCII = 1
    TFTP_MAIL = 2

    TFTP_BLKSIZE = 0        # options, as indices
    TFTP_TIMEOUT = 1
    TFTP_TSIZE = 2
    TFTP_WINDOWSIZE = 3
    TFTP_OPTIONS = 4

    TFTP_REQUEST_MAX = 512  # RFC 2347: a request with its options fits in 512 octets
    TFTP_OACK_MAX = 96      # the four options, each with the longest value

    WINDOW_UNPROVEN = 4     # blocks: EDK2's window
    MOST_DOUBTS = 8

    TFTP_SENDING = 0
    TFTP_DONE = 1           # every block acknowledged
    TFTP_UNCONFIRMED = 2    # every block sent, the last acknowledgement never came: some ROMs do not send it
    TFTP_SILENT = 3         # given up

cdef enum:                  # milliseconds
    FIRST_INTERVAL = 250          # before a round trip was seen (A client's `timeout` of 1 s or more is no bound.)
    LEAST_INTERVAL = 5            # a lost tail leaves EDK2 silent for 4 s: the floor decides the speed under loss
    MOST_INTERVAL = 4000
    # iPXE takes a repeated block 65535 for block 131071 once it has the first: one lost ACK would ruin the file.
    WRAP_INTERVAL = 1000
    PATIENCE = 60000              # GRUB stops acknowledging while it unpacks what it has
    PATIENCE_UNPROVEN = 10000     # nothing ever came back from that address
    PATIENCE_LAST = 10000         # only the last acknowledgement is missing

cdef inline int64_t ms(int64_t n) noexcept nogil:
    return n * 1000000

cdef struct tftp_option_t:
    const uint8_t *name     # as the client spells it: GRUB compares case-sensitively
    uint8_t name_length
    bint asked
    uint64_t value

cdef struct tftp_request_t:
    const uint8_t *name
    size_t name_length
    uint8_t mode
    tftp_option_t options[TFTP_OPTIONS]
    uint8_t order[TFTP_OPTIONS]
    uint8_t asked           # how many


cdef inline const uint8_t *tftp_text(cursor_t *c, size_t *length) noexcept nogil:
    # The next string and its NUL; NULL where the NUL is missing.
    cdef const uint8_t *start = c.at
    cdef const uint8_t *nul = <const uint8_t *>memchr(c.at, 0, wire_left(c))
    if nul == NULL:
        return NULL
    length[0] = nul - start
    c.at = nul + 1
    return start

cdef inline int tftp_option(const uint8_t *text, size_t length) noexcept nogil:
    if wire_is(text, length, b"blksize", 7):
        return TFTP_BLKSIZE
    if wire_is(text, length, b"timeout", 7):
        return TFTP_TIMEOUT
    if wire_is(text, length, b"tsize", 5):
        return TFTP_TSIZE
    if wire_is(text, length, b"windowsize", 10):
        return TFTP_WINDOWSIZE
    return -1

cdef inline bint tftp_number(const uint8_t *text, size_t length, uint64_t *value) noexcept nogil:
    cdef size_t i
    if length < 1 or length > 18:
        return False
    value[0] = 0
    for i in range(length):
        if text[i] < c'0' or text[i] > c'9':
            return False
        value[0] = value[0] * 10 + (text[i] - c'0')
    return True

cdef inline bint tftp_in_range(int option, uint64_t value) noexcept nogil:
    # RFC 2348 section 2, 2349 sections 2 and 3, 7440 section 3
    if option == TFTP_BLKSIZE:
        return 8 <= value
    if option == TFTP_TIMEOUT:
        return 1 <= value <= 255
    if option == TFTP_WINDOWSIZE:
        return 1 <= value
    return True

cdef inline bint tftp_parse_request(tftp_request_t *r, const uint8_t *packet, size_t n) noexcept nogil:
    # The request views the packet. Options that are unknown, repeated, malformed or out of range count as
    # not asked (RFC 2347): a client may not be left without its file for a bad option.
    cdef cursor_t c = wire_cursor(packet, n)
    cdef const uint8_t *name
    cdef const uint8_t *value
    cdef size_t name_length = 0, value_length = 0
    cdef uint64_t number = 0
    cdef int option
    r.asked = 0
    for option in range(TFTP_OPTIONS):
        r.options[option].asked = False
    if n > TFTP_REQUEST_MAX or wire_take(&c, 2) == NULL:
        return False
    r.name = tftp_text(&c, &r.name_length)
    if r.name == NULL or r.name_length == 0:
        return False
    name = tftp_text(&c, &name_length)
    if name == NULL:
        return False
    if wire_is(name, name_length, b"octet", 5):
        r.mode = TFTP_OCTET
    elif wire_is(name, name_length, b"netascii", 8):
        r.mode = TFTP_NETASCII
    elif wire_is(name, name_length, b"mail", 4):
        r.mode = TFTP_MAIL
    else:
        return False
    while True:
        name = tftp_text(&c, &name_length)
        if name == NULL:
            return True
        value = tftp_text(&c, &value_length)
        if value == NULL:
            return True
        option = tftp_option(name, name_length)
        if option < 0 or r.options[option].asked or not tftp_number(value, value_length, &number):
            continue
        if not tftp_in_range(option, number):
            continue
        r.options[option].asked = True
        r.options[option].name = name
        r.options[option].name_length = <uint8_t>name_length
        r.options[option].value = number
        r.order[r.asked] = option
        r.asked += 1

cdef inline size_t tftp_emit_oack(
    uint8_t *packet, size_t room, tftp_request_t *r, uint32_t blksize, uint32_t window, int64_t size,
) noexcept nogil:
    # Only what was asked, in the client's order and spelling: PXELINUX answers anything else with ERROR 8.
    # size < 0 leaves tsize out. 0 where nothing is left to say: then no OACK is sent.
    cdef pen_t p = wire_pen(packet, room)
    cdef tftp_option_t *o
    cdef char text[24]
    cdef long long value
    cdef int i
    wire_put_u16(&p, TFTP_OACK)
    for i in range(r.asked):
        o = &r.options[r.order[i]]
        if r.order[i] == TFTP_BLKSIZE:
            value = blksize
        elif r.order[i] == TFTP_WINDOWSIZE:
            value = window
        elif r.order[i] == TFTP_TSIZE:
            value = size
            if size < 0:
                continue
        else:
            value = <long long>o.value
        wire_put(&p, o.name, o.name_length + 1)
        wire_put(&p, text, snprintf(text, sizeof(text), b"%lld", value) + 1)
    if p.full or p.at - packet == 2:
        return 0
    return p.at - packet

cdef inline size_t tftp_emit_error(
    uint8_t *packet, size_t room, uint16_t code, const char *text, size_t length,
) noexcept nogil:
    cdef pen_t p = wire_pen(packet, room)
    cdef uint8_t nul = 0
    wire_put_u16(&p, TFTP_ERROR)
    wire_put_u16(&p, code)
    wire_put(&p, text, length)
    wire_put(&p, &nul, 1)
    return p.at - packet


# The sender. Owner: one engine (or a test). It calls tftp_on_ack and tftp_on_timer, then as long as tftp_due
# says that blocks may go, sends some of them and says so by tftp_on_sent. `deadline` is when to call
# tftp_on_timer next.
cdef struct tftp_xfer_t:
    int64_t base           # first block not acknowledged
    int64_t next           # first block not in flight
    int64_t high           # first block never sent
    int64_t last           # number of the last block, the only short one
    int64_t size           # octets in all
    int64_t srtt           # 0 until a round trip was seen
    int64_t rttvar
    int64_t trip           # that the last acknowledgement showed; 0 where it showed none
    int64_t interval       # of the timer; doubled by an expiry
    int64_t deadline
    int64_t quiet_until    # no gap report is believed before: it would be about an older copy
    int64_t fired          # when the timer last had something repeated: older blocks show no round trip
    int64_t heard          # when the client last said anything
    int64_t repeats        # blocks sent more than once; no OACK
    int64_t *sent          # [tftp_ring(window)]: when block b was last sent, at b & ring; negative: more than once
    uint32_t ring
    uint32_t blksize
    uint16_t window
    uint8_t outcome
    uint8_t expiries       # of the timer, since something was acknowledged; 4 is many
    uint8_t doubts         # times that blocks were repeated since a round trip was seen
    bint proven            # something came back from this address
    bint rewound           # the window going out repeats blocks
    bint probing           # the timer has one block repeated, to hear what arrived
    bint asked_again       # a gap was reported since something was acknowledged, believed or not

cdef inline uint32_t tftp_ring(uint16_t window) noexcept nogil:
    # Places that the blocks of a window take: a power of two, for a division at every block is dear.
    cdef uint32_t places = 1
    while places < window:
        places *= 2
    return places

cdef inline void tftp_begin(
    tftp_xfer_t *x, int64_t size, uint32_t blksize, uint16_t window, bint oack, int64_t *sent, int64_t now,
) noexcept nogil:
    x.base = x.next = x.high = 0 if oack else 1
    x.last = size // blksize + 1
    x.size = size
    x.blksize = blksize
    x.window = window
    x.sent = sent
    x.ring = tftp_ring(window) - 1
    x.srtt = x.rttvar = x.trip = x.quiet_until = x.fired = x.repeats = 0
    x.interval = ms(FIRST_INTERVAL)
    x.heard = now
    x.deadline = now + x.interval
    x.outcome = TFTP_SENDING
    x.expiries = x.doubts = 0
    x.proven = x.rewound = x.probing = x.asked_again = False

cdef inline int64_t tftp_due(tftp_xfer_t *x) noexcept nogil:
    # How many blocks from x.next on may be sent now.
    cdef int64_t end
    if x.outcome != TFTP_SENDING:
        return 0
    if x.base == 0:                # nothing but the OACK before the address is proven (amplification)
        return 1 - x.next
    # A client that acknowledged the OACK and is silent since may be somebody whose address was made up, where our port
    # is known (single_port): after a block and two repeats of the window it gets the window of the smallest clients.
    end = x.base + (1 if x.probing else x.window)
    if x.base == 1 and x.expiries > 3 and end > x.base + WINDOW_UNPROVEN:
        end = x.base + WINDOW_UNPROVEN
    if end > x.last + 1:
        end = x.last + 1
    return end - x.next

cdef inline int64_t tftp_in_flight(const tftp_xfer_t *x) noexcept nogil:
    # Blocks; none where nothing came back, or not lately: made-up addresses and machines that are switched off would
    # hold back the others.
    return (x.high if x.probing else x.next) - x.base if x.proven and x.expiries < 2 else 0

cdef inline int64_t tftp_interval(tftp_xfer_t *x) noexcept nogil:
    if x.window == 1 and <uint16_t>x.base == 65535 and x.interval < ms(WRAP_INTERVAL):
        return ms(WRAP_INTERVAL)
    return x.interval

cdef inline int64_t tftp_trip(tftp_xfer_t *x) noexcept nogil:
    # What a round trip may take. Repeats show none (Karn), so with each after the first it may be twice as much: a
    # queue that has become longer than the last trip would make every acknowledgement a gap.
    return x.srtt << (x.doubts - 1) if x.doubts > 1 else x.srtt

cdef inline void tftp_on_sent(tftp_xfer_t *x, int64_t count, int64_t now) noexcept nogil:
    cdef int64_t b
    x.deadline = now + tftp_interval(x)
    for b in range(x.next, x.next + count):
        if b < x.high:
            x.sent[b & x.ring] = -now
            x.repeats += b > 0
        else:
            x.sent[b & x.ring] = now
    x.next += count
    if x.next > x.high:
        x.high = x.next
    if x.rewound:
        x.quiet_until = now + tftp_trip(x) + tftp_trip(x) // 4
        x.rewound = tftp_due(x) > 0

cdef inline void tftp_rewind(tftp_xfer_t *x) noexcept nogil:
    x.next = x.base
    x.rewound = True
    x.probing = False
    x.doubts += x.doubts < MOST_DOUBTS

cdef inline void tftp_sample(tftp_xfer_t *x, int64_t rtt) noexcept nogil:
    # RFC 6298 section 2
    cdef int64_t off
    x.trip = rtt
    x.doubts = 0
    if x.srtt == 0:
        x.srtt = rtt
        x.rttvar = rtt // 2
    else:
        off = rtt - x.srtt
        x.rttvar += ((off if off >= 0 else -off) - x.rttvar) // 4
        x.srtt += off // 8
    if x.srtt < 1:
        x.srtt = 1
    tftp_set_interval(x, 0)

cdef inline void tftp_set_interval(tftp_xfer_t *x, int64_t least) noexcept nogil:
    x.interval = x.srtt + 4 * x.rttvar
    if x.interval < least:
        x.interval = least
    if x.interval < ms(LEAST_INTERVAL):
        x.interval = ms(LEAST_INTERVAL)
    elif x.interval > ms(MOST_INTERVAL):
        x.interval = ms(MOST_INTERVAL)

cdef inline bint tftp_on_ack(tftp_xfer_t *x, uint16_t block, int64_t now) noexcept nogil:
    # False: an acknowledgement of nothing that was sent, or of what is long past: ignored.
    cdef int64_t n = x.base + <int16_t>(block - <uint16_t>x.base)
    cdef int64_t sent
    x.trip = 0
    if x.outcome != TFTP_SENDING or n < 0 or n < x.base - 1 or n >= x.high:
        return False
    x.heard = now
    x.proven = True
    if n >= x.base:
        sent = x.sent[n & x.ring]
        if sent > 0 and sent >= x.fired:
            tftp_sample(x, now - sent)
        elif x.window > 1 and x.srtt > 0:
            # What shows no round trip shows the most that it can be, where the block was sent once; else one doubling
            # is taken back. By Karn's rule alone the interval goes on doubling where most windows hold repeats: at 2 %
            # loss, to 0.64 s with who reports a gap once.
            tftp_set_interval(x, (now - sent) * 9 // 8 if sent > 0 else x.interval // 2)
        x.base = n + 1
        x.expiries = 0
        x.probing = x.asked_again = False
        if x.next < x.base:        # about to be repeated, but it had arrived
            x.next = x.base
            x.rewound = x.next < x.high
        x.deadline = now + tftp_interval(x)
        if x.base > x.last:
            x.outcome = TFTP_DONE
            return True
    else:
        x.asked_again = True
    # A block that is out already is asked for again: a gap, unless the answer came sooner than one round trip
    # after that block was last sent. Otherwise EDK2's ACK for every packet out of order doubles the rest of the
    # transfer. Lockstep repeats on the timer only (RFC 1123 section 4.2.3.1, the Sorcerer's Apprentice).
    if x.next > x.base and x.window > 1 and x.srtt > 0 and now >= x.quiet_until:
        sent = x.sent[x.base & x.ring]
        if now >= (sent if sent >= 0 else -sent) + tftp_trip(x) - tftp_trip(x) // 10:
            tftp_rewind(x)
    return True

cdef inline bint tftp_on_timer(tftp_xfer_t *x, int64_t now) noexcept nogil:
    # Call at x.deadline or later. True: the client was silent.
    cdef int64_t silence = now - x.heard
    if x.outcome != TFTP_SENDING or now < x.deadline:
        return False
    if tftp_due(x) > 0 and not x.probing:
        # Held back by us: the client may wait for the rest of its window.
        if x.expiries == 0:
            x.heard = now
        x.deadline = now + tftp_interval(x)
        return False
    if x.high > x.last and silence >= ms(PATIENCE_LAST):
        x.outcome = TFTP_UNCONFIRMED
        return True
    if silence >= ms(PATIENCE if x.proven else PATIENCE_UNPROVEN):
        x.outcome = TFTP_SILENT
        return True
    # Who has just reported a gap is there and hears us: that is loss, not a round trip that became longer. (Doubled
    # too, a window of 64 and 1 % loss, in which every other window has a gap, waited 160 ms for a block.)
    if x.expiries > 0 or not x.asked_again:
        x.interval = x.interval * 2 if x.interval < ms(MOST_INTERVAL // 2) else ms(MOST_INTERVAL)
    x.deadline = now + tftp_interval(x)
    x.expiries += x.expiries < 4
    tftp_rewind(x)
    x.fired = now
    # Silence may be a lost acknowledgement, a queue or a busy host as well as a lost window. So one block goes first,
    # as in F-RTO (RFC 5682); a client that had it says what it has, and nothing else is sent twice. A repeated
    # window brings an acknowledgement for each of its blocks from EDK2, and each of those passed for a gap: after a
    # pause of 15 ms a hundred clients never stopped repeating.
    x.probing = x.expiries == 1 and x.srtt > 0 and not x.asked_again
    return True
