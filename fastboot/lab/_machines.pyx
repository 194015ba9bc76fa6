# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Simulated machines that do one thing at a time, thousands in one thread, without the GIL. See _machines.pyi.

Python says what a machine does next (fetch this file, from there, in that manner); every packet of it is ours.
"""
from array import array
from collections import namedtuple

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from fastboot._native.dhcp cimport (
    DHCP_ACK, DHCP_COOKIE, DHCP_HEADER, DHCP_LONGEST_REPLY, DHCP_NAK, DHCP_OFFER, OPTION_REQUESTED,
    OPTION_SERVER, dhcp_next,
)
from fastboot._native.sys cimport (
    AF_INET, CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE, EAGAIN, EINTR, ENOBUFS, EPOLL_CLOEXEC,
    EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, IP_PKTINFO, IPPROTO_IP, MSG_DONTWAIT, MSG_TRUNC, SOL_SOCKET,
    SOL_UDP, c_close, cmsghdr, epoll_create1, epoll_ctl, epoll_event, epoll_wait, errno, htonl, htons, in_pktinfo,
    iovec, mmsghdr, msghdr, now_ns, ntohl, ntohs, recvmmsg, sendmmsg, sockaddr, sockaddr_in,
)
from fastboot._native.wheel cimport hand_t, wheel_next, wheel_pop, wheel_set, wheel_t
from fastboot._native.udp cimport UDP_HEADERS, udp_frame
from fastboot._native.wire cimport cursor_t, wire_cursor, wire_u16, wire_u32
from fastboot.lab._answers cimport head_in, head_t, reply_in
from fastboot.lab._frames cimport (
    BOX, CLIENT_PORT, ETHERNET, SERVER_PORT, box_prepare, box_receive, box_send, box_t, datagram_in, put_mac,
    put_u32,
)
from fastboot.lab._offer cimport mac_hash, mac_in, offer_in, offer_t
from fastboot.lab._receiver cimport (
    HEARD_END, HEARD_ERROR, HEARD_NONSENSE, HEARD_NOTHING, HEARD_SIZE, TFTP_ACK, TFTP_ERROR, receiver_of,
    receiver_t, receiver_take,
)
from fastboot.lab._sockets cimport (
    EINPROGRESS, MSG_NOSIGNAL, POLLIN, POLLOUT, SO_ERROR, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, UDP_GRO, bind,
    connect, getsockopt, recv, send, socket, wait_for,
)

include "_machines_table.pxi"
include "_machines_tftp.pxi"
include "_machines_dhcp.pxi"
include "_machines_tcp.pxi"


cdef class Machines(_Tcp):
    """See _machines.pyi."""

    def __init__(self, int32_t count, *, double loss=0.0, uint64_t seed=1):
        """Its parts have taken these (__cinit__)."""
