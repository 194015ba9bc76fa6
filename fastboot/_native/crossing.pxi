# Crossing: how the loop and a native thread talk, in one direction: a bounded queue of equal records behind a mutex,
# and an eventfd that is readable while the queue holds something new. Never waits.

cdef class Crossing:
    cdef queue_t queue
    cdef pthread_mutex_t mutex
    cdef int fd

    def __cinit__(self, uint32_t record, uint32_t capacity):
        self.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.queue.record = record
        self.queue.capacity = capacity
        self.queue.records = <uint8_t *>calloc(capacity, record)
        if self.queue.records == NULL:
            raise MemoryError
        pthread_mutex_init(&self.mutex, NULL)

    def __dealloc__(self):
        free(self.queue.records)
        if self.fd >= 0:
            c_close(self.fd)

    cdef bint put(self, const void *record) noexcept nogil:
        # False: full.
        cdef bint first, fits
        pthread_mutex_lock(&self.mutex)
        first = self.queue.count == 0
        fits = queue_push(&self.queue, record)
        pthread_mutex_unlock(&self.mutex)
        if first:
            self.wake()
        return fits

    cdef bint add(self, const void *record) noexcept nogil:
        # Put without waking: whoever adds wakes soon, once for many.
        cdef bint fits
        pthread_mutex_lock(&self.mutex)
        fits = queue_push(&self.queue, record)
        pthread_mutex_unlock(&self.mutex)
        return fits

    cdef bint is_empty(self) noexcept nogil:
        cdef bint empty
        pthread_mutex_lock(&self.mutex)
        empty = self.queue.count == 0
        pthread_mutex_unlock(&self.mutex)
        return empty

    cdef void wake(self) noexcept nogil:
        cdef uint64_t one = 1
        c_write(self.fd, &one, sizeof(one))

    cdef bint take(self, void *record) noexcept nogil:
        cdef bint found
        pthread_mutex_lock(&self.mutex)
        found = queue_pop(&self.queue, record)
        pthread_mutex_unlock(&self.mutex)
        return found

    cdef void quiet(self) noexcept nogil:
        # Before taking: what is put from now on wakes again.
        cdef uint64_t woken
        c_read(self.fd, &woken, sizeof(woken))
