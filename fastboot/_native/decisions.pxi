# Decisions: which plan a request is answered by. What Python has decided is kept in the plan table; what it must
# decide is a miss, which waits until `answer`. No Python object is made for a packet that meets its plan.

cdef enum:
    DECISIONS_HELD = 4096           # requests that wait for a decision

cdef int64_t HELD_FOR = 2 * SECOND

cdef struct held_t:
    uint64_t id                     # 0: nothing here
    digest_t who
    arrival_t came
    int32_t next
    int64_t since
    uint16_t size
    uint8_t *data

cdef struct miss_t:                 # what `answer` needs to know of a request, whatever became of it since
    uint64_t id
    digest_t class_key
    digest_t machine_key
    uint32_t generation
    int32_t known


cdef class Decisions(Requests):
    cdef uint32_t generation
    cdef plans_t plans
    cdef held_t *held
    cdef int32_t *held_buckets
    cdef uint64_t held_first        # ids in use are held_first <= id < held_next
    cdef uint64_t held_next
    cdef uint64_t *untold           # ids that Python must be asked for, a ring
    cdef uint32_t untold_first
    cdef uint32_t untold_count
    cdef dhcp_plan_t *once          # a plan that holds for `once_key` in this call only
    cdef digest_t once_key

    def __cinit__(self, bytes seed not None):
        self.held_first = self.held_next = 1
        self.plans.at = <plan_entry_t *>memory_for(PLANS_ROOM, sizeof(plan_entry_t))
        self.plans.buckets = <int32_t *>memory_for(PLANS_BUCKETS, sizeof(int32_t))
        self.held = <held_t *>memory_for(DECISIONS_HELD, sizeof(held_t))
        self.held_buckets = <int32_t *>memory_for(DECISIONS_HELD, sizeof(int32_t))
        self.untold = <uint64_t *>memory_for(DECISIONS_HELD, sizeof(uint64_t))
        memset(self.plans.buckets, 0xff, PLANS_BUCKETS * sizeof(int32_t))
        memset(self.held_buckets, 0xff, DECISIONS_HELD * sizeof(int32_t))

    def __dealloc__(self):
        cdef int32_t i
        if self.plans.at != NULL:
            for i in range(self.plans.used):
                free(self.plans.at[i].plan)
        if self.held != NULL:
            for i in range(DECISIONS_HELD):
                free(self.held[i].data)
        free(self.plans.at)
        free(self.plans.buckets)
        free(self.held)
        free(self.held_buckets)
        free(self.untold)

    def configure(self, list links not None, list subnets not None, list nodes not None, list own not None,
                  bint authoritative):
        Network.configure(self, links, subnets, nodes, own, authoritative)
        self.forget()

    def forget(self):
        self.generation += 1

    # ---- which plan

    cdef void fulfil(self, dhcp_plan_t *plan) noexcept nogil:
        # What a server answers where the plan is no silence.
        pass

    cdef void tick(self) noexcept nogil:
        self.expire_held()

    cdef void serve(self) noexcept nogil:
        cdef dhcp_plan_t *plan = self.find_plan()
        if plan == NULL:
            self.hold()
        elif plan.ignore:
            self.silent(COUNT_IGNORED, 0)
        else:
            self.fulfil(plan)

    cdef dhcp_plan_t *find_plan(self) noexcept nogil:
        cdef dhcp_plan_t *plan
        if self.once != NULL and digest_same(self.once_key, self.machine_key):
            return self.once
        plan = plans_find(&self.plans, self.machine_key, self.generation)
        if plan == NULL and self.node == NOWHERE:
            # A machine that the configuration knows never gets what was decided for its class.
            plan = plans_find(&self.plans, self.class_key, self.generation)
        return plan

    cdef void hold(self) noexcept nogil:
        # One request of a client waits, its last; it goes on in `answer`.
        cdef held_t *h
        cdef int32_t i
        i = self.held_buckets[self.who.b % DECISIONS_HELD]
        while i != NOWHERE and not (digest_same(self.held[i].who, self.who) and self.held[i].came.link == self.link):
            i = self.held[i].next
        if i != NOWHERE:
            self.counts[COUNT_HELD_REPLACED] += 1
            self.keep(&self.held[i])
            return
        if self.held_next - self.held_first == DECISIONS_HELD:
            self.silent(COUNT_HELD_FULL, 0)
            return
        self.counts[COUNT_MISS] += 1
        i = self.held_next % DECISIONS_HELD
        h = &self.held[i]
        h.id, h.who, h.since = self.held_next, self.who, self.now
        h.next = self.held_buckets[self.who.b % DECISIONS_HELD]
        self.held_buckets[self.who.b % DECISIONS_HELD] = i
        self.held_next += 1
        self.keep(h)
        self.tell(h.id)

    cdef void keep(self, held_t *h) noexcept nogil:
        free(h.data)
        h.data = <uint8_t *>malloc(self.m.size)
        h.size = self.m.size if h.data != NULL else 0
        h.came.link, h.came.source, h.came.port = self.link, self.source, self.port
        h.came.destination = self.destination
        if h.data != NULL:
            memcpy(h.data, self.m.data, self.m.size)
        else:
            self.counts[COUNT_NO_MEMORY] += 1
            self.unhold(h)

    cdef void tell(self, uint64_t id) noexcept nogil:
        if self.untold_count < DECISIONS_HELD:
            self.untold[(self.untold_first + self.untold_count) % DECISIONS_HELD] = id
            self.untold_count += 1

    cdef void unhold(self, held_t *h) noexcept nogil:
        cdef int32_t *place = &self.held_buckets[h.who.b % DECISIONS_HELD]
        while place[0] != h - self.held:
            place = &self.held[place[0]].next
        place[0] = h.next
        free(h.data)
        h.data = NULL
        h.id = 0

    cdef void expire_held(self) noexcept nogil:
        cdef held_t *h
        while self.held_first < self.held_next:
            h = &self.held[self.held_first % DECISIONS_HELD]
            if h.id:
                if self.now - h.since < HELD_FOR:
                    return
                self.counts[COUNT_DECISION_LATE] += 1
                self.link = h.came.link
                self.unanswered(COUNT_DECISION_LATE, h.data, h.size, 0)
                self.unhold(h)
            self.held_first += 1

    cdef held_t *held_by(self, uint64_t id) noexcept nogil:
        cdef held_t *h = &self.held[id % DECISIONS_HELD]
        return h if h.id == id else NULL

    def misses(self, int most=DECISIONS_HELD):
        cdef int rc
        cdef held_t *h
        cdef miss_t miss
        cdef list told = []
        cdef uint32_t server
        while self.untold_count and len(told) < most:
            h = self.held_by(self.untold[self.untold_first])
            self.untold_first = (self.untold_first + 1) % DECISIONS_HELD
            self.untold_count -= 1
            if h == NULL:
                continue
            rc = self.prepare(h.data, h.size, &h.came)
            if rc:                                      # a reload has taken its subnet away
                self.counts[rc] += 1
                self.unhold(h)
                continue
            if self.find_plan() != NULL:
                self.go_on(h)                           # it was decided for another meanwhile
                continue
            memset(&miss, 0, sizeof(miss))
            miss.id, miss.class_key, miss.machine_key = h.id, self.class_key, self.machine_key
            miss.generation, miss.known = self.generation, self.node != NOWHERE
            server = self.here.server
            told.append((
                (<char *>&miss)[:sizeof(miss)], h.came.link, self.here.subnet, server, self.m.chaddr[:self.m.hlen],
                self.node, self.option(OPTION_ARCHITECTURE), self.option(OPTION_VENDOR_CLASS),
                self.option(OPTION_USER_CLASS), self.option(OPTION_IPXE), self.option(OPTION_MACHINE_ID),
                self.m.giaddr,
                self.m.relay.circuit[:self.m.relay.circuit_size] if self.m.relay.circuit_size else b"",
                self.m.relay.remote[:self.m.relay.remote_size] if self.m.relay.remote_size else b"",
            ))
        return told

    def answer(self, bytes token not None, tuple plan, scope, int64_t now):
        cdef miss_t miss
        cdef held_t *h
        cdef dhcp_plan_t *made
        cdef digest_t key
        cdef bint stored = scope != "once"
        if len(token) != sizeof(miss) or scope not in ("class", "machine", "once"):
            raise ValueError("this is no miss of this responder")
        memcpy(&miss, <const char *>token, sizeof(miss))
        self.now = now
        self.tick()
        h = self.held_by(miss.id)
        if miss.generation != self.generation:
            # What it was decided under no longer holds: ask again.
            self.counts[COUNT_DECISION_STALE] += 1
            if h != NULL:
                self.tell(miss.id)
            return
        made = plan_of(plan)
        if stored:
            key = miss.class_key if scope == "class" and not miss.known else miss.machine_key
            free(plans_put(&self.plans, key, miss.generation, made))
        else:
            self.once, self.once_key = made, miss.machine_key
        if h != NULL:
            with nogil:
                self.go_on(h)
        if not stored:
            self.once = NULL
            free(made)

    def drop(self, bytes token not None):
        cdef miss_t miss
        memcpy(&miss, <const char *>token, sizeof(miss))
        cdef held_t *h = self.held_by(miss.id)
        if h != NULL:
            self.unhold(h)

    cdef void go_on(self, held_t *h) noexcept nogil:
        cdef int rc
        cdef uint8_t *data = h.data
        h.data = NULL
        self.unhold(h)
        rc = self.prepare(data, h.size, &h.came)
        if rc == 0:
            self.serve()
        else:
            self.counts[rc] += 1
        free(data)

    @property
    def asking(self):
        return self.untold_count
