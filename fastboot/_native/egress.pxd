# Egress: an interface that blocks leave by. How many of them may be under way, how many are, and whose turn it is.
# Pure: time is an argument, in nanoseconds of any monotonic clock.
#
# Timers alone do not keep a full link: three hundred clients of window 4 queue 15 ms of blocks at a 1 Gb/s port, every
# timer fires, and half of what the link carries is repeats. So all transfers through an interface share one budget.
# It follows from what is acknowledged, by Little's law: the rate of blocks times the round trip that each needs, and
# BUDGET_QUEUE of waiting on top. Where nothing waits, acknowledgements come sooner than that and the budget outgrows
# what is asked of it; where the link is full, it settles at that much queue.
from libc.stdint cimport int32_t, int64_t

from fastboot._native.sys cimport RELAXED, atomic_add, atomic_load, atomic_store
from fastboot._native.wheel cimport wheel_next, wheel_pop, wheel_remove, wheel_set, wheel_t

cdef enum:
    SPAN = 5000000              # ns, that a rate is measured over
    SPANS = 8                   # that are remembered: a pause of the host is not the link's
    BUDGET_LEAST = 64           # blocks: a client's longest usual window, 0.8 ms of 1 Gb/s
    BUDGET_QUEUE = 3125000      # ns: under the floor of the timers, over the pauses of a busy host

# What all engines together had acknowledged through one interface. Each adds without a lock: what a span loses where
# two open it at once is a few blocks of one measurement.
cdef struct delivery_t:
    int64_t spans[SPANS]        # their numbers
    int64_t pulls[SPANS]        # blocks times the nanoseconds that each may be under way
    int64_t transfers           # under way

# One engine's part in it.
cdef struct egress_t:
    delivery_t *delivery
    int64_t transfers           # of this engine
    int64_t span                # the number of this one
    int64_t pull                # of it, that `delivery` does not have yet: every engine writes there
    int64_t budget              # as counted last since the tick; 0: not yet
    int64_t most                # of the pulls of the spans before
    int64_t under_way           # blocks sent within SPANS and not acknowledged; older ones are lost
    int64_t sent[SPANS]         # of those, by when they were sent
    # A transfer's own round trip is what it takes beyond the quickest client's at the same time, and that client's when
    # nothing waited: the shortest trip alone, of a transfer that began behind a queue, would be that queue, and with
    # every file that is asked for it would grow.
    int64_t quickest[SPANS]     # trip in each span; 0: none was seen
    int64_t trip                # of the quickest when nothing waited
    # Weighted fair queueing (WF2Q+, Bennett and Zhang 1997), all weights alike: the transfers that have blocks to send,
    # each where a link that served all at once would have sent them. A tick is one block of each. So a window counts in
    # full and is sent in one piece, and whoever sends little waits for nobody's window.
    wheel_t *turns
    int64_t clock               # what such a link has sent of each
    int64_t served              # blocks, since that moved
    bint held                   # something waits for the budget

# One transfer's part in that.
cdef struct flight_t:
    int64_t turn                # on the clock of its egress, that its next blocks begin at
    int64_t span                # in which it sent last
    int64_t blocks              # counted in under_way, if that span is remembered
    int64_t beyond              # its trip beyond the quickest client's, the least seen; -1 before the first


cdef inline void delivery_add(delivery_t *d, int64_t span, int64_t pull) noexcept nogil:
    cdef int64_t at = span % SPANS
    if atomic_load(&d.spans[at], RELAXED) != span:
        atomic_store(&d.pulls[at], 0, RELAXED)
        atomic_store(&d.spans[at], span, RELAXED)
    atomic_add(&d.pulls[at], pull, RELAXED)

cdef inline int64_t delivery_pull(delivery_t *d, int64_t span) noexcept nogil:
    cdef int64_t at = span % SPANS
    return atomic_load(&d.pulls[at], RELAXED) if atomic_load(&d.spans[at], RELAXED) == span else 0

cdef inline void egress_tick(egress_t *e, int64_t now) noexcept nogil:
    # To the span of `now`; the counts below are for that until the next call.
    cdef int64_t span = now // SPAN, at, pull
    e.budget = 0
    if e.pull:
        delivery_add(e.delivery, e.span, e.pull)
        e.pull = 0
    if span == e.span:
        return
    if e.most < BUDGET_LEAST * SPAN and egress_quickest(e) > 0:
        e.trip = egress_quickest(e)                    # so few blocks make no queue
    for at in range(e.span + 1 if span - e.span < SPANS else span - SPANS + 1, span + 1):
        e.under_way -= e.sent[at % SPANS]
        e.sent[at % SPANS] = e.quickest[at % SPANS] = 0
    e.span = span
    e.most = 0
    for at in range(span - SPANS + 1, span):
        pull = delivery_pull(e.delivery, at)
        if pull > e.most:
            e.most = pull

