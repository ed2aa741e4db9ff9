"""The system calls a container may not make: a container engine's default list, as BPF.

Everything else is allowed; what is listed fails with EPERM (``clone3`` with ENOSYS, so that C
libraries fall back to ``clone``, whose flags a filter can see).
"""

from __future__ import annotations

import errno
import importlib
import os
import socket
from functools import cache
from typing import Any, Final

from homeport.node.runtime.port import RuntimeUnavailableError

DENIED: Final = (
    # mounts and roots
    "mount", "umount", "umount2", "pivot_root", "move_mount", "fsopen", "fsconfig", "fsmount",
    "fspick", "open_tree", "mount_setattr",
    # namespaces of others, handles around path checks
    "setns", "unshare", "open_by_handle_at",
    # the kernel itself
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module",
    "create_module", "get_kernel_syms", "query_module", "reboot", "bpf", "perf_event_open",
    "lookup_dcookie", "fanotify_init", "userfaultfd", "syslog", "_sysctl", "sysfs", "uselib",
    "ustat", "nfsservctl", "vm86", "vm86old",
    # keys are not namespaced
    "keyctl", "add_key", "request_key",
    # the machine's state
    "acct", "quotactl", "quotactl_fd", "swapon", "swapoff", "settimeofday", "clock_settime",
    "clock_settime64", "clock_adjtime", "clock_adjtime64", "adjtimex", "stime", "sethostname",
    "setdomainname", "iopl", "ioperm", "vhangup", "kcmp", "pciconfig_read", "pciconfig_write",
    "pciconfig_iobase",
    # asynchronous calls that go around this filter
    "io_uring_setup", "io_uring_enter", "io_uring_register",
)  # fmt: skip

NAMESPACE_FLAGS: Final = (
    0x00020000,  # CLONE_NEWNS
    0x02000000,  # CLONE_NEWCGROUP
    0x04000000,  # CLONE_NEWUTS
    0x08000000,  # CLONE_NEWIPC
    0x10000000,  # CLONE_NEWUSER
    0x20000000,  # CLONE_NEWPID
    0x40000000,  # CLONE_NEWNET
    0x00000080,  # CLONE_NEWTIME
)
DENIED_FAMILIES: Final = (40, int(socket.AF_ALG))  # AF_VSOCK, AF_ALG


FILES_DENIED: Final = (
    "execve", "execveat", "fork", "vfork", "kill", "tkill", "tgkill", "ptrace", "pidfd_open",
    "pidfd_send_signal", "pidfd_getfd", "process_vm_readv", "process_vm_writev", "socket",
    "connect", "bind", "mknod", "mknodat", "chroot", "prlimit64", "setpriority",
    "rt_sigqueueinfo", "rt_tgsigqueueinfo", "sched_setaffinity", "sched_setscheduler",
)  # fmt: skip
"""What reaching files does not need, for a process that is not in a container's namespaces."""
_CLONE_THREAD: Final = 0x00010000


def compiled_filter() -> bytes:
    """The filter as the kernel's BPF program. Raises ``RuntimeUnavailableError``."""
    return _compiled(only_files=False)


def compiled_file_filter() -> bytes:
    """The same without anything that is not about files; threads can be made, processes not."""
    return _compiled(only_files=True)


@cache
def _compiled(*, only_files: bool) -> bytes:
    try:
        pyseccomp = importlib.import_module("pyseccomp")
    except (ImportError, RuntimeError, OSError) as error:
        raise RuntimeUnavailableError(
            f"libseccomp cannot be loaded ({error}); install libseccomp2 (apt) or libseccomp (dnf)"
        ) from error
    module: Any = pyseccomp
    rules = module.SyscallFilter(module.ALLOW)
    _add_foreign_architectures(module, rules)
    for name in DENIED:
        _deny(module, rules, errno.EPERM, name)
    for flag in NAMESPACE_FLAGS:
        _deny(module, rules, errno.EPERM, "clone", module.Arg(0, module.MASKED_EQ, flag, flag))
    _deny(module, rules, errno.ENOSYS, "clone3")
    if only_files:
        for name in FILES_DENIED:
            _deny(module, rules, errno.EPERM, name)
        thread = module.Arg(0, module.MASKED_EQ, _CLONE_THREAD, 0)
        _deny(module, rules, errno.EPERM, "clone", thread)
    else:
        for family in DENIED_FAMILIES:
            _deny(module, rules, errno.EPERM, "socket", module.Arg(0, module.EQ, family))
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    with os.fdopen(fd, "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _add_foreign_architectures(module: Any, rules: Any) -> None:
    """Cover 32-bit calls as well; a filter for one architecture kills programs of others."""
    machine = os.uname().machine
    names = {"x86_64": ("X86", "X32"), "aarch64": ("ARM",)}.get(machine, ())
    for name in names:
        arch = getattr(module.Arch, name, None)
        if arch is not None and not rules.exist_arch(arch):
            rules.add_arch(arch)


def _deny(module: Any, rules: Any, number: int, name: str, *conditions: Any) -> None:
    try:
        rules.add_rule(module.ERRNO(number), name, *conditions)
    except (OSError, ValueError):
        # a name this libseccomp or architecture does not know cannot be called by it either …
        if name in ("mount", "unshare", "setns", "ptrace", "clone", "bpf"):
            raise  # … but these exist everywhere
