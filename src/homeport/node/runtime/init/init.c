/*
 * The first process of every container, whichever tool starts it: PID 1 of its PID namespace.
 *
 *   init STATUS_FD CONTROL_FD STDIN_FD STDOUT_FD STDERR_FD UID GID GROUPS [COMMAND [ARGUMENT...]]
 *
 * It runs after the sandbox is complete (root file system, capabilities, seccomp, working
 * directory) and has four duties that no program of the image can be relied upon for:
 *
 *   1. stand still until the node has put it into its cgroups ('I', then one byte back),
 *   2. start the command as the asked user with the caller's stdin, stdout and stderr (some tools
 *      put pipes of their own in the place of what they are given) and tell the node
 *      its pid ('S' from the command's process, by socket credentials, then one byte back), and
 *      that it runs ('R') or why it does not ('E' and errno): some tools keep the node's socket
 *      open themselves, so its end would not say so,
 *   3. reap orphans,
 *   4. leave the command's exact wait status in STATUS_FD, a file that outlives the node.
 *
 * When it exits, the kernel kills everything else in the namespace.
 *
 * Freestanding: no libc, so that one small static file runs in any image. build.sh compiles it
 * for each architecture; tests compare the checked-in files with this source where a compiler is.
 */

typedef unsigned long u64;
typedef unsigned int u32;

#if defined(__x86_64__)
enum {
    SYS_read = 0, SYS_write = 1, SYS_close = 3, SYS_ioctl = 16, SYS_clone = 56, SYS_execve = 59,
    SYS_wait4 = 61, SYS_fcntl = 72, SYS_setsid = 112, SYS_setgroups = 116, SYS_setresuid = 117,
    SYS_setresgid = 119, SYS_capget = 125, SYS_capset = 126, SYS_prctl = 157, SYS_exit_group = 231, SYS_ppoll = 271, SYS_dup3 = 292,
    SYS_pipe2 = 293, SYS_close_range = 436,
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
    SYS_dup3 = 24, SYS_fcntl = 25, SYS_ioctl = 29, SYS_close = 57, SYS_pipe2 = 59, SYS_read = 63, SYS_write = 64, SYS_ppoll = 73,
    SYS_capget = 90, SYS_capset = 91, SYS_exit_group = 94, SYS_setresuid = 147, SYS_setresgid = 149, SYS_setsid = 157,
    SYS_setgroups = 159, SYS_prctl = 167, SYS_clone = 220, SYS_execve = 221, SYS_wait4 = 260,
    SYS_close_range = 436,
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
    SIGCHLD = 17,
    TIOCSCTTY = 0x540e,
    F_SETFD = 2, FD_CLOEXEC = 1, O_CLOEXEC = 02000000,
    CLOSE_RANGE_CLOEXEC = 4,
    PR_SET_DUMPABLE = 4, PR_SET_NAME = 15, PR_CAPBSET_DROP = 24, PR_CAP_AMBIENT = 47,
    PR_CAP_AMBIENT_CLEAR_ALL = 4, CAPABILITY_VERSION_3 = 0x20080522, CAPABILITIES_MAX = 64,
    GROUPS_MAX = 64,
    PATH_MAX = 4096,
    FAILED = 125, /* an exit code of our own before there is a command */
};

static void leave(int code)
{
    for (;;)
        call(SYS_exit_group, code, 0, 0, 0, 0);
}

static u32 number_at(const char **text)
{
    u32 value = 0;
    while (**text >= '0' && **text <= '9')
        value = value * 10 + (u32)(*(*text)++ - '0');
    return value;
}

static u32 number(const char *text)
{
    return number_at(&text);
}

/* Says one thing to the node and waits for its byte; a node that is gone ends the container. */
static void report_and_wait(int control, const char *what)
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

static void report_error(int control, int error)
{
    unsigned char message[2] = {'E', (unsigned char)error};
    call(SYS_write, control, (long)message, 2, 0, 0);
    leave(FAILED);
}

/* Whoever executes what in this container: no capability beyond those we have now. */
static void bound_capabilities(void)
{
    u32 header[2] = {CAPABILITY_VERSION_3, 0};
    u32 sets[6]; /* effective, permitted, inheritable of the lower 32, then of the upper 32 */
    if (call(SYS_capget, (long)header, (long)sets, 0, 0, 0))
        leave(FAILED);
    for (int capability = 0; capability < CAPABILITIES_MAX; capability++)
        if (!(sets[capability / 32 * 3 + 1] >> capability % 32 & 1))
            call(SYS_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0);
    call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    sets[2] = sets[5] = 0;
    header[0] = CAPABILITY_VERSION_3;
    if (call(SYS_capset, (long)header, (long)sets, 0, 0, 0))
        leave(FAILED);
}

