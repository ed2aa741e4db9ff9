/*
 * Starts one more process in a running container: `exec`.
 *
 *   enter CONTROL_FD PIDFD NAMESPACES CAPABILITIES UID GID GROUPS FILTER_FD TERMINAL
 *         WORKDIR GROUPS_FDS COMMAND [ARGUMENT...]
 *
 * It begins outside, as the node: joins the container's control groups (one descriptor of a
 * cgroup.procs each) and namespaces (those in the mask NAMESPACES of the process behind PIDFD),
 * makes the command's process and ends. That process is a child of the node itself
 * (CLONE_PARENT), which so learns of its end; it gives up every right that the container does not
 * have before it looks at anything in there.
 *
 * What it says to the node over CONTROL_FD, a packet socket:
 *
 *   'T' with a descriptor   the terminal's master (only with TERMINAL = ROWS,COLUMNS)
 *   'S'                     the command's process exists (its pid by socket credentials)
 *   'E' errno step          it could not be executed; the step says where it ended
 *
 * The execution closes the socket. Freestanding like init.c, and for the same reasons.
 */

typedef unsigned long u64;
typedef unsigned int u32;

#if defined(__x86_64__)
enum {
    SYS_read = 0, SYS_write = 1, SYS_close = 3, SYS_ioctl = 16, SYS_sendmsg = 46, SYS_clone = 56,
    SYS_execve = 59, SYS_fcntl = 72, SYS_chdir = 80, SYS_fchown = 93, SYS_setsid = 112,
    SYS_setgroups = 116, SYS_setresuid = 117, SYS_setresgid = 119, SYS_capset = 126,
    SYS_prctl = 157, SYS_exit_group = 231, SYS_openat = 257, SYS_dup3 = 292, SYS_setns = 308,
    SYS_close_range = 436,
};

static long call(long number, long a, long b, long c, long d, long e)
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
    SYS_dup3 = 24, SYS_fcntl = 25, SYS_ioctl = 29, SYS_chdir = 49, SYS_fchown = 55,
    SYS_openat = 56, SYS_close = 57, SYS_read = 63, SYS_write = 64, SYS_capset = 91,
    SYS_exit_group = 94, SYS_setresuid = 147, SYS_setresgid = 149, SYS_setsid = 157,
    SYS_setgroups = 159, SYS_prctl = 167, SYS_sendmsg = 211, SYS_clone = 220, SYS_execve = 221,
    SYS_setns = 268, SYS_close_range = 436,
};

static long call(long number, long a, long b, long c, long d, long e)
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

enum {
    EINTR = 4, ENOENT = 2, EACCES = 13, ENOTDIR = 20,
    AT_FDCWD = -100, O_RDWR = 02, O_NOCTTY = 0400, O_CLOEXEC = 02000000,
    SIGCHLD = 17, CLONE_PARENT = 0x8000,
    F_SETFD = 2, FD_CLOEXEC = 1,
    SOL_SOCKET = 1, SCM_RIGHTS = 1,
    TIOCSCTTY = 0x540E, TIOCSWINSZ = 0x5414, TIOCSPTLCK = 0x40045431, TIOCGPTPEER = 0x5441,
    PR_SET_DUMPABLE = 4, PR_SET_SECCOMP = 22, PR_CAPBSET_DROP = 24, PR_SET_NO_NEW_PRIVS = 38,
    PR_CAP_AMBIENT = 47, PR_CAP_AMBIENT_CLEAR_ALL = 4, SECCOMP_MODE_FILTER = 2,
    CAPABILITY_VERSION_3 = 0x20080522, CAPABILITIES_MAX = 64,
    GROUPS_MAX = 64, PATH_MAX = 4096, FILTER_MAX = 4096,
    FAILED = 125,
};

/* Where it ended, for the sentence that the node makes of it. */
enum { STEP_JOIN = 'j', STEP_TERMINAL = 't', STEP_RIGHTS = 'r', STEP_DIRECTORY = 'd', STEP_COMMAND = 'c' };

