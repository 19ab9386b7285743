/* Loaded before the C library of a program (LD_PRELOAD), notes what the program does to files below
 * $LEDGER_ROOT, in the order in which it is done, in the file $LEDGER. So it can be told which
 * bytes a disk that lost its power would still have: those of flushes that were over.
 *
 * A record: kind (1 byte), two numbers (8 bytes each), length of the rest (4 bytes), the rest; all
 * little-endian. Each is one write to a file opened with O_APPEND, so several processes may share
 * a ledger. What `ledger.rs` does not know is an error there.
 *
 *   O inode flags(1 new, 2 emptied)  path     opened
 *   W inode offset                   bytes    written
 *   T inode length                            cut or extended
 *   B inode number                            a flush begins; all that stands before is in it
 *   E inode number                            it is over, without an error
 *   R                                from 0 to  renamed
 *   L                                from 0 to  linked
 *   U                                path     removed
 *   M inode                          path     directory made
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
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

#define KNOWN 4096

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int ledger = -1;
static char root[PATH_MAX];
static uint64_t known[KNOWN];
static int count;
static uint64_t flushes;

static void die(const char *why) {
    fprintf(stderr, "ledger: %s\n", why);
    _exit(99);
}

__attribute__((constructor)) static void begin(void) {
    const char *to = getenv("LEDGER"), *below = getenv("LEDGER_ROOT");
    if (!to || !below || !realpath(below, root)) return;
    /* The number of a flush is its process's own. */
    flushes = (uint64_t)getpid() << 32;
    ledger = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (ledger < 0) die("cannot open");
}

static void note(char kind, uint64_t a, uint64_t b, const void *rest, size_t len) {
    char head[21] = { kind };
    uint32_t length = (uint32_t)len;
    memcpy(head + 1, &a, 8);
    memcpy(head + 9, &b, 8);
    memcpy(head + 17, &length, 4);
    struct iovec parts[2] = { { head, sizeof head }, { (void *)rest, len } };
    if (syscall(SYS_writev, ledger, parts, 2) != (long)(sizeof head + len)) die("cannot write");
}

/* The whole path, if it is below the root. */
static int below(const char *path, char *out) {
    if (ledger < 0 || !path) return 0;
    char whole[PATH_MAX], dir[PATH_MAX];
    if (path[0] == '/') snprintf(whole, sizeof whole, "%s", path);
    else if (!getcwd(dir, sizeof dir)) return 0;
    else if (snprintf(whole, sizeof whole, "%s/%s", dir, path) >= (int)sizeof whole) return 0;
    size_t len = strlen(root);
    if (strncmp(whole, root, len) || (whole[len] != '/' && whole[len])) return 0;
    strcpy(out, whole);
    return 1;
}

static int is_known(uint64_t inode) {
    for (int i = 0; i < count; i++)
        if (known[i] == inode) return 1;
    return 0;
}

/* The inode of a file below the root, 0 of any other. */
static uint64_t inode_of(int fd) {
    struct stat s;
    if (ledger < 0 || fstat(fd, &s) || (!S_ISREG(s.st_mode) && !S_ISDIR(s.st_mode))) return 0;
    return is_known(s.st_ino) ? s.st_ino : 0;
}

static int opened(int fd, const char *path, int flags, int is_new) {
    char whole[PATH_MAX];
    struct stat s;
    if (fd < 0 || !below(path, whole) || fstat(fd, &s)) return fd;
    if (!S_ISREG(s.st_mode) && !S_ISDIR(s.st_mode)) return fd;
    if (!is_known(s.st_ino)) {
        if (count == KNOWN) die("too many files");
        known[count++] = s.st_ino;
    }
    note('O', s.st_ino, (is_new ? 1 : 0) | (flags & O_TRUNC ? 2 : 0), whole, strlen(whole));
    return fd;
}

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    struct stat s;
    pthread_mutex_lock(&turn);
    int is_new = (flags & O_CREAT) && syscall(SYS_newfstatat, dir, path, &s, AT_SYMLINK_NOFOLLOW);
    int fd = (int)syscall(SYS_openat, dir, path, flags, mode);
    int error = errno;
    /* Only what is opened by its whole path, or below the working directory. */
    if (dir == AT_FDCWD || (path && path[0] == '/')) opened(fd, path, flags, is_new);
    else if (fd >= 0 && (flags & (O_CREAT | O_TRUNC))) die("a file made below an open directory");
    pthread_mutex_unlock(&turn);
    errno = error;
    return fd;
}

#define MODE va_list rest; va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; va_end(rest)

