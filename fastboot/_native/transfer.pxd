# What the engine knows of a transfer, and the records that cross between it and Python. Pure.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastboot._native.chain cimport chain_t
from fastboot._native.egress cimport flight_t
from fastboot._native.file cimport file_t
from fastboot._native.sys cimport in_addr, sockaddr_storage
from fastboot._native.tftp cimport (
    TFTP_BLKSIZE, TFTP_DONE, TFTP_OACK_MAX, TFTP_SILENT, TFTP_TSIZE, TFTP_UNCONFIRMED, TFTP_WINDOWSIZE, tftp_emit_oack,
    tftp_request_t, tftp_xfer_t,
)

cdef enum:
    SEGMENTS = 64          # per message: Linux before 6.9 takes no more
    SEGMENT_OCTETS = 65507  # per message: what a UDP datagram over IPv4 holds
    RECENT = 4096          # transfers that ended lately, whose late packets are no strangers'
    MOST_ASKED = 16384     # questions to Python
    MAX_SOCKETS = 64
    MAX_LINKS = 256
    TICK = 1000000         # ns, of the wheel

    # Of a file, in octets: what the kernel reads ahead by itself (read_ahead_kb is 128), so what is looked for in
    # memory at a time; what is to be there before it is sent; and what is read at once where it is not.
    STEP = 131072
    AHEAD = 1048576
    PIECE = 1048576

    SLOT_FREE = 0
    SLOT_WAITING = 1       # Python is asked
    SLOT_LIVE = 2
    SLOT_REFUSED = 3       # an ERROR is to be sent, then the slot is free

    COMMAND_START = 1
    COMMAND_REFUSE = 2
    COMMAND_DRAIN = 3
    COMMAND_HALT = 4
    COMMAND_READ = 5       # a piece of the file is in memory now
    COMMAND_IGNORE = 6     # no answer: the client is to ask again

    EVENT_REQUEST = 1
    EVENT_END = 2
    EVENT_NO_SEGMENTATION = 3
    EVENT_DRAINED = 4
    EVENT_DROPPED = 5

    END_DONE = TFTP_DONE
    END_UNCONFIRMED = TFTP_UNCONFIRMED
    END_SILENT = TFTP_SILENT
    END_PROBE = 4          # ERROR 8 on the OACK: EDK2 asked for the size
    END_CANCELLED = 5      # ERROR from the client
    END_CHANGED = 6        # the file was written in place, or became shorter
    END_REPLACED = 7       # the same port asked for something else
    END_STOPPED = 8
    END_EVICTED = 9        # unproven, and somebody needed the place
    END_GONE = 10          # ICMP: nobody listens at the client's port
    END_BROKEN = 11        # the file can not be read

    # A WAITING slot is given up when Python did not answer: by then the client asks again or has gone.
    PATIENCE_ANSWER = 30000     # ms
    # The same request again this soon is a copy in flight (PXELINUX repeats after 110 ms), later a new start.
    COPY = 1000                 # ms
    RECENT_FOR = 10000          # ms
    # A client that means it says something within a round trip; until then nothing makes room for another.
    GRACE = 100                 # ms
    # Wakes of Python, see Transfers._tell; the burst is what one machine asks for in a row.
    GATHER = 1000000            # ns
    TELL_AT_ONCE = 16
    ANSWERS = 16                # of Python, that wake the engine
    # Between two notices of packets that found their socket full.
    DROPPED_EVERY = 10000       # ms

cdef struct slot_t:
    # Every acknowledgement needs what stands before the peer's address and that: in few cache lines, then.
    tftp_xfer_t x
    flight_t flight
    file_t *file
    int64_t offset         # of the range in the file
    int64_t known          # octets of the range, from its start, that were in memory
    uint64_t id            # (generation << 32) | index
    in_addr local          # the address of ours that was asked: replies come from there (NIC ROMs, EDK2)
    int interface          # by number in Interfaces
    uint32_t peer_length
    uint16_t socket
    uint8_t state
    uint8_t packet_length  # of the OACK or ERROR
    bint segmented
    bint reading           # a piece from `known` on is being read
    sockaddr_storage peer
    uint8_t *request       # the packet, while WAITING
    uint64_t request_hash
    int64_t began
    uint16_t request_length
    bint sized             # tsize was asked
    uint8_t packet[TFTP_OACK_MAX]

