# Links, the subnets that they are in, and the machines that the configuration knows. The Network owns the memory.
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from fastboot._native.digest cimport NOWHERE, digest_key_t, digest_of, digest_t

cdef enum:
    NETWORK_NEAR = 16               # subnets of one link
    NETWORK_SELF = -2               # the node that is this host

cdef struct near_t:                 # a subnet as one link sees it
    int32_t subnet
    uint32_t server                 # our address there

cdef struct link_t:
    int ifindex
    int fd
    uint32_t mtu
    uint32_t address                # the first of ours
    int32_t nears
    near_t near[NETWORK_NEAR]

cdef struct subnet_t:
    uint32_t network
    uint32_t mask
    uint32_t lease
    int32_t beside                  # the next subnet on the same wire; itself where there is no other
    bint by_client_id               # option 61 tells its clients apart (RFC 2131 4.2), where they send it

cdef struct node_t:
    uint32_t address

cdef enum:                          # what a node is known by
    NODE_MAC = 0
    NODE_PORT                       # circuit id and remote id together
    NODE_CIRCUIT
    NODE_REMOTE

cdef struct node_key_t:
    digest_t key
    int32_t node
    int32_t next

cdef inline int32_t subnet_at(const subnet_t *subnets, int32_t count, uint32_t address) noexcept nogil:
    # The subnet that holds the address.
    cdef int32_t i
    for i in range(count):
        if address & subnets[i].mask == subnets[i].network:
            return i
    return NOWHERE

cdef inline digest_t node_digest(const digest_key_t *key, uint8_t kind, const uint8_t *one, uint8_t one_size,
                                 const uint8_t *other, uint8_t other_size) noexcept nogil:
    cdef uint8_t octets[2 + 255 + 255]
    octets[0], octets[1] = kind, one_size
    if one_size:
        memcpy(octets + 2, one, one_size)
    if other_size:
        memcpy(octets + 2 + one_size, other, other_size)
    return digest_of(key, octets, 2 + <size_t>one_size + other_size)
