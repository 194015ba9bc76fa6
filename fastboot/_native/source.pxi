# Source: a byte range of one open file, counted. Python, engine and pump each hold a count of the file;
# the last one closes it, so a recycled descriptor can never send another file.

cdef file_t *file_new(int fd) noexcept nogil:
    # Takes over the descriptor. NULL with errno set, descriptor untouched, where it is no regular file.
    cdef file_t *f = <file_t *>calloc(1, sizeof(file_t))
    if f == NULL:
        return NULL
    if fstat(fd, &f.opened) < 0:
        free(f)
        return NULL
    f.count = 1
    f.fd = fd
    f.size = f.opened.st_size
    return f

cdef void file_hold(file_t *f) noexcept nogil:
    atomic_add(&f.count, 1, RELAXED)

cdef void file_drop(file_t *f) noexcept nogil:
    if atomic_add(&f.count, -1, SEQ) == 0:
        if f.map != NULL:
            munmap(f.map, f.size)
        c_close(f.fd)
        free(f)

cdef bint file_unchanged(file_t *f) noexcept nogil:
    # A file written in place must not be sent as a mix: its change time tells (it can not be set back).
    # Losing or gaining a name moves that time too: a file replaced by rename is the same file still.
    cdef stat_t s
    return (fstat(f.fd, &s) == 0 and s.st_size == f.opened.st_size
            and (nanoseconds(s.st_ctim) == nanoseconds(f.opened.st_ctim) or s.st_nlink != f.opened.st_nlink)
            and nanoseconds(s.st_mtim) == nanoseconds(f.opened.st_mtim))


cdef int open_beneath(int dirfd, str path, uint64_t flags) except -1:
    cdef open_how how
    cdef bytes name = os.fsencode(path)
    cdef const char *c_name = name
    cdef int fd, error, tries = 0
    if b"\0" in name:
        raise ValueError("a path can not hold a NUL")
    how.flags = flags
    how.mode = 0
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
    with nogil:
        fd = syscall(SYS_openat2, dirfd, c_name, &how, sizeof(how))
        # EAGAIN: a rename raced the walk.
        while fd < 0 and errno == EAGAIN and tries < 64:
            tries += 1
            fd = syscall(SYS_openat2, dirfd, c_name, &how, sizeof(how))
        error = errno
    if fd < 0:
        raise OSError(error, os.strerror(error), path)
    return fd


def open_directory(int dirfd, str path not None):
    return open_beneath(dirfd, path, O_RDONLY | O_CLOEXEC | O_DIRECTORY)


