# Facts: what happened, for Python to be told of. They are kept as they are until somebody reads them.

cdef enum:
    FACTS_MOST = 8192
    FACTS_TEXT = 64                 # octets of a fact's text that are kept

cdef enum:
    FACT_OFFER = 0
    FACT_ACK
    FACT_NAK
    FACT_DECLINE
    FACT_RELEASE
    FACT_INFORM
    FACT_EXHAUSTED
    FACT_OTHER_SERVER
    FACT_TAKEN
    FACT_BOOTP
    FACT_CONFLICT
    FACT_PROXY_ARP
    FACT_LIMIT
    FACT_REQUEST
    FACT_SERVER_SEEN
    FACT_UNHEEDED
    FACT_UNANSWERED
    FACT_KINDS

FACT_NAMES = (
    "offer", "ack", "nak", "decline", "release", "inform", "exhausted", "other_server", "address_taken", "bootp",
    "conflict", "proxy_arp", "limit", "request", "server_seen", "offers_ignored",
    "unanswered",
)

cdef struct fact_t:
    uint8_t kind
    uint8_t hlen
    uint8_t chaddr[16]
    int32_t link
    int32_t node
    uint32_t address
    uint32_t tag
    uint32_t value
    uint8_t text_size
    uint8_t text[FACTS_TEXT]

cdef struct facts_t:
    fact_t *at
    int32_t count
    int32_t room
    int32_t kinds[FACT_KINDS]       # how many there are of each


cdef class DhcpFacts:
    cdef facts_t facts

    def __init__(self):
        raise TypeError("a responder makes them")

    def __dealloc__(self):
        free(self.facts.at)

    def __len__(self):
        return self.facts.count

    def __getitem__(self, Py_ssize_t at):
        cdef fact_t *f
        if not 0 <= at < self.facts.count:
            raise IndexError(at)
        f = &self.facts.at[at]
        return (
            FACT_NAMES[f.kind], f.chaddr[:f.hlen], f.link, f.address, f.tag, f.value, f.text[:f.text_size],
        )

    def __iter__(self):
        return (self[at] for at in range(self.facts.count))

    def kind(self, Py_ssize_t at):
        if not 0 <= at < self.facts.count:
            raise IndexError(at)
        return FACT_NAMES[self.facts.at[at].kind]

    def node(self, Py_ssize_t at):
        if not 0 <= at < self.facts.count:
            raise IndexError(at)
        return self.facts.at[at].node

    def kinds(self):
        return {FACT_NAMES[i]: self.facts.kinds[i] for i in range(FACT_KINDS) if self.facts.kinds[i]}

    def take(self, str kind not None):
        cdef int32_t i, kept = 0, number = FACT_NAMES.index(kind)
        taken = [self[i] for i in range(self.facts.count) if self.facts.at[i].kind == number]
        if taken:
            for i in range(self.facts.count):
                if self.facts.at[i].kind != number:
                    self.facts.at[kept] = self.facts.at[i]
                    kept += 1
            self.facts.count, self.facts.kinds[number] = kept, 0
        return taken


cdef DhcpFacts facts_of(facts_t *facts):
    # Takes them over.
    cdef DhcpFacts made = DhcpFacts.__new__(DhcpFacts)
    made.facts = facts[0]
    memset(facts, 0, sizeof(facts_t))
    return made

cdef bint facts_push(facts_t *facts, const fact_t *fact) noexcept nogil:
    cdef int32_t room = max(2 * facts.room, 64)
    cdef fact_t *more
    if facts.count == facts.room:
        more = NULL
        if room <= FACTS_MOST:
            more = <fact_t *>realloc(facts.at, room * sizeof(fact_t))
        if more == NULL:
            return False
        facts.at, facts.room = more, room
    facts.at[facts.count] = fact[0]
    facts.count += 1
    facts.kinds[fact.kind] += 1
    return True
