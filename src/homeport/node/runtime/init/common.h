/*
 * What the programs here have in common: system calls without a libc, numbers, who a process
 * becomes and how a command is looked up and executed.
 */

typedef unsigned long u64;
typedef unsigned int u32;

/* None of the programs uses all of it. */
#define SHARED static __attribute__((unused))

#if defined(__x86_64__)
enum {
    SYS_read = 0, SYS_write = 1, SYS_close = 3, SYS_rt_sigprocmask = 14, SYS_ioctl = 16,
    SYS_socket = 41, SYS_connect = 42, SYS_sendmsg = 46, SYS_recvmsg = 47, SYS_shutdown = 48,
    SYS_bind = 49, SYS_listen = 50, SYS_getsockopt = 55, SYS_clone = 56, SYS_execve = 59,
    SYS_wait4 = 61, SYS_kill = 62, SYS_fcntl = 72, SYS_chdir = 80, SYS_fchown = 93,
    SYS_setsid = 112, SYS_pivot_root = 155, SYS_mount = 165, SYS_umount2 = 166, SYS_sethostname = 170,
    SYS_setgroups = 116, SYS_setresuid = 117, SYS_setresgid = 119,
    SYS_capget = 125, SYS_capset = 126, SYS_prctl = 157, SYS_exit_group = 231, SYS_openat = 257,
    SYS_ppoll = 271, SYS_accept4 = 288, SYS_signalfd4 = 289, SYS_dup3 = 292, SYS_pipe2 = 293,
    SYS_setns = 308, SYS_memfd_create = 319, SYS_clone3 = 435, SYS_close_range = 436,
};

SHARED long call(long number, long a, long b, long c, long d, long e)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

__asm__(".globl _start\n_start:\n  xor %ebp, %ebp\n  mov %rsp, %rdi\n  and $-16, %rsp\n  call run\n");

#elif defined(__aarch64__)
enum {
    SYS_dup3 = 24, SYS_fcntl = 25, SYS_ioctl = 29, SYS_umount2 = 39, SYS_mount = 40, SYS_pivot_root = 41, SYS_chdir = 49, SYS_fchown = 55, SYS_openat = 56,
    SYS_close = 57, SYS_pipe2 = 59, SYS_read = 63, SYS_write = 64, SYS_ppoll = 73,
    SYS_signalfd4 = 74, SYS_capget = 90, SYS_capset = 91, SYS_exit_group = 94, SYS_kill = 129,
    SYS_rt_sigprocmask = 135, SYS_setresuid = 147, SYS_setresgid = 149, SYS_setsid = 157,
    SYS_setgroups = 159, SYS_sethostname = 161, SYS_prctl = 167, SYS_socket = 198, SYS_bind = 200, SYS_listen = 201,
    SYS_connect = 203, SYS_getsockopt = 209, SYS_shutdown = 210, SYS_sendmsg = 211,
    SYS_recvmsg = 212, SYS_clone = 220, SYS_execve = 221, SYS_accept4 = 242, SYS_wait4 = 260,
    SYS_setns = 268, SYS_memfd_create = 279, SYS_clone3 = 435, SYS_close_range = 436,
};

SHARED long call(long number, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
                     : "memory");
    return x0;
}

__asm__(".globl _start\n_start:\n  mov x29, xzr\n  mov x0, sp\n  bl run\n");

#else
#error "no system call convention for this architecture"
#endif

/* The kernel's numbers. */
enum {
    ENOENT = 2, EINTR = 4, EIO = 5, EAGAIN = 11, EACCES = 13, ENOTDIR = 20, EINVAL = 22,
    F_SETFD = 2, FD_CLOEXEC = 1, O_CLOEXEC = 02000000, CLOSE_RANGE_CLOEXEC = 4, AT_FDCWD = -100,
    O_RDWR = 02, O_NOCTTY = 0400, F_GETFL = 3, F_SETFL = 4, O_NONBLOCK = 04000, MFD_CLOEXEC = 1,
    SIGCHLD = 17, CLONE_PARENT = 0x8000, SIGHUP = 1, SIGKILL = 9, SIG_BLOCK = 0, SIG_SETMASK = 2,
    WNOHANG = 1,
    SOL_SOCKET = 1, SCM_RIGHTS = 1, POLLIN = 1, AF_UNIX = 1, AF_INET = 2,
    SOCK_STREAM = 1, SOCK_SEQPACKET = 5, SO_PEERCRED = 17,
    SOCK_CLOEXEC = 02000000, SHUT_WR = 1, MSG_TRUNC = 0x20, MSG_CMSG_CLOEXEC = 0x40000000,
    TIOCSCTTY = 0x540E, TIOCSWINSZ = 0x5414, TIOCSPTLCK = 0x40045431, TIOCGPTPEER = 0x5441,
    TIOCGPTN = 0x80045430,
    PR_SET_DUMPABLE = 4, PR_SET_NAME = 15, PR_CAPBSET_DROP = 24, PR_CAP_AMBIENT = 47,
    PR_CAP_AMBIENT_CLEAR_ALL = 4, CAPABILITY_VERSION_3 = 0x20080522, CAPABILITIES_MAX = 64,
    PR_SET_SECCOMP = 22, PR_SET_NO_NEW_PRIVS = 38, SECCOMP_MODE_FILTER = 2,
    CAP_SYS_ADMIN = 21, MS_BIND = 4096, MS_REC = 16384, MNT_DETACH = 2,
    GROUPS_MAX = 64, PATH_MAX = 4096,
};

