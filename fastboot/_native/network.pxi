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
    cdef node_key_t *keys           # what nodes are known by
    cdef int32_t *key_buckets
    cdef uint32_t key_mask
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
        free(self.keys)
        free(self.key_buckets)
        free(self.own)

    def configure(self, list links not None, list subnets not None, list nodes not None, list own not None,
                  bint authoritative):
        cdef int32_t i, j
        if any(len(entry[3]) > NETWORK_NEAR for entry in links):
            raise ValueError(f"more than {NETWORK_NEAR} subnets on one interface")
        cdef link_t *new_links = <link_t *>memory_for(len(links), sizeof(link_t))
        cdef subnet_t *new_subnets = subnets_of(subnets)
        cdef uint32_t *new_own = <uint32_t *>memory_for(len(own), sizeof(uint32_t))
        for i, (ifindex, mtu, address, nears, _) in enumerate(links):
            new_links[i].ifindex, new_links[i].mtu, new_links[i].address = ifindex, mtu, address
            new_links[i].fd = self.links[i].fd if i < self.link_count else -1
            new_links[i].nears = len(nears)
            for j, (subnet, server) in enumerate(nears):
                new_links[i].near[j].subnet, new_links[i].near[j].server = subnet, server
        for i, address in enumerate(own):
            new_own[i] = address
        free(self.links)
        free(self.subnets)
        free(self.own)
        self.links, self.subnets, self.own = new_links, new_subnets, new_own
        self.link_count, self.subnet_count, self.own_count = len(links), len(subnets), len(own)
        self.authoritative = authoritative
        self.know(nodes, [(NETWORK_SELF, NODE_MAC, entry[4], b"") for entry in links if any(entry[4])])

    cdef know(self, list nodes, list keys):
        cdef int32_t i, node
        cdef uint32_t bucket
        for node, (_, macs, circuit, remote) in enumerate(nodes):
            keys += [(node, NODE_MAC, mac, b"") for mac in macs]
            if circuit and remote:
                keys.append((node, NODE_PORT, circuit, remote))
            elif circuit or remote:
                keys.append((node, NODE_CIRCUIT if circuit else NODE_REMOTE, circuit or remote, b""))
        cdef uint32_t buckets = power_of_two(len(keys))
        cdef node_t *new_nodes = <node_t *>memory_for(len(nodes), sizeof(node_t))
        cdef node_key_t *new_keys = <node_key_t *>memory_for(len(keys), sizeof(node_key_t))
        cdef int32_t *new_buckets = <int32_t *>memory_for(buckets, sizeof(int32_t))
        memset(new_buckets, 0xff, buckets * sizeof(int32_t))
        for node, (address, _, _, _) in enumerate(nodes):
            new_nodes[node].address = address
        for i, (node, kind, one, other) in enumerate(keys):
            new_keys[i].node = node
            new_keys[i].key = node_digest(&self.key, kind, one, len(one), other, len(other))
            bucket = new_keys[i].key.b & (buckets - 1)
            new_keys[i].next = new_buckets[bucket]
            new_buckets[bucket] = i
        free(self.nodes)
        free(self.keys)
        free(self.key_buckets)
        self.nodes, self.keys, self.key_buckets, self.key_mask = new_nodes, new_keys, new_buckets, buckets - 1

    cdef int32_t subnet_of(self, uint32_t address) noexcept nogil:
        return subnet_at(self.subnets, self.subnet_count, address)

    cdef bint is_own(self, uint32_t address) noexcept nogil:
        cdef int32_t i
        for i in range(self.own_count):
            if self.own[i] == address:
                return True
        return False

    cdef int32_t node_by(self, uint8_t kind, const uint8_t *one, uint8_t one_size, const uint8_t *other,
                         uint8_t other_size) noexcept nogil:
        if one_size == 0:
            return NOWHERE
        return self.node_with(node_digest(&self.key, kind, one, one_size, other, other_size))

    cdef int32_t node_with(self, digest_t key) noexcept nogil:
        cdef int32_t i
        if self.key_buckets == NULL:
            return NOWHERE
        i = self.key_buckets[key.b & self.key_mask]
        while i != NOWHERE and not digest_same(self.keys[i].key, key):
            i = self.keys[i].next
        return self.keys[i].node if i != NOWHERE else NOWHERE

    cdef int32_t node_of(self, uint8_t hlen, const uint8_t *mac, const uint8_t *circuit, uint8_t circuit_size,
                         const uint8_t *remote, uint8_t remote_size) noexcept nogil:
        # Its MAC first: behind one port there may be a machine, its BMC and its guests, and whoever is known by name
        # is that one. Then the port, so that a machine put in another's place is that node.
        cdef int32_t node = self.node_by(NODE_MAC, mac, hlen, NULL, 0)
        if node == NOWHERE and circuit_size and remote_size:
            node = self.node_by(NODE_PORT, circuit, circuit_size, remote, remote_size)
        if node == NOWHERE:
            node = self.node_by(NODE_CIRCUIT, circuit, circuit_size, NULL, 0)
        if node == NOWHERE:
            node = self.node_by(NODE_REMOTE, remote, remote_size, NULL, 0)
        return node


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
    # Those with one wire's number are tied to a ring, in their order.
    cdef subnet_t *made = <subnet_t *>memory_for(len(subnets), sizeof(subnet_t))
    cdef int32_t i
    cdef dict first = {}, last = {}
    for i, (network, mask, lease, _, wire, by_client_id) in enumerate(subnets):
        made[i].network, made[i].mask, made[i].lease, made[i].by_client_id = network, mask, lease, by_client_id
        made[<int32_t>last.get(wire, i)].beside = i
        made[i].beside = first.setdefault(wire, i)
        last[wire] = i
    return made