struct rule { unsigned short code; unsigned char yes, no; u32 operand; };
struct program { unsigned short count; struct rule *rules; };
struct vector { void *base; u64 length; };
struct message { void *name; u32 name_length; struct vector *parts; u64 count; void *control; u64 control_length; int flags; };
struct rights { u64 length; int level, type; int fd; int padding; };
struct window { unsigned short rows, columns, x, y; };

static struct rule rules[FILTER_MAX];

static void leave(int code)
{
    for (;;)
        call(SYS_exit_group, code, 0, 0, 0, 0);
}

static u64 number_at(const char **text)
{
    u64 value = 0;
    while (**text >= '0' && **text <= '9')
        value = value * 10 + (u64)(*(*text)++ - '0');
    return value;
}

static u64 number(const char *text)
{
    return number_at(&text);
}

/* Skips what is between two numbers of a list. */
static const char *next(const char *text)
{
    while (*text && (*text < '0' || *text > '9'))
        text++;
    return text;
}

static void fail(int control, int step, long error)
{
    unsigned char message[3] = {'E', (unsigned char)-error, (unsigned char)step};
    call(SYS_write, control, (long)message, 3, 0, 0);
    leave(FAILED);
}

/* Ends with the node's sentence unless `result` says that all is well. */
static long must(int control, int step, long result)
{
    if (result < 0)
        fail(control, step, result);
    return result;
}

static void join_groups(int control, const char *list)
{
    for (list = next(list); *list; list = next(list)) {
        int fd = (int)number_at(&list);
        must(control, STEP_JOIN, call(SYS_write, fd, (long)"0", 1, 0, 0));
        call(SYS_close, fd, 0, 0, 0, 0);
    }
}

