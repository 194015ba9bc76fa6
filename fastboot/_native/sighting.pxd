# Machines that a proxy has met on the wire: which address another server gave them, and whether they heed the proxy's
# offers. Memory is the Proxy's.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastboot._native.digest cimport NOWHERE, digest_same, digest_spread, digest_t
from fastboot._native.table cimport table_next, table_put, table_remove, table_t

cdef enum:
    SIGHTINGS_ROOM = 65536
    SIGHTINGS_PLACES = 131072       # of each index: twice the room
    SIGHTINGS_SERVERS = 16

cdef struct sighting_t:
    digest_t who
    uint8_t mac[6]
    uint32_t address                # 0: none was seen
    uint32_t server                 # that gave it, as far as was seen
    int64_t first                   # of its offers: when; monotonic nanoseconds
    int64_t last
    uint32_t offers                 # in a row, since it last asked for an address or a file
    uint32_t rounds                 # how often it asked for an address since it last asked for a file
    int64_t xid                     # of its last REQUEST for an address; -1: none
    int64_t boot_xid                # and for a boot file
    uint32_t tag                    # of the last offer that was told of
    bint reported                   # that it does not heed us
    digest_t port[3]                # its switch port by both ids, by either: what a node may be known by

cdef struct sightings_t:
    sighting_t *at                  # SIGHTINGS_ROOM, zeroed
    table_t by_who
    table_t by_address
    int32_t used
    int32_t turn                    # the oldest, where all are used
    uint32_t servers[SIGHTINGS_SERVERS]
    int32_t server_count

cdef inline int32_t sighting_of(sightings_t *s, digest_t who) noexcept nogil:
    cdef uint64_t at = who.b
    cdef int32_t i = table_next(&s.by_who, who.b, &at)
    while i != NOWHERE and not digest_same(s.at[i].who, who):
        i = table_next(&s.by_who, who.b, &at)
    return i

cdef inline int32_t sighting_at(sightings_t *s, uint32_t address) noexcept nogil:
    # Who has an address.
    cdef uint64_t at = digest_spread(address)
    cdef int32_t i = NOWHERE
    if address:
        i = table_next(&s.by_address, digest_spread(address), &at)
        while i != NOWHERE and s.at[i].address != address:
            i = table_next(&s.by_address, digest_spread(address), &at)
    return i

cdef inline void sighting_address(sightings_t *s, int32_t i, uint32_t address) noexcept nogil:
    # Nobody else has it from now on; 0: this one has none.
    cdef int32_t other = sighting_at(s, address)
    if other == i and address:
        return
    if other != NOWHERE:
        table_remove(&s.by_address, digest_spread(address), other)
        s.at[other].address = 0
    if s.at[i].address:
        table_remove(&s.by_address, digest_spread(s.at[i].address), i)
    s.at[i].address = address
    if address:
        table_put(&s.by_address, digest_spread(address), i)

cdef inline int32_t sighting_add(sightings_t *s, digest_t who, const uint8_t *mac) noexcept nogil:
    # The machine's; the oldest of another makes room for a new one.
    cdef int32_t i = sighting_of(s, who)
    if i != NOWHERE:
        return i
    if s.used < SIGHTINGS_ROOM:
        i = s.used
        s.used += 1
    else:
        i = s.turn
        s.turn = (s.turn + 1) % SIGHTINGS_ROOM
        sighting_address(s, i, 0)
        table_remove(&s.by_who, s.at[i].who.b, i)
        memset(&s.at[i], 0, sizeof(sighting_t))
    s.at[i].who, s.at[i].xid, s.at[i].boot_xid = who, -1, -1
    memcpy(s.at[i].mac, mac, 6)
    table_put(&s.by_who, who.b, i)
    return i

cdef inline bint sighting_server(sightings_t *s, uint32_t server) noexcept nogil:
    # Whether this server was not seen before.
    cdef int32_t i
    for i in range(s.server_count):
        if s.servers[i] == server:
            return False
    if s.server_count == SIGHTINGS_SERVERS:
        return False
    s.servers[s.server_count] = server
    s.server_count += 1
    return True

cdef inline void sighting_heeds(sighting_t *one) noexcept nogil:
    one.offers = one.rounds = 0
    one.reported = False
