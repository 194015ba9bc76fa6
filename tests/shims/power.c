/* LD_PRELOAD: keeps a journal of what a process changes under one directory, so that a test can take back what was not
 * synced when the power failed. See tests/powerkit.py, which reads it.
 *
 * POWER_DIRECTORY  the directory; files in it whose names end in -shm (memory, for SQLite) and sockets are left out
 * POWER_JOURNAL    the journal; POWER_GRAVES a directory on the same file system: what was unlinked has a link there
 * POWER_BROKEN     while this file exists, fsync and fdatasync fail with EIO
 *
 * A record is a head of seven 64-bit numbers (kind, inode, offset, octets before, octets after, size before, grave),
 * a name, and the octets before and after. Whoever calls write has its octets there as soon as it returns: that is
 * the page cache, which a killed process leaves behind and a power failure does not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NAME = 256 };
enum kind { WRITE = 1, SYNC, CREATE, UNLINK, RENAME, LINK, SYNC_DIRECTORY };

struct head {
    uint64_t kind, inode, offset, before, after, size, grave;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;
static uint64_t records, graves;
static char directory[4096];
static const char *grave_directory, *broken;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("POWER_JOURNAL");
    if (path == NULL || realpath(getenv("POWER_DIRECTORY"), directory) == NULL)
        abort();
    grave_directory = getenv("POWER_GRAVES");
    broken = getenv("POWER_BROKEN");
    journal = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (journal < 0)
        abort();
    unsetenv("LD_PRELOAD");
}

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL)
        abort();
    return found;
}

static int counts(const char *name)
{
    size_t n = strlen(name);
    return n < NAME && strchr(name, '/') == NULL && !(n > 4 && strcmp(name + n - 4, "-shm") == 0);
}

/* The name of a path in the directory, or NULL where it is elsewhere. */
static const char *inside(const char *path)
{
    static __thread char full[4096];
    char parent[4096];
    const char *name = strrchr(path, '/');
    if (name == NULL || (size_t)(name - path) >= sizeof parent || !counts(name + 1))
        return NULL;
    memcpy(parent, path, name - path);
    parent[name - path] = 0;
    if (realpath(parent, full) == NULL || strcmp(full, directory) != 0)
        return NULL;
    return name + 1;
}

/* Whether a descriptor is a regular file in the directory. */
static int is_ours(int fd, struct stat *about)
{
    char link[64], path[4096];
    ssize_t n;
    size_t length = strlen(directory);
    if (journal < 0 || fstat(fd, about) != 0 || !S_ISREG(about->st_mode))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    if (n <= (ssize_t)length + 1)
        return 0;
    path[n] = 0;
    return strncmp(path, directory, length) == 0 && path[length] == '/' && counts(path + length + 1);
}

static void record(struct head head, const char *name, const void *before, const void *after)
{
    char padded[NAME] = {0};
    struct iovec parts[4] = {{&head, sizeof head}, {padded, NAME}, {(void *)before, head.before},
                             {(void *)after, head.after}};
    if (name != NULL)
        strncpy(padded, name, NAME - 1);
    if (syscall(SYS_writev, journal, parts, 4) != (ssize_t)(sizeof head + NAME + head.before + head.after))
        abort();
    records++;
}

static void about_to_write(const struct stat *about, int fd, uint64_t offset, const void *data, uint64_t n)
{
    uint64_t size = about->st_size, there = offset < size ? size - offset : 0;
    void *before;
    if (there > n)
        there = n;
    before = malloc(there + 1);
    if (before == NULL || syscall(SYS_pread64, fd, before, there, offset) != (ssize_t)there)
        abort();
    record((struct head){WRITE, about->st_ino, offset, there, n, size, 0}, NULL, before, data);
    free(before);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset)
{
    struct stat about;
    ssize_t done;
    if (!is_ours(fd, &about))
        return syscall(SYS_pwrite64, fd, data, n, offset);
    pthread_mutex_lock(&lock);
    fstat(fd, &about);
    about_to_write(&about, fd, offset, data, n);
    done = syscall(SYS_pwrite64, fd, data, n, offset);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t offset)
{
    return pwrite64(fd, data, n, offset);
}

