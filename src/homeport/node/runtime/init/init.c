/*
 * The first process of every container, whichever tool starts it: PID 1 of its PID namespace.
 *
 *   init STATUS_FD CONTROL_FD STDIN_FD STDOUT_FD STDERR_FD UID GID GROUPS JOIN_FDS
 *        [COMMAND [ARGUMENT...]]
 *
 * It runs after the sandbox is complete (root file system, capabilities, seccomp, working
 * directory) and has four duties that no program of the image can be relied upon for:
 *
 *   1. put itself into its cgroups of version 1 (a `tasks` file each: who moves its only thread does
 *      not wait for the kernel's lock of all that forks) and stand still until the node has put it
 *      into that of version 2 ('I', then one byte back),
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

#include "common.h"

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
        if (!arguments[10]) {
            call(SYS_close, init, 0, 0, 0, 0); /* as if it had been executed */
            idle();
        }
        error = execute(arguments + 10, environment);
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

    if (count < 10)
        leave(FAILED);
    int status_file = (int)number(arguments[1]), control = (int)number(arguments[2]);
    /* Processes of the container may not look into this one (its descriptors are the host's). */
    call(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    call(SYS_prctl, PR_SET_NAME, (long)"init", 0, 0, 0);
    bound_capabilities(0);
    for (const char *list = next(arguments[9]); *list; list = next(list)) {
        int fd = (int)number_at(&list);
        if (call(SYS_write, fd, (long)"0", 1, 0, 0) != 1)
            leave(FAILED);
        call(SYS_close, fd, 0, 0, 0, 0);
    }
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
