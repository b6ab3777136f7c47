/* Makes one chosen file-system call of a program fail, or the last thing that it does.
 *
 *     cc -O2 -Wall -shared -fPIC -o faults.so faults.c
 *     FAULTS_UNDER=/dir FAULTS_LOG=/elsewhere/log FAULTS_AT=17 FAULTS_DO=kill LD_PRELOAD=./faults.so program …
 *
 * Calls that name a path below FAULTS_UNDER, or a descriptor of such a file, are counted from 1. Others run as they would.
 *
 *     FAULTS_UNDER    directories, separated by `:`, as the program names them (absolute)
 *     FAULTS_NOT      a file's name, which does not count wherever it lies
 *     FAULTS_CLASSES  which calls count, letters of: s takes space (write, open to create, mkdir, rename, fsync, …),
 *                     r removes (unlink, rmdir), m changes what is known of a file (chmod, utimes), o opens to read,
 *                     l looks and reads (stat, read, getdents, mmap of a file). The default is `srm`.
 *     FAULTS_ROW      of a row of writes into one file, only so many count: how many there are may depend on sizes that
 *                     differ from run to run
 *     FAULTS_LOG      a file, outside of FAULTS_UNDER: a line `number class name path` for each call that counts
 *     FAULTS_AT       the number of the call; none without it
 *     FAULTS_DO       kill        SIGKILL in the place of the call
 *                     torn        of a write, the first half of the bytes, then SIGKILL; else as `kill`
 *                     signal=N    the signal N, then the call
 *                     short       of a write or a read, the first half (a call that may say so and must be repeated)
 *                     errno=N     the call is not made and fails with N
 *     FAULTS_ON       if set, errno holds for every call that counts from FAULTS_AT on
 *
 * Why not functions of the C library in their place: Rust's `rustix` (below `tempfile`, so below every rename into place)
 * enters the kernel by itself. A seccomp filter sees every entry: it turns the calls into SIGSYS, whose handler makes
 * them, or not. The filter lets the handler's own entry pass, by the address of its instruction.
 *
 * A program that is started by the program inherits the filter without the handler, and dies of its first call. olora
 * starts none on a CPU.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef __x86_64__
#error "only x86-64 Linux: elsewhere, the registers of a call have other names"
#endif

/* faults_raw(number, six arguments): what the kernel answers, errors as -errno. */
long faults_raw(long number, ...);
extern const char faults_raw_after[];
__asm__(".text\n"
        ".hidden faults_raw\n.globl faults_raw\n.type faults_raw, @function\n"
        "faults_raw:\n"
        "mov %rdi, %rax\nmov %rsi, %rdi\nmov %rdx, %rsi\nmov %rcx, %rdx\nmov %r8, %r10\nmov %r9, %r8\nmov 8(%rsp), %r9\n"
        "syscall\n"
        ".hidden faults_raw_after\n.globl faults_raw_after\n"
        "faults_raw_after:\n"
        "ret\n"
        ".size faults_raw, . - faults_raw\n");

/* What a call's arguments are. */
enum form { PATH, AT_PATH, FD, PATH_PATH, AT_PATH_AT_PATH, PATH_AT_PATH, FD_OUT_IN, MAP };

struct call {
    int number;
    char class;
    enum form form;
    const char *name;
};

static const struct call CALLS[] = {
    {SYS_open, 'o', PATH, "open"},
    {SYS_creat, 's', PATH, "creat"},
    {SYS_openat, 'o', AT_PATH, "openat"},
    {SYS_write, 's', FD, "write"},
    {SYS_pwrite64, 's', FD, "pwrite64"},
    {SYS_writev, 's', FD, "writev"},
    {SYS_pwritev, 's', FD, "pwritev"},
    {SYS_ftruncate, 's', FD, "ftruncate"},
    {SYS_truncate, 's', PATH, "truncate"},
    {SYS_fallocate, 's', FD, "fallocate"},
    {SYS_fsync, 's', FD, "fsync"},
    {SYS_fdatasync, 's', FD, "fdatasync"},
    {SYS_sendfile, 's', FD, "sendfile"},
    {SYS_copy_file_range, 's', FD_OUT_IN, "copy_file_range"},
    {SYS_mkdir, 's', PATH, "mkdir"},
    {SYS_mkdirat, 's', AT_PATH, "mkdirat"},
    {SYS_rename, 's', PATH_PATH, "rename"},
    {SYS_renameat, 's', AT_PATH_AT_PATH, "renameat"},
    {SYS_renameat2, 's', AT_PATH_AT_PATH, "renameat2"},
    {SYS_link, 's', PATH_PATH, "link"},
    {SYS_linkat, 's', AT_PATH_AT_PATH, "linkat"},
    {SYS_symlink, 's', PATH_PATH, "symlink"},
    {SYS_symlinkat, 's', PATH_AT_PATH, "symlinkat"},
    {SYS_unlink, 'r', PATH, "unlink"},
    {SYS_unlinkat, 'r', AT_PATH, "unlinkat"},
    {SYS_rmdir, 'r', PATH, "rmdir"},
    {SYS_chmod, 'm', PATH, "chmod"},
    {SYS_fchmod, 'm', FD, "fchmod"},
    {SYS_fchmodat, 'm', AT_PATH, "fchmodat"},
    {SYS_utimensat, 'm', AT_PATH, "utimensat"},
    {SYS_read, 'l', FD, "read"},
    {SYS_readv, 'l', FD, "readv"},
    {SYS_pread64, 'l', FD, "pread64"},
    {SYS_getdents64, 'l', FD, "getdents64"},
    {SYS_stat, 'l', PATH, "stat"},
    {SYS_lstat, 'l', PATH, "lstat"},
    {SYS_newfstatat, 'l', AT_PATH, "newfstatat"},
    {SYS_statx, 'l', AT_PATH, "statx"},
    {SYS_mmap, 'l', MAP, "mmap"},
};
enum { N_CALLS = sizeof CALLS / sizeof *CALLS };

