/* A disk that fails on purpose, loaded before the C library (LD_PRELOAD).
 *
 * Law: only calls on files below one directory are counted and failed, over all threads, by what a shared page of
 * memory says at that moment; whoever holds the page arms, disarms and reads the counts while the process runs. A
 * call that fails has done nothing, as one that the kernel refuses.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, READ = 4, OPEN = 8, TRUNCATE = 16, UNLINK = 32, STAT = 64, MAP = 128, LOCK = 256, RENAME = 512 };
enum { DATABASE = 1, LOG = 2, INDEX = 4, GUARD = 8, JOURNAL = 16, COPY = 32, DIRECTORY = 64, OTHER = 128 };
enum { FAIL = 0, HALF = 1, DELAY = 2, HANG = 3, KILL = 4 };

struct control { /* tests/support/faulty_disk.py has the same */
    volatile int armed;
    unsigned calls, files;
    int error, how;
    volatile int released;
    long first, last, pause_us;
    volatile long count, given, hanging;
    char home[1024];
};

static struct control *control;
static unsigned char kinds[1 << 16];

/* Take the orders of a file; a process that was forked from another is given its own. */
int faulty_disk_attach(const char *path) {
    static int (*real)(const char *, int, ...);
    if (!real) real = dlsym(RTLD_NEXT, "open64");
    int fd = real(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return -1;
    void *page = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED) return -1;
    control = page;
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTY_DISK");
    if (path && faulty_disk_attach(path)) abort();
}

static int ends(const char *text, size_t length, const char *end) {
    size_t tail = strlen(end);
    return length >= tail && !strcmp(text + length - tail, end);
}

static int kind_of(const char *path) {
    if (!control || !path) return 0;
    size_t home = strlen(control->home), length = strlen(path);
    if (!home || strncmp(path, control->home, home)) return 0;
    if (!path[home]) return DIRECTORY;
    if (path[home] != '/') return 0;
    if (strstr(path + home, ".copy-")) return COPY;
    if (ends(path, length, "-wal")) return LOG;
    if (ends(path, length, "-shm")) return INDEX;
    if (ends(path, length, "-journal")) return JOURNAL;
    if (ends(path, length, ".guard")) return GUARD;
    return ends(path, length, ".db") ? DATABASE : OTHER;
}

static int kind_at(int fd) { return fd >= 0 && fd < (int)sizeof kinds ? kinds[fd] : 0; }

/* Whether this call is to fail, and how: -1 not at all; what delays it does so here. */
static int struck(int call, int kind) {
    struct control *is = control;
    if (!kind || !is || !is->armed || !(is->calls & call) || !(is->files & kind)) return -1;
    long number = __sync_add_and_fetch(&is->count, 1);
    if (number < is->first || number > is->last) return -1;
    __sync_add_and_fetch(&is->given, 1);
    if (is->how == DELAY) {
        usleep(is->pause_us);
        return -1;
    }
    if (is->how == KILL) kill(getpid(), SIGKILL);
    if (is->how == HANG) {
        __sync_add_and_fetch(&is->hanging, 1);
        while (!is->released) usleep(1000);
        __sync_sub_and_fetch(&is->hanging, 1);
        return -1;
    }
    if (is->how == HALF && call == WRITE) return HALF;
    errno = is->error;
    return FAIL;
}

#define REAL(name, type, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)
#define ON_FD(name, call, type, fd, params, args, ...) \
    type name params { REAL(name, type, __VA_ARGS__); return struck(call, kind_at(fd)) == FAIL ? -1 : real args; }
#define ON_PATH(name, call, type, path, params, args, ...) \
    type name params { REAL(name, type, __VA_ARGS__); return struck(call, kind_of(path)) == FAIL ? -1 : real args; }
