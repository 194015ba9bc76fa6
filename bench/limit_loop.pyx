# cython: language_level=3, cdivision=True
"""The limit: a server that does no more than the two system calls, recvmmsg and sendmmsg with UDP_SEGMENT.

It knows one file, block size and window, keeps nothing of any client, repeats nothing, and never ends: whoever
acknowledges block n is sent the window after it.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastboot._native.sys cimport (
    CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_SPACE, SOL_UDP, UDP_SEGMENT, cmsghdr, iovec, mmsghdr, msghdr, recvmmsg,
    sendmmsg, sockaddr_in,
)
from fastboot._native.wire cimport wire_u16

cdef extern from "<sys/socket.h>" nogil:
    int MSG_WAITFORONE

cdef enum:
    BATCH = 64
    MOST_WINDOW = 64
    ROOM = 1024

cdef struct box_t:
    mmsghdr came[BATCH]
    iovec came_in[BATCH]
    sockaddr_in peers[BATCH]
    uint8_t packets[BATCH][ROOM]
    mmsghdr go[2 * BATCH]              # one message holds 65507 octets: 44 blocks
    iovec parts[2 * BATCH * 2 * MOST_WINDOW]
    uint8_t headers[2 * BATCH * MOST_WINDOW][4]
    uint8_t controls[2 * BATCH][32]
    int n
    int parts_used
    int blocks_used

cdef struct file_t:
    const uint8_t *data
    int64_t size
    int64_t blksize
    int64_t window


cdef msghdr *begin(box_t *b, sockaddr_in *peer) noexcept nogil:
    cdef msghdr *h = &b.go[b.n].msg_hdr
    memset(h, 0, sizeof(msghdr))
    h.msg_name, h.msg_namelen = peer, sizeof(sockaddr_in)
    h.msg_iov = &b.parts[b.parts_used]
    b.n += 1
    return h

cdef void add(box_t *b, msghdr *h, const void *data, size_t n) noexcept nogil:
    b.parts[b.parts_used].iov_base = <void *>data
    b.parts[b.parts_used].iov_len = n
    b.parts_used += 1
    h.msg_iovlen += 1

cdef void segment(box_t *b, msghdr *h, uint16_t size) noexcept nogil:
    cdef cmsghdr *c
    h.msg_control, h.msg_controllen = b.controls[b.n - 1], CMSG_SPACE(sizeof(uint16_t))
    c = CMSG_FIRSTHDR(h)
    c.cmsg_level, c.cmsg_type, c.cmsg_len = SOL_UDP, UDP_SEGMENT, CMSG_LEN(sizeof(uint16_t))
    memcpy(CMSG_DATA(c), &size, sizeof(uint16_t))

cdef void put_window(box_t *b, file_t *f, sockaddr_in *peer, int64_t first) noexcept nogil:
    cdef int64_t last = f.size // f.blksize + 1, most = 65507 // (f.blksize + 4)
    cdef int64_t end = min(first + f.window, last + 1), block, at, count
    cdef msghdr *h
    cdef uint8_t *header
    while first < end:
        count = min(end - first, most)
        h = begin(b, peer)
        for block in range(first, first + count):
            header = b.headers[b.blocks_used]
            b.blocks_used += 1
            header[0], header[1], header[2], header[3] = 0, 3, (block >> 8) & 0xff, block & 0xff
            at = (block - 1) * f.blksize
            add(b, h, header, 4)
            add(b, h, f.data + at, min(f.blksize, f.size - at))
        if count > 1:
            segment(b, h, <uint16_t>(f.blksize + 4))
        first += count

cdef void answer(int fd, box_t *b, file_t *f, const uint8_t *oack, size_t oack_size) noexcept nogil:
    cdef int got, i, done
    for i in range(BATCH):
        b.came_in[i].iov_base, b.came_in[i].iov_len = b.packets[i], ROOM
        b.came[i].msg_hdr.msg_iov, b.came[i].msg_hdr.msg_iovlen = &b.came_in[i], 1
        b.came[i].msg_hdr.msg_name, b.came[i].msg_hdr.msg_namelen = &b.peers[i], sizeof(sockaddr_in)
    while True:
        got = recvmmsg(fd, b.came, BATCH, MSG_WAITFORONE, NULL)
        b.n = b.parts_used = b.blocks_used = 0
        for i in range(got):
            if wire_u16(b.packets[i]) == 1:
                add(b, begin(b, &b.peers[i]), oack, oack_size)
            elif wire_u16(b.packets[i]) == 4:
                put_window(b, f, &b.peers[i], <int64_t>wire_u16(b.packets[i] + 2) + 1)
        done = 0
        while done < b.n:
            i = sendmmsg(fd, b.go + done, b.n - done, 0)
            done += i if i > 0 else 1


def serve(int fd, const uint8_t[::1] data, bytes oack not None, *, int blksize, int windowsize):
    """Answer on a bound socket until the process is killed: every request with `oack`, then with `data`, which has
    fewer than 65,535 blocks."""
    cdef file_t f
    cdef box_t *b = <box_t *>calloc(1, sizeof(box_t))
    cdef const uint8_t *octets = oack
    cdef size_t size = len(oack)
    if b == NULL or not 1 <= windowsize <= MOST_WINDOW or len(data) // blksize > 65533:
        free(b)
        raise ValueError("too much")
    f.data, f.size, f.blksize, f.window = &data[0], len(data), blksize, windowsize
    with nogil:
        answer(fd, b, &f, octets, size)
