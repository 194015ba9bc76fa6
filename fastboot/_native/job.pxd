# What the pump knows of a file on its way to a connection, and the records that cross between it and Python. Pure.
from libc.stdint cimport int32_t, int64_t, uint8_t

from fastboot._native.file cimport file_t

cdef enum:
    PUMP_SLICE = 1048576       # octets of one sendfile at most (its socket takes less), and of one read
    PUMP_HOLD = 10000          # microseconds that all senders but one stand back
    PUMP_BURST = 8             # for so many new transfers in them
    PUMP_TURN = 4              # slices between two looks at what happened; what one sender holds others do not send

# Python takes a job's place and gives it back when it has heard of the end; in between it is the pump's.
cdef struct job_t:
    int fd                     # a descriptor of its own of the connection; -1: no job
    file_t *file               # counted
    int own                    # of the file, read ahead by the kernel for this job alone; -1: all is in memory so far
    int64_t offset             # in the file, of the next octet
    int64_t end
    int64_t warm               # what lies before this was in memory
    int64_t sent               # atomic: Python reads it while the pump goes on
    int32_t error              # of whoever wants it ended
    int32_t unsent             # octets that its socket was told to hold at most; 0: not yet
    bint busy                  # a thread has it, and all but fd, error and this

cdef struct job_end_t:
    int32_t job
    int32_t error              # errno; 0: all sent
    int64_t sent