cdef class Source:
    cdef file_t *file
    cdef readonly int64_t offset
    cdef readonly int64_t size
    cdef readonly double mtime
    cdef readonly str name
    cdef object __weakref__

    def __init__(self, *args, **kwargs):
        raise TypeError("a Source is made by Source.open, Source.of_bytes or Source.slice")

    def __dealloc__(self):
        if self.file != NULL:
            file_drop(self.file)

    def __repr__(self):
        return f"<Source {self.name!r} {self.offset}+{self.size}>"

    @staticmethod
    def open(int dirfd, str path not None):
        # O_NONBLOCK: a FIFO in the tree must not stop the server.
        return source_of(open_beneath(dirfd, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), path)

    @staticmethod
    def of_bytes(str name not None, bytes data not None):
        cdef int fd = memfd_create("fastboot", MFD_CLOEXEC)
        if fd < 0:
            raise OSError(errno, os.strerror(errno), name)
        cdef const char *p = data
        cdef ssize_t left = len(data), n
        while left > 0:
            n = c_write(fd, p, left)
            if n < 0:
                error = errno
                c_close(fd)
                raise OSError(error, os.strerror(error), name)
            p += n
            left -= n
        cdef Source source = source_of(fd, name)
        source.file.resident = True
        return source

    def slice(self, int64_t offset, int64_t size, str name=None, mtime=None):
        if offset < 0 or size < 0 or offset > self.size or size > self.size - offset:
            raise ValueError(f"{offset}+{size} is not within {self!r}")
        cdef Source part = Source.__new__(Source)
        file_hold(self.file)
        part.file = self.file
        part.offset = self.offset + offset
        part.size = size
        part.name = name or self.name
        part.mtime = self.mtime if mtime is None else mtime
        return part

    @property
    def identity(self):
        cdef stat_t *s = &self.file.opened
        return s.st_dev, s.st_ino, s.st_size, nanoseconds(s.st_mtim), nanoseconds(s.st_ctim)

    def fileno(self):
        return self.file.fd

    def unchanged(self):
        return file_unchanged(self.file)

    cdef int ensure_map(self) except -1:
        cdef void *map
        if self.file.map == NULL and self.file.size > 0:
            map = mmap(NULL, self.file.size, PROT_READ, MAP_SHARED, self.file.fd, 0)
            if map == MAP_FAILED:
                raise OSError(errno, os.strerror(errno), self.name)
            self.file.map = <uint8_t *>map
        return 0

    def netascii(self):
        # RFC 764: LF travels as CR LF, CR as CR NUL.
        return Source.of_bytes(self.name, self.read().replace(b"\r", b"\r\0").replace(b"\n", b"\r\n"))

    def at_hand(self):
        cdef bytes data = PyBytes_FromStringAndSize(NULL, self.size)
        return data if self.take_at_hand(<char *>data) else None

    cdef bint take_at_hand(self, char *out) noexcept:
        cdef iovec whole
        cdef int flags = 0 if self.file.resident else RWF_NOWAIT
        whole.iov_base, whole.iov_len = out, self.size
        return self.size == 0 or preadv2(self.file.fd, &whole, 1, self.offset, flags) == self.size

    def read(self):
        cdef bytes data = PyBytes_FromStringAndSize(NULL, self.size)
        cdef char *p = data
        cdef int64_t done = 0
        cdef ssize_t n
        with nogil:
            while done < self.size:
                n = pread(self.file.fd, p + done, self.size - done, self.offset + done)
                if n <= 0:
                    break
                done += n
        if done < self.size:
            raise OSError(EIO, "file became shorter", self.name)
        return data


cdef Source source_of(int fd, str name):
    cdef file_t *f = file_new(fd)
    if f == NULL:
        error = errno
        c_close(fd)
        raise OSError(error, os.strerror(error), name)
    cdef Source source = Source.__new__(Source)
    source.file = f
    source.size = f.size
    source.mtime = nanoseconds(f.opened.st_mtim) / 1e9
    source.name = name
    if not S_ISREG(f.opened.st_mode):
        if S_ISDIR(f.opened.st_mode):
            raise IsADirectoryError(name)
        raise SpecialFileError(name)
    return source


# What HTTP does for each of thousands of small files, beside deciding.

def http_target(bytes request not None):
    cdef const char *p = request
    cdef size_t n = http_plain(<const uint8_t *>p, len(request))
    return PyUnicode_DecodeASCII(p + 4, n, NULL) if n else None


def http_answer(Source source not None, bytes media_type not None, int64_t now):
    cdef file_t *f = source.file
    cdef const char *kind = media_type
    cdef char head[HTTP_HEAD]
    cdef int64_t size = source.size, changed = nanoseconds(f.opened.st_ctim)
    cdef int n
    cdef bytes answer
    if not (0 <= source.mtime <= HTTP_LAST and changed >= 0 and len(media_type) < HTTP_TYPE):
        return None
    n = http_head(head, f.opened.st_ino, changed, source.offset, size, <int64_t>source.mtime, kind, now)
    answer = PyBytes_FromStringAndSize(NULL, n + size)
    memcpy(<char *>answer, head, n)
    if not source.take_at_hand(<char *>answer + n) or not file_unchanged(f):
        return None
    return answer
