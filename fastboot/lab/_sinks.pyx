# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Servers that answer for free. See _sinks.pyi."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastboot._native.dhcp cimport (
    DHCP_ACK, DHCP_DISCOVER, DHCP_HEADER, DHCP_OFFER, DHCP_SHORTEST_REPLY, OPTION_END, OPTION_LEASE,
    OPTION_SERVER, OPTION_TYPE, dhcp_next, dhcp_put_number, dhcp_put_option,
)
from fastboot._native.sys cimport (
    CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_SPACE, SOL_UDP, UDP_SEGMENT, cmsghdr, iovec, msghdr, now_ns,
)
from fastboot._native.udp cimport UDP_HEADERS, udp_frame
from fastboot._native.wire cimport cursor_t, pen_t, wire_cursor, wire_pen, wire_u16, wire_u32
from fastboot.lab._frames cimport (
    BOX, CLIENT_PORT, ETHERNET, SERVER_PORT, box_prepare, box_receive, box_send, box_t, datagram_in, put_u32,
)
from fastboot.lab._receiver cimport TFTP_ACK
from fastboot.lab._sockets cimport POLLIN, wait_for

cdef enum:
    BLOCKS = 64                     # of one datagram for UDP_SEGMENT, at most
    PARTS = 2 * BLOCKS              # a header and data for each
    ANY_BLOCK = 65464               # octets

cdef size_t sink_reply(uint8_t *p, size_t n, uint32_t server) noexcept nogil:
    # Makes the answer in the memory of the request; 0: there is none.
    cdef cursor_t c = wire_cursor(p + DHCP_HEADER, n - DHCP_HEADER)
    cdef uint8_t code, type_
    cdef size_t size
    cdef const uint8_t *value
    cdef pen_t out
    if n < DHCP_HEADER or dhcp_next(&c, &code, &size, &value) <= 0 or code != OPTION_TYPE:
        return 0
    type_ = DHCP_OFFER if value[0] == DHCP_DISCOVER else DHCP_ACK
    p[0] = 2
    put_u32(p + 16, (server & <uint32_t>0xFF000000) | (wire_u32(p + 30) & 0xFFFFFF))
    out = wire_pen(p + DHCP_HEADER, DHCP_SHORTEST_REPLY - DHCP_HEADER)
    dhcp_put_option(&out, OPTION_TYPE, &type_, 1)
    dhcp_put_number(&out, OPTION_SERVER, server)
    dhcp_put_number(&out, OPTION_LEASE, 3600)
    memset(out.at, OPTION_END, 1)
    return DHCP_SHORTEST_REPLY

cdef void sink_frame(uint8_t *frame, uint8_t *p, size_t n, uint32_t server) noexcept nogil:
    memcpy(frame, p + 28, 6)
    memset(frame + 6, 2, 6)
    udp_frame(frame + ETHERNET, server, SERVER_PORT, wire_u32(p + 16), CLIENT_PORT, n)


def dhcp_sink(int fd, *, bint frames, uint32_t server, double seconds):
    """See _sinks.pyi."""
    cdef box_t *box = <box_t *>calloc(1, sizeof(box_t))
    cdef int64_t until = now_ns() + <int64_t>(seconds * 1e9)
    cdef int64_t answered = 0
    cdef int32_t got, k, kept
    cdef size_t n
    cdef const uint8_t *p
    if box == NULL:
        raise MemoryError
    with nogil:
        while now_ns() < until:
            box_prepare(box, not frames)
            got = box_receive(box, fd)
            kept = 0
            for k in range(got):
                n = box.vec[k].msg_len
                p = datagram_in(box.data[k], &n, SERVER_PORT) if frames else box.data[k]
                n = sink_reply(<uint8_t *>p, n, server) if p != NULL else 0
                if n == 0:
                    continue
                if frames:
                    sink_frame(box.data[k], <uint8_t *>p, n, server)
                    n += ETHERNET + UDP_HEADERS
                box.iov[k].iov_len = n
                box.vec[kept] = box.vec[k]
                if not frames:                              # which box_join reads in a row
                    box.iov[kept], box.name[kept] = box.iov[k], box.name[k]
                kept += 1
            box.n = kept
            box_send(box, fd, not frames)
            answered += kept
            if got == 0:
                wait_for(fd, POLLIN, 100000000)
    free(box)
    return answered


