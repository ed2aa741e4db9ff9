/*
 * The first process of a container under gVisor, whose processes nobody outside can join.
 *
 *   keeper CONTROL_FD STDIN_FD STDOUT_FD STDERR_FD UID GID GROUPS TERMINAL [COMMAND [ARGUMENT...]]
 *
 *   prepared CONTROL_FD
 *
 *   keeper join COUNT FILE... PROGRAM [ARGUMENT...]
 *
 * The second form is for a container that is started before it is known what for: its files will be
 * at /files, and the rest comes with a packet, with the descriptors stdin, stdout, stderr:
 *
 *   'b' HOSTNAME WORKDIR COUNT UID GID GROUPS TERMINAL ARGUMENT... ENVIRONMENT...
 *
 * The third form is for the host: it writes itself into that many files of control groups and becomes
 * PROGRAM, with its own argv[0].
 *
 * It starts the command as init.c does, in the same conversation with the node, and is then what
 * enter.c is elsewhere: it starts further processes, as the node asks over CONTROL_FD, a packet
 * socket. A request is a letter and NUL-terminated texts, numbers in decimal:
 *
 *   'x' ID TERMINAL WORKDIR COUNT ARGUMENT... ENVIRONMENT...   execute; with the descriptors
 *       stdin, stdout, stderr, or one socket if TERMINAL (ROWS,COLUMNS) asks for a terminal
 *   'c' ID PORT        connect to a TCP port of the container; with one socket, which is joined to it
 *   'k' ID SIGNAL      send it to the process ID and its group
 *   'w' ID ROWS COLUMNS   the terminal of process ID has another size; ID 0 is the command
 *   's' SIGNAL         send it to the command
 *
 * Answers: a letter, the id (four bytes), more:
 *
 *   's'                the process ID runs
 *   'e' errno step     it could not be executed
 *   'x' status         it has ended (four bytes, as waitpid gives it)
 *   'c' errno          the connection ID is there (0) or not
 *   'z' status         the command has ended, and with it the container
 *
 * Called as `lasting` instead of `keeper` it can be part of a checkpoint of its container, which
 * nothing may be that holds a file of the host, but for its standard streams. So it runs from a
 * copy of itself, the command has those streams for its own, and further processes have pipes of
 * the container, with processes beside them that copy. Then there is one more request:
 *
 *   'p' ID             let go of all that is the host's, this conversation too
 *
 *   'p' errno          it will be gone (0) at the end of the conversation, or not
 *
 * Further processes go on, but nobody is told of them any more. In a container that was restored
 *
 *   keeper revive CONTROL_FD
 *
 * hands the first process a new socket, on which the conversation begins anew ('I', 'S', 'R').
 *
 * A terminal is the container's own, a process copies between its master and the socket.
 * Freestanding like init.c, and for the same reasons.
 */

#include "common.h"

enum { PROCESSES_MAX = 2048, TEXTS_MAX = 32768, PACKET_MAX = 1 << 20, FDS_MAX = 4, COPY_BYTES = 65536,
       COPIES_MAX = 4 * PROCESSES_MAX };

struct rights { u64 length; int level, type; int fds[FDS_MAX]; };
struct wait_on { int fd; short events, found; };
struct address { unsigned short family, port; unsigned char ip[4], zero[8]; };
struct local { unsigned short family; char path[32]; };
struct peer { int pid; u32 user, group; };
struct process { u32 id; long pid, relay; int master; };

static struct process processes[PROCESSES_MAX];
static char packet[PACKET_MAX];
static char *texts[TEXTS_MAX + 1];
static char copied[COPY_BYTES];
static long copies[COPIES_MAX]; /* processes that copy between the container and the host */
static char **arguments;
static int control, door = -1;
static int is_lasting;
static int streams[3]; /* of the command */
static const char *first_directory; /* of the command, if it is not the keeper's */

static void drop(int fd)
{
    call(SYS_close, fd, 0, 0, 0, 0);
}

