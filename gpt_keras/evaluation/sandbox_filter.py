"""The seccomp filter of `gpt_keras.evaluation.sandbox`: system calls that a program under test has no use for.

Refused are new processes (threads are not), signals and other power over other processes, sockets, memory that no
limit counts, and the rarely used parts of the kernel, which are where its holes have been. Numbers beyond the newest
call known here count as missing. What the calls take and what the numbers mean: seccomp(2), and the kernel's
Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import errno

Instruction = tuple[int, int, int, int]
"""Of classic BPF: code, how many to skip where a test holds, and where it does not, operand."""

OWN_PID = -1
"""As an operand: the number of the process that the filter is put on."""

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By machine: which column of the numbers below is its own, and its name in `struct seccomp_data`."""

_NEWEST = 451

_REFUSED = """
    fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, ptrace 101 117, kcmp 312 272,
    process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440, process_mrelease 448 448,
    pidfd_open 434 434, pidfd_getfd 438 438, pidfd_send_signal 424 424, rt_sigqueueinfo 129 138,
    rt_tgsigqueueinfo 297 240, setpriority 141 140, ioprio_set 251 30, sched_setaffinity 203 122,
    sched_setparam 142 118, sched_setscheduler 144 119, sched_setattr 314 274, migrate_pages 256 238,
    move_pages 279 239, unshare 272 97, setns 308 268,
    socket 41 198, connect 42 203, bind 49 200, listen 50 201, accept 43 202, accept4 288 242,
    memfd_create 319 279, memfd_secret 447 447, shmget 29 194, semget 64 190, msgget 68 186, mq_open 240 180,
    mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, move_mount 429 429, open_tree 428 428,
    fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442,
    name_to_handle_at 303 264, open_by_handle_at 304 265, fanotify_init 300 262, inotify_init 253 -,
    inotify_init1 294 26, quotactl 179 60, quotactl_fd 443 443,
    bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, keyctl 250 219, add_key 248 217, request_key 249 218,
    io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, personality 135 92, syslog 103 116,
    iopl 172 -, ioperm 173 -, modify_ldt 154 -, lookup_dcookie 212 18
"""
"""Name, number on x86_64, number on aarch64."""

_MISSING = "clone3 435 435, openat2 437 437"
"""Their arguments lie in memory, where no filter can look; the C library then takes the older calls."""

_REFUSED_ON_SHARED_FILES = """
    chown 92 -, lchown 94 -, fchown 93 55, fchownat 260 54, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7,
    removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, truncate 76 45
"""
_IGNORED_ON_SHARED_FILES = """
    chmod 90 -, fchmod 91 52, fchmodat 268 53, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88
"""
"""Answered as if done, for `shutil.copy` and its like."""

_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_KILL: Instruction = (_RETURN, 0, 0, 0x80000000)
_ALLOW: Instruction = (_RETURN, 0, 0, 0x7FFF0000)

_CLONE_THREAD = 0x10000
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_SETLEASE, _F_NOTIFY = 8, 10, 15, 1024, 1026
_PR_SET_PDEATHSIG = 1
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPES = 1, 1, 15
_O_TRUNC, _O_ACCMODE = 0o1000, 3


def seccomp_filter(machine: str, shared_files: bool) -> list[Instruction]:
    """The filter's instructions; none where the machine is not known here.

    Args:
        machine: As in `os.uname().machine`.
        shared_files: The program sees the system's own files. Landlock then guards their contents, and the filter
            their permissions, owners and times, of which Landlock takes no account.
    """
    if machine not in _ARCHITECTURES:
        return []
    column, architecture = _ARCHITECTURES[machine]

    def numbers(calls: str) -> list[int]:
        columns = (call.split()[1:][column] for call in calls.split(","))
        return [int(number) for number in columns if number != "-"]

    def answered(calls: str, error: int) -> list[Instruction]:
        return [step for number in numbers(calls) for step in ((_EQUAL, 0, 1, number), _answer(error))]

    def refused_by(calls: str, *tests: Instruction) -> list[Instruction]:
        """Refused unless a test skips the one instruction behind the tests."""
        block = [*tests, _answer(errno.EPERM), _ALLOW]
        return [step for number in numbers(calls) for step in ((_EQUAL, 0, len(block), number), *block)]

    commands = (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_SETLEASE)
    own = (_EQUAL, 1, 0, OWN_PID)
    steps = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        _KILL,
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _NEWEST + 1),
        _answer(errno.ENOSYS),
        *answered(_MISSING, errno.ENOSYS),
        *answered(_REFUSED, errno.EPERM),
        *refused_by("clone 56 220", _argument(0), (_ANY_BIT, 1, 0, _CLONE_THREAD)),
        *refused_by("kill 62 129, tkill 200 130, tgkill 234 131", _argument(0), own),
        *refused_by("prlimit64 302 261", _argument(0), (_EQUAL, 2, 0, 0), own),
        # or the program would outlive whoever is to end it
        *refused_by("prctl 157 167", _argument(0), (_EQUAL, 0, 1, _PR_SET_PDEATHSIG)),
        # F_SETOWN and F_SETSIG send any signal to any process
        *refused_by(
            "fcntl 72 25",
            _argument(1),
            *((_EQUAL, len(commands) - place, 0, command) for place, command in enumerate(commands)),
            (_EQUAL, 0, 1, _F_NOTIFY),
        ),
        # asyncio needs a connected pair; one of datagrams could be connected elsewhere
        *refused_by(
            "socketpair 53 199",
            _argument(0),
            (_EQUAL, 0, 3, _AF_UNIX),
            _argument(1),
            (_AND, 0, 0, _SOCK_TYPES),
            (_EQUAL, 1, 0, _SOCK_STREAM),
        ),
    ]
    if shared_files:
        # Landlock before version 3 lets a file opened for reading be cut.
        cut = ((_AND, 0, 0, _O_TRUNC | _O_ACCMODE), (_EQUAL, 0, 1, _O_TRUNC))
        steps += [
            *answered(_REFUSED_ON_SHARED_FILES, errno.EPERM),
            *answered(_IGNORED_ON_SHARED_FILES, 0),
            *refused_by("open 2 -", _argument(1), *cut),
            *refused_by("openat 257 56", _argument(2), *cut),
        ]
    return [*steps, _ALLOW]


def _answer(error: int) -> Instruction:
    return (_RETURN, 0, 0, 0x50000 | error)


def _argument(place: int) -> Instruction:
    """Load the lower half: all these are numbers of 32 bits."""
    return (_LOAD, 0, 0, 16 + 8 * place)
