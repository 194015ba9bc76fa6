// Preloaded: a slow disk. Of files of $SLOW_SIZE octets nothing is in memory until it was read, and reading waits until
// there is a file $SLOW_GATE. What is read is written to $SLOW_LOG, a line of octets each. $SLOW_HOW may be "nfs" (a
// file system that can not tell what is in memory), "5.10" (a kernel without MADV_POPULATE_READ) or "broken".
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FILES = 64, POPULATE_READ = 22 };

static struct { dev_t device; ino_t inode; char *map; off_t read; } slow[FILES];

static int place(int fd) {
    struct stat s;
    int i;
    if (fstat(fd, &s) < 0 || !getenv("SLOW_SIZE") || s.st_size != atoll(getenv("SLOW_SIZE")))
        return -1;
    for (i = 0; i < FILES - 1 && slow[i].inode; i++)
        if (slow[i].inode == s.st_ino && slow[i].device == s.st_dev)
            return i;
    slow[i].device = s.st_dev, slow[i].inode = s.st_ino;
    return i;
}

static int is(const char *how) {
    return getenv("SLOW_HOW") && !strcmp(getenv("SLOW_HOW"), how);
}

ssize_t preadv64v2(int fd, const struct iovec *iov, int n, off_t offset, int flags) {
    ssize_t (*real)(int, const struct iovec *, int, off_t, int) = dlsym(RTLD_NEXT, "preadv64v2");
    int i = flags & RWF_NOWAIT ? place(fd) : -1;
    if (i >= 0 && (is("nfs") || offset >= slow[i].read)) {
        errno = is("nfs") ? EOPNOTSUPP : EAGAIN;
        return -1;
    }
    return real(fd, iov, n, offset, flags);
}

void *mmap64(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap64");
    void *map = real(at, length, protection, flags, fd, offset);
    int i = fd >= 0 ? place(fd) : -1;
    if (i >= 0 && map != MAP_FAILED)
        slow[i].map = map;
    return map;
}

int madvise(void *at, size_t length, int advice) {
    int (*real)(void *, size_t, int) = dlsym(RTLD_NEXT, "madvise");
    char *from = at;
    for (int i = 0; advice == POPULATE_READ && i < FILES; i++) {
        if (!slow[i].map || from < slow[i].map || from >= slow[i].map + atoll(getenv("SLOW_SIZE")))
            continue;
        while (access(getenv("SLOW_GATE"), F_OK) < 0)
            usleep(1000);
        FILE *log = fopen(getenv("SLOW_LOG"), "a");
        fprintf(log, "%zu\n", length);
        fclose(log);
        if (from + length - slow[i].map > slow[i].read)
            slow[i].read = from + length - slow[i].map;
        if (is("broken"))
            return mprotect(at, length, PROT_NONE);
        if (is("5.10")) {
            errno = EINVAL;
            return -1;
        }
    }
    return real(at, length, advice);
}