enum { FAILED = 125 /* an exit code of our own before there is a command */ };

/* Where an execution ended, for the sentence that the node makes of it. */
enum { STEP_JOIN = 'j', STEP_TERMINAL = 't', STEP_RIGHTS = 'r', STEP_DIRECTORY = 'd', STEP_COMMAND = 'c' };

struct vector { void *base; u64 length; };
struct message { void *name; u32 name_length; struct vector *parts; u64 count; void *control; u64 control_length; int flags; };
struct window { unsigned short rows, columns, x, y; };

SHARED void leave(int code)
{
    for (;;)
        call(SYS_exit_group, code, 0, 0, 0, 0);
}

SHARED u64 number_at(const char **text)
{
    u64 value = 0;
    while (**text >= '0' && **text <= '9')
        value = value * 10 + (u64)(*(*text)++ - '0');
    return value;
}

SHARED u64 number(const char *text)
{
    return number_at(&text);
}

/* Skips what is between two numbers of a list. */
SHARED const char *next(const char *text)
{
    while (*text && (*text < '0' || *text > '9'))
        text++;
    return text;
}

/* Says one thing to the node and waits for its byte; a node that is gone ends the container. */
SHARED void report_and_wait(int control, const char *what)
{
    char answer;
    long got;
    if (call(SYS_write, control, (long)what, 1, 0, 0) != 1)
        leave(FAILED);
    do
        got = call(SYS_read, control, (long)&answer, 1, 0, 0);
    while (got == -EINTR);
    if (got != 1)
        leave(FAILED);
}

SHARED void report_error(int control, int error)
{
    unsigned char message[2] = {'E', (unsigned char)error};
    call(SYS_write, control, (long)message, 2, 0, 0);
    leave(FAILED);
}

/* Whoever executes what in this container: no capability beyond those we have now, less these. */
SHARED void bound_capabilities(u64 without)
{
    u32 header[2] = {CAPABILITY_VERSION_3, 0};
    u32 sets[6]; /* effective, permitted, inheritable of the lower 32, then of the upper 32 */
    if (call(SYS_capget, (long)header, (long)sets, 0, 0, 0))
        leave(FAILED);
    for (int half = 0; half < 2; half++)
        sets[3 * half + 1] &= ~(u32)(without >> 32 * half);
    for (int capability = 0; capability < CAPABILITIES_MAX; capability++)
        if (!(sets[capability / 32 * 3 + 1] >> capability % 32 & 1))
            call(SYS_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0);
    call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    sets[2] = sets[5] = 0;
    sets[0] &= sets[1];
    sets[3] &= sets[4];
    header[0] = CAPABILITY_VERSION_3;
    if (call(SYS_capset, (long)header, (long)sets, 0, 0, 0))
        leave(FAILED);
}

/* At most GROUPS_MAX numbers of a list; how many. */
SHARED long read_groups(const char *groups, u32 *list)
{
    long count = 0;
    for (groups = next(groups); *groups && count < GROUPS_MAX; groups = next(groups))
        list[count++] = (u32)number_at(&groups);
    return count;
}

/* Takes the user's and groups' ids ("-": stays who it is); returns errno. */
SHARED int become(const char *uid, const char *gid, const char *groups)
{
    u32 list[GROUPS_MAX];
    u32 user = (u32)number(uid), group = (u32)number(gid);
    long error;

    if (*uid == '-')
        return 0;
    error = call(SYS_setgroups, read_groups(groups, list), (long)list, 0, 0, 0);
    if (!error)
        error = call(SYS_setresgid, group, group, group, 0, 0);
    if (!error)
        error = call(SYS_setresuid, user, user, user, 0, 0);
    return (int)-error;
}

SHARED const char *search_path(char **environment)
{
    for (; *environment; environment++) {
        const char *entry = *environment;
        if (entry[0] == 'P' && entry[1] == 'A' && entry[2] == 'T' && entry[3] == 'H' && entry[4] == '=')
            return entry + 5;
    }
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

/* execvp without the shell fallback; returns errno. */
SHARED int execute(char **command, char **environment)
{
    char candidate[PATH_MAX];
    const char *path, *part;
    int error = ENOENT;

    for (part = command[0]; *part; part++)
        if (*part == '/')
            return (int)-call(SYS_execve, (long)command[0], (long)command, (long)environment, 0, 0);
    if (part == command[0])
        return ENOENT;
    for (path = search_path(environment);; path++) {
        u32 length = 0;
        for (; *path && *path != ':'; path++)
            if (length < PATH_MAX - 2)
                candidate[length++] = *path;
        if (length)
            candidate[length++] = '/';
        for (part = command[0]; *part && length < PATH_MAX - 1; part++)
            candidate[length++] = *part;
        candidate[length] = 0;
        int this = (int)-call(SYS_execve, (long)candidate, (long)command, (long)environment, 0, 0);
        if (this != ENOENT && this != ENOTDIR)
            error = this;
        if (this != ENOENT && this != ENOTDIR && this != EACCES)
            return error;
        if (!*path)
            return error;
    }
}

SHARED void close_on_exec(void)
{
    if (call(SYS_close_range, 3, 0x7fffffff, CLOSE_RANGE_CLOEXEC, 0, 0) == 0)
        return;
    for (int fd = 3; fd < 1024; fd++)
        call(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC, 0, 0);
}
