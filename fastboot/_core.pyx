# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""fastboot's native core.

Reading order: _native/wire.pxd, then the pure protocols (no syscall, lock, allocation or clock), then the
classes that own descriptors, memory and threads, one per .pxi. Python sees only what _core.pyi says.
"""
import os
from collections import namedtuple

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from fastboot._native.queue cimport queue_pop, queue_push, queue_t
from fastboot._native.sys cimport (
    AF_INET, CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE, EAGAIN, EFAULT, EFD_CLOEXEC,
    EFD_NONBLOCK, EINTR, EINVAL, EIO, EMSGSIZE, ENOBUFS, EOPNOTSUPP, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD,
    EPOLLERR, EPOLLIN, EPOLLOUT, IP_PKTINFO, IPPROTO_IP, MADV_POPULATE_READ, MAP_FAILED, MAP_SHARED, MFD_CLOEXEC,
    MSG_DONTWAIT, MSG_TRUNC, O_CLOEXEC, O_DIRECTORY, O_NOCTTY, O_NONBLOCK, O_RDONLY, POSIX_FADV_WILLNEED, PROT_READ, RELAXED,
    S_ISDIR, S_ISREG, SEQ, SOL_UDP, SYS_openat2, UDP_SEGMENT, atomic_add, c_close, c_read, c_write, cmsghdr,
    epoll_create1, epoll_ctl, epoll_event, epoll_wait, errno, eventfd, fstat, in_addr, in_pktinfo, iovec, madvise,
    memfd_create, mmap, mmsghdr, msghdr, munmap, nanoseconds, now_ns, ntohs, open_how, posix_fadvise, pread,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, recvmmsg, sendmmsg, sendmsg,
    sockaddr_in, sockaddr_storage, stat_t, syscall,
)
from fastboot._native.table cimport place_t, table_mix, table_next, table_put, table_remove, table_t
from fastboot._native.tftp cimport (
    TFTP_ACCESS, TFTP_ACK, TFTP_BLKSIZE, TFTP_DATA, TFTP_DONE, TFTP_ERROR, TFTP_ILLEGAL, TFTP_MAIL, TFTP_NETASCII,
    TFTP_OACK_MAX, TFTP_REFUSED, TFTP_RRQ, TFTP_SENDING, TFTP_SILENT, TFTP_TSIZE, TFTP_UNCONFIRMED, TFTP_UNKNOWN_ID,
    TFTP_WINDOWSIZE, TFTP_WRQ, ms, tftp_begin, tftp_due, tftp_emit_error, tftp_emit_oack, tftp_on_ack, tftp_on_sent,
    tftp_on_timer, tftp_parse_request, tftp_request_t, tftp_rewind, tftp_xfer_t,
)
from fastboot._native.wheel cimport hand_t, wheel_next, wheel_pop, wheel_remove, wheel_set, wheel_t
from fastboot._native.wire cimport wire_u16

cdef enum:
    RESOLVE_NO_MAGICLINKS = 0x02
    RESOLVE_BENEATH = 0x08

cdef tuple OPTIONS = ("blksize", "timeout", "tsize", "windowsize")
cdef tuple OUTCOMES = (
    "sending", "done", "unconfirmed", "silent", "probe", "cancelled", "changed", "replaced", "stopped",
)


class SpecialFileError(OSError):
    """A path that names a device, socket or FIFO: nothing that has bytes to send."""


TftpRequest = namedtuple("TftpRequest", "id name netascii peer port server interface options")
TftpEnd = namedtuple("TftpEnd", "id outcome code octets blocks repeats seconds blksize windowsize")
TftpNotice = namedtuple("TftpNotice", "kind interface error")


include "_native/source.pxi"    # 1  Source: what is sent
include "_native/engine.pxi"    # 2  Engine: a thread that answers TFTP, uses Source


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


cdef class TftpModel:
    """See _core.pyi."""
    cdef tftp_xfer_t x
    cdef int64_t *sent

    def __init__(self, int64_t size, *, uint32_t blksize=512, uint16_t windowsize=1, bint oack=True, int64_t now=0):
        if self.sent != NULL or size < 0 or blksize < 8 or windowsize < 1:
            raise ValueError("a TftpModel is one transfer of 0 octets or more")
        self.sent = <int64_t *>calloc(windowsize, sizeof(int64_t))
        if self.sent == NULL:
            raise MemoryError
        tftp_begin(&self.x, size, blksize, windowsize, oack, self.sent, now)

    def __dealloc__(self):
        free(self.sent)

    def ack(self, int block, int64_t now):
        return tftp_on_ack(&self.x, <uint16_t>block, now)

    def timer(self, int64_t now):
        tftp_on_timer(&self.x, now)

    def send(self, int64_t now):
        cdef int64_t count = tftp_due(&self.x)
        first = self.x.next
        if count > 0:
            tftp_on_sent(&self.x, count, now)
        return range(first, first + max(count, 0))

    @property
    def outcome(self):
        return OUTCOMES[self.x.outcome]

    @property
    def base(self):
        return self.x.base

    @property
    def deadline(self):
        return self.x.deadline

    @property
    def srtt(self):
        return self.x.srtt

    @property
    def repeats(self):
        return self.x.repeats
