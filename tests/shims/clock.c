/* LD_PRELOAD: a wall clock that a test sets while a process runs, by a 64-bit number of seconds in CLOCK_FILE. The clock
 * since boot is a day ahead of the monotonic one, as on a machine that was suspended. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { SUSPENDED = 86400 };

static const volatile int64_t *ahead;

__attribute__((constructor)) static void begin(void)
{
    int fd = open(getenv("CLOCK_FILE"), O_RDONLY | O_CLOEXEC);
    ahead = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, fd, 0);
    if (ahead == MAP_FAILED)
        abort();
    close(fd);
    unsetenv("LD_PRELOAD");
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    int done = syscall(SYS_clock_gettime, clock, time);
    if (done == 0 && ahead != NULL && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec += *ahead;
    if (done == 0 && clock == CLOCK_BOOTTIME)
        time->tv_sec += SUSPENDED;
    return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec time;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *to)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to != NULL)
        *to = now.tv_sec;
    return now.tv_sec;
}