cdef inline int64_t egress_quickest(egress_t *e) noexcept nogil:
    # The shortest trip of the last one to two spans; 0: none was seen.
    cdef int64_t now = e.quickest[e.span % SPANS], before = e.quickest[(e.span + SPANS - 1) % SPANS]
    return now if before == 0 or 0 < now < before else before

cdef inline int64_t egress_budget(egress_t *e) noexcept nogil:
    # Blocks that this engine's transfers may have under way: its share, by how many they are.
    cdef int64_t pull = delivery_pull(e.delivery, e.span) + e.pull
    cdef int64_t budget = (pull if pull > e.most else e.most) // SPAN
    cdef int64_t transfers = atomic_load(&e.delivery.transfers, RELAXED)
    if budget < BUDGET_LEAST:
        budget = BUDGET_LEAST
    return budget * e.transfers // transfers if transfers > e.transfers else budget

cdef inline void egress_join(egress_t *e, int32_t n) noexcept nogil:
    # n: 1 where a transfer begins, -1 where it ends
    e.transfers += n
    e.budget = 0
    atomic_add(&e.delivery.transfers, n, RELAXED)

cdef inline void egress_ready(egress_t *e, flight_t *f, int32_t i, int64_t count) noexcept nogil:
    # Transfer i has so many blocks to send. In its place already, it stays there: the timer of one that is held back
    # comes by every few milliseconds.
    if e.turns.hands[i].tick >= 0:
        return
    if f.turn < e.clock:
        f.turn = e.clock
    wheel_set(e.turns, i, f.turn + count)

cdef inline int32_t egress_next(egress_t *e, int64_t planned) noexcept nogil:
    # The transfer whose turn it is, taken out; -1 where none has or the budget is spent. `planned` are blocks that are
    # about to be sent. A window is never cut for the budget: a client acknowledges whole ones.
    cdef int64_t turn = wheel_next(e.turns), blocks = e.under_way + planned
    e.held = turn >= 0 and blocks > 0 and blocks >= e.budget
    if e.held:                                         # unless more was acknowledged since it was counted
        e.budget = egress_budget(e)
        e.held = blocks >= e.budget
    return -1 if turn < 0 or e.held else wheel_pop(e.turns, turn)

cdef inline void egress_begin(egress_t *e, const flight_t *f) noexcept nogil:
    # It has the turn: the clock is no longer before that. (A window may be sent in several pieces.)
    if e.clock < f.turn:
        e.clock = f.turn

cdef inline void egress_leave(egress_t *e, flight_t *f, int32_t i) noexcept nogil:
    # The transfer ends.
    wheel_remove(e.turns, i)
    egress_count(e, f, 0)

cdef inline void egress_count(egress_t *e, flight_t *f, int64_t blocks) noexcept nogil:
    # So many blocks of the transfer are under way now.
    if e.span - f.span < SPANS:
        e.sent[f.span % SPANS] += blocks - f.blocks
        e.under_way += blocks - f.blocks
    f.blocks = blocks

cdef inline void egress_sent(egress_t *e, flight_t *f, int64_t count, int64_t blocks) noexcept nogil:
    # It sent `count`; with those, `blocks` are under way.
    egress_count(e, f, 0)
    f.span = e.span
    f.blocks = 0
    egress_count(e, f, blocks)
    f.turn += count
    e.served += count
    if e.served >= e.transfers:
        e.clock += e.served // e.transfers if e.transfers > 0 else 0
        e.served = e.served % e.transfers if e.transfers > 0 else 0

cdef inline void egress_acknowledged(egress_t *e, flight_t *f, int64_t count, int64_t trip) noexcept nogil:
    # `trip`: the round trip that the acknowledgement showed, 0 for none.
    cdef int64_t *quickest = &e.quickest[e.span % SPANS]
    if trip > 0:
        if trip < quickest[0] or quickest[0] == 0:
            quickest[0] = trip
        if trip < e.trip or e.trip == 0:
            e.trip = trip
        trip = min(trip - egress_quickest(e), <int64_t>SPANS * SPAN)
        if trip < f.beyond or f.beyond < 0:
            f.beyond = trip
    e.pull += count * (BUDGET_QUEUE + e.trip + (f.beyond if f.beyond > 0 else 0))
