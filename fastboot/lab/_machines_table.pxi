# The machines themselves: what each does, when it looks up next, what has come of it.

cdef enum:
    TICK = 100000               # nanoseconds of the wheel: what a machine waits is exact to this
    READY = 256
    OUTCOMES = 1024             # reported at one time; what comes further waits a turn
    SLICE = 100000000           # nanoseconds of one figure of `flow`
    SLICES = 36000
    PAGES = 65536               # of 65536 addresses each

cdef enum:                      # what a machine does
    IDLE = 0
    PAUSING
    FETCHING                    # a file by TFTP
    TALKING                     # by TCP
    SELECTING                   # an address by DHCP (RFC 2131 section 4.4)
    REQUESTING

cdef enum:                      # how it ended; the order of ENDS
    END_DONE = 0
    END_ERROR                   # the server refused
    END_NONSENSE                # the server's answer is not what this client takes
    END_SILENT                  # the server did not answer as often as this client asks

ENDS = ("done", "error", "nonsense", "silent")

Outcome = namedtuple("Outcome", "machine end code octets size again began first ended content")

cdef struct machine_t:
    int64_t due                 # when it acts by itself
    int64_t began
    int64_t first               # when the server's first answer came
    int64_t room                # octets that `content` has
    int64_t kept                # of them, filled
    uint8_t *content            # what is kept of what it fetches
    uint32_t address            # host order; 0: has none
    uint32_t server
    uint16_t port               # of the server, as last heard
    uint8_t task
    uint8_t way                 # which socket
    bint owes                   # an acknowledgement, when it is due
    int32_t tries
    receiver_t file

cdef struct outcome_t:
    int32_t machine
    int32_t end
    int32_t code
    int64_t octets
    int64_t size
    int64_t again
    int64_t began
    int64_t first
    int64_t ended
    uint8_t *content
    int64_t kept


