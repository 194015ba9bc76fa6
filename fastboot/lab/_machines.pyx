# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Simulated machines that do one thing at a time, thousands in one thread, without the GIL. See _machines.pyi.

Python says what a machine does next (fetch this file, from there, in that manner); every packet of it is ours.
"""
from array import array
from collections import namedtuple

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from fastboot._native.sys cimport (
    AF_INET, CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE, EAGAIN, EINTR, ENOBUFS, EPOLL_CLOEXEC,
    EPOLL_CTL_ADD, EPOLLIN, IP_PKTINFO, IPPROTO_IP, MSG_DONTWAIT, SOL_UDP, c_close, cmsghdr, epoll_create1,
    epoll_ctl, epoll_event, epoll_wait, errno, htonl, htons, in_pktinfo, iovec, mmsghdr, msghdr, now_ns, ntohl,
    ntohs, recvmmsg, sendmmsg, sockaddr_in,
)
from fastboot._native.wheel cimport hand_t, wheel_next, wheel_pop, wheel_set, wheel_t
from fastboot._native.wire cimport wire_u16
from fastboot.lab._receiver cimport (
    HEARD_END, HEARD_ERROR, HEARD_NONSENSE, HEARD_NOTHING, HEARD_SIZE, TFTP_ACK, TFTP_ERROR,
    receiver_of, receiver_t, receiver_take,
)
from fastboot.lab._sockets cimport POLLIN, POLLOUT, UDP_GRO, wait_for

include "_machines_table.pxi"
include "_machines_tftp.pxi"


cdef class Machines(_Tftp):
    """See _machines.pyi."""

    def __init__(self, int32_t count, *, double loss=0.0, uint64_t seed=1):
        """Its parts have taken these (__cinit__)."""
