# Packets by the boxful, and the Ethernet, IP and UDP around a DHCP message.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from fastboot._native.dhcp cimport DHCP_LONGEST
from fastboot._native.sys cimport (
    CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_SPACE, EAGAIN, EINTR, ENOBUFS, MSG_DONTWAIT, SOL_UDP, UDP_SEGMENT,
    cmsghdr, errno, iovec, mmsghdr, msghdr, recvmmsg, sendmmsg, sockaddr_in,
)
from fastboot._native.udp cimport UDP_HEADERS
from fastboot._native.wire cimport pen_t, wire_pen, wire_put_u32, wire_u16
from fastboot.lab._sockets cimport POLLOUT, wait_for

cdef enum:
    BOX = 64                        # packets per system call
    ETHERNET = 14                   # octets of its header
    ROOM = ETHERNET + UDP_HEADERS + DHCP_LONGEST
    CLIENT_PORT = 68
    SERVER_PORT = 67
    LONGEST_JOIN = 65000            # octets that one datagram for UDP_SEGMENT may have

cdef struct box_t:                  # packets of one system call
    mmsghdr vec[BOX]
    iovec iov[BOX]
    sockaddr_in name[BOX]
    uint8_t data[BOX][ROOM]
    uint8_t control[BOX][32]
    int32_t n


cdef inline void box_prepare(box_t *box, bint named) noexcept nogil:
    cdef int32_t i
    for i in range(BOX):
        memset(&box.vec[i], 0, sizeof(mmsghdr))
        box.iov[i].iov_base, box.iov[i].iov_len = box.data[i], ROOM
        box.vec[i].msg_hdr.msg_iov, box.vec[i].msg_hdr.msg_iovlen = &box.iov[i], 1
        if named:
            box.vec[i].msg_hdr.msg_name, box.vec[i].msg_hdr.msg_namelen = &box.name[i], sizeof(sockaddr_in)

cdef inline int32_t box_receive(box_t *box, int fd) noexcept nogil:
    cdef int32_t i
    for i in range(BOX):
        box.iov[i].iov_len = ROOM
    return max(0, recvmmsg(fd, box.vec, BOX, MSG_DONTWAIT, NULL))

cdef inline int32_t box_join(box_t *box) noexcept nogil:
    # Makes one datagram for UDP_SEGMENT of each run of packets with one size to one receiver; how many there are then.
    cdef int32_t first = 0, n, joined = 0
    cdef size_t size
    cdef msghdr *head
    cdef cmsghdr *c
    while first < box.n:
        size, n = box.iov[first].iov_len, 1
        while first + n < box.n and box.iov[first + n].iov_len == size and size * (n + 1) < LONGEST_JOIN \
                and memcmp(&box.name[first], &box.name[first + n], sizeof(sockaddr_in)) == 0:
            n += 1
        head = &box.vec[joined].msg_hdr
        memset(head, 0, sizeof(msghdr))
        head.msg_iov, head.msg_iovlen = &box.iov[first], n
        if box.name[first].sin_port:
            head.msg_name, head.msg_namelen = &box.name[first], sizeof(sockaddr_in)
        if n > 1:
            head.msg_control, head.msg_controllen = box.control[joined], CMSG_SPACE(sizeof(uint16_t))
            c = CMSG_FIRSTHDR(head)
            c.cmsg_level, c.cmsg_type, c.cmsg_len = SOL_UDP, UDP_SEGMENT, CMSG_LEN(sizeof(uint16_t))
            (<uint16_t *>CMSG_DATA(c))[0] = <uint16_t>size
        first += n
        joined += 1
    return joined

cdef inline int32_t box_send(box_t *box, int fd, bint join) noexcept nogil:
    # How many the kernel refused for good. `join`: by a UDP socket, what goes one way as one.
    cdef int32_t done = 0, refused = 0
    cdef int rc
    if join:
        box.n = box_join(box)
    while done < box.n:
        rc = sendmmsg(fd, box.vec + done, box.n - done, MSG_DONTWAIT)
        if rc > 0:
            done += rc
        elif errno == EAGAIN or errno == ENOBUFS:
            wait_for(fd, POLLOUT, 1000000)
        elif errno != EINTR:
            done += 1
            refused += 1
    box.n = 0
    return refused

cdef inline const uint8_t *datagram_in(const uint8_t *frame, size_t *n, uint16_t port) noexcept nogil:
    # The payload of a UDP datagram to `port` in an Ethernet frame, its size in `n`; NULL for any other frame.
    cdef size_t head
    cdef const uint8_t *ip = frame + ETHERNET
    if n[0] < ETHERNET + UDP_HEADERS or wire_u16(frame + 12) != 0x0800 or ip[0] >> 4 != 4 or ip[9] != 17:
        return NULL
    head = 4 * (ip[0] & 15)
    if head < 20 or n[0] < ETHERNET + head + 8 or wire_u16(ip + head + 2) != port:
        return NULL
    n[0] -= ETHERNET + head + 8
    return ip + head + 8

cdef inline void put_mac(uint8_t *out, uint64_t mac) noexcept nogil:
    cdef int i
    for i in range(6):
        out[i] = (mac >> (40 - 8 * i)) & 0xff

cdef inline void put_u32(uint8_t *out, uint32_t value) noexcept nogil:
    cdef pen_t p = wire_pen(out, 4)
    wire_put_u32(&p, value)