cdef class _Table:
    """Machines, their clock, and what is to be told of them."""
    cdef machine_t *all
    cdef readonly int32_t count
    cdef wheel_t *wheel
    cdef outcome_t *told
    cdef int32_t telling
    cdef int32_t **pages        # number plus one of the machine that has an address
    cdef int epoll
    cdef epoll_event *ready
    cdef readonly int64_t now
    cdef int64_t began
    cdef int64_t *slices
    cdef uint64_t dice
    cdef uint32_t loss          # of 2 ** 32
    cdef readonly int64_t strange
    cdef readonly int64_t lost
    cdef list holds             # what Python handed over for as long as C points into it

    def __cinit__(self, int32_t count, *, double loss=0.0, uint64_t seed=1):
        cdef int32_t i
        if count < 1 or not 0 <= loss < 1:
            raise ValueError("at least one machine, and a loss from 0 to less than 1")
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.count, self.holds = count, [None] * count
        self.loss, self.dice = <uint32_t>(loss * 4294967296.0), seed * 2 + 1
        self.all = <machine_t *>calloc(count, sizeof(machine_t))
        self.wheel = <wheel_t *>calloc(1, sizeof(wheel_t))
        self.told = <outcome_t *>calloc(OUTCOMES, sizeof(outcome_t))
        self.pages = <int32_t **>calloc(PAGES, sizeof(int32_t *))
        self.ready = <epoll_event *>calloc(READY, sizeof(epoll_event))
        self.slices = <int64_t *>calloc(SLICES, sizeof(int64_t))
        if not (self.all and self.wheel and self.told and self.pages and self.ready and self.slices):
            raise MemoryError
        self.wheel.hands = <hand_t *>calloc(count, sizeof(hand_t))
        if self.wheel.hands == NULL:
            raise MemoryError
        for i in range(count):
            self.wheel.hands[i].tick = -1
        self.began = self.now = now_ns()
        self.wheel.now = self.now // TICK

    def __dealloc__(self):
        cdef int32_t i
        if self.all != NULL:
            for i in range(self.count):
                free(self.all[i].content)
        if self.told != NULL:
            for i in range(self.telling):
                free(self.told[i].content)
        if self.pages != NULL:
            for i in range(PAGES):
                free(self.pages[i])
        if self.wheel != NULL:
            free(self.wheel.hands)
        free(self.all)
        free(self.wheel)
        free(self.told)
        free(self.pages)
        free(self.ready)
        free(self.slices)
        if self.epoll > 0:
            c_close(self.epoll)

    def place(self, int32_t machine, uint32_t address):
        self._known(machine)
        if not self.settle(machine, address):
            raise MemoryError

    def pause(self, int32_t machine, double seconds):
        cdef machine_t *m = self._idle(machine)
        m.task, m.began, m.first = PAUSING, now_ns(), 0
        self.act(machine, m.began + <int64_t>(seconds * 1e9))

    def turn(self, double seconds=0.1):
        cdef int64_t until = now_ns() + <int64_t>(seconds * 1e9)
        with nogil:
            self.run(until)
        return self._outcomes()

    def flow(self):
        cdef int64_t i, n = min((self.now - self.began) // SLICE + 1, <int64_t>SLICES)
        octets = array("q")
        for i in range(n):
            octets.append(self.slices[i])
        return octets

    cdef machine_t *_idle(self, int32_t machine) except NULL:
        self._known(machine)
        if self.all[machine].task != IDLE:
            raise ValueError(f"machine {machine} is busy")
        return &self.all[machine]

    cdef int _known(self, int32_t machine) except -1:
        if not 0 <= machine < self.count:
            raise IndexError(f"there is no machine {machine}")
        return 0

    cdef list _outcomes(self):
        cdef int32_t k
        cdef outcome_t *o
        found = []
        for k in range(self.telling):
            o = &self.told[k]
            content = None
            if o.content != NULL:
                content = (<char *>o.content)[:o.kept]
                free(o.content)
                o.content = NULL
            found.append(Outcome(o.machine, ENDS[o.end], o.code, o.octets, o.size, o.again,
                                 o.began, o.first, o.ended, content))
            if self.all[o.machine].task == IDLE:
                self.holds[o.machine] = None
        self.telling = 0
        return found

    cdef void run(self, int64_t until) noexcept nogil:
        cdef int32_t n, k, i
        while True:
            n = epoll_wait(self.epoll, self.ready, READY, 0)
            self.now = now_ns()
            for k in range(n):
                self.wake(self.ready[k].data.u64, self.ready[k].events)
            while self.telling < OUTCOMES:
                i = wheel_pop(self.wheel, self.now // TICK)
                if i < 0:
                    break
                if self.all[i].due > self.now:
                    wheel_set(self.wheel, i, self.all[i].due // TICK + 1)
                elif self.all[i].task != IDLE:
                    self.expire(i)
            self.flush()
            if self.telling or self.now >= until:
                return
            if n <= 0:
                self.rest(until)

    cdef void rest(self, int64_t until) noexcept nogil:
        cdef int64_t tick = wheel_next(self.wheel)
        if tick >= 0:
            until = min(until, tick * TICK)
        if until > self.now:
            wait_for(self.epoll, POLLIN, until - self.now)

    cdef void wake(self, uint64_t what, uint32_t events) noexcept nogil:
        """A socket is ready."""

    cdef void flush(self) noexcept nogil:
        """All that was heard is answered: what is to be sent leaves."""

    cdef void expire(self, int32_t i) noexcept nogil:
        """What a machine waited for did not come."""
        if self.all[i].task == PAUSING:
            self.end(i, END_DONE, 0)

    cdef void act(self, int32_t i, int64_t due) noexcept nogil:
        self.all[i].due = due
        wheel_set(self.wheel, i, due // TICK + 1)

    cdef void end(self, int32_t i, int32_t how, int32_t code) noexcept nogil:
        # There is room: a turn handles no more than OUTCOMES - `telling` ends.
        cdef machine_t *m = &self.all[i]
        cdef outcome_t *o = &self.told[self.telling]
        o.machine, o.end, o.code = i, how, code
        o.octets, o.size, o.again = m.file.octets, m.file.size, m.file.again
        o.began, o.first, o.ended = m.began, m.first, self.now
        o.content, o.kept = m.content, m.kept
        m.content, m.room, m.kept = NULL, 0, 0
        memset(&m.file, 0, sizeof(receiver_t))
        m.task = IDLE
        self.telling += 1

    cdef bint settle(self, int32_t i, uint32_t address) noexcept nogil:
        # The machine has this address from now on, or 0: none.
        cdef machine_t *m = &self.all[i]
        cdef int32_t **page = &self.pages[address >> 16]
        if page[0] == NULL:
            page[0] = <int32_t *>calloc(65536, sizeof(int32_t))
            if page[0] == NULL:
                return False
        if m.address and self.holder(m.address) == i:
            self.pages[m.address >> 16][m.address & 0xffff] = 0
        m.address = address
        if address:
            page[0][address & 0xffff] = i + 1
        return True

    cdef int32_t holder(self, uint32_t address) noexcept nogil:
        cdef int32_t *page = self.pages[address >> 16]
        return -1 if page == NULL else page[address & 0xffff] - 1

    cdef bint unlucky(self) noexcept nogil:
        # Whether this packet is lost on the way (xorshift64*).
        if self.loss == 0:
            return False
        self.dice ^= self.dice >> 12
        self.dice ^= self.dice << 25
        self.dice ^= self.dice >> 27
        if <uint32_t>((self.dice * <uint64_t>2685821657736338717) >> 32) >= self.loss:
            return False
        self.lost += 1
        return True

    cdef void came(self, int64_t octets) noexcept nogil:
        self.slices[min((self.now - self.began) // SLICE, <int64_t>SLICES - 1)] += octets
