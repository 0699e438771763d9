/* A disk that fails when it is told to: preloaded into a server, it stands between SQLite and the system calls
 * of the store's files. What it does is in a small file that the test maps too (tests/support/faulty_disk.py),
 * so that faults come and go while the server runs.
 *
 * Environment: FAULTY_DISK_CONTROL, the control file; FAULTY_DISK_PATH, what the store's files begin with.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

/* The order of faulty_disk.py's FIELDS. */
struct control {
    _Atomic int64_t write_errno;    /* every write to the store fails with it; 0: none does */
    _Atomic int64_t growth_errno;   /* only writes beyond a file's end do: a full disk */
    _Atomic int64_t sync_errno;
    _Atomic int64_t read_errno;
    _Atomic int64_t sync_delay_us;  /* a slow disk; one that hangs, while it is long. Looked at while it passes */
    _Atomic int64_t read_delay_us;  /* the same for reads */
    _Atomic int64_t open_errno;     /* opening for writing fails with it: EROFS, EACCES */
    _Atomic int64_t short_writes;   /* writes of more than a byte take half of what they are given */
    _Atomic int64_t only;           /* faults hit, and kills count: 0 in every file, MAIN_FILE, THE_LOG */
    _Atomic int64_t kill_at_write;  /* counts down; at 1 the process group is killed in the middle of that write */
    _Atomic int64_t kill_at_sync;   /* the same, before the data is synced */
    _Atomic int64_t kill_after_sync; /* the same, when it is */
    _Atomic int64_t kill_at_read;   /* the same, before the read: the recovery of a log reads all of it */
    _Atomic int64_t writes;         /* seen so far */
    _Atomic int64_t syncs;
};

/* The database itself, which only checkpoints of its write-ahead log write to; and that log. */
enum { MAIN_FILE = 1, THE_LOG = 2 };

static struct control *control;
static const char *store_path;

__attribute__((constructor)) static void open_control(void) {
    const char *path = getenv("FAULTY_DISK_CONTROL");
    store_path = getenv("FAULTY_DISK_PATH");
    int fd = path && store_path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *found = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (found != MAP_FAILED) control = found;
}

static int is_store_path(const char *path) {
    if (!control || strncmp(path, store_path, strlen(store_path)) != 0) return 0;
    int64_t only = atomic_load(&control->only);
    const char *suffix = path + strlen(store_path);
    return only == 0 || (only == MAIN_FILE && *suffix == 0) || (only == THE_LOG && strcmp(suffix, "-wal") == 0);
}

static int is_store(int fd) {
    if (!control) return 0;
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return is_store_path(path);
}

/* As long as the delay says, and no longer than it says so: a disk that hangs comes back when it is mended. */
static void wait_for(_Atomic int64_t *delay_us) {
    for (int64_t waited_us = 0; waited_us < atomic_load(delay_us); waited_us += 1000) usleep(1000);
}

static int counts_down_to_now(_Atomic int64_t *left) {
    return atomic_load(left) > 0 && atomic_fetch_sub(left, 1) == 1;
}

static void die(void) {
    kill(0, SIGKILL);
    for (;;) pause();
}

static int fails(_Atomic int64_t *number) {
    int64_t found = atomic_load(number);
    if (found) errno = (int)found;
    return found != 0;
}

static int write_fails(int fd, size_t size, off_t offset) {
    struct stat stat;
    if (fails(&control->write_errno)) return 1;
    if (atomic_load(&control->growth_errno) && fstat(fd, &stat) == 0 && offset + (off_t)size > stat.st_size)
        return fails(&control->growth_errno);
    return 0;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define PWRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) { \
        REAL(name); \
        if (!is_store(fd)) return real(fd, data, size, offset); \
        atomic_fetch_add(&control->writes, 1); \
        if (counts_down_to_now(&control->kill_at_write)){ \
            real(fd, data, size / 2, offset); /* torn: half of it is there */ \
            die(); \
        } \
        if (write_fails(fd, size, offset)) return -1; \
        if (atomic_load(&control->short_writes) && size > 1) size /= 2; \
        return real(fd, data, size, offset); \
    }

#define PREAD(name, offset_type) \
    ssize_t name(int fd, void *data, size_t size, offset_type offset) { \
        REAL(name); \
        if (is_store(fd)) { \
            if (counts_down_to_now(&control->kill_at_read)) die(); \
            wait_for(&control->read_delay_us); \
            if (fails(&control->read_errno)) return -1; \
        } \
        return real(fd, data, size, offset); \
    }

#define SYNC(name) \
    int name(int fd) { \
        REAL(name); \
        if (!is_store(fd)) return real(fd); \
        atomic_fetch_add(&control->syncs, 1); \
        if (counts_down_to_now(&control->kill_at_sync)) die(); \
        wait_for(&control->sync_delay_us); \
        if (fails(&control->sync_errno)) return -1; \
        int result = real(fd); \
        if (counts_down_to_now(&control->kill_after_sync))die(); \
        return result; \
    }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        if (flags & (O_WRONLY | O_RDWR) && is_store_path(path) && fails(&control->open_errno)) return -1; \
        return real(path, flags, mode); \
    }

OPEN(open)
OPEN(open64)
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
PREAD(pread, off_t)
PREAD(pread64, off64_t)
SYNC(fsync)
SYNC(fdatasync)