cdef struct burst_t:                # the blocks that answer one packet
    iovec parts[PARTS]
    uint8_t heads[BLOCKS][4]
    uint8_t control[32]

cdef struct shelf_t:                # the one file
    const uint8_t *oack
    size_t told
    int64_t octets
    int32_t blksize
    int32_t window
    uint8_t data[ANY_BLOCK]


cdef bint shelf_answer(shelf_t *shelf, burst_t *burst, msghdr *head, const uint8_t *p, size_t n) noexcept nogil:
    # Whether there is an answer, which `head` then sends. No memory of anybody: an ACK says it all.
    cdef int64_t blocks = shelf.octets // shelf.blksize + 1, first, k
    cdef cmsghdr *c
    if n < 4:
        return False
    head.msg_iov, head.msg_iovlen = burst.parts, 1
    head.msg_control, head.msg_controllen = NULL, 0
    if p[1] != TFTP_ACK:
        burst.parts[0].iov_base, burst.parts[0].iov_len = <void *>shelf.oack, shelf.told
        return p[1] == 1
    first = wire_u16(p + 2) + 1
    for k in range(min(<int64_t>shelf.window, blocks + 1 - first)):
        burst.heads[k][0], burst.heads[k][1] = 0, 3
        burst.heads[k][2], burst.heads[k][3] = ((first + k) >> 8) & 0xff, (first + k) & 0xff
        burst.parts[2 * k].iov_base, burst.parts[2 * k].iov_len = burst.heads[k], 4
        burst.parts[2 * k + 1].iov_base = shelf.data
        burst.parts[2 * k + 1].iov_len = shelf.octets % shelf.blksize if first + k == blocks else shelf.blksize
        head.msg_iovlen = 2 * k + 2
    if head.msg_iovlen > 2:
        head.msg_control, head.msg_controllen = burst.control, CMSG_SPACE(sizeof(uint16_t))
        c = CMSG_FIRSTHDR(head)
        c.cmsg_level, c.cmsg_type, c.cmsg_len = SOL_UDP, UDP_SEGMENT, CMSG_LEN(sizeof(uint16_t))
        (<uint16_t *>CMSG_DATA(c))[0] = shelf.blksize + 4
    return head.msg_iovlen > 1


def tftp_sink(int fd, *, bytes oack not None, int32_t blksize, int32_t window, int64_t octets, double seconds):
    """See _sinks.pyi."""
    cdef int64_t until = now_ns() + <int64_t>(seconds * 1e9)
    cdef int64_t answered = 0
    cdef int32_t got, k, kept
    cdef const char *told = oack
    cdef box_t *box
    cdef burst_t *bursts
    cdef shelf_t *shelf
    if not (8 <= blksize and 1 <= window <= BLOCKS and window * (blksize + 4) < 65500
            and 0 <= octets < 65535 * blksize):
        raise ValueError("a window fits one datagram of 64 blocks, the file 65534 blocks")
    box = <box_t *>calloc(1, sizeof(box_t))
    bursts = <burst_t *>calloc(BOX, sizeof(burst_t))
    shelf = <shelf_t *>calloc(1, sizeof(shelf_t))
    if box == NULL or bursts == NULL or shelf == NULL:
        raise MemoryError
    shelf.oack, shelf.told = <const uint8_t *>told, len(oack)
    shelf.octets, shelf.blksize, shelf.window = octets, blksize, window
    with nogil:
        while now_ns() < until:
            box_prepare(box, True)
            got = box_receive(box, fd)
            kept = 0
            for k in range(got):
                if box.vec[k].msg_len == 0:
                    until = 0
                if shelf_answer(shelf, &bursts[k], &box.vec[k].msg_hdr, box.data[k], box.vec[k].msg_len):
                    box.vec[kept] = box.vec[k]
                    kept += 1
            box.n = kept
            box_send(box, fd, False)
            answered += kept
            if got == 0:
                wait_for(fd, POLLIN, 100000000)
    free(box)
    free(bursts)
    free(shelf)
    return answered