static long fork(void)
{
    return call(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static void close_all_but(int one, int other)
{
    for (int fd = 0; fd < 1024; fd++)
        if (fd != one && fd != other)
            drop(fd);
}

static void set_signals(long how, u64 mask)
{
    call(SYS_rt_sigprocmask, how, (long)&mask, 0, sizeof mask, 0);
}

/* --- terminals and connections ------------------------------------------------------------------ */

static int write_all(int fd, const char *from, long length)
{
    while (length > 0) {
        long done = call(SYS_write, fd, (long)from, length, 0, 0);
        if (done == -EINTR)
            continue;
        if (done == -EAGAIN) {
            struct wait_on wait = {fd, 4, 0};
            call(SYS_ppoll, (long)&wait, 1, 0, 0, 0);
            continue;
        }
        if (done <= 0)
            return -1;
        from += done;
        length -= done;
    }
    return 0;
}

/*
 * Copies both ways until `inside` has no more; what the node sends no more is told to `inside` if
 * that is a socket, and ends a terminal.
 */
static void relay(int outside, int inside, int is_terminal)
{
    struct wait_on waits[2] = {{outside, POLLIN, 0}, {inside, POLLIN, 0}};

    close_all_but(outside, inside);
    for (;;) {
        long got = call(SYS_ppoll, (long)waits, 2, 0, 0, 0);
        if (got == -EINTR)
            continue;
        if (got < 0)
            leave(0);
        for (int side = 0; side < 2; side++) {
            if (!waits[side].found || waits[side].fd < 0)
                continue;
            got = call(SYS_read, waits[side].fd, (long)copied, COPY_BYTES, 0, 0);
            if (got == -EINTR || got == -EAGAIN)
                continue;
            if (got > 0 && write_all(side ? outside : inside, copied, got) == 0)
                continue;
            if (side || is_terminal)
                leave(0);
            call(SYS_shutdown, inside, SHUT_WR, 0, 0, 0);
            waits[0].fd = -1;
        }
    }
}

static void set_size(int master, u32 rows, u32 columns)
{
    struct window window = {(unsigned short)rows, (unsigned short)columns, 0, 0};
    call(SYS_ioctl, master, TIOCSWINSZ, (long)&window, 0, 0);
}

/* A terminal of the size ROWS,COLUMNS: its master and its slave, or -errno. */
static int open_terminal(const char *size, int *slave)
{
    char path[24] = "/dev/pts/";
    char digits[12];
    int unlocked = 0, index = 0, length = 9, count = 0;
    u32 rows, columns;
    long master = call(SYS_openat, AT_FDCWD, (long)"/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC, 0, 0);

    if (master < 0)
        return (int)master;
    rows = number_at(&size);
    columns = *size ? number(size + 1) : 0;
    call(SYS_ioctl, master, TIOCSPTLCK, (long)&unlocked, 0, 0);
    call(SYS_ioctl, master, TIOCGPTN, (long)&index, 0, 0);
    do {
        digits[count++] = (char)('0' + index % 10);
        index /= 10;
    } while (index);
    while (count)
        path[length++] = digits[--count];
    path[length] = 0;
    *slave = (int)call(SYS_openat, AT_FDCWD, (long)path, O_RDWR | O_NOCTTY | O_CLOEXEC, 0, 0);
    if (*slave < 0) {
        drop((int)master);
        return *slave;
    }
    call(SYS_fchown, *slave, number(arguments[5]), -1, 0, 0);
    set_size((int)master, rows, columns);
    return (int)master;
}

/* A place for one more process that copies; null if there are too many. */
static long *free_copy(void)
{
    for (int index = 0; index < COPIES_MAX; index++)
        if (!copies[index])
            return &copies[index];
    return 0;
}

/* Copies until there is no more, or nobody who reads it. */
static void carry(int from, int to)
{
    struct wait_on waits[2] = {{from, POLLIN, 0}, {to, 0, 0}};

    close_all_but(from, to);
    for (;;) {
        waits[0].found = waits[1].found = 0;
        long got = call(SYS_ppoll, (long)waits, 2, 0, 0, 0);
        if (got == -EINTR)
            continue;
        if (got < 0 || waits[1].found)
            leave(0);
        got = call(SYS_read, from, (long)copied, COPY_BYTES, 0, 0);
        if (got == -EINTR || got == -EAGAIN)
            continue;
        if (got <= 0 || write_all(to, copied, got))
            leave(0);
    }
}

/*
 * Puts a pipe of the container in the place of a stream of the host: its end for the process, or
 * -errno.
 */
static int detach(int fd, int is_input)
{
    int ends[2];
    long *place = free_copy();

    if (!place)
        return -EAGAIN;
    long pid = call(SYS_pipe2, (long)ends, O_CLOEXEC, 0, 0, 0);
    if (pid)
        return (int)pid;
    pid = fork();
    if (pid == 0) {
        set_signals(SIG_SETMASK, 0);
        carry(is_input ? fd : ends[0], is_input ? ends[1] : fd);
    }
    drop(ends[is_input ? 1 : 0]);
    if (pid < 0) {
        drop(ends[is_input ? 0 : 1]);
        return (int)pid;
    }
    *place = pid;
    return ends[is_input ? 0 : 1];
}

static long start_relay(int outside, int inside, int is_terminal)
{
    long pid = fork();
    if (pid == 0) {
        set_signals(SIG_SETMASK, 0);
        relay(outside, inside, is_terminal);
    }
    return pid;
}

/* gVisor makes what comes from the host non-blocking, and shows that when it comes a second time. */
static void be_blocking(void)
{
    for (int fd = 0; fd < 3; fd++) {
        long flags = call(SYS_fcntl, fd, F_GETFL, 0, 0, 0);
        if (flags >= 0)
            call(SYS_fcntl, fd, F_SETFL, flags & ~O_NONBLOCK, 0, 0);
    }
}

static void take_terminal(int slave)
{
    call(SYS_dup3, slave, 0, 0, 0, 0);
    call(SYS_dup3, slave, 1, 0, 0, 0);
    call(SYS_dup3, slave, 2, 0, 0, 0);
    call(SYS_ioctl, 0, TIOCSCTTY, 0, 0, 0);
}

/* --- the command -------------------------------------------------------------------------------- */

/* A container without a command is there until somebody ends it. */
static void idle(void)
{
    close_all_but(-1, -1);
    for (;;)
        call(SYS_ppoll, 0, 0, 0, 0, 0);
}

/* In the command's process; errors are told to the first one, whose pipe the execution closes. */
static void run_command(char **environment, int first, int slave)
{
    call(SYS_setsid, 0, 0, 0, 0, 0);
    if (slave >= 0) {
        take_terminal(slave);
    } else {
        for (int fd = 0; fd < 3; fd++)
            call(SYS_dup3, streams[fd], fd, 0, 0, 0);
        be_blocking();
    }
    close_on_exec();
    int error = first_directory ? (int)-call(SYS_chdir, (long)first_directory, 0, 0, 0, 0) : 0;
    if (!error)
        error = become(arguments[5], arguments[6], arguments[7]);
    if (!error) {
        report_and_wait(control, "S");
        if (!arguments[9]) {
            drop(first); /* as if it had been executed */
            idle();
        }
        error = execute(arguments + 9, environment);
    }
    unsigned char number = (unsigned char)error;
    call(SYS_write, first, (long)&number, 1, 0, 0);
    leave(FAILED);
}

/* Until the command is executed (the pipe's other end closes) or cannot be: 0, or errno. */
static int executed(int pipe, unsigned char *step)
{
    unsigned char answer[2] = {0, 0};
    long got;
    do
        got = call(SYS_read, pipe, (long)answer, 2, 0, 0);
    while (got == -EINTR);
    drop(pipe);
    if (step)
        *step = answer[1];
    return got > 0 ? answer[0] : 0;
}

/* --- further processes -------------------------------------------------------------------------- */

static void answer(char kind, u32 id, u32 value, int bytes)
{
    unsigned char text[9] = {(unsigned char)kind};
    for (int index = 0; index < 4; index++) {
        text[1 + index] = (unsigned char)(id >> 8 * index);
        text[5 + index] = (unsigned char)(value >> 8 * index);
    }
    call(SYS_write, control, (long)text, 5 + bytes, 0, 0);
}

static struct process *find(u32 id)
{
    for (int index = 0; index < PROCESSES_MAX; index++)
        if (processes[index].pid && processes[index].id == id)
            return &processes[index];
    return 0;
}

static void run_process(char **command, char **environment, const char *workdir, int *fds, int slave, int first)
{
    unsigned char said[2] = {0, STEP_COMMAND};

    call(SYS_setsid, 0, 0, 0, 0, 0);
    set_signals(SIG_SETMASK, 0);
    if (slave >= 0)
        take_terminal(slave);
    else {
        for (int fd = 0; fd < 3; fd++)
            call(SYS_dup3, fds[fd], fd, 0, 0, 0);
        be_blocking();
    }
    close_on_exec();
    int error = become(arguments[5], arguments[6], arguments[7]);
    if (error)
        said[1] = STEP_RIGHTS;
    else if (*workdir && (error = (int)-call(SYS_chdir, (long)workdir, 0, 0, 0, 0)))
        said[1] = STEP_DIRECTORY;
    else
        error = execute(command, environment);
    said[0] = (unsigned char)error;
    call(SYS_write, first, (long)said, 2, 0, 0);
    leave(FAILED);
}

static void start_process(u32 id, int count, int *fds, int fds_count)
{
    const char *terminal = texts[1], *workdir = texts[2];
    int length = (int)number(texts[3]), starting[2], slave = -1, error;
    unsigned char step = STEP_JOIN;
    struct process *place = 0;

    for (int index = 0; index < PROCESSES_MAX && !place; index++)
        if (!processes[index].pid && processes[index].master < 0 && !processes[index].relay)
            place = &processes[index];
    if (length < 1 || 4 + length > count || fds_count != (*terminal ? 1 : 3))
        return answer('e', id, EINVAL | STEP_JOIN << 8, 2);
    if (!place)
        return answer('e', id, EAGAIN | STEP_JOIN << 8, 2);
    /* The environment is the rest: make room for the end of the arguments. */
    for (int index = count; index > 4 + length; index--)
        texts[index] = texts[index - 1];
    char **environment = texts + 4 + length + 1;
    texts[4 + length] = 0;
    texts[count + 1] = 0;
    int streams[3] = {fds[0], fds[1], fds[2]};
    if (*terminal) {
        place->master = open_terminal(terminal, &slave);
        if (place->master < 0)
            return answer('e', id, (u32)-place->master | STEP_TERMINAL << 8, 2);
    } else if (is_lasting) {
        for (int fd = 0; fd < 3; fd++)
            if ((streams[fd] = detach(fds[fd], fd == 0)) < 0) {
                error = -streams[fd];
                while (fd--)
                    drop(streams[fd]);
                return answer('e', id, (u32)error | STEP_JOIN << 8, 2);
            }
    }
    error = (int)-call(SYS_pipe2, (long)starting, O_CLOEXEC, 0, 0, 0);
    long pid = error ? -error : fork();
    if (pid == 0)
        run_process(texts + 4, environment, workdir, streams, slave, starting[1]);
    if (!error)
        drop(starting[1]);
    if (slave >= 0)
        drop(slave);
    for (int fd = 0; fd < 3 && is_lasting && !*terminal; fd++)
        drop(streams[fd]);
    if (pid > 0)
        error = executed(starting[0], &step);
    else
        error = (int)-pid;
    if (error) {
        if (pid > 0)
            call(SYS_wait4, pid, 0, 0, 0, 0);
        if (place->master >= 0)
            drop(place->master);
        place->master = -1;
        return answer('e', id, (u32)error | (u32)step << 8, 2);
    }
    place->id = id;
    place->pid = pid;
    if (place->master >= 0)
        place->relay = start_relay(fds[0], place->master, 1);
    answer('s', id, 0, 0);
}

static void connect_port(u32 id, int outside)
{
    u32 port = number(texts[1]);
    struct address there = {AF_INET, (unsigned short)((port & 255) << 8 | port >> 8), {127, 0, 0, 1}, {0}};
    long *place = free_copy();
    long pid = place ? fork() : -EAGAIN;

    if (pid < 0)
        return answer('c', id, (u32)-pid, 1);
    if (pid > 0) {
        *place = pid;
        return;
    }
    set_signals(SIG_SETMASK, 0);
    long inside = call(SYS_socket, AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0, 0, 0);
    long error = inside < 0 ? inside : call(SYS_connect, inside, (long)&there, sizeof there, 0, 0);
    answer('c', id, (u32)-error, 1);
    if (error)
        leave(0);
    relay(outside, (int)inside, 0);
}

/* --- checkpoints -------------------------------------------------------------------------------- */

static struct local meeting = {AF_UNIX, "\0homeport-keeper"};
enum { MEETING_LENGTH = 2 + sizeof "\0homeport-keeper" - 1 };

static void end(long pid)
{
    call(SYS_kill, pid, SIGKILL, 0, 0, 0);
    call(SYS_wait4, pid, 0, 0, 0, 0);
}

static void let_go(u32 id)
{
    long error = EINVAL;

    if (is_lasting) {
        door = (int)call(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0, 0);
        error = door < 0 ? -door : -call(SYS_bind, door, (long)&meeting, MEETING_LENGTH, 0, 0);
        if (!error)
            error = -call(SYS_listen, door, 8, 0, 0, 0);
        if (error && door >= 0)
            drop(door);
    }
    if (error) {
        door = -1;
        return answer('p', id, (u32)error, 1);
    }
    for (int index = 0; index < COPIES_MAX; index++)
        if (copies[index]) {
            end(copies[index]);
            copies[index] = 0;
        }
    for (int index = 1; index < PROCESSES_MAX; index++) {
        struct process *process = &processes[index];
        process->id = 0;
        if (process->relay) {
            end(process->relay);
            process->relay = 0;
            if (process->pid > 1)
                call(SYS_kill, -process->pid, SIGHUP, 0, 0, 0);
            drop(process->master);
            process->master = -1;
        }
    }
    answer('p', id, 0, 1);
    drop(control);
    control = -1;
}

/* A socket to the node, of one who may give it: root in this container; -1 if it is none. */
static int receive_control(int visitor)
{
    char byte;
    struct vector part = {&byte, 1};
    struct rights rights = {0, 0, 0, {0}};
    struct message message = {0, 0, &part, 1, &rights, sizeof rights, 0};
    struct peer peer = {0, 1, 1};
    u32 length = sizeof peer;

    if (call(SYS_getsockopt, visitor, SOL_SOCKET, SO_PEERCRED, (long)&peer, (long)&length) || peer.user)
        return -1;
    if (call(SYS_recvmsg, visitor, (long)&message, MSG_CMSG_CLOEXEC, 0, 0) != 1)
        return -1;
    if (message.control_length < 16 || rights.level != SOL_SOCKET || rights.type != SCM_RIGHTS)
        return -1;
    for (int index = 1; index < (int)((rights.length - 16) / sizeof(int)); index++)
        drop(rights.fds[index]);
    return rights.fds[0];
}

/* The container has been restored: whoever visits brings the new socket to the node. */
static void be_visited(void)
{
    int visitor = (int)call(SYS_accept4, door, 0, 0, SOCK_CLOEXEC, 0);

    if (visitor < 0)
        return;
    control = receive_control(visitor);
    drop(visitor);
    if (control < 0)
        return;
    drop(door);
    door = -1;
    report_and_wait(control, "I");
    report_and_wait(control, "S");
    call(SYS_write, control, (long)"R", 1, 0, 0);
}

/* `revive`: brings it. */
static void visit(void)
{
    char byte = 0;
    struct vector part = {&byte, 1};
    struct rights rights = {16 + sizeof(int), SOL_SOCKET, SCM_RIGHTS, {(int)number(arguments[2])}};
    struct message message = {0, 0, &part, 1, &rights, 24, 0};
    long there = call(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0, 0);

    if (there < 0 || call(SYS_connect, there, (long)&meeting, MEETING_LENGTH, 0, 0))
        leave(FAILED);
    leave(call(SYS_sendmsg, there, (long)&message, 0, 0, 0) == 1 ? 0 : FAILED);
}

/* Goes on from a copy of the program: the file it was started from is the host's. */
static void run_from_copy(char **environment)
{
    char path[32] = "/proc/self/fd/";
    char digits[12];
    int length = 14, count = 0;
    long from = call(SYS_openat, AT_FDCWD, (long)"/proc/self/exe", O_CLOEXEC, 0, 0);
    long to = call(SYS_memfd_create, (long)"keeper", MFD_CLOEXEC, 0, 0, 0);
    long got;

    if (from < 0 || to < 0)
        leave(FAILED);
    while ((got = call(SYS_read, from, (long)copied, COPY_BYTES, 0, 0)) > 0)
        if (write_all((int)to, copied, got))
            leave(FAILED);
    do
        digits[count++] = (char)('0' + to % 10);
    while (to /= 10);
    while (count)
        path[length++] = digits[--count];
    path[length] = 0;
    arguments[0] = "copied";
    call(SYS_execve, (long)path, (long)arguments, (long)environment, 0, 0);
    leave(FAILED);
}

/* Descriptors 0 to 2 are the command's alone, and are not to become anything else here. */
static void give_streams_away(void)
{
    int ends[2];

    if (call(SYS_pipe2, (long)ends, O_CLOEXEC, 0, 0, 0))
        leave(FAILED);
    for (int fd = 0; fd < 3; fd++)
        call(SYS_dup3, ends[0], fd, O_CLOEXEC, 0, 0);
    drop(ends[0]);
    drop(ends[1]);
}

static void resize(u32 id)
{
    struct process *process = find(id);
    if (process && process->master >= 0)
        set_size(process->master, number(texts[1]), number(texts[2]));
}

static void obey(int length, int *fds, int fds_count)
{
    int count = 0;
    char *end = packet + length;
    u32 id;

    if (length < 2 || end[-1])
        return;
    for (char *text = packet + 1; text < end && count < TEXTS_MAX - 2; count++) {
        texts[count] = text;
        while (*text)
            text++;
        text++;
    }
    for (int index = count; index < 4; index++)
        texts[index] = end - 1;
    id = number(texts[0]);
    struct process *process = find(id);
    switch (packet[0]) {
    case 'x':
        start_process(id, count, fds, fds_count);
        break;
    case 'c':
        if (fds_count == 1)
            connect_port(id, fds[0]);
        break;
    case 'k':
        if (process && process->pid > 1) {
            call(SYS_kill, -process->pid, number(texts[1]), 0, 0, 0);
            call(SYS_kill, process->pid, number(texts[1]), 0, 0, 0);
        }
        break;
    case 'p':
        let_go(id);
        break;
    case 'w':
        resize(id);
        break;
    case 's':
        if (processes[0].pid > 1)
            call(SYS_kill, processes[0].pid, id, 0, 0, 0);
    }
}

/* One request; false if the node is gone. */
static int serve(void)
{
    struct vector part = {packet, PACKET_MAX};
    struct rights rights = {0, 0, 0, {0}};
    struct message message = {0, 0, &part, 1, &rights, sizeof rights, 0};
    int count = 0;
    long got = call(SYS_recvmsg, control, (long)&message, MSG_CMSG_CLOEXEC, 0, 0);

    if (got == -EINTR || got == -EAGAIN)
        return 1;
    if (got <= 0)
        return 0;
    if (message.control_length >= 16 && rights.level == SOL_SOCKET && rights.type == SCM_RIGHTS)
        count = (int)((rights.length - 16) / sizeof(int));
    if (!(message.flags & MSG_TRUNC))
        obey((int)got, rights.fds, count);
    for (int index = 0; index < count; index++)
        drop(rights.fds[index]);
    return 1;
}

/* Processes that have ended; with the command, everything. */
static void reap(void)
{
    for (;;) {
        int status = 0;
        long pid = call(SYS_wait4, -1, (long)&status, WNOHANG, 0, 0);
        if (pid == -EINTR)
            continue;
        if (pid <= 0)
            return;
        if (pid == processes[0].pid) {
            while (control < 0)
                be_visited();
            answer('z', 0, (u32)status, 4);
            leave(0);
        }
        for (int index = 0; index < COPIES_MAX; index++)
            if (copies[index] == pid)
                copies[index] = 0;
        for (int index = 0; index < PROCESSES_MAX; index++) {
            struct process *process = &processes[index];
            if (process->pid == pid) {
                process->pid = 0;
                if (process->id)
                    answer('x', process->id, (u32)status, 4);
            } else if (process->relay == pid) {
                process->relay = 0;
                if (process->pid > 1)
                    call(SYS_kill, -process->pid, SIGHUP, 0, 0, 0);
            } else {
                continue;
            }
            if (!process->relay && process->master >= 0) {
                drop(process->master); /* hangs up */
                process->master = -1;
            }
        }
    }
}

/* --- prepared ------------------------------------------------------------------------------------ */

static char told[PACKET_MAX];
static char *told_texts[TEXTS_MAX + 1];

static void done(long result)
{
    if (result < 0) {
        unsigned char message[2] = {'F', (unsigned char)-result};
        call(SYS_write, control, (long)message, 2, 0, 0);
        leave(FAILED);
    }
}

static void bind(const char *from, const char *to)
{
    done(call(SYS_mount, (long)from, (long)to, 0, MS_BIND | MS_REC, 0));
}

/* The files that the node has mounted meanwhile are all that there is. */
static void enter_files(void)
{
    bind("/files", "/files");
    bind("/proc", "/files/proc");
    bind("/dev", "/files/dev");
    bind("/sys", "/files/sys");
    done(call(SYS_chdir, (long)"/files", 0, 0, 0, 0));
    done(call(SYS_pivot_root, (long)".", (long)".", 0, 0, 0));
    done(call(SYS_umount2, (long)".", MNT_DETACH, 0, 0, 0));
    done(call(SYS_chdir, (long)"/", 0, 0, 0, 0));
}

/* Waits until it is known what the container is for; a node that is gone needs it no more. */
static char **be_told(void)
{
    struct vector part = {told, PACKET_MAX};
    struct rights rights = {0, 0, 0, {0}};
    struct message message = {0, 0, &part, 1, &rights, sizeof rights, 0};
    int count = 2, length;
    long got;

    if (call(SYS_write, control, (long)"I", 1, 0, 0) != 1)
        leave(FAILED);
    do
        got = call(SYS_recvmsg, control, (long)&message, MSG_CMSG_CLOEXEC, 0, 0);
    while (got == -EINTR);
    if (got < 2 || told[0] != 'b' || told[got - 1] || message.flags & MSG_TRUNC)
        leave(FAILED);
    if (message.control_length < 28 || rights.level != SOL_SOCKET || rights.type != SCM_RIGHTS || rights.length != 28)
        leave(FAILED);
    for (int fd = 0; fd < 3; fd++)
        streams[fd] = rights.fds[fd];
    for (char *text = told + 1; text < told + got && count < TEXTS_MAX - 1; count++) {
        told_texts[count] = text;
        while (*text)
            text++;
        text++;
    }
    length = count > 9 ? (int)number(told_texts[4]) : 0;
    if (count < 9 || length < 0 || 9 + length > count)
        leave(FAILED);
    enter_files();
    long hostname = 0;
    while (told_texts[2][hostname])
        hostname++;
    done(call(SYS_sethostname, (long)told_texts[2], hostname, 0, 0, 0));
    first_directory = told_texts[3];
    /* The environment is the rest: make room for the end of the command. */
    for (int index = count; index > 9 + length; index--)
        told_texts[index] = told_texts[index - 1];
    told_texts[9 + length] = 0;
    told_texts[count + 1] = 0;
    arguments = told_texts;
    return told_texts + 9 + length + 1;
}

static void join(long count, char **environment)
{
    long files = number(arguments[2]);

    for (long index = 3; index < 3 + files && index < count; index++) {
        long fd = call(SYS_openat, AT_FDCWD, (long)arguments[index], O_RDWR | O_CLOEXEC, 0, 0);
        if (fd < 0 || call(SYS_write, fd, (long)"0", 1, 0, 0) != 1)
            leave(FAILED);
        drop((int)fd);
    }
    if (3 + files >= count)
        leave(FAILED);
    char *program = arguments[3 + files];
    arguments[3 + files] = arguments[0];
    call(SYS_execve, (long)program, (long)(arguments + 3 + files), (long)environment, 0, 0);
    leave(FAILED);
}

__attribute__((used, noreturn)) void run(long *stack)
{
    long count = stack[0];
    arguments = (char **)(stack + 1);
    char **environment = arguments + count + 1;
    int starting[2], slave = -1, error;

    if (count > 3 && arguments[1][0] == 'j')
        join(count, environment);
    if (count == 3 && arguments[1][0] == 'r')
        visit();
    if (arguments[0][0] == 'l')
        run_from_copy(environment);
    is_lasting = arguments[0][0] == 'c';
    int is_prepared = arguments[0][0] == 'p';
    if (count < (is_prepared ? 2 : 9))
        leave(FAILED);
    control = (int)number(arguments[1]);
    for (int index = 0; index < PROCESSES_MAX; index++)
        processes[index].master = -1;
    /* Processes of the container may not look into this one (its descriptors are the host's). */
    call(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    call(SYS_prctl, PR_SET_NAME, (long)"init", 0, 0, 0);
    if (is_prepared) {
        environment = be_told();
        bound_capabilities(1UL << CAP_SYS_ADMIN);
    } else {
        for (int fd = 0; fd < 3; fd++)
            streams[fd] = (int)number(arguments[2 + fd]);
        bound_capabilities(0);
        report_and_wait(control, "I");
    }
    if (*arguments[8]) {
        processes[0].master = open_terminal(arguments[8], &slave);
        if (processes[0].master < 0)
            report_error(control, -processes[0].master);
    }
    error = (int)-call(SYS_pipe2, (long)starting, O_CLOEXEC, 0, 0, 0);
    if (error)
        report_error(control, error);
    long command = fork();
    if (command < 0)
        report_error(control, (int)-command);
    if (command == 0)
        run_command(environment, starting[1], slave);
    drop(starting[1]);
    error = executed(starting[0], 0);
    if (error)
        report_error(control, error);
    processes[0].pid = command;
    if (slave >= 0) {
        drop(slave);
        processes[0].relay = start_relay(streams[0], processes[0].master, 1);
    }
    call(SYS_write, control, (long)"R", 1, 0, 0);
    if (is_lasting)
        give_streams_away();
    else
        for (int fd = 0; fd < 3; fd++)
            drop(streams[fd]);

    u64 child = 1UL << (SIGCHLD - 1);
    set_signals(SIG_BLOCK, child);
    int signals = (int)call(SYS_signalfd4, -1, (long)&child, sizeof child, O_CLOEXEC, 0);
    struct wait_on waits[3] = {{signals, POLLIN, 0}, {control, POLLIN, 0}, {-1, POLLIN, 0}};
    reap();
    for (;;) {
        waits[0].found = waits[1].found = waits[2].found = 0;
        call(SYS_ppoll, (long)waits, 3, 0, 0, 0);
        if (waits[0].found) {
            call(SYS_read, signals, (long)copied, 1024, 0, 0);
            reap();
        }
        if (waits[1].fd >= 0 && waits[1].found && !serve())
            waits[1].fd = -1; /* the container outlives its node */
        if (waits[2].fd >= 0 && waits[2].found)
            be_visited();
        if (waits[2].fd != door) {
            waits[1].fd = control;
            waits[2].fd = door;
        }
    }
}
