# TftpModel: a transfer on a virtual clock.

cdef class TftpModel:
    """See _core.pyi."""
    cdef tftp_xfer_t x
    cdef int64_t *sent
    cdef TftpEgress way
    cdef flight_t flight
    cdef int32_t index

    def __init__(self, int64_t size, *, uint32_t blksize=512, uint16_t windowsize=1, bint oack=True, int64_t now=0,
                 TftpEgress egress=None):
        if self.sent != NULL or size < 0 or blksize < 8 or windowsize < 1:
            raise ValueError("a TftpModel is one transfer of 0 octets or more")
        self.sent = <int64_t *>calloc(tftp_ring(windowsize), sizeof(int64_t))
        if self.sent == NULL:
            raise MemoryError
        tftp_begin(&self.x, size, blksize, windowsize, oack, self.sent, now)
        self.way = egress
        if egress is not None:
            self.index = egress.join()
            self.flight.beyond = -1
            self._settle(now)

    def __dealloc__(self):
        free(self.sent)

    cdef int _settle(self, int64_t now) except -1:
        # What the engine does after anything that moved a transfer.
        if self.way is None:
            return 0
        egress_tick(&self.way.egress, now)
        if self.x.outcome != TFTP_SENDING:
            egress_leave(&self.way.egress, &self.flight, self.index)
            return 0
        egress_count(&self.way.egress, &self.flight, tftp_in_flight(&self.x))
        if tftp_due(&self.x) > 0:
            egress_ready(&self.way.egress, &self.flight, self.index, tftp_due(&self.x))
        return 0

    def ack(self, int block, int64_t now):
        cdef int64_t base = self.x.base
        taken = tftp_on_ack(&self.x, <uint16_t>block, now)
        self._settle(now)
        if self.way is not None:
            egress_acknowledged(&self.way.egress, &self.flight, self.x.base - base, self.x.trip)
        return taken

    def timer(self, int64_t now):
        tftp_on_timer(&self.x, now)
        self._settle(now)

    def send(self, int64_t now):
        cdef int64_t count = tftp_due(&self.x)
        first = self.x.next
        if count > 0 and self.way is not None:
            egress_begin(&self.way.egress, &self.flight)
        if count > 0:
            tftp_on_sent(&self.x, count, now)
            if self.way is not None:
                egress_tick(&self.way.egress, now)
                egress_sent(&self.way.egress, &self.flight, count, tftp_in_flight(&self.x))
        return range(first, first + max(count, 0))

    @property
    def outcome(self):
        return OUTCOMES[self.x.outcome]

    @property
    def base(self):
        return self.x.base

    @property
    def deadline(self):
        return self.x.deadline

    @property
    def srtt(self):
        return self.x.srtt

    @property
    def repeats(self):
        return self.x.repeats
