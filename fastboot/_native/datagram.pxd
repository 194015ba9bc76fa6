# Datagrams in batches: an inbox for recvmmsg, an outbox for sendmmsg, and the control messages that name our own
# address (IP_PKTINFO) and cut a message into segments (UDP_SEGMENT). Pure; the calls are the owner's.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastboot._native.sys cimport (
    CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE, IPPROTO_IP, IP_PKTINFO, IP_RECVERR, SOL_SOCKET,
    SOL_UDP, SO_EE_ORIGIN_ICMP, SO_RXQ_OVFL, UDP_SEGMENT, cmsghdr, in_addr, in_pktinfo, iovec, mmsghdr, msghdr,
    sock_extended_err, sockaddr_storage,
)
from fastboot._native.table cimport table_mix

cdef enum:
    BATCH = 64             # packets per recvmmsg and messages per sendmmsg
    BATCH_BLOCKS = 1024    # segments per sendmmsg
    PACKET = 1024          # octets of a received one; nothing longer is asked of a TFTP server
    CONTROL = 64           # both control messages, aligned

cdef struct inbox_t:
    mmsghdr messages[BATCH]
    iovec vectors[BATCH]
    sockaddr_storage peers[BATCH]
    uint8_t packets[BATCH][PACKET]
    uint8_t controls[BATCH][CONTROL]
    uint64_t hashes[BATCH]  # of the peers, for their owner

# messages[i] carries `counts[i]` segments of what its owner knows as `owners[i]`.
cdef struct outbox_t:
    mmsghdr messages[BATCH]
    iovec vectors[2 * BATCH_BLOCKS]
    uint8_t headers[BATCH_BLOCKS][4]
    uint8_t controls[BATCH][CONTROL]
    int32_t owners[BATCH]
    int32_t counts[BATCH]
    int n
    int segments
    int vectors_used

cdef inline void inbox_set_up(inbox_t *box) noexcept nogil:
    # Once, on zeroed memory.
    cdef msghdr *h
    cdef int i
    for i in range(BATCH):
        box.vectors[i].iov_base = box.packets[i]
        box.vectors[i].iov_len = PACKET
        h = &box.messages[i].msg_hdr
        h.msg_name = &box.peers[i]
        h.msg_iov = &box.vectors[i]
        h.msg_iovlen = 1
        h.msg_control = box.controls[i]
    inbox_empty(box, BATCH)

cdef inline void inbox_empty(inbox_t *box, int n) noexcept nogil:
    # After the first n messages were read: make room for others, what the kernel has written over.
    cdef int i
    for i in range(n):
        box.messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_storage)
        box.messages[i].msg_hdr.msg_controllen = CONTROL

cdef inline in_pktinfo *pktinfo_of(msghdr *h) noexcept nogil:
    # Where a received message was sent to, or NULL.
    cdef cmsghdr *c = CMSG_FIRSTHDR(h)
    while c != NULL:
        if c.cmsg_level == IPPROTO_IP and c.cmsg_type == IP_PKTINFO:
            return <in_pktinfo *>CMSG_DATA(c)
        c = CMSG_NXTHDR(h, c)
    return NULL

cdef inline uint32_t drops_of(msghdr *h) noexcept nogil:
    # How many packets found the socket full since it was made; 0 where the kernel does not say.
    cdef cmsghdr *c = CMSG_FIRSTHDR(h)
    cdef uint32_t drops = 0
    while c != NULL:
        if c.cmsg_level == SOL_SOCKET and c.cmsg_type == SO_RXQ_OVFL:
            memcpy(&drops, CMSG_DATA(c), sizeof(drops))
        c = CMSG_NXTHDR(h, c)
    return drops

cdef inline bint port_is_closed(msghdr *h) noexcept nogil:
    # Whether a message of the error queue is of ICMP, "port unreachable" (RFC 792, type 3 code 3).
    cdef cmsghdr *c = CMSG_FIRSTHDR(h)
    cdef sock_extended_err *error
    while c != NULL:
        if c.cmsg_level == IPPROTO_IP and c.cmsg_type == IP_RECVERR:
            error = <sock_extended_err *>CMSG_DATA(c)
            return error.ee_origin == SO_EE_ORIGIN_ICMP and error.ee_type == 3 and error.ee_code == 3
        c = CMSG_NXTHDR(h, c)
    return False

cdef inline size_t put_control(uint8_t *control, in_addr local, uint16_t segment) noexcept nogil:
    # The source address, never the interface: the route decides that. And UDP_SEGMENT where `segment` is not 0.
    cdef cmsghdr *c = <cmsghdr *>control
    cdef in_pktinfo *info
    c.cmsg_level = IPPROTO_IP
    c.cmsg_type = IP_PKTINFO
    c.cmsg_len = CMSG_LEN(sizeof(in_pktinfo))
    info = <in_pktinfo *>CMSG_DATA(c)
    info.ipi_ifindex = 0
    info.ipi_spec_dst = local
    info.ipi_addr.s_addr = 0
    if segment == 0:
        return CMSG_SPACE(sizeof(in_pktinfo))
    # CMSG_NXTHDR is a call and reads what is not there yet.
    c = <cmsghdr *>(control + CMSG_SPACE(sizeof(in_pktinfo)))
    c.cmsg_level = SOL_UDP
    c.cmsg_type = UDP_SEGMENT
    c.cmsg_len = CMSG_LEN(sizeof(uint16_t))
    memcpy(CMSG_DATA(c), &segment, sizeof(uint16_t))
    return CMSG_SPACE(sizeof(in_pktinfo)) + CMSG_SPACE(sizeof(uint16_t))

cdef inline msghdr *outbox_message(
    outbox_t *box, int32_t owner, int32_t count, sockaddr_storage *peer, uint32_t peer_length, in_addr local,
    uint16_t segment,
) noexcept nogil:
    # Begin a message; the caller has checked that there is room for it and its segments.
    cdef msghdr *h = &box.messages[box.n].msg_hdr
    h.msg_name = peer
    h.msg_namelen = peer_length
    h.msg_iov = &box.vectors[box.vectors_used]
    h.msg_iovlen = 0
    h.msg_control = box.controls[box.n]
    h.msg_controllen = put_control(box.controls[box.n], local, segment)
    h.msg_flags = 0
    box.owners[box.n] = owner
    box.counts[box.n] = count
    box.n += 1
    box.segments += count
    return h

cdef inline void outbox_add(outbox_t *box, msghdr *h, void *data, size_t n) noexcept nogil:
    cdef iovec *v = &box.vectors[box.vectors_used]
    v.iov_base = data
    v.iov_len = n
    box.vectors_used += 1
    h.msg_iovlen += 1

cdef inline uint64_t peer_hash(const sockaddr_storage *peer, uint32_t length) noexcept nogil:
    # Family, port and IPv4 address are the first 8 octets; IPv6 goes on to 28.
    cdef uint64_t h = 0, word
    cdef uint32_t at, part
    for at in range(0, length, 8):
        part = length - at
        if part > 8:
            part = 8
        word = 0
        memcpy(&word, <const uint8_t *>peer + at, part)
        h = table_mix(h ^ word)
    return h
