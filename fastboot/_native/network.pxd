# Links, the subnets that they are in, and the machines that the configuration knows. The Network owns the memory.
from libc.stdint cimport int32_t, uint8_t, uint32_t

from fastboot._native.digest cimport NOWHERE

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

cdef struct node_t:
    uint32_t address

cdef struct node_mac_t:
    uint8_t mac[6]
    int32_t node
    int32_t next

cdef inline int32_t subnet_at(const subnet_t *subnets, int32_t count, uint32_t address) noexcept nogil:
    # The subnet that holds the address.
    cdef int32_t i
    for i in range(count):
        if address & subnets[i].mask == subnets[i].network:
            return i
    return NOWHERE