cdef struct endpoint_t:
    int fd
    bint requests          # new transfers begin here
    bint data              # blocks leave from here
    bint blocked           # its buffer is full: wait for EPOLLOUT
    uint32_t dropped       # packets that found it full, as the kernel counts them
    chain_t waiting        # slots that wait for that

cdef struct recent_t:
    uint64_t hash
    int64_t when

cdef struct command_t:
    uint64_t id
    file_t *file
    int64_t offset
    int64_t size
    uint8_t kind
    uint8_t code
    uint8_t length
    uint16_t window        # the most that is granted
    bint unsized
    char text[TFTP_OACK_MAX - 8]

cdef struct piece_t:       # to be read into memory
    uint64_t id            # of the transfer that waits
    file_t *file           # counted
    int64_t offset
    int64_t size
    int64_t known          # of that transfer, once this is read

cdef struct event_t:
    uint8_t kind
    uint8_t outcome
    uint16_t code
    uint16_t length
    uint16_t window
    uint32_t blksize
    uint64_t id
    uint8_t *packet        # of a request; the taker frees it
    sockaddr_storage peer
    in_addr local
    int ifindex
    int64_t octets         # acknowledged
    int64_t blocks         # sent for the first time
    int64_t repeats
    int64_t nanoseconds

cdef struct counts_t:
    uint64_t requests
    uint64_t duplicate_request
    uint64_t malformed
    uint64_t foreign_interface
    uint64_t broadcast_request
    uint64_t write_request
    uint64_t dropped       # by the kernel, for a receive buffer was full
    uint64_t full
    uint64_t evicted
    uint64_t draining
    uint64_t stray_ack
    uint64_t late
    uint64_t stranger
    uint64_t unanswered
    uint64_t send_failed
    uint64_t socket_full
    uint64_t timeouts
    uint64_t blocks
    uint64_t repeats
    uint64_t held_back_us
    uint64_t batches
    uint64_t cold          # pieces of files that had to be read from disk

cdef inline uint64_t octets_hash(const uint8_t *data, size_t n) noexcept nogil:
    cdef uint64_t h = n
    cdef size_t i
    for i in range(n):
        h = (h ^ data[i]) * <uint64_t>0x100000001b3
    return h

cdef inline int64_t octets_done(tftp_xfer_t *x) noexcept nogil:
    cdef int64_t done = (x.base - 1) * x.blksize
    if done < 0:
        return 0
    return done if done < x.size else x.size


cdef inline void transfer_negotiate(
    slot_t *s, tftp_request_t *r, uint32_t mtu, uint32_t max_blksize, uint32_t max_window, int64_t tsize,
    uint32_t *blksize, uint32_t *window,
) noexcept nogil:
    # What is granted of what was asked, and the OACK that says so. tsize < 0 leaves that out.
    cdef uint32_t most = max_blksize
    if most > mtu - 32 and mtu > 40:                   # IPv4, UDP and TFTP headers
        most = mtu - 32
    blksize[0] = 512
    if r.options[TFTP_BLKSIZE].asked:
        blksize[0] = most
        if r.options[TFTP_BLKSIZE].value < most:
            blksize[0] = <uint32_t>r.options[TFTP_BLKSIZE].value
    window[0] = 1
    if r.options[TFTP_WINDOWSIZE].asked:
        window[0] = max_window
        if r.options[TFTP_WINDOWSIZE].value < max_window:
            window[0] = <uint32_t>r.options[TFTP_WINDOWSIZE].value
    s.packet_length = <uint8_t>tftp_emit_oack(s.packet, sizeof(s.packet), r, blksize[0], window[0], tsize)
    s.sized = r.options[TFTP_TSIZE].asked

cdef inline event_t transfer_end(slot_t *s, uint8_t outcome, uint16_t code, int64_t now) noexcept nogil:
    cdef event_t event
    memset(&event, 0, sizeof(event))
    event.kind = EVENT_END
    event.outcome = outcome
    event.code = code
    event.id = s.id
    event.octets = octets_done(&s.x)
    event.blocks = s.x.high - 1 if s.x.high else 0
    event.repeats = s.x.repeats
    event.nanoseconds = now - s.began
    event.blksize = s.x.blksize
    event.window = s.x.window
    return event
