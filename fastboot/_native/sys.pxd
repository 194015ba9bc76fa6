# The system calls and structures that the .pxi files use. Declarations only.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <arpa/inet.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/errqueue.h>
    #include <linux/if_packet.h>
    #include <net/ethernet.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <netinet/udp.h>
    #include <poll.h>
    #include <pthread.h>
    #include <stdatomic.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/mman.h>
    #include <sys/sendfile.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef MADV_POPULATE_READ
    #define MADV_POPULATE_READ 22
    #endif
    #ifndef SYS_openat2
    #define SYS_openat2 437
    #endif

    struct fb_open_how { uint64_t flags, mode, resolve; };

    static inline int64_t fb_now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    static inline int64_t fb_nanoseconds(struct timespec t) {
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    """
    int64_t now_ns "fb_now"() nogil

    struct timespec:
        int64_t tv_sec
        long tv_nsec
    int64_t nanoseconds "fb_nanoseconds"(timespec) nogil

    # files
    ctypedef struct open_how "struct fb_open_how":
        uint64_t flags
        uint64_t mode
        uint64_t resolve
    ctypedef struct stat_t "struct stat":
        uint64_t st_dev
        uint64_t st_ino
        uint32_t st_mode
        uint64_t st_nlink
        int64_t st_size
        timespec st_mtim
        timespec st_ctim
    long syscall(long number, ...) nogil
    long SYS_openat2
    int fstat(int fd, stat_t *buf) nogil
    int c_open "open"(const char *path, int flags) nogil
    int c_close "close"(int fd) nogil
    int c_dup "dup"(int fd) nogil
    int fcntl(int fd, int cmd, ...) nogil
    ssize_t c_read "read"(int fd, void *buf, size_t n) nogil
    ssize_t c_write "write"(int fd, const void *buf, size_t n) nogil
    ssize_t pread(int fd, void *buf, size_t n, int64_t offset) nogil
    int memfd_create(const char *name, unsigned int flags) nogil
    int ftruncate(int fd, int64_t length) nogil
    int posix_fadvise(int fd, int64_t offset, int64_t length, int advice) nogil
    bint S_ISREG(uint32_t mode) nogil
    bint S_ISDIR(uint32_t mode) nogil
    enum:
        O_RDONLY, O_CLOEXEC, O_DIRECTORY, O_NONBLOCK, O_NOCTTY, F_DUPFD_CLOEXEC, MFD_CLOEXEC, POSIX_FADV_WILLNEED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, int64_t offset) nogil
    int munmap(void *addr, size_t length) nogil
    int madvise(void *addr, size_t length, int advice) nogil
    void *MAP_FAILED
    enum:
        PROT_READ, MAP_SHARED, MADV_WILLNEED, MADV_POPULATE_READ
    ssize_t sendfile(int to, int file, int64_t *offset, size_t n) nogil

    # errors
    int errno
    enum:
        EAGAIN, EINTR, EINVAL, EIO, ENOBUFS, EMSGSIZE, EFAULT, ENOSYS, EPERM, EACCES, EXDEV, ELOOP
        EHOSTUNREACH, ENETUNREACH, ECONNREFUSED, ENOPROTOOPT, EOPNOTSUPP, ENOMEM, ENETDOWN, ENODEV
        ECANCELED, ESTALE

    # sockets
    struct in_addr:
        uint32_t s_addr
    struct sockaddr:
        uint16_t sa_family
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_storage:
        uint16_t ss_family
    struct sockaddr_ll:
        uint16_t sll_family
        uint16_t sll_protocol
        int sll_ifindex
        uint8_t sll_halen
        uint8_t sll_addr[8]
    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst
        in_addr ipi_addr
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        uint32_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr *CMSG_FIRSTHDR(msghdr *msg) nogil
    cmsghdr *CMSG_NXTHDR(msghdr *msg, cmsghdr *cmsg) nogil
    void *CMSG_DATA(cmsghdr *cmsg) nogil
    size_t CMSG_LEN(size_t n) nogil
    size_t CMSG_SPACE(size_t n) nogil
    ssize_t preadv2(int fd, const iovec *iov, int count, int64_t offset, int flags) nogil
    int RWF_NOWAIT
    int recvmmsg(int fd, mmsghdr *vec, unsigned int n, int flags, timespec *timeout) nogil
    int sendmmsg(int fd, mmsghdr *vec, unsigned int n, int flags) nogil
    ssize_t sendmsg(int fd, const msghdr *msg, int flags) nogil
    ssize_t recvmsg(int fd, msghdr *msg, int flags) nogil
    struct sock_extended_err:
        uint8_t ee_origin
        uint8_t ee_type
        uint8_t ee_code
    int setsockopt(int fd, int level, int name, const void *value, uint32_t n) nogil
    enum:
        AF_INET, AF_PACKET, SOL_SOCKET, SO_RXQ_OVFL, SOL_UDP, IPPROTO_IP, IP_RECVERR,
        SO_EE_ORIGIN_ICMP, IP_PKTINFO, UDP_SEGMENT, IPPROTO_TCP, TCP_CORK, TCP_NOTSENT_LOWAT, SO_SNDBUF
        MSG_DONTWAIT, MSG_TRUNC, MSG_ERRQUEUE, ETH_P_IP, PACKET_BROADCAST
    int usleep(unsigned int microseconds) nogil
    uint16_t htons(uint16_t) nogil
    uint16_t ntohs(uint16_t) nogil
    uint32_t htonl(uint32_t) nogil
    uint32_t ntohl(uint32_t) nogil

    # readiness
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags) nogil
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event) nogil
    int epoll_wait(int epfd, epoll_event *events, int n, int timeout) nogil
    int eventfd(unsigned int initial, int flags) nogil
    enum:
        EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLONESHOT
        EFD_CLOEXEC, EFD_NONBLOCK
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long n, int timeout) nogil
    int POLLIN

    # threads
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes) nogil
    int pthread_mutex_lock(pthread_mutex_t *mutex) nogil
    int pthread_mutex_unlock(pthread_mutex_t *mutex) nogil
    int pthread_mutex_destroy(pthread_mutex_t *mutex) nogil

    # gcc's atomics on plain integers
    int64_t atomic_add "__atomic_add_fetch"(int64_t *p, int64_t v, int order) nogil
    int64_t atomic_load "__atomic_load_n"(int64_t *p, int order) nogil
    void atomic_store "__atomic_store_n"(int64_t *p, int64_t v, int order) nogil
    enum:
        RELAXED "__ATOMIC_RELAXED", ACQUIRE "__ATOMIC_ACQUIRE", RELEASE "__ATOMIC_RELEASE", SEQ "__ATOMIC_SEQ_CST"
