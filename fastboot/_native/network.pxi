# Network: what the configuration says of our links, their subnets, the machines it knows and our own addresses.
# The Responder and the proxy are built on it; the loop's thread calls it.

cdef int64_t SECOND = 1000000000


cdef class Network:
    cdef digest_key_t key
    cdef link_t *links
    cdef int32_t link_count
    cdef subnet_t *subnets
    cdef int32_t subnet_count
    cdef node_t *nodes
    cdef node_mac_t *macs
    cdef int32_t *mac_buckets
    cdef uint32_t mac_mask
    cdef uint32_t *own              # addresses of this host
    cdef int32_t own_count
    cdef bint authoritative         # no other DHCP server is meant to be here
    cdef int64_t now                # of the call at hand

    def __cinit__(self, bytes seed not None):
        cdef const char *octets = seed
        if len(seed) != sizeof(self.key):
            raise ValueError(f"the seed is {sizeof(self.key)} octets")
        memcpy(&self.key, octets, sizeof(self.key))

    def __dealloc__(self):
        free(self.links)
        free(self.subnets)
        free(self.nodes)
        free(self.macs)
        free(self.mac_buckets)
        free(self.own)

    def configure(self, list links not None, list subnets not None, list nodes not None, list own not None,
                  bint authoritative):
        cdef int32_t i, j, node
        cdef uint32_t bucket
        cdef list macs = [(mac, i) for i, (_, macs_of) in enumerate(nodes) for mac in macs_of]
        macs += [(entry[4], NETWORK_SELF) for entry in links if any(entry[4])]
        if any(len(entry[3]) > NETWORK_NEAR for entry in links):
            raise ValueError(f"more than {NETWORK_NEAR} subnets on one interface")
        cdef uint32_t buckets = power_of_two(len(macs))
        cdef link_t *new_links = <link_t *>memory_for(len(links), sizeof(link_t))
        cdef subnet_t *new_subnets = subnets_of(subnets)
        cdef node_t *new_nodes = <node_t *>memory_for(len(nodes), sizeof(node_t))
        cdef node_mac_t *new_macs = <node_mac_t *>memory_for(len(macs), sizeof(node_mac_t))
        cdef int32_t *new_buckets = <int32_t *>memory_for(buckets, sizeof(int32_t))
        cdef uint32_t *new_own = <uint32_t *>memory_for(len(own), sizeof(uint32_t))
        for i, (ifindex, mtu, address, nears, _) in enumerate(links):
            new_links[i].ifindex, new_links[i].mtu, new_links[i].address = ifindex, mtu, address
            new_links[i].fd = self.links[i].fd if i < self.link_count else -1
            new_links[i].nears = len(nears)
            for j, (subnet, server) in enumerate(nears):
                new_links[i].near[j].subnet, new_links[i].near[j].server = subnet, server
        for i, (address, _) in enumerate(nodes):
            new_nodes[i].address = address
        memset(new_buckets, 0xff, buckets * sizeof(int32_t))
        for i, (mac, node) in enumerate(macs):
            memcpy(new_macs[i].mac, <const char *>mac, 6)
            new_macs[i].node = node
            bucket = digest_spread(wire_u32(new_macs[i].mac + 2)) & (buckets - 1)
            new_macs[i].next = new_buckets[bucket]
            new_buckets[bucket] = i
        for i, address in enumerate(own):
            new_own[i] = address
        free(self.links)
        free(self.subnets)
        free(self.nodes)
        free(self.macs)
        free(self.mac_buckets)
        free(self.own)
        self.links, self.subnets, self.nodes, self.macs = new_links, new_subnets, new_nodes, new_macs
        self.mac_buckets, self.mac_mask, self.own = new_buckets, buckets - 1, new_own
        self.link_count, self.subnet_count, self.own_count = len(links), len(subnets), len(own)
        self.authoritative = authoritative

    cdef int32_t subnet_of(self, uint32_t address) noexcept nogil:
        return subnet_at(self.subnets, self.subnet_count, address)

    cdef bint is_own(self, uint32_t address) noexcept nogil:
        cdef int32_t i
        for i in range(self.own_count):
            if self.own[i] == address:
                return True
        return False

    cdef int32_t node_of(self, uint8_t hlen, const uint8_t *mac) noexcept nogil:
        cdef int32_t i
        if hlen != 6 or self.mac_buckets == NULL:
            return NOWHERE
        i = self.mac_buckets[digest_spread(wire_u32(mac + 2)) & self.mac_mask]
        while i != NOWHERE:
            if memcmp(self.macs[i].mac, mac, 6) == 0:
                return self.macs[i].node
            i = self.macs[i].next
        return NOWHERE


cdef uint32_t power_of_two(size_t n):
    cdef uint32_t size = 16
    while size < n:
        size *= 2
    return size

cdef void *memory_for(size_t n, size_t size) except NULL:
    cdef void *memory = calloc(max(n, <size_t>1), size)
    if memory == NULL:
        raise MemoryError
    return memory

cdef subnet_t *subnets_of(list subnets) except NULL:
    cdef subnet_t *made = <subnet_t *>memory_for(len(subnets), sizeof(subnet_t))
    cdef int32_t i
    for i, (network, mask, lease, _) in enumerate(subnets):
        made[i].network, made[i].mask, made[i].lease = network, mask, lease
    return made