#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name, int, const char *, int, ...); \
        va_list rest; va_start(rest, flags); mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; va_end(rest); \
        int kind = kind_of(path); \
        if (struck(OPEN, kind) == FAIL) return -1; \
        int fd = real(path, flags, mode); \
        if (fd >= 0 && fd < (int)sizeof kinds) kinds[fd] = kind; \
        return fd; }
#define WRITES(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type at) { \
        REAL(name, ssize_t, int, const void *, size_t, offset_type); \
        int how = struck(WRITE, kind_at(fd)); \
        return how == FAIL ? -1 : real(fd, data, how == HALF ? (size + 1) / 2 : size, at); }

OPENS(open)
OPENS(open64)
WRITES(pwrite, off_t)
WRITES(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write, ssize_t, int, const void *, size_t);
    int how = struck(WRITE, kind_at(fd));
    return how == FAIL ? -1 : real(fd, data, how == HALF ? (size + 1) / 2 : size);
}

int close(int fd) {
    REAL(close, int, int);
    if (fd >= 0 && fd < (int)sizeof kinds) kinds[fd] = 0;
    return real(fd);
}

void *mmap64(void *at, size_t size, int rights, int flags, int fd, off64_t from) {
    REAL(mmap64, void *, void *, size_t, int, int, int, off64_t);
    return fd >= 0 && struck(MAP, kind_at(fd)) == FAIL ? MAP_FAILED : real(at, size, rights, flags, fd, from);
}

int fcntl64(int fd, int what, ...) {
    REAL(fcntl64, int, int, int, ...);
    va_list rest; va_start(rest, what); void *value = va_arg(rest, void *); va_end(rest);
    if ((what == F_SETLK || what == F_SETLKW) && struck(LOCK, kind_at(fd)) == FAIL) return -1;
    return real(fd, what, value);
}

ON_FD(fsync, SYNC, int, fd, (int fd), (fd), int)
ON_FD(fdatasync, SYNC, int, fd, (int fd), (fd), int)
ON_FD(read, READ, ssize_t, fd, (int fd, void *to, size_t size), (fd, to, size), int, void *, size_t)
ON_FD(pread, READ, ssize_t, fd, (int fd, void *to, size_t size, off_t at), (fd, to, size, at), int, void *, size_t, off_t)
ON_FD(pread64, READ, ssize_t, fd, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at), int, void *, size_t, off64_t)
ON_FD(ftruncate, TRUNCATE, int, fd, (int fd, off_t size), (fd, size), int, off_t)
ON_FD(ftruncate64, TRUNCATE, int, fd, (int fd, off64_t size), (fd, size), int, off64_t)
ON_FD(fstat, STAT, int, fd, (int fd, struct stat *to), (fd, to), int, struct stat *)
ON_FD(fstat64, STAT, int, fd, (int fd, struct stat64 *to), (fd, to), int, struct stat64 *)
ON_FD(flock, LOCK, int, fd, (int fd, int what), (fd, what), int, int)
ON_PATH(stat, STAT, int, path, (const char *path, struct stat *to), (path, to), const char *, struct stat *)
ON_PATH(stat64, STAT, int, path, (const char *path, struct stat64 *to), (path, to), const char *, struct stat64 *)
ON_PATH(lstat, STAT, int, path, (const char *path, struct stat *to), (path, to), const char *, struct stat *)
ON_PATH(lstat64, STAT, int, path, (const char *path, struct stat64 *to), (path, to), const char *, struct stat64 *)
ON_PATH(access, STAT, int, path, (const char *path, int rights), (path, rights), const char *, int)
ON_PATH(statvfs, STAT, int, path, (const char *path, struct statvfs *to), (path, to), const char *, struct statvfs *)
ON_PATH(statvfs64, STAT, int, path, (const char *path, struct statvfs64 *to), (path, to), const char *, struct statvfs64 *)
ON_PATH(unlink, UNLINK, int, path, (const char *path), (path), const char *)
ON_PATH(rename, RENAME, int, path, (const char *path, const char *to), (path, to), const char *, const char *)
