# Pump: threads that send files over TCP connections by sendfile, a slice each in turn, and one that reads from disk
# what is not in memory, so that a cold file holds up nobody but its own client.
#
# All senders wait on one epoll, so there is one order of turns, however many they are: the kernel appends who asks for
# the next to its list, and gives it, EPOLLONESHOT, to one sender. A job that is `busy` is one thread's, a sender's or
# the reader's, with all that is in it; whoever wants it ended meanwhile leaves the error, under the job's lock, and it
# ends when it is given back. Places of jobs are Python's to give (under the GIL), again only when it has taken the end.

cdef class Pump:
    cdef job_t *jobs
    cdef pthread_mutex_t *locks  # of each job's fd, error and busy
    cdef int32_t *free           # Python's
    cdef int32_t free_count
    cdef uint32_t capacity
    cdef int64_t live            # atomic
    cdef int64_t halted          # atomic
    cdef int64_t unsent          # atomic: octets that the kernel is to hold for each now
    cdef int64_t budget          # of them for all
    cdef int64_t least           # and for one
    cdef int64_t most
    cdef bint buffers            # SO_SNDBUF goes as far as most
    cdef int64_t begun           # atomic: how many were
    cdef int64_t senders         # atomic: how many there were
    cdef int epoll
    cdef int over                # an eventfd: nothing comes any more
    cdef Crossing told
    cdef Crossing cold
    cdef int nowhere             # /dev/null

    def __cinit__(
        self, uint32_t capacity=16384, int64_t unsent=1 << 28, int64_t least=1 << 18, int64_t most=1 << 21,
        bint buffers=False,
    ):
        cdef uint32_t i
        self.epoll = self.over = self.nowhere = -1
        if not 1 <= capacity <= 1048576:
            raise ValueError("capacity is 1 to 1048576")
        self.capacity, self.budget, self.least, self.most = capacity, unsent, least, most
        self.buffers = buffers
        self.jobs = <job_t *>memory_for(capacity, sizeof(job_t))
        self.locks = <pthread_mutex_t *>memory_for(capacity, sizeof(pthread_mutex_t))
        self.free = <int32_t *>memory_for(capacity, sizeof(int32_t))
        for i in range(capacity):
            self.jobs[i].fd = self.jobs[i].own = -1
            pthread_mutex_init(&self.locks[i], NULL)
            self.free[i] = capacity - 1 - i
        self.free_count = capacity
        self.told = Crossing(sizeof(job_end_t), capacity)
        self.cold = Crossing(sizeof(int32_t), capacity + 2)
        self.nowhere = os.open(os.devnull, os.O_WRONLY)
        self.over = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0 or watch(self.epoll, EPOLL_CTL_ADD, self.over, EPOLLIN, capacity) < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        cdef uint32_t i
        if self.free != NULL:
            for i in range(self.capacity):
                if self.jobs[i].fd >= 0:
                    self._let_go(&self.jobs[i])
                pthread_mutex_destroy(&self.locks[i])
        free(self.jobs)
        free(self.locks)
        free(self.free)
        if self.epoll >= 0:
            c_close(self.epoll)
        if self.over >= 0:
            c_close(self.over)
        if self.nowhere >= 0:
            c_close(self.nowhere)

    # --- Python's side

    def fileno(self):
        return self.told.fd

    def send(self, int fd, Source source not None, int64_t offset, int64_t size):
        cdef job_t *j
        cdef int32_t job
        cdef int own, failed = 0
        if offset < 0 or size < 0 or offset > source.size or size > source.size - offset:
            raise ValueError(f"{offset}+{size} is not within {source!r}")
        if self.free_count == 0:
            raise BlockingIOError(EAGAIN, "as many transfers as the pump takes are on their way")
        if self.halted:
            raise OSError(ECANCELED, os.strerror(ECANCELED))
        own = fcntl(fd, F_DUPFD_CLOEXEC, 3)
        if own < 0:
            raise OSError(errno, os.strerror(errno))
        job = self.free[self.free_count - 1]
        j = &self.jobs[job]
        cork(own, True)
        # A sender that just heard of who had this place before takes the new job for it: an early turn, no harm.
        pthread_mutex_lock(&self.locks[job])
        j.fd, j.file, j.error, j.busy = own, source.file, 0, False
        j.offset, j.end = source.offset + offset, source.offset + offset + size
        j.warm, j.unsent = j.offset, 0
        atomic_store(&j.sent, 0, RELAXED)
        file_hold(j.file)
        if watch(self.epoll, EPOLL_CTL_ADD, own, EPOLLOUT | EPOLLONESHOT, job) < 0:
            failed = errno
            self._let_go(j)
        else:
            self._count(1)
            atomic_add(&self.begun, 1, RELAXED)
        pthread_mutex_unlock(&self.locks[job])
        if failed:
            raise OSError(failed, os.strerror(failed))
        self.free_count -= 1
        return job

    def sent(self, int32_t job):
        self.known(job)
        return atomic_load(&self.jobs[job].sent, RELAXED)

    def cancel(self, int32_t job, int error):
        self.known(job)
        self._stop(job, error)

    cdef int known(self, int32_t job) except -1:
        if not 0 <= job < <int32_t>self.capacity:
            raise IndexError(job)
        return 0

    def halt(self):
        cdef uint32_t i
        atomic_store(&self.halted, 1, SEQ)
        for i in range(self.capacity):
            self._stop(i, ECANCELED)
        self._count(0)

    def ends(self):
        cdef job_end_t end
        cdef list out = []
        self.told.quiet()
        while self.told.take(&end):
            self.free[self.free_count] = end.job
            self.free_count += 1
            out.append((end.job, end.error, end.sent))
        return out

    # --- whose a job is

    cdef bint _take(self, int32_t job) noexcept nogil:
        cdef job_t *j = &self.jobs[job]
        cdef bint free
        pthread_mutex_lock(&self.locks[job])
        free = j.fd >= 0 and not j.busy                # else one heard of who had the place before
        j.busy = j.busy or free
        pthread_mutex_unlock(&self.locks[job])
        return free

    cdef void _give_back(self, int32_t job, int error, bint done) noexcept nogil:
        # What one made out of a turn; of two errors the first counts.
        cdef job_t *j = &self.jobs[job]
        pthread_mutex_lock(&self.locks[job])
        j.busy = False
        if j.error == 0:
            j.error = error
        if j.error == 0 and not done and watch(self.epoll, EPOLL_CTL_MOD, j.fd, EPOLLOUT | EPOLLONESHOT, job) < 0:
            j.error = errno
        if j.error or done:
            self._end(job)
        pthread_mutex_unlock(&self.locks[job])

    cdef void _stop(self, int32_t job, int error) noexcept nogil:
        # One that is in other hands ends when it is given back.
        cdef job_t *j = &self.jobs[job]
        pthread_mutex_lock(&self.locks[job])
        if j.fd >= 0 and j.error == 0:
            j.error = error
            if not j.busy:
                self._end(job)
        pthread_mutex_unlock(&self.locks[job])

    cdef void _end(self, int32_t job) noexcept nogil:
        cdef job_t *j = &self.jobs[job]
        cdef job_end_t end
        end.job, end.error, end.sent = job, j.error, atomic_load(&j.sent, RELAXED)
        watch(self.epoll, EPOLL_CTL_DEL, j.fd, 0, job)  # the connection may have other descriptors
        cork(j.fd, False)
        self._let_go(j)
        self.told.put(&end)
        self._count(-1)

    cdef void _let_go(self, job_t *j) noexcept nogil:
        c_close(j.fd)
        if j.own >= 0:
            c_close(j.own)
        file_drop(j.file)
        j.fd, j.own, j.file = -1, -1, NULL

    cdef void _count(self, int change) noexcept nogil:
        # In powers of two, for each change of it costs every connection a system call.
        cdef int64_t live = atomic_add(&self.live, change, SEQ)
        cdef int64_t unsent = self.most
        while unsent > self.least and unsent * live > self.budget:
            unsent >>= 1
        atomic_store(&self.unsent, unsent, RELAXED)
        if live == 0 and atomic_load(&self.halted, SEQ):
            self._finish()

    cdef void _finish(self) noexcept nogil:
        cdef int32_t nobody = -1
        cdef uint64_t one = 1
        c_write(self.over, &one, sizeof(one))
        self.cold.put(&nobody)

    # --- the sending threads

    def run(self):
        with nogil:
            self._loop()

    cdef void _loop(self) noexcept nogil:
        # The kernel tells of nobody whose socket is more than two thirds full.
        cdef epoll_event happened[PUMP_TURN]
        cdef int n, i
        cdef bint over = False
        cdef bint first = atomic_add(&self.senders, 1, SEQ) == 1
        cdef int64_t seen = 0
        while not over:
            if not first:
                self._let_begin(&seen)
            n = epoll_wait(self.epoll, happened, PUMP_TURN, -1)
            for i in range(n):
                if happened[i].data.u64 == self.capacity:
                    over = True
                elif self._take(<int32_t>happened[i].data.u64):
                    self._turn(<int32_t>happened[i].data.u64)

    cdef void _let_begin(self, int64_t *seen) noexcept nogil:
        # While many ask at once only the first sender goes on: the others would take the loop's time, and those who
        # were early would have their files before the last have begun.
        cdef int64_t begun = atomic_load(&self.begun, RELAXED)
        while begun - seen[0] >= PUMP_BURST and not atomic_load(&self.halted, RELAXED):
            seen[0] = begun
            usleep(PUMP_HOLD)
            begun = atomic_load(&self.begun, RELAXED)
        seen[0] = begun

    cdef void _turn(self, int32_t job) noexcept nogil:
        cdef job_t *j = &self.jobs[job]
        cdef int64_t until, size, at
        cdef ssize_t n
        cdef int error = 0
        cdef bint more = True
        self._limit_unsent(j)
        until = min(j.end, j.offset + max(<int64_t>PUMP_SLICE, <int64_t>j.unsent >> 1))
        while True:
            size, at = min(<int64_t>PUMP_SLICE, until - j.offset), j.offset
            if j.offset + size == j.end and not file_unchanged(j.file):
                error = ESTALE                         # the last part of a file that changed is never given away
            elif size and not self._is_warm(j, size):
                j.warm = j.offset + size               # whatever comes of it
                self.cold.put(&job)
                return
            elif size:
                n = sendfile(j.fd, readable(j), &at, size)
                more = n == size
                if n > 0:
                    j.offset += n
                    atomic_add(&j.sent, n, RELAXED)
                elif n == 0:
                    error = ESTALE                     # it became shorter
                elif errno != EAGAIN and errno != EINTR:
                    error = errno
            if error or not more or j.offset == until:
                break
        self._give_back(job, error, j.offset == j.end)

    cdef void _limit_unsent(self, job_t *j) noexcept nogil:
        # At each turn, so that who was early has no more than the others when these have come. A buffer that the
        # kernel sizes follows the congestion window: all in it leaves at once, packet by packet, in this thread. Of
        # a larger one most leaves as it is acknowledged, and turns are longer.
        cdef int32_t unsent = <int32_t>atomic_load(&self.unsent, RELAXED)
        cdef int32_t half = unsent >> 1                # the kernel doubles it
        if j.unsent == unsent:
            return
        j.unsent = unsent
        if self.buffers:
            setsockopt(j.fd, SOL_SOCKET, SO_SNDBUF, &half, sizeof(half))
        else:
            setsockopt(j.fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent))

    cdef bint _is_warm(self, job_t *j, int64_t size) noexcept nogil:
        # Whether the next slice is in memory; it is looked for at both ends only, and where it was left in part not
        # again.
        if j.offset < j.warm:
            return True
        if is_cold(j.file.fd, j.offset) or is_cold(j.file.fd, j.offset + size - 1):
            return False
        j.warm = j.offset + size
        return True

    # --- the reading thread

    def read(self):
        with nogil:
            self._read_loop()

    cdef void _read_loop(self) noexcept nogil:
        cdef int32_t job
        cdef pollfd woken
        woken.fd, woken.events = self.cold.fd, POLLIN
        while True:
            poll(&woken, 1, -1)
            self.cold.quiet()
            while self.cold.take(&job):
                if job < 0:
                    return
                self._give_back(job, self._read_through(&self.jobs[job]), False)

    cdef int _read_through(self, job_t *j) noexcept nogil:
        # Into memory and no further. The kernel's own read-ahead takes large folios for what is read in order: 1 GB
        # costs 0.03 s of CPU, and 0.02 s to send again; by POSIX_FADV_WILLNEED, page by page, 0.2 s and 0.06 s.
        cdef int64_t at = j.offset
        cdef ssize_t n = 1
        cdef int file
        if j.own < 0:
            j.own = reopened(j.file.fd)
        file = readable(j)
        while n > 0 and at < j.warm:
            n = sendfile(self.nowhere, file, &at, j.warm - at)
        return errno if n < 0 else 0


cdef int readable(job_t *j) noexcept nogil:
    return j.file.fd if j.own < 0 else j.own


cdef int watch(int epoll, int how, int fd, uint32_t events, uint64_t number) noexcept nogil:
    cdef epoll_event event
    event.events, event.data.u64 = events, number
    return epoll_ctl(epoll, how, fd, &event)


cdef void cork(int fd, int on) noexcept nogil:
    # Sendfile hands TCP 64 KiB at a time, of which 376 octets do not fit into a packet of 45 segments and leave by
    # themselves: 38 KiB a packet and 14,000 acknowledgements for 1 GB, corked 49 KiB and 9,000.
    setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof(on))


cdef int reopened(int fd) noexcept nogil:
    # -1: it can not be opened again, where there is no /proc, or its permissions changed.
    cdef char path[32]
    snprintf(path, sizeof(path), b"/proc/self/fd/%d", fd)
    return c_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)


cdef bint is_cold(int fd, int64_t offset) noexcept nogil:
    # Not every file system can tell; what can not counts as in memory.
    cdef uint8_t octet
    cdef iovec one
    one.iov_base, one.iov_len = &octet, 1
    return preadv2(fd, &one, 1, offset, RWF_NOWAIT) < 0 and errno == EAGAIN
