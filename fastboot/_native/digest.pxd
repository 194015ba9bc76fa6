# Keyed 128-bit digests. They stand for the octets themselves: the key is random, so nobody can choose two clients
# or two classes of machines that meet, nor ones that crowd a bucket.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    NOWHERE = -1                # the end of a chain of indexes

cdef struct digest_t:
    uint64_t a                  # never 0, but in the digest of nobody
    uint64_t b

cdef struct digest_key_t:
    uint64_t k[4]

cdef inline bint digest_same(digest_t x, digest_t y) noexcept nogil:
    return x.a == y.a and x.b == y.b

cdef inline bint digest_none(digest_t x) noexcept nogil:
    return x.a == 0

cdef inline uint64_t _rotate(uint64_t x, int n) noexcept nogil:
    return (x << n) | (x >> (64 - n))

cdef inline void _sip_round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = _rotate(v[1], 13) ^ v[0]
    v[3] = _rotate(v[3], 16) ^ v[2]
    v[0] = _rotate(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = _rotate(v[1], 17) ^ v[2]
    v[3] = _rotate(v[3], 21) ^ v[0]
    v[2] = _rotate(v[2], 32)

cdef inline uint64_t _sip(const uint64_t *k, const uint8_t *data, size_t n) noexcept nogil:
    # SipHash-1-3 (Aumasson, Bernstein 2012).
    cdef uint64_t v[4]
    cdef uint64_t word
    cdef size_t left = n
    v[0] = k[0] ^ <uint64_t>0x736f6d6570736575
    v[1] = k[1] ^ <uint64_t>0x646f72616e646f6d
    v[2] = k[0] ^ <uint64_t>0x6c7967656e657261
    v[3] = k[1] ^ <uint64_t>0x7465646279746573
    while left >= 8:
        memcpy(&word, data, 8)
        v[3] ^= word
        _sip_round(v)
        v[0] ^= word
        data += 8
        left -= 8
    word = 0
    memcpy(&word, data, left)
    word |= <uint64_t>n << 56
    v[3] ^= word
    _sip_round(v)
    v[0] ^= word
    v[2] ^= 0xff
    _sip_round(v)
    _sip_round(v)
    _sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]

cdef inline digest_t digest_of(const digest_key_t *key, const uint8_t *data, size_t n) noexcept nogil:
    cdef digest_t d
    d.a = _sip(&key.k[0], data, n) | 1
    d.b = _sip(&key.k[2], data, n)
    return d

cdef inline uint32_t digest_spread(uint32_t x) noexcept nogil:
    # For keys by whose choice nobody gains.
    return (x ^ (x >> 15)) * <uint32_t>0x9E3779B1
