# Interfaces: those that engines answer on, and what the engines together bring through each.

cdef class Interfaces:
    cdef int count
    cdef int *indices
    cdef uint32_t *mtus
    cdef delivery_t *deliveries

    def __cinit__(self, links not None):
        cdef int i
        if not 1 <= len(links) <= MAX_LINKS:
            raise ValueError(f"1 to {MAX_LINKS} interfaces")
        self.count = len(links)
        self.indices = <int *>memory_for(self.count, sizeof(int))
        self.mtus = <uint32_t *>memory_for(self.count, sizeof(uint32_t))
        self.deliveries = <delivery_t *>memory_for(self.count, sizeof(delivery_t))
        for i in range(self.count):
            self.indices[i], self.mtus[i] = links[i]

    def __dealloc__(self):
        free(self.indices)
        free(self.mtus)
        free(self.deliveries)

    cdef int find(self, int index) noexcept nogil:
        # Its number here; -1 for one that is not answered on.
        cdef int i
        for i in range(self.count):
            if self.indices[i] == index:
                return i
        return -1
