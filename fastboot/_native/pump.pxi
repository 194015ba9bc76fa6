# Pump: one thread that sends files over TCP connections by sendfile, a slice each in turn, and one that reads from
# disk what is not in memory, so that a cold file holds up nobody but its own client.
#
# Places of jobs are Python's to give (under the GIL); their contents belong to the thread in run(). A place whose
# job ended is given again only when Python has taken the end.

cdef class Pump:
    cdef job_t *jobs
    cdef int32_t *free           # Python's
    cdef int32_t free_count
    cdef uint32_t capacity
    cdef int32_t live
    cdef int epoll
    cdef Crossing commands
    cdef Crossing told
    cdef Crossing cold
    cdef int nowhere             # /dev/null
    cdef bint halted
    cdef bint ran

    def __cinit__(self, uint32_t capacity=16384):
        cdef uint32_t i
        cdef epoll_event event
        self.epoll = self.nowhere = -1
        if not 1 <= capacity <= 1048576:
            raise ValueError("capacity is 1 to 1048576")
        self.capacity = capacity
        self.jobs = <job_t *>memory_for(capacity, sizeof(job_t))
        self.free = <int32_t *>memory_for(capacity, sizeof(int32_t))
        for i in range(capacity):
            self.jobs[i].fd = self.jobs[i].own = -1
            self.free[i] = capacity - 1 - i
        self.free_count = capacity
        self.commands = Crossing(sizeof(job_command_t), 3 * capacity + 8)
        self.told = Crossing(sizeof(job_end_t), capacity)
        self.cold = Crossing(sizeof(job_read_t), capacity + 1)
        self.nowhere = os.open(os.devnull, os.O_WRONLY)
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        event.events = EPOLLIN
        event.data.u64 = capacity
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.commands.fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        cdef uint32_t i
        cdef job_command_t command
        if self.commands is not None:
            while self.commands.take(&command):
                if command.kind == JOB_START:
                    c_close(command.fd)
                    file_drop(command.file)
        if self.jobs != NULL:
            for i in range(self.capacity):
                if self.jobs[i].fd >= 0:
                    c_close(self.jobs[i].fd)
                    file_drop(self.jobs[i].file)
                if self.jobs[i].own >= 0:
                    c_close(self.jobs[i].own)
        free(self.jobs)
        free(self.free)
        if self.epoll >= 0:
            c_close(self.epoll)
        if self.nowhere >= 0:
            c_close(self.nowhere)

    # --- Python's side

    def fileno(self):
        return self.told.fd

    def send(self, int fd, Source source not None, int64_t offset, int64_t size):
        cdef job_command_t command
        if offset < 0 or size < 0 or offset > source.size or size > source.size - offset:
            raise ValueError(f"{offset}+{size} is not within {source!r}")
        if self.free_count == 0:
            raise BlockingIOError(EAGAIN, "as many transfers as the pump takes are on their way")
        memset(&command, 0, sizeof(command))
        command.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3)
        if command.fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.free_count -= 1
        command.kind, command.job = JOB_START, self.free[self.free_count]
        command.file = source.file
        command.offset, command.end = source.offset + offset, source.offset + offset + size
        atomic_store(&self.jobs[command.job].sent, 0, RELAXED)
        file_hold(command.file)
        self.commands.put(&command)                    # room for every place's three commands was made
        return command.job

    def sent(self, int32_t job):
        self.known(job)
        return atomic_load(&self.jobs[job].sent, RELAXED)

    def cancel(self, int32_t job, int error):
        cdef job_command_t command
        self.known(job)
        memset(&command, 0, sizeof(command))
        command.kind, command.job, command.error = JOB_CANCEL, job, error
        self.commands.put(&command)

    cdef int known(self, int32_t job) except -1:
        if not 0 <= job < <int32_t>self.capacity:
            raise IndexError(job)
        return 0

    def halt(self):
        cdef job_command_t command
        memset(&command, 0, sizeof(command))
        command.kind = JOB_HALT
        self.commands.put(&command)

    def ends(self):
        cdef job_end_t end
        cdef list out = []
        self.told.quiet()
        while self.told.take(&end):
            self.free[self.free_count] = end.job
            self.free_count += 1
            out.append((end.job, end.error, end.sent))
        return out

    # --- the sending thread

    def run(self):
        if self.ran:
            raise RuntimeError("a Pump runs once")
        self.ran = True
        with nogil:
            self._loop()

    cdef void _loop(self) noexcept nogil:
        # Level-triggered with a maximum: the kernel moves who was told of to the end of its list, so all have turns,
        # and tells of nobody whose socket is more than half full.
        cdef epoll_event happened[PUMP_TURN]
        cdef job_read_t stop
        cdef int n, i
        while not self.halted or self.live:
            n = epoll_wait(self.epoll, happened, PUMP_TURN, -1)
            for i in range(n):
                if happened[i].data.u64 == self.capacity:
                    self._take_commands()
                elif self.jobs[happened[i].data.u64].fd >= 0:
                    self._slice(<int32_t>happened[i].data.u64)
        memset(&stop, 0, sizeof(stop))
        stop.job = -1
        self.cold.put(&stop)

    cdef void _take_commands(self) noexcept nogil:
        cdef job_command_t command
        cdef uint32_t i
        self.commands.quiet()
        while self.commands.take(&command):
            if command.kind == JOB_START:
                self._start(&command)
            elif command.kind == JOB_WARM:
                self._resume(&command)
            elif command.kind == JOB_CANCEL:
                self._stop(command.job, command.error)
            else:
                self.halted = True
                for i in range(self.capacity):
                    self._stop(i, ECANCELED)

    cdef void _start(self, job_command_t *command) noexcept nogil:
        cdef job_t *j = &self.jobs[command.job]
        j.fd, j.file, j.offset, j.end = command.fd, command.file, command.offset, command.end
        j.warm, j.error, j.reading = j.offset, ECANCELED if self.halted else 0, False
        self.live += 1
        cork(j.fd, True)
        self._watch(command.job, EPOLL_CTL_ADD)
        if j.error:
            self._end(command.job)

    cdef void _watch(self, int32_t job, int how) noexcept nogil:
        cdef job_t *j = &self.jobs[job]
        cdef epoll_event event
        event.events, event.data.u64 = EPOLLOUT, job
        if epoll_ctl(self.epoll, how, j.fd, &event) < 0 and j.error == 0:
            j.error = errno

    cdef void _stop(self, int32_t job, int error) noexcept nogil:
        # One that the reader has ends when that is done with it.
        cdef job_t *j = &self.jobs[job]
        if j.fd >= 0 and j.error == 0:
            j.error = error
            if not j.reading:
                self._end(job)

    cdef void _resume(self, job_command_t *command) noexcept nogil:
        cdef job_t *j = &self.jobs[command.job]
        j.reading, j.own = False, command.fd
        if command.error:
            j.error = command.error
        self._watch(command.job, EPOLL_CTL_ADD)
        if j.error:
            self._end(command.job)

    cdef void _slice(self, int32_t job) noexcept nogil:
        cdef job_t *j = &self.jobs[job]
        cdef int64_t size = min(<int64_t>PUMP_SLICE, j.end - j.offset)
        cdef int64_t at = j.offset
        cdef ssize_t n
        if j.offset + size == j.end and not file_unchanged(j.file):
            j.error = ESTALE                           # the last part of a file that changed is never given away
        elif size and not self._is_warm(j):
            self._read(job)
            return
        elif size:
            n = sendfile(j.fd, j.file.fd if j.own < 0 else j.own, &at, size)
            if n > 0:
                j.offset += n
                atomic_add(&j.sent, n, RELAXED)
            elif n == 0:
                j.error = ESTALE                       # it became shorter
            elif errno != EAGAIN and errno != EINTR:
                j.error = errno
        if j.error or j.offset == j.end:
            self._end(job)

    cdef bint _is_warm(self, job_t *j) noexcept nogil:
        # Whether the next slice is in memory; it is looked for at both ends only, and where it was left in part not
        # again.
        cdef int64_t size = min(<int64_t>PUMP_SLICE, j.end - j.offset)
        if j.offset < j.warm:
            return True
        if is_cold(j.file.fd, j.offset) or is_cold(j.file.fd, j.offset + size - 1):
            return False
        j.warm = j.offset + size
        return True

    cdef void _read(self, int32_t job) noexcept nogil:
        cdef job_t *j = &self.jobs[job]
        cdef job_read_t ask
        ask.job, ask.fd, ask.own, ask.offset = job, j.file.fd, j.own, j.offset
        ask.size = min(<int64_t>PUMP_SLICE, j.end - j.offset)
        j.reading = True
        j.warm = j.offset + ask.size
        self._watch(job, EPOLL_CTL_DEL)                # a connection in error would be told of all the time
        self.cold.put(&ask)

    cdef void _end(self, int32_t job) noexcept nogil:
        cdef job_t *j = &self.jobs[job]
        cdef job_end_t end
        end.job, end.error, end.sent = job, j.error, atomic_load(&j.sent, RELAXED)
        if not j.reading:
            self._watch(job, EPOLL_CTL_DEL)
        cork(j.fd, False)
        c_close(j.fd)
        if j.own >= 0:
            c_close(j.own)
        file_drop(j.file)
        j.fd, j.own, j.file = -1, -1, NULL
        self.live -= 1
        self.told.put(&end)

    # --- the reading thread

    def read(self):
        with nogil:
            self._read_loop()

    cdef void _read_loop(self) noexcept nogil:
        cdef job_read_t ask
        cdef job_command_t answer
        cdef pollfd woken
        woken.fd, woken.events = self.cold.fd, POLLIN
        memset(&answer, 0, sizeof(answer))
        answer.kind = JOB_WARM
        while True:
            poll(&woken, 1, -1)
            self.cold.quiet()
            while self.cold.take(&ask):
                if ask.job < 0:
                    return
                answer.job, answer.fd = ask.job, ask.own if ask.own >= 0 else reopened(ask.fd)
                answer.error = self._read_through(ask.fd if answer.fd < 0 else answer.fd, ask.offset, ask.size)
                self.commands.put(&answer)

    cdef int _read_through(self, int fd, int64_t offset, int64_t size) noexcept nogil:
        # Into memory and no further. The kernel's own read-ahead takes large folios for what is read in order: 1 GB
        # costs 0.03 s of CPU, and 0.02 s to send again; by POSIX_FADV_WILLNEED, page by page, 0.2 s and 0.06 s.
        cdef int64_t at = offset
        cdef ssize_t n = 1
        while n > 0 and at < offset + size:
            n = sendfile(self.nowhere, fd, &at, offset + size - at)
        return errno if n < 0 else 0


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
