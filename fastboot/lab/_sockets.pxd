# System calls that only the lab's machines use, and waits of less than a millisecond.
from libc.stdint cimport int64_t, uint16_t
from fastboot._native.sys cimport sockaddr, timespec

cdef extern from *:
    """
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    #include <fcntl.h>
    """
    int UDP_GRO

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long n, const timespec *timeout, const void *mask)
    enum:
        POLLIN, POLLOUT

cdef inline void wait_for(int fd, short events, int64_t nanoseconds) noexcept nogil:
    cdef pollfd entry
    cdef timespec limit
    entry.fd, entry.events, entry.revents = fd, events, 0
    limit.tv_sec, limit.tv_nsec = nanoseconds // 1000000000, nanoseconds % 1000000000
    ppoll(&entry, 1, &limit, NULL)