static char under[4096];
static char never[256];
static char classes[16] = "srm";
static int log_file = -1;
static long fault_at = -1;
static int from_then_on;
static enum { NOTHING, KILL, TORN, SIGNAL, SHORT, ERRNO } fault;
static int fault_number;
static atomic_long counted;
static long longest_row;
static atomic_long row;
static char row_path[PATH_MAX];

static int is_under(const char *path) {
    const char *name = strrchr(path, '/');
    if (never[0] && name && !strcmp(name + 1, never)) return 0;
    for (const char *one = under; *one;) {
        size_t length = strcspn(one, ":");
        if (length && strncmp(path, one, length) == 0 && (path[length] == '/' || path[length] == 0)) return 1;
        one += length + (one[length] == ':');
    }
    return 0;
}

/* The path that a descriptor was opened by. */
static void path_of(int descriptor, char *out, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long length = faults_raw(SYS_readlinkat, AT_FDCWD, link, out, size - 1, 0, 0);
    out[length > 0 ? length : 0] = 0;
}

/* A path as a call gives it, from the root on. */
static void absolute(int directory, const char *path, char *out, size_t size) {
    out[0] = 0;
    if (!path) return;
    if (path[0] == '/') {
        snprintf(out, size, "%s", path);
        return;
    }
    if (directory != AT_FDCWD) {
        path_of(directory, out, size);
    } else if (faults_raw(SYS_getcwd, out, size, 0, 0, 0, 0) <= 0) {
        out[0] = 0;
    }
    size_t length = strlen(out);
    if (path[0]) snprintf(out + length, size - length, "/%s", path);
}

/* Writes the call's path that is below FAULTS_UNDER; none otherwise. */
static int concerns(const struct call *call, const long *a, char *out, size_t size) {
    switch (call->form) {
    case PATH:
        absolute(AT_FDCWD, (const char *)a[0], out, size);
        break;
    case AT_PATH:
        absolute((int)a[0], (const char *)a[1], out, size);
        break;
    case FD:
        path_of((int)a[0], out, size);
        break;
    case FD_OUT_IN:
        path_of((int)a[2], out, size);
        break;
    case PATH_PATH:
        absolute(AT_FDCWD, (const char *)a[1], out, size);
        break;
    case PATH_AT_PATH:
        absolute((int)a[1], (const char *)a[2], out, size);
        break;
    case AT_PATH_AT_PATH:
        absolute((int)a[2], (const char *)a[3], out, size);
        break;
    case MAP:
        if ((a[3] & MAP_ANONYMOUS) || (int)a[4] < 0) return 0;
        path_of((int)a[4], out, size);
        break;
    }
    return is_under(out);
}

static char class_of(const struct call *call, const long *a) {
    if (call->class != 'o') return call->class;
    int flags = (int)(call->number == SYS_openat ? a[2] : a[1]);
    return flags & (O_CREAT | O_TRUNC) ? 's' : 'o';
}

