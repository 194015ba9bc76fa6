# Reader: what transfers will send next is in memory before they do. The engine only looks; threads beside it read, so
# that a slow disk holds up nobody but who waits for it, and a client that asks and goes costs one piece of the file.

@cython.internal
cdef class Reader(Transfers):
    cdef Crossing commands       # answers to the engine's thread: Python's, and those of read()
    cdef Crossing cold           # pieces that are not in memory
    cdef bint halted

    def read(self):
        with nogil:
            self._read_loop()

    cdef int64_t _readable(self, slot_t *s, int64_t due) noexcept nogil:
        # How many of the blocks that are due lie in memory.
        cdef int64_t end = min((s.x.next - 1 + due) * s.x.blksize, s.x.size)
        self._look_ahead(s, end)
        if s.known >= end:
            return due
        return max(s.known // s.x.blksize - (s.x.next - 1), <int64_t>0)

    cdef void _look_ahead(self, slot_t *s, int64_t end) noexcept nogil:
        # Have what lies before `end`, and AHEAD more, be in memory. Each step is looked for at its ends only.
        cdef int64_t wanted = min(end + AHEAD, s.x.size)
        cdef int64_t step
        while s.known < wanted and not s.reading:
            step = min(s.known + STEP, s.x.size)
            if in_memory(s.file.fd, s.offset + s.known) and in_memory(s.file.fd, s.offset + step - 1):
                s.known = step
            else:
                self._ask_for(s)
                return

    cdef void _ask_for(self, slot_t *s) noexcept nogil:
        cdef piece_t piece
        piece.id = s.id
        piece.file = s.file
        piece.known = min(s.known + PIECE, s.x.size)
        piece.offset = s.offset + s.known
        piece.size = piece.known - s.known
        file_hold(s.file)
        s.reading = self.cold.put(&piece)              # without room the slot's timer asks again
        if s.reading:
            self.counts.cold += 1
        else:
            file_drop(s.file)

    # --- the threads that read

    cdef void _read_loop(self) noexcept nogil:
        cdef pollfd woken
        cdef piece_t piece
        woken.fd, woken.events = self.cold.fd, POLLIN
        while not self.halted:
            poll(&woken, 1, -1)
            # Wakes all threads until there is nothing left.
            while not self.halted and self.cold.take(&piece):
                self._read_piece(&piece)
            if not self.halted:
                self.cold.quiet()
            while not self.halted and self.cold.take(&piece):
                self._read_piece(&piece)

    cdef void _read_piece(self, piece_t *piece) noexcept nogil:
        # An error shows when the engine sends from there (EFAULT).
        cdef command_t command
        memset(&command, 0, sizeof(command))
        command.kind = COMMAND_READ
        command.id = piece.id
        command.size = piece.known
        file_populate(piece.file, piece.offset, piece.size)
        file_drop(piece.file)
        while not self.commands.put(&command) and not self.halted:
            poll(NULL, 0, 1)

    cdef void _wake_readers(self) noexcept nogil:
        self.cold.wake()


cdef bint in_memory(int fd, int64_t offset) noexcept nogil:
    # A file system that can not tell (EOPNOTSUPP: NFS) has its files read as if they were not.
    cdef uint8_t octet
    cdef iovec one
    one.iov_base, one.iov_len = &octet, 1
    return preadv2(fd, &one, 1, offset, RWF_NOWAIT) >= 0

cdef void file_populate(file_t *f, int64_t offset, int64_t size) noexcept nogil:
    # Read from disk what is not in memory, and wait for it.
    cdef uint8_t scratch[65536]
    cdef int64_t start = offset & ~<int64_t>4095
    cdef int64_t end = offset + size
    posix_fadvise(f.fd, start, end - start, POSIX_FADV_WILLNEED)
    if madvise(f.map + start, end - start, MADV_POPULATE_READ) == 0 or errno != EINVAL:
        return
    while start < end and pread(f.fd, scratch, sizeof(scratch), start) > 0:        # before Linux 5.14
        start += sizeof(scratch)
