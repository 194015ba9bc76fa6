# cython: language_level=3, cdivision=True
"""TFTP clients that cost little: many in one thread, without the GIL. They keep no data.

Each is a plain receiver of RFC 1350 and RFC 7440: it acknowledges every windowsize blocks in order, and the last
block in order when a block is out of order, or after `patience` seconds of silence.
"""
import os
import socket

from libc.stdint cimport int64_t, uint8_t, uint16_t
from libc.stdlib cimport atoi, calloc, free
from libc.string cimport strlen

from fastboot._native.sys cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, MSG_DONTWAIT, c_close, c_write, epoll_create1, epoll_ctl,
    epoll_event, epoll_wait, errno, iovec, mmsghdr, now_ns, recvmmsg, sockaddr, sockaddr_in,
)
from fastboot._native.wire cimport wire_u16

cdef extern from "<sys/socket.h>" nogil:
    int connect(int fd, const sockaddr *address, unsigned int n)

cdef extern from "<string.h>" nogil:
    void *memmem(const void *haystack, size_t n, const void *needle, size_t m)

cdef enum:
    BURST = 32
    ROOM = 2048
    READY = 256

cdef struct client_t:
    int fd
    bint connected
    bint done
    int window
    int blksize
    int since_ack
    int64_t expected       # block
    int64_t octets
    int64_t began
    int64_t ended
    int64_t heard
    int64_t repeats

cdef struct inbox_t:
    mmsghdr messages[BURST]
    iovec vectors[BURST]
    sockaddr_in peers[BURST]
    uint8_t packets[BURST][ROOM]


cdef void acknowledge(client_t *c) noexcept nogil:
    cdef uint8_t packet[4]
    cdef int64_t block = c.expected - 1
    packet[0] = 0
    packet[1] = 4
    packet[2] = (block >> 8) & 0xff
    packet[3] = block & 0xff
    c_write(c.fd, packet, 4)
    c.since_ack = 0

cdef int granted(const uint8_t *packet, size_t n, const char *option, int otherwise) noexcept nogil:
    # The value of an option in an OACK.
    cdef const uint8_t *at = <const uint8_t *>memmem(packet, n, option, strlen(option) + 1)
    if at == NULL or packet[n - 1] != 0:
        return otherwise
    return atoi(<const char *>at + strlen(option) + 1)

cdef int take(client_t *c, const uint8_t *packet, size_t n, int64_t now) noexcept nogil:
    # 1: the client has finished; -1: the server sent an ERROR.
    cdef uint16_t op = wire_u16(packet)
    c.heard = now
    if op == 6:
        c.window = granted(packet, n, b"windowsize", 1)
        c.blksize = granted(packet, n, b"blksize", 512)
        acknowledge(c)
        return 0
    if op != 3:
        return -1
    if wire_u16(packet + 2) != <uint16_t>c.expected:
        c.repeats += 1
        acknowledge(c)
        return 0
    c.expected += 1
    c.since_ack += 1
    c.octets += n - 4
    if n - 4 < <size_t>c.blksize:
        acknowledge(c)
        c.done = True
        c.ended = now
        return 1
    if c.since_ack == c.window:
        acknowledge(c)
    return 0

cdef int serve(client_t *clients, int count, int epoll, int64_t patience, int64_t limit) noexcept nogil:
    # Until all have finished or the time limit; returns how many did not.
    cdef epoll_event ready[READY]
    cdef inbox_t *box = <inbox_t *>calloc(1, sizeof(inbox_t))
    cdef int left = count, n, i, k, got, rc
    cdef int64_t now = now_ns(), checked = now
    cdef client_t *c
    if box == NULL:
        return left
    for i in range(BURST):
        box.vectors[i].iov_base = box.packets[i]
        box.vectors[i].iov_len = ROOM
        box.messages[i].msg_hdr.msg_iov = &box.vectors[i]
        box.messages[i].msg_hdr.msg_iovlen = 1
        box.messages[i].msg_hdr.msg_name = &box.peers[i]
    while left and now < limit:
        n = epoll_wait(epoll, ready, READY, 20)
        now = now_ns()
        for i in range(n):
            c = &clients[ready[i].data.u64]
            for k in range(BURST):
                box.messages[k].msg_hdr.msg_namelen = sizeof(sockaddr_in)
            got = recvmmsg(c.fd, box.messages, BURST, MSG_DONTWAIT, NULL)
            for k in range(got):
                if c.done or box.messages[k].msg_len < 4:
                    continue
                if not c.connected:
                    # The first answer fixes the server's port (RFC 1350 section 4).
                    connect(c.fd, <sockaddr *>&box.peers[k], sizeof(sockaddr_in))
                    c.connected = True
                rc = take(c, box.packets[k], box.messages[k].msg_len, now)
                if rc < 0:
                    free(box)
                    return left
                left -= rc
        if now - checked > patience // 4:
            checked = now
            for i in range(count):
                c = &clients[i]
                if not c.done and c.connected and now - c.heard > patience:
                    c.heard = now
                    acknowledge(c)
    free(box)
    return left


def fetch(str server, int port, str name, int count, *, int blksize, int windowsize, double patience=1.0,
          double limit=300.0):
    """Fetch one file with `count` clients at once. Returns a dict: seconds (of all), each (seconds per client),
    octets (per client), repeats (blocks out of order or received again), unfinished.
    """
    cdef client_t *clients = <client_t *>calloc(count, sizeof(client_t))
    cdef int epoll = epoll_create1(EPOLL_CLOEXEC)
    cdef epoll_event event
    cdef int64_t began, ended = 0
    cdef int i, left
    options = [b"blksize", str(blksize).encode(), b"tsize", b"0"]
    if windowsize > 1:
        options += [b"windowsize", str(windowsize).encode()]
    request = b"\0\x01" + b"\0".join([name.encode(), b"octet", *options]) + b"\0"
    sockets = []
    try:
        for i in range(count):
            each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            each.bind(("", 0))
            sockets.append(each)
            clients[i].fd = each.fileno()
            clients[i].window = 1
            clients[i].blksize = 512
            clients[i].expected = 1
            event.events = EPOLLIN
            event.data.u64 = i
            if epoll_ctl(epoll, EPOLL_CTL_ADD, clients[i].fd, &event) < 0:
                raise OSError(errno, os.strerror(errno))
        began = now_ns()
        for i in range(count):
            sockets[i].sendto(request, (server, port))
            clients[i].began = clients[i].heard = now_ns()
        with nogil:
            left = serve(clients, count, epoll, <int64_t>(patience * 1e9), began + <int64_t>(limit * 1e9))
        for i in range(count):
            ended = max(ended, clients[i].ended)
        return {
            "seconds": (ended - began) / 1e9,
            "each": [(clients[i].ended - clients[i].began) / 1e9 for i in range(count) if clients[i].done],
            "octets": [clients[i].octets for i in range(count)],
            "repeats": sum(clients[i].repeats for i in range(count)),
            "unfinished": left,
        }
    finally:
        c_close(epoll)
        free(clients)
        for each in sockets:
            each.close()