/* A terminal of the container's own; the slave's descriptor. */
static int open_terminal(int control, const char *size, u32 owner)
{
    struct window window = {0, 0, 0, 0};
    int unlocked = 0;
    char word = 'T';
    struct vector part = {&word, 1};
    struct rights rights = {sizeof(u64) + 3 * sizeof(int), SOL_SOCKET, SCM_RIGHTS, 0, 0};
    struct message message = {0, 0, &part, 1, &rights, sizeof rights, 0};
    int master, slave;

    window.rows = (unsigned short)number_at(&size);
    size = next(size);
    window.columns = (unsigned short)number_at(&size);
    master = (int)must(control, STEP_TERMINAL,
                       call(SYS_openat, AT_FDCWD, (long)"/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC, 0, 0));
    must(control, STEP_TERMINAL, call(SYS_ioctl, master, TIOCSPTLCK, (long)&unlocked, 0, 0));
    must(control, STEP_TERMINAL, call(SYS_ioctl, master, TIOCSWINSZ, (long)&window, 0, 0));
    slave = (int)must(control, STEP_TERMINAL,
                      call(SYS_ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC, 0, 0));
    must(control, STEP_TERMINAL, call(SYS_fchown, slave, owner, -1, 0, 0));
    rights.fd = master;
    must(control, STEP_TERMINAL, call(SYS_sendmsg, control, (long)&message, 0, 0, 0));
    call(SYS_close, master, 0, 0, 0, 0);
    return slave;
}

/* The container's capabilities and the asked user, for good. */
static void become(int control, u64 allowed, const char *uid, const char *gid, const char *groups)
{
    u32 header[2] = {CAPABILITY_VERSION_3, 0};
    u32 low = (u32)allowed, high = (u32)(allowed >> 32);
    u32 sets[6] = {low, low, 0, high, high, 0};
    u32 list[GROUPS_MAX];
    u32 user = (u32)number(uid), group = (u32)number(gid);
    long count = 0;

    for (int capability = 0; capability < CAPABILITIES_MAX; capability++)
        if (!(allowed >> capability & 1))
            call(SYS_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0);
    call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (groups = next(groups); *groups && count < GROUPS_MAX; groups = next(groups))
        list[count++] = (u32)number_at(&groups);
    must(control, STEP_RIGHTS, call(SYS_setgroups, count, (long)list, 0, 0, 0));
    must(control, STEP_RIGHTS, call(SYS_setresgid, group, group, group, 0, 0));
    if (!user)
        must(control, STEP_RIGHTS, call(SYS_capset, (long)header, (long)sets, 0, 0, 0));
    must(control, STEP_RIGHTS, call(SYS_setresuid, user, user, user, 0, 0)); /* drops the rest */
    must(control, STEP_RIGHTS, call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    call(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
}

static u32 read_filter(int control, int fd)
{
    char *place = (char *)rules;
    u64 length = 0;
    for (;;) {
        long got = call(SYS_read, fd, (long)(place + length), (long)(sizeof rules - length), 0, 0);
        if (got == -EINTR)
            continue;
        must(control, STEP_RIGHTS, got);
        if (!got)
            return (u32)(length / sizeof *rules);
        length += (u64)got;
    }
}

static const char *search_path(char **environment)
{
    for (; *environment; environment++) {
        const char *entry = *environment;
        if (entry[0] == 'P' && entry[1] == 'A' && entry[2] == 'T' && entry[3] == 'H' && entry[4] == '=')
            return entry + 5;
    }
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

/* execvp without the shell fallback; returns -errno. */
static long execute(char **command, char **environment)
{
    char candidate[PATH_MAX];
    const char *path, *part;
    long error = -ENOENT;

    for (part = command[0]; *part; part++)
        if (*part == '/')
            return call(SYS_execve, (long)command[0], (long)command, (long)environment, 0, 0);
    if (part == command[0])
        return -ENOENT;
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
        long this = call(SYS_execve, (long)candidate, (long)command, (long)environment, 0, 0);
        if (this != -ENOENT && this != -ENOTDIR)
            error = this;
        if (this != -ENOENT && this != -ENOTDIR && this != -EACCES)
            return error;
        if (!*path)
            return error;
    }
}

/* In the command's process. `slave` is its terminal, or -1. */
static void run_command(int control, char **arguments, char **environment, int slave)
{
    int filter = (int)number(arguments[8]);
    struct program program = {0, rules};

    call(SYS_setsid, 0, 0, 0, 0, 0);
    if (slave >= 0) {
        must(control, STEP_TERMINAL, call(SYS_ioctl, slave, TIOCSCTTY, 0, 0, 0));
        for (int fd = 0; fd < 3; fd++)
            call(SYS_dup3, slave, fd, 0, 0, 0);
    }
    program.count = (unsigned short)read_filter(control, filter);
    /* Nothing of the host may be reachable from here on, not even as /proc/self/fd/N. */
    call(SYS_dup3, control, 3, O_CLOEXEC, 0, 0);
    control = 3;
    must(control, STEP_RIGHTS, call(SYS_close_range, 4, 0x7fffffff, 0, 0, 0));
    become(control, number(arguments[4]), arguments[5], arguments[6], arguments[7]);
    if (program.count)
        must(control, STEP_RIGHTS,
             call(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, (long)&program, 0, 0));
    call(SYS_write, control, (long)"S", 1, 0, 0);
    if (*arguments[10])
        must(control, STEP_DIRECTORY, call(SYS_chdir, (long)arguments[10], 0, 0, 0, 0));
    fail(control, STEP_COMMAND, execute(arguments + 12, environment));
}

__attribute__((used, noreturn)) void run(long *stack)
{
    long count = stack[0];
    char **arguments = (char **)(stack + 1);
    char **environment = arguments + count + 1;
    int control, slave = -1;
    long command;

    if (count < 13)
        leave(FAILED);
    control = (int)number(arguments[1]);
    call(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    join_groups(control, arguments[11]);
    must(control, STEP_JOIN,
         call(SYS_setns, (long)number(arguments[2]), (long)number(arguments[3]), 0, 0, 0));
    if (*arguments[9])
        slave = open_terminal(control, arguments[9], (u32)number(arguments[5]));
    command = must(control, STEP_JOIN, call(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0));
    if (command == 0)
        run_command(control, arguments, environment, slave);
    leave(0);
    for (;;)
        ;
}