int open(const char *path, int flags, ...) { MODE; return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE; return open_at(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE; return open_at(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE; return open_at(dir, path, flags, mode); }

static uint64_t position(int fd) {
    int flags = fcntl(fd, F_GETFL);
    struct stat s;
    if (flags >= 0 && (flags & O_APPEND) && !fstat(fd, &s)) return s.st_size;
    return lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *bytes, size_t len) {
    uint64_t inode = inode_of(fd);
    if (!inode) return syscall(SYS_write, fd, bytes, len);
    pthread_mutex_lock(&turn);
    uint64_t at = position(fd);
    ssize_t done = syscall(SYS_write, fd, bytes, len);
    int error = errno;
    if (done > 0) note('W', inode, at, bytes, done);
    pthread_mutex_unlock(&turn);
    errno = error;
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int many) {
    if (!inode_of(fd)) return syscall(SYS_writev, fd, parts, many);
    /* The first part alone: writing less than all is allowed. */
    for (int i = 0; i < many; i++)
        if (parts[i].iov_len) return write(fd, parts[i].iov_base, parts[i].iov_len);
    return 0;
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    uint64_t inode = inode_of(fd);
    if (!inode) return syscall(SYS_pwrite64, fd, bytes, len, at);
    pthread_mutex_lock(&turn);
    ssize_t done = syscall(SYS_pwrite64, fd, bytes, len, at);
    int error = errno;
    if (done > 0) note('W', inode, at, bytes, done);
    pthread_mutex_unlock(&turn);
    errno = error;
    return done;
}
ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) { return pwrite64(fd, bytes, len, at); }

int ftruncate64(int fd, off64_t len) {
    uint64_t inode = inode_of(fd);
    pthread_mutex_lock(&turn);
    int done = (int)syscall(SYS_ftruncate, fd, len);
    int error = errno;
    if (!done && inode) note('T', inode, len, "", 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return done;
}
int ftruncate(int fd, off_t len) { return ftruncate64(fd, len); }

static int flush(int fd, long call) {
    uint64_t inode = inode_of(fd);
    if (!inode) return (int)syscall(call, fd);
    pthread_mutex_lock(&turn);
    uint64_t number = ++flushes;
    note('B', inode, number, "", 0);
    pthread_mutex_unlock(&turn);
    int done = (int)syscall(call, fd);
    int error = errno;
    pthread_mutex_lock(&turn);
    if (!done) note('E', inode, number, "", 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return done;
}
int fsync(int fd) { return flush(fd, SYS_fsync); }
int fdatasync(int fd) { return flush(fd, SYS_fdatasync); }

static void names(char kind, const char *from, const char *to) {
    char both[2 * PATH_MAX];
    if (!below(from, both)) {
        if (below(to, both)) die("a file came from elsewhere");
        return;
    }
    size_t len = strlen(both) + 1;
    if (!below(to, both + len)) die("a file went elsewhere");
    note(kind, 0, 0, both, len + strlen(both + len));
}

int rename(const char *from, const char *to) {
    pthread_mutex_lock(&turn);
    int done = (int)syscall(SYS_rename, from, to);
    int error = errno;
    if (!done) names('R', from, to);
    pthread_mutex_unlock(&turn);
    errno = error;
    return done;
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    pthread_mutex_lock(&turn);
    int done = (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
    int error = errno;
    if (!done) names('L', from, to);
    pthread_mutex_unlock(&turn);
    errno = error;
    return done;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int dir, const char *path, int flags) {
    char whole[PATH_MAX];
    pthread_mutex_lock(&turn);
    int done = (int)syscall(SYS_unlinkat, dir, path, flags);
    int error = errno;
    if (!done && dir == AT_FDCWD && below(path, whole)) note('U', 0, 0, whole, strlen(whole));
    pthread_mutex_unlock(&turn);
    errno = error;
    return done;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdir(const char *path, mode_t mode) {
    char whole[PATH_MAX];
    struct stat s;
    pthread_mutex_lock(&turn);
    int done = (int)syscall(SYS_mkdir, path, mode);
    int error = errno;
    if (!done && below(path, whole) && !stat(whole, &s)) {
        note('M', s.st_ino, 0, whole, strlen(whole));
    }
    pthread_mutex_unlock(&turn);
    errno = error;
    return done;
}

/* Ways to change a file that nobody takes here. */
#define REFUSED(type, name, ...) type name(__VA_ARGS__) { die(#name); return -1; }
REFUSED(ssize_t, copy_file_range, int a, off64_t *b, int c, off64_t *d, size_t e, unsigned f)
REFUSED(int, fallocate64, int a, int b, off64_t c, off64_t d)
REFUSED(int, posix_fallocate64, int a, off64_t b, off64_t c)
REFUSED(int, renameat2, int a, const char *b, int c, const char *d, unsigned e)
REFUSED(ssize_t, pwritev64, int a, const struct iovec *b, int c, off64_t d)