/* Takes the user's and groups' ids; returns errno. */
static int become(const char *uid, const char *gid, const char *groups)
{
    u32 list[GROUPS_MAX];
    long count = 0;
    u32 user = number(uid), group = number(gid);
    long error;

    if (*uid == '-')
        return 0;
    while (*groups && count < GROUPS_MAX) {
        list[count++] = number_at(&groups);
        while (*groups && (*groups < '0' || *groups > '9'))
            groups++;
    }
    error = call(SYS_setgroups, count, (long)list, 0, 0, 0);
    if (!error)
        error = call(SYS_setresgid, group, group, group, 0, 0);
    if (!error)
        error = call(SYS_setresuid, user, user, user, 0, 0);
    return (int)-error;
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

/* execvp without the shell fallback; returns errno. */
static int execute(char **command, char **environment)
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

static void close_on_exec(void)
{
    if (call(SYS_close_range, 3, 0x7fffffff, CLOSE_RANGE_CLOEXEC, 0, 0) == 0)
        return;
    for (int fd = 3; fd < 1024; fd++)
        call(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC, 0, 0);
}

/* A container without a command is there until somebody ends it. */
static void idle(void)
{
    for (int fd = 0; fd < 1024; fd++)
        call(SYS_close, fd, 0, 0, 0, 0);
    for (;;)
        call(SYS_ppoll, 0, 0, 0, 0, 0);
}

/* In the command's process; errors are told to init, whose pipe the execution closes. */
static void run_command(char **arguments, char **environment, int control, int init)
{
    call(SYS_setsid, 0, 0, 0, 0, 0);
    call(SYS_dup3, number(arguments[3]), 0, 0, 0, 0);
    call(SYS_ioctl, 0, TIOCSCTTY, 0, 0, 0); /* if its input is a terminal, that is its own */
    call(SYS_dup3, number(arguments[4]), 1, 0, 0, 0);
    call(SYS_dup3, number(arguments[5]), 2, 0, 0, 0);
    close_on_exec();
    int error = become(arguments[6], arguments[7], arguments[8]);
    if (!error) {
        report_and_wait(control, "S");
        if (!arguments[9]) {
            call(SYS_close, init, 0, 0, 0, 0); /* as if it had been executed */
            idle();
        }
        error = execute(arguments + 9, environment);
    }
    unsigned char number = (unsigned char)error;
    call(SYS_write, init, (long)&number, 1, 0, 0);
    leave(FAILED);
}

/* Until the command is executed (the pipe's other end closes) or cannot be. */
static void report_start(int command, int control)
{
    unsigned char error;
    long got;
    do
        got = call(SYS_read, command, (long)&error, 1, 0, 0);
    while (got == -EINTR);
    if (got != 0)
        report_error(control, got == 1 ? error : (int)-got);
    call(SYS_write, control, (long)"R", 1, 0, 0);
}

static void reap_until(long command, int status_file)
{
    for (;;) {
        int status = 0;
        long pid = call(SYS_wait4, -1, (long)&status, 0, 0, 0);
        if (pid == command) {
            call(SYS_write, status_file, (long)&status, 4, 0, 0);
            leave(0);
        }
        if (pid < 0 && pid != -EINTR)
            leave(FAILED);
    }
}

__attribute__((used, noreturn)) void run(long *stack)
{
    long count = stack[0];
    char **arguments = (char **)(stack + 1);
    char **environment = arguments + count + 1;
    int starting[2];
    long command, error;

    if (count < 9)
        leave(FAILED);
    int status_file = (int)number(arguments[1]), control = (int)number(arguments[2]);
    /* Processes of the container may not look into this one (its descriptors are the host's). */
    call(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    call(SYS_prctl, PR_SET_NAME, (long)"init", 0, 0, 0);
    bound_capabilities();
    report_and_wait(control, "I");
    error = call(SYS_pipe2, (long)starting, O_CLOEXEC, 0, 0, 0);
    if (error)
        report_error(control, (int)-error);
    command = call(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (command < 0)
        report_error(control, (int)-command);
    if (command == 0)
        run_command(arguments, environment, control, starting[1]);
    call(SYS_close, starting[1], 0, 0, 0, 0);
    report_start(starting[0], control);
    for (int fd = 0; fd < 1024; fd++)
        if (fd != status_file)
            call(SYS_close, fd, 0, 0, 0, 0);
    reap_until(command, status_file);
    for (;;)
        ;
}
