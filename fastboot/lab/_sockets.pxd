# System calls that only the lab's machines use, and waits of less than a millisecond.
from libc.stdint cimport int64_t, uint16_t
from fastboot._native.sys cimport sockaddr, timespec

cdef extern from *:
    """
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    #include <errno.h>
    """
    int UDP_GRO
    int EINPROGRESS

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

cdef extern from "<sys/socket.h>" nogil:
    int socket(int domain, int kind, int protocol)
    int bind(int fd, const sockaddr *address, unsigned int n)
    int connect(int fd, const sockaddr *address, unsigned int n)
    ssize_t recv(int fd, void *data, size_t n, int flags)
    ssize_t send(int fd, const void *data, size_t n, int flags)
    int getsockopt(int fd, int level, int name, void *value, unsigned int *n)
    enum:
        SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SO_ERROR, MSG_NOSIGNAL