static void die(void) {
    faults_raw(SYS_kill, faults_raw(SYS_getpid, 0, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0, 0);
    for (;;) faults_raw(SYS_pause, 0, 0, 0, 0, 0, 0);
}

static int moves_bytes(int number) {
    return number == SYS_write || number == SYS_pwrite64 || number == SYS_read || number == SYS_pread64;
}

/* Whether a write continues a row that has counted often enough. What threads write at once breaks rows, no more. */
static int in_long_row(const struct call *call, const char *path) {
    if (!longest_row) return 0;
    if (call->number != SYS_write) {
        row_path[0] = 0;
        return 0;
    }
    if (strcmp(path, row_path)) {
        snprintf(row_path, sizeof row_path, "%s", path);
        atomic_store(&row, 0);
    }
    return atomic_fetch_add(&row, 1) >= longest_row;
}

static void on_call(int signal, siginfo_t *about, void *context) {
    (void)signal;
    int saved = errno;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    long a[6] = {registers[REG_RDI], registers[REG_RSI], registers[REG_RDX],
                 registers[REG_R10], registers[REG_R8],  registers[REG_R9]};
    long number = about->si_syscall;
    const struct call *call = NULL;
    for (int i = 0; i < N_CALLS; i++)
        if (CALLS[i].number == number) call = &CALLS[i];
    char path[PATH_MAX];
    char class = call ? class_of(call, a) : 0;
    if (class && strchr(classes, class) && concerns(call, a, path, sizeof path)) {
        int counts = !in_long_row(call, path);
        long n = counts ? atomic_fetch_add(&counted, 1) + 1 : atomic_load(&counted);
        int now = (counts && n == fault_at) || (from_then_on && fault_at > 0 && n >= fault_at);
        if (log_file >= 0 && counts) {
            char line[PATH_MAX + 64];
            int length = snprintf(line, sizeof line, "%ld %c %s %s\n", n, class, call->name, path);
            faults_raw(SYS_write, log_file, line, length, 0, 0, 0);
        }
        if (now && fault == SIGNAL)
            faults_raw(SYS_kill, faults_raw(SYS_getpid, 0, 0, 0, 0, 0, 0), fault_number, 0, 0, 0, 0);
        if (now && (fault == TORN || fault == SHORT) && moves_bytes(call->number) && a[2] > 1) a[2] /= 2;
        if (now && fault == TORN && moves_bytes(call->number)) faults_raw(number, a[0], a[1], a[2], a[3], a[4], a[5]);
        if (now && (fault == KILL || fault == TORN)) die();
        if (now && fault == ERRNO) {
            registers[REG_RAX] = -fault_number;
            errno = saved;
            return;
        }
    }
    registers[REG_RAX] = faults_raw(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    errno = saved;
}

static void wrong(const char *what) {
    fprintf(stderr, "faults: %s\n", what);
    _exit(99);
}

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("FAULTS_UNDER");
    if (!text || !*text) return;
    snprintf(under, sizeof under, "%s", text);
    if ((text = getenv("FAULTS_NOT"))) snprintf(never, sizeof never, "%s", text);
    if ((text = getenv("FAULTS_CLASSES"))) snprintf(classes, sizeof classes, "%s", text);
    if ((text = getenv("FAULTS_AT"))) fault_at = atol(text);
    if ((text = getenv("FAULTS_ROW"))) longest_row = atol(text);
    from_then_on = getenv("FAULTS_ON") != NULL;
    if ((text = getenv("FAULTS_DO"))) {
        if (!strcmp(text, "kill")) fault = KILL;
        else if (!strcmp(text, "torn")) fault = TORN;
        else if (!strcmp(text, "short")) fault = SHORT;
        else if (sscanf(text, "signal=%d", &fault_number) == 1) fault = SIGNAL;
        else if (sscanf(text, "errno=%d", &fault_number) == 1) fault = ERRNO;
        else wrong("FAULTS_DO is not understood");
    }
    if ((text = getenv("FAULTS_LOG"))) {
        int file = open(text, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
        /* Out of the way of the program's own descriptors. */
        log_file = file < 0 ? -1 : fcntl(file, F_DUPFD_CLOEXEC, 900);
        if (log_file < 0) log_file = file;
        else close(file);
        if (log_file < 0) wrong("FAULTS_LOG cannot be opened");
    }

    struct sigaction action = {.sa_sigaction = on_call, .sa_flags = SA_SIGINFO | SA_RESTART};
    if (sigaction(SIGSYS, &action, NULL) < 0) wrong("there is no handler for SIGSYS");

    /* Allowed: another architecture's calls, the handler's own, and those that are not in the table. */
    const unsigned long own = (unsigned long)faults_raw_after;
    struct sock_filter filter[8 + 2 * N_CALLS];
    int n = 0;
    const struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    const struct sock_filter trap = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer));
    filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)own, 0, 3);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4);
    filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)(own >> 32), 0, 1);
    filter[n++] = allow;
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < N_CALLS; i++) {
        char class = CALLS[i].class;
        int counts = strchr(classes, class) || (class == 'o' && strchr(classes, 's'));
        if (!counts) continue;
        filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)CALLS[i].number, 0, 1);
        filter[n++] = trap;
    }
    filter[n++] = allow;
    struct sock_fprog program = {.len = (unsigned short)n, .filter = filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        wrong("the kernel takes no filter (seccomp)");
}
