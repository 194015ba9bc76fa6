# An open file, counted: the object behind every Source. source.pxi makes and frees it.
from libc.stdint cimport int64_t, uint8_t

from fastboot._native.sys cimport stat_t

cdef struct file_t:
    int64_t count          # atomic; whoever takes it to 0 frees
    int fd
    bint resident          # bytes of ours, of which a file system can not say that they are in memory
    uint8_t *map           # the whole file, from its first TFTP use; written once, under the GIL
    int64_t size           # at open; the map's length
    stat_t opened
