# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""fastboot's native core.

Reading order: _native/wire.pxd, then the pure protocols (no syscall, lock, allocation or clock), then the
classes that own descriptors, memory and threads, one per .pxi. Python sees only what _core.pyi says.
"""
import os
from collections import namedtuple

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport INT32_MAX, INT64_MAX, int32_t, int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset, strlen

from fastboot._native.chain cimport chain_put, chain_remove, chain_t, tie_t
from fastboot._native.arp cimport arp_parse, arp_t
from fastboot._native.datagram cimport (
    BATCH, BATCH_BLOCKS, CONTROL, drops_of, inbox_empty, inbox_set_up, inbox_t, outbox_add, outbox_message, outbox_t,
    peer_hash, pktinfo_of, port_is_closed, put_control,
)
from fastboot._native.dhcp cimport (
    DHCP_ACK, DHCP_DECLINE, DHCP_DISCOVER, DHCP_INFORM, DHCP_LONG, DHCP_LONGEST, DHCP_LONGEST_REPLY,
    DHCP_NAK, DHCP_OFFER, DHCP_RELEASE, DHCP_REQUEST, DHCP_TO_ADDRESS, DHCP_TO_HARDWARE, OPTION_ARCHITECTURE,
    OPTION_CLIENT_ID, OPTION_HOST_NAME, OPTION_IPXE, OPTION_MACHINE_ID, OPTION_MESSAGE, OPTION_REQUESTED,
    OPTION_SERVER, OPTION_USER_CLASS, OPTION_VENDOR_CLASS, dhcp_address, dhcp_boot_class, dhcp_destination,
    dhcp_destination_t, dhcp_emit, dhcp_has, dhcp_hear_relay, dhcp_msg_t, dhcp_parse, dhcp_plan_t,
    dhcp_reply_t, dhcp_size, dhcp_subnet, dhcp_value, dhcp_wants_credentials,
)
from fastboot._native.digest cimport NOWHERE, digest_key_t, digest_none, digest_of, digest_same, digest_spread, digest_t
from fastboot._native.egress cimport (
    SPAN, delivery_t, egress_acknowledged, egress_begin, egress_budget, egress_count, egress_join, egress_leave,
    egress_next, egress_ready, egress_sent, egress_t, egress_tick, flight_t,
)
from fastboot._native.file cimport file_t
from fastboot._native.http cimport HTTP_HEAD, HTTP_LAST, HTTP_TYPE, http_head, http_plain
from fastboot._native.job cimport PUMP_BURST, PUMP_HOLD, PUMP_SLICE, PUMP_TURN, job_end_t, job_t
from fastboot._native.lease cimport (
    FREE_CLEAR, FREE_DOUBTFUL, FREE_LISTS, FREE_UNKNOWN, LEASE_BOUND, LEASE_CIRCUIT, LEASE_CLIENT_ID, LEASE_DECLINED,
    LEASE_FREE, LEASE_HOST, LEASE_HOST_LONGEST, LEASE_LONGEST, LEASE_OFFERED, LEASE_REMOTE, LEASE_STATES, LEASE_TEXTS,
    binding_t, fifo_push, fifo_remove, fifo_t, lease_add, lease_at, lease_client, lease_holder, lease_link, lease_of,
    lease_port, lease_says, lease_t, lease_text, lease_unlink, lease_until, leases_t,
)
from fastboot._native.network cimport (
    NETWORK_NEAR, NETWORK_SELF, NODE_CIRCUIT, NODE_MAC, NODE_PORT, NODE_REMOTE, link_t, near_t, node_digest,
    node_key_t, node_t, subnet_at, subnet_t,
)
from fastboot._native.ports cimport port_t, ports_give, ports_held, ports_t, ports_take
from fastboot._native.plans cimport PLANS_BUCKETS, PLANS_ROOM, plan_entry_t, plans_find, plans_put, plans_t
from fastboot._native.queue cimport queue_pop, queue_push, queue_t
from fastboot._native.relay cimport relay_t
from fastboot._native.row cimport ROW_OCTETS, row_put
from fastboot._native.sighting cimport (
    SIGHTINGS_PLACES, SIGHTINGS_ROOM, sighting_add, sighting_address, sighting_at, sighting_heeds, sighting_of,
    sighting_server, sighting_t, sightings_t,
)
from fastboot._native.silence cimport silence_is_news, silences_t
from fastboot._native.signs cimport SIGN_SIZE, SIGNS_ROOM, signs_find, signs_t
from fastboot._native.sys cimport (
    AF_INET, AF_PACKET, CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE, EAGAIN, ECANCELED, ECONNREFUSED,
    EFAULT, EFD_CLOEXEC, EFD_NONBLOCK, EHOSTUNREACH, EINTR, EINVAL, EIO, EMSGSIZE, ENETUNREACH, ENOBUFS, EOPNOTSUPP,
    EPOLLERR, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, ESTALE,
    ETH_P_IP, F_DUPFD_CLOEXEC, IPPROTO_IP, IPPROTO_TCP, IP_PKTINFO, MADV_POPULATE_READ, MAP_FAILED, MAP_SHARED,
    MFD_CLOEXEC, MSG_DONTWAIT, MSG_ERRQUEUE, MSG_TRUNC, O_CLOEXEC, O_DIRECTORY, O_NOCTTY, O_NONBLOCK, O_RDONLY, POLLIN,
    POSIX_FADV_WILLNEED, PROT_READ, RELAXED, RWF_NOWAIT, SEQ, SYS_openat2, S_ISDIR, S_ISREG, atomic_add, atomic_load,
    atomic_store, c_close, c_open, c_read, c_write, cmsghdr, epoll_create1, epoll_ctl, epoll_event, epoll_wait, errno,
    eventfd, fcntl, fstat, htonl, htons, in_addr, in_pktinfo, iovec, madvise, memfd_create, mmap, mmsghdr, msghdr,
    munmap, nanoseconds, now_ns, ntohl, ntohs, open_how, poll, pollfd, posix_fadvise, pread, preadv2,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, recvmmsg,
    recvmsg, sendfile, sendmmsg, sendmsg, setsockopt, sockaddr_in, sockaddr_ll, sockaddr_storage, stat_t, syscall,
    SOL_SOCKET, SO_SNDBUF, TCP_CORK, TCP_NOTSENT_LOWAT, usleep,
)
from fastboot._native.table cimport (
    fetch, place_t, table_fetch, table_guess, table_mix, table_next, table_put, table_remove, table_t,
)
from fastboot._native.tftp cimport (
    TFTP_ACCESS, TFTP_ACK, TFTP_DATA, TFTP_ERROR, TFTP_ILLEGAL, TFTP_MAIL, TFTP_NETASCII, TFTP_REFUSED, TFTP_RRQ,
    TFTP_SENDING, TFTP_UNKNOWN_ID, TFTP_WRQ, ms, tftp_begin, tftp_due, tftp_emit_error, tftp_in_flight, tftp_on_ack,
    tftp_on_sent, tftp_on_timer, tftp_parse_request, tftp_request_t, tftp_rewind, tftp_ring, tftp_xfer_t,
)
from fastboot._native.transfer cimport (
    AHEAD, ANSWERS, COMMAND_DRAIN, COMMAND_HALT, COMMAND_IGNORE, COMMAND_READ, COMMAND_REFUSE, COMMAND_START, COPY,
    DROPPED_EVERY, END_BROKEN, END_CANCELLED, END_CHANGED, END_EVICTED, END_GONE, END_PROBE, END_REPLACED, END_SILENT,
    END_STOPPED, END_UNCONFIRMED, EVENT_DRAINED, EVENT_DROPPED, EVENT_END, EVENT_NO_SEGMENTATION, EVENT_REQUEST, GATHER,
    GRACE, MAX_LINKS, MAX_SOCKETS, MOST_ASKED, PATIENCE_ANSWER, PIECE, RECENT, RECENT_FOR, SEGMENTS, SEGMENT_OCTETS,
    SLOT_FREE, SLOT_LIVE, SLOT_REFUSED, SLOT_WAITING, STEP, TELL_AT_ONCE, TICK, command_t, counts_t, endpoint_t,
    event_t, octets_done, octets_hash, piece_t, recent_t, slot_t, transfer_end, transfer_negotiate,
)
from fastboot._native.udp cimport UDP_HEADERS, udp_frame
from fastboot._native.wheel cimport hand_t, wheel_next, wheel_pop, wheel_remove, wheel_set, wheel_t
from fastboot._native.wire cimport pen_t, wire_pen, wire_put, wire_put_u16, wire_put_u32, wire_put_u8, wire_u16

cdef enum:
    RESOLVE_NO_MAGICLINKS = 0x02
    RESOLVE_BENEATH = 0x08

cdef tuple OPTIONS = ("blksize", "timeout", "tsize", "windowsize")
cdef tuple OUTCOMES = (
    "sending", "done", "unconfirmed", "silent", "probe", "cancelled", "changed", "replaced", "stopped", "evicted",
    "gone", "broken",
)
cdef dict NOTICES = {
    EVENT_NO_SEGMENTATION: "no-segmentation", EVENT_DRAINED: "drained", EVENT_DROPPED: "dropped",
}


class SpecialFileError(OSError):
    """A path that names a device, socket or FIFO: nothing that has bytes to send."""


TftpRequest = namedtuple("TftpRequest", "id name netascii peer port server interface options")
TftpEnd = namedtuple("TftpEnd", "id outcome code octets blocks repeats seconds blksize windowsize")
TftpNotice = namedtuple("TftpNotice", "kind interface error")


include "_native/source.pxi"    # Source: what is sent
include "_native/crossing.pxi"  # Crossing: how Python and a native thread talk
include "_native/interfaces.pxi"  # Interfaces: those that blocks leave by
include "_native/transfers.pxi"  # Transfers: all that are under way over TFTP, uses both
include "_native/reader.pxi"    # Reader: has in memory what they will send, on Transfers
include "_native/sender.pxi"    # Sender: batches of blocks, on Reader
include "_native/engine.pxi"    # Engine: a thread that answers TFTP, on Sender
include "_native/turns.pxi"     # TftpEgress: an egress on a virtual clock, for tests
include "_native/model.pxi"     # TftpModel: a transfer on a virtual clock, for tests, on one
include "_native/pump.pxi"      # Pump: files over TCP connections, beside the loop
include "_native/network.pxi"   # Network: links, subnets, known machines
include "_native/facts.pxi"     # DhcpFacts: what happened, for Python
include "_native/replies.pxi"   # Replies: what waits for the disk and the sockets, a Network
include "_native/requests.pxi"  # Requests: the packet at hand, on Replies
include "_native/decisions.pxi"  # Decisions: the plan table and what waits for a decision, on Requests
include "_native/proxy.pxi"     # Proxy: names boot files beside another server, on Decisions
include "_native/addresses.pxi"  # Addresses: each with who has it, the free ones in order
include "_native/leases.pxi"    # Leases: how that changes, and which of it is not on disk yet, on Addresses
include "_native/prober.pxi"    # Prober: which free addresses somebody uses, looks at Leases
include "_native/keeper.pxi"    # LeaseKeeper: a server's leases, on Decisions, has Leases and a Prober
include "_native/responder.pxi"  # Responder: the server that gives them, on LeaseKeeper

DhcpMessage = namedtuple(
    "DhcpMessage",
    "op type htype hlen xid secs flags ciaddr yiaddr siaddr giaddr chaddr sname file options",
)


def parse_dhcp(bytes data not None):
    """See _core.pyi."""
    cdef dhcp_msg_t m
    cdef const char *octets = data
    cdef const uint8_t *p = <const uint8_t *>octets
    cdef int rc = dhcp_parse(p, len(data), &m)
    if rc < 0:
        return RESPONDER_COUNTERS[-rc]
    return DhcpMessage(
        m.op, m.type, m.htype, m.hlen, m.xid, wire_u16(p + 8), m.flags, m.ciaddr, m.yiaddr, m.siaddr, m.giaddr,
        m.chaddr[:16], p[44:108], p[108:236],
        {code: dhcp_value(&m, code)[:dhcp_size(&m, code)] for code in range(256) if dhcp_has(&m, code)},
    )


cdef dhcp_plan_t *plan_of(tuple plan) except NULL:
    # One block: the struct, then its octets.
    cdef dhcp_plan_t *made
    cdef uint8_t *octets
    cdef bytes file = b"", must = b"", always = b"", asked = b""
    if plan is None:
        made = <dhcp_plan_t *>memory_for(1, sizeof(dhcp_plan_t))
        made.ignore = True
        return made
    address, siaddr, lease, tag, file, must, always, asked = plan
    if len(file) > 127 or len(must) > 300 or len(must) + len(always) > 4096 or len(asked) > 4096:
        raise ValueError("the plan's file or options are too long")
    made = <dhcp_plan_t *>memory_for(1, sizeof(dhcp_plan_t) + len(file) + len(must) + len(always) + len(asked))
    octets = <uint8_t *>made + sizeof(dhcp_plan_t)
    made.address, made.siaddr, made.lease, made.tag = address, siaddr, lease, tag
    made.file_size, made.must_size = len(file), len(must)
    made.always_size, made.asked_size = len(must) + len(always), len(asked)
    made.file, made.always = octets, octets + len(file)
    made.asked = made.always + made.always_size
    whole = file + must + always + asked
    memcpy(octets, <const char *>whole, len(whole))
    return made


def emit_dhcp(bytes request not None, *, uint8_t type, uint32_t server, uint32_t yiaddr=0, uint32_t lease=0,
              bytes message=None, tuple plan=None, uint32_t mtu=1500):
    """See _core.pyi."""
    cdef dhcp_msg_t m
    cdef dhcp_reply_t reply
    cdef dhcp_plan_t *made = NULL
    cdef uint8_t out[DHCP_LONGEST_REPLY]
    cdef const char *octets = request
    cdef int rc = dhcp_parse(<const uint8_t *>octets, len(request), &m)
    cdef size_t n
    if rc < 0:
        raise ValueError(f"the request is no DHCP message: {RESPONDER_COUNTERS[-rc]}")
    reply.type, reply.server, reply.yiaddr, reply.lease, reply.message = type, server, yiaddr, lease, NULL
    if message is not None:
        reply.message = message
    if plan is not None:
        made = plan_of(plan)
    n = dhcp_emit(out, &m, &reply, made, mtu)
    free(made)
    return out[:n]


def udp_packet(uint32_t source, uint16_t source_port, uint32_t destination, uint16_t port, bytes payload not None):
    """See _core.pyi."""
    cdef uint8_t out[UDP_HEADERS + DHCP_LONGEST]
    cdef const char *octets = payload
    if len(payload) > DHCP_LONGEST:
        raise ValueError(f"a payload has at most {DHCP_LONGEST} octets")
    memcpy(out + UDP_HEADERS, octets, len(payload))
    udp_frame(out, source, source_port, destination, port, len(payload))
    return out[:UDP_HEADERS + len(payload)]


cdef str address_text(uint32_t s_addr):
    cdef uint8_t *a = <uint8_t *>&s_addr
    return f"{a[0]}.{a[1]}.{a[2]}.{a[3]}"

cdef object event_to_python(event_t *event):
    cdef tftp_request_t request
    cdef sockaddr_in *peer = <sockaddr_in *>&event.peer
    if event.kind == EVENT_REQUEST:
        try:
            tftp_parse_request(&request, event.packet, event.length)
            return TftpRequest(
                event.id, (<const char *>request.name)[:request.name_length], request.mode == TFTP_NETASCII,
                address_text(peer.sin_addr.s_addr), ntohs(peer.sin_port), address_text(event.local.s_addr),
                event.ifindex, {OPTIONS[request.order[i]]: request.options[request.order[i]].value
                                for i in range(request.asked)})
        finally:
            free(event.packet)
    if event.kind == EVENT_END:
        return TftpEnd(event.id, OUTCOMES[event.outcome], event.code, event.octets, event.blocks, event.repeats,
                       event.nanoseconds / 1e9, event.blksize, event.window)
    return TftpNotice(NOTICES[event.kind], event.ifindex, event.code)


def parse_tftp(bytes packet not None):
    """See _core.pyi."""
    cdef tftp_request_t request
    cdef int i
    if len(packet) < 2 or packet[0] != 0 or packet[1] not in (TFTP_RRQ, TFTP_WRQ):
        return None
    if not tftp_parse_request(&request, packet, len(packet)):
        return None
    return (
        (<const char *>request.name)[:request.name_length],
        ("octet", "netascii", "mail")[request.mode],
        {OPTIONS[request.order[i]]: request.options[request.order[i]].value for i in range(request.asked)},
    )
