# TftpEgress: an egress on a virtual clock.

cdef class TftpEgress:
    """See _core.pyi."""
    cdef delivery_t delivery
    cdef egress_t egress
    cdef wheel_t turns
    cdef hand_t *hands
    cdef int32_t capacity
    cdef int32_t joined
    cdef TftpEgress beside

    def __cinit__(self, int32_t capacity, TftpEgress beside=None):
        cdef int32_t i
        self.capacity = capacity
        self.hands = <hand_t *>memory_for(capacity, sizeof(hand_t))
        for i in range(capacity):
            self.hands[i].tick = -1
        self.turns.hands = self.hands
        self.egress.turns = &self.turns
        self.beside = self if beside is None else beside
        self.egress.delivery = &self.beside.delivery

    def __dealloc__(self):
        free(self.hands)

    cdef int32_t join(self) except -1:
        if self.joined == self.capacity:
            raise ValueError("more transfers than the egress has room for")
        egress_join(&self.egress, 1)
        self.joined += 1
        return self.joined - 1

    def turn(self, int64_t now):
        egress_tick(&self.egress, now)
        cdef int32_t i = egress_next(&self.egress, 0)
        return i if i >= 0 else None

    @property
    def budget(self):
        return egress_budget(&self.egress)

    @property
    def under_way(self):
        return self.egress.under_way
