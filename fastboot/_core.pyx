# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""fastboot's native core.

Reading order: _native/wire.pxd, then the pure protocols (no syscall, lock, allocation or clock), then the
classes that own descriptors, memory and threads, one per .pxi. Python sees only what _core.pyi says.
"""
import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free

from fastboot._native.sys cimport (
    EAGAIN, EIO, MADV_POPULATE_READ, MAP_FAILED, MAP_SHARED, MFD_CLOEXEC, O_CLOEXEC, O_DIRECTORY, O_NOCTTY, O_NONBLOCK,
    O_RDONLY, POSIX_FADV_WILLNEED, PROT_READ, RELAXED, S_ISDIR, S_ISREG, SEQ, SYS_openat2, atomic_add, c_close,
    c_write, errno, fstat, madvise, memfd_create, mmap, munmap, nanoseconds, open_how, posix_fadvise, pread,
    stat_t, syscall,
)

cdef enum:
    RESOLVE_NO_MAGICLINKS = 0x02
    RESOLVE_BENEATH = 0x08


class SpecialFileError(OSError):
    """A path that names a device, socket or FIFO: nothing that has bytes to send."""


include "_native/source.pxi"    # 1  Source: what is sent
