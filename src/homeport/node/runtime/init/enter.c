/*
 * Starts one more process in a running container: `exec`.
 *
 *   enter CONTROL_FD PIDFD NAMESPACES CAPABILITIES UID GID GROUPS FILTER_FD TERMINAL
 *         WORKDIR GROUPS_FDS UNIFIED_FD COMMAND [ARGUMENT...]
 *
 * It begins outside, as the node: joins the container's control groups (one descriptor of a `tasks`
 * file each, and one of the directory of the group of version 2, or -) and namespaces (those in the mask NAMESPACES of the process behind PIDFD),
 * makes the command's process and ends. That process is a child of the node itself
 * (CLONE_PARENT), which so learns of its end; it gives up every right that the container does not
 * have before it looks at anything in there.
 *
 * Both ways of joining do without the kernel's lock of all that forks and executes on the machine,
 * which takes some milliseconds: one thread moves itself, and the command is born in its group.
 *
 * What it says to the node over CONTROL_FD, a packet socket:
 *
 *   'T' with a descriptor   the terminal's master (only with TERMINAL = ROWS,COLUMNS)
 *   'S'                     the command's process exists (its pid by socket credentials)
 *   'E' errno step          it could not be executed; the step says where it ended
 *
 * The execution closes the socket. Freestanding like init.c, and for the same reasons.
 */

#include "common.h"

enum { FILTER_MAX = 4096, ENOMEM = 12 };

static const u64 CLONE_INTO_CGROUP = 0x200000000UL;

struct rule { unsigned short code; unsigned char yes, no; u32 operand; };
struct program { unsigned short count; struct rule *rules; };
struct birth { u64 flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup; };
struct rights { u64 length; int level, type; int fd; int padding; };

static struct rule rules[FILTER_MAX];

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

/* The command's process, in this group of version 2 (-1: none). */
static long begin(int control, int group)
{
    struct birth birth = {CLONE_PARENT | CLONE_INTO_CGROUP, 0, 0, 0, 0, 0, 0, 0, 0, 0, (u64)group};
    long pid;

    if (group >= 0) {
        pid = call(SYS_clone3, (long)&birth, sizeof birth, 0, 0, 0);
        if (pid >= 0 || pid == -EAGAIN || pid == -ENOMEM)
            return must(control, STEP_JOIN, pid);
        /* a kernel before 5.7, or one that keeps such processes from it */
        int procs = (int)must(control, STEP_JOIN,
                              call(SYS_openat, group, (long)"cgroup.procs", O_RDWR | O_CLOEXEC, 0, 0));
        must(control, STEP_JOIN, call(SYS_write, procs, (long)"0", 1, 0, 0));
    }
    return must(control, STEP_JOIN, call(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0));
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
static void become_exactly(int control, u64 allowed, const char *uid, const char *gid, const char *groups)
{
    u32 header[2] = {CAPABILITY_VERSION_3, 0};
    u32 low = (u32)allowed, high = (u32)(allowed >> 32);
    u32 sets[6] = {low, low, 0, high, high, 0};
    u32 list[GROUPS_MAX];
    u32 user = (u32)number(uid), group = (u32)number(gid);

    for (int capability = 0; capability < CAPABILITIES_MAX; capability++)
        if (!(allowed >> capability & 1))
            call(SYS_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0);
    call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    must(control, STEP_RIGHTS, call(SYS_setgroups, read_groups(groups, list), (long)list, 0, 0, 0));
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
    become_exactly(control, number(arguments[4]), arguments[5], arguments[6], arguments[7]);
    if (program.count)
        must(control, STEP_RIGHTS,
             call(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, (long)&program, 0, 0));
    call(SYS_write, control, (long)"S", 1, 0, 0);
    if (*arguments[10])
        must(control, STEP_DIRECTORY, call(SYS_chdir, (long)arguments[10], 0, 0, 0, 0));
    fail(control, STEP_COMMAND, -execute(arguments + 13, environment));
}

__attribute__((used, noreturn)) void run(long *stack)
{
    long count = stack[0];
    char **arguments = (char **)(stack + 1);
    char **environment = arguments + count + 1;
    int control, slave = -1;
    long command;

    if (count < 14)
        leave(FAILED);
    control = (int)number(arguments[1]);
    call(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    join_groups(control, arguments[11]);
    must(control, STEP_JOIN,
         call(SYS_setns, (long)number(arguments[2]), (long)number(arguments[3]), 0, 0, 0));
    if (*arguments[9])
        slave = open_terminal(control, arguments[9], (u32)number(arguments[5]));
    command = begin(control, *arguments[12] == '-' ? -1 : (int)number(arguments[12]));
    if (command == 0)
        run_command(control, arguments, environment, slave);
    leave(0);
    for (;;)
        ;
}