ssize_t write(int fd, const void *data, size_t n)
{
    struct stat about;
    ssize_t done;
    if (!is_ours(fd, &about))
        return syscall(SYS_write, fd, data, n);
    pthread_mutex_lock(&lock);
    fstat(fd, &about);
    about_to_write(&about, fd, lseek(fd, 0, SEEK_CUR), data, n);
    done = syscall(SYS_write, fd, data, n);
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate64(int fd, off64_t size)
{
    struct stat about;
    int done;
    if (!is_ours(fd, &about))
        return syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&lock);
    fstat(fd, &about);
    if (size < about.st_size) {
        /* What it cuts off, as if it were written over. */
        void *cut = calloc(1, about.st_size - size);
        about_to_write(&about, fd, size, cut, about.st_size - size);
        free(cut);
    }
    done = syscall(SYS_ftruncate, fd, size);
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate(int fd, off_t size)
{
    return ftruncate64(fd, size);
}

/* What is written while it runs may be on the disk or not: only what was there before is sure. */
static int sync_by(int fd, int (*synchronise)(int))
{
    struct stat about, ours;
    uint64_t sure;
    int file = is_ours(fd, &about), done;
    int whole = !file && fstat(fd, &about) == 0 && stat(directory, &ours) == 0 && about.st_ino == ours.st_ino
                && about.st_dev == ours.st_dev;
    if ((file || whole) && broken != NULL && access(broken, F_OK) == 0) {
        errno = EIO;
        return -1;
    }
    pthread_mutex_lock(&lock);
    sure = records;
    pthread_mutex_unlock(&lock);
    done = synchronise(fd);
    if (done == 0 && (file || whole)) {
        pthread_mutex_lock(&lock);
        record((struct head){file ? SYNC : SYNC_DIRECTORY, about.st_ino, sure, 0, 0, 0, 0}, NULL, NULL, NULL);
        pthread_mutex_unlock(&lock);
    }
    return done;
}

int fsync(int fd)
{
    return sync_by(fd, REAL(fsync));
}

int fdatasync(int fd)
{
    return sync_by(fd, REAL(fdatasync));
}

static int open_by(int at, const char *path, int flags, mode_t mode)
{
    const char *name = flags & O_CREAT ? inside(path) : NULL;
    struct stat about;
    int fd, made = 0;
    if (name == NULL)
        return syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&lock);
    made = lstat(path, &about) != 0;
    fd = syscall(SYS_openat, at, path, flags, mode);
    if (fd >= 0 && made && fstat(fd, &about) == 0)
        record((struct head){CREATE, about.st_ino, 0, 0, 0, 0, 0}, name, NULL, NULL);
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPENED(last) ({ va_list rest; va_start(rest, last); mode_t mode = va_arg(rest, int); va_end(rest); mode; })
int open64(const char *path, int flags, ...)
{
    return open_by(AT_FDCWD, path, flags, flags & O_CREAT ? OPENED(flags) : 0);
}

int open(const char *path, int flags, ...)
{
    return open_by(AT_FDCWD, path, flags, flags & O_CREAT ? OPENED(flags) : 0);
}

int openat64(int at, const char *path, int flags, ...)
{
    return open_by(at, path, flags, flags & O_CREAT ? OPENED(flags) : 0);
}

int openat(int at, const char *path, int flags, ...)
{
    return open_by(at, path, flags, flags & O_CREAT ? OPENED(flags) : 0);
}

/* A link of what is about to lose its name; its number, or 0 where there is nothing. */
static uint64_t bury(const char *path)
{
    char grave[4096];
    snprintf(grave, sizeof grave, "%s/%llu", grave_directory, (unsigned long long)(graves + 1));
    return syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, grave, 0) == 0 ? ++graves : 0;
}

int unlink(const char *path)
{
    const char *name = inside(path);
    struct stat about;
    int done;
    if (name == NULL || lstat(path, &about) != 0 || !S_ISREG(about.st_mode))
        return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    pthread_mutex_lock(&lock);
    record((struct head){UNLINK, about.st_ino, 0, 0, 0, 0, bury(path)}, name, NULL, NULL);
    done = syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

int rename(const char *path, const char *to)
{
    const char *name = inside(to);
    struct stat about;
    char names[NAME] = {0};
    int done;
    if (name == NULL || lstat(path, &about) != 0)
        return syscall(SYS_renameat, AT_FDCWD, path, AT_FDCWD, to);
    snprintf(names, sizeof names, "%s/%s", strrchr(path, '/') + 1, name);
    pthread_mutex_lock(&lock);
    record((struct head){RENAME, about.st_ino, 0, 0, 0, 0, bury(to)}, names, NULL, NULL);
    done = syscall(SYS_renameat, AT_FDCWD, path, AT_FDCWD, to);
    pthread_mutex_unlock(&lock);
    return done;
}

int link(const char *path, const char *to)
{
    const char *name = inside(to);
    struct stat about;
    if (name != NULL && lstat(path, &about) == 0) {
        pthread_mutex_lock(&lock);
        record((struct head){LINK, about.st_ino, 0, 0, 0, 0, 0}, name, NULL, NULL);
        pthread_mutex_unlock(&lock);
    }
    return syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, to, 0);
}
