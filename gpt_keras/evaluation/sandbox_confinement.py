"""What keeps a program of `gpt_keras.evaluation.sandbox` in: each function takes something from its own process.

Namespaces and Landlock: namespaces(7), mount_namespaces(7), landlock(7); for the numbers, the kernel's headers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import stat
import struct
import sys

TYPE_CHECKING = False  # importing typing takes a tenth of a program's whole cost
if TYPE_CHECKING:
    from gpt_keras.evaluation.sandbox_filter import Instruction

MOST_ENTRIES = 1000
"""How many files and folders a program may have."""

_OPEN_FILES = 32
_STACK_BYTES = 64 << 20
_NOBODY = 65534

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_AT_RECURSIVE, _MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 0x8000, 1, 2
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 22, 38, 2
_CAPABILITY_VERSION_3 = 0x20080522
_SYS_MOUNT_SETATTR, _SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 442, 444, 445, 446

_LANDLOCK_CREATE_RULESET_VERSION, _LANDLOCK_RULE_PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM, _REFER = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12, 1 << 13
_RIGHTS_SINCE_VERSION = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE, 5: 1 << 15}
_ALL_TCP, _ALL_SCOPES = 0b11, 0b11

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def readable() -> list[str]:
    """What a program may read: Python's library and what it links to. The programs of the system are not among it."""
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", "/etc/ld.so.cache"]
    data = ["/etc/localtime", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom"]
    paths = [os.path.join(sys.base_prefix, "lib"), *sys.path, *system, *data]
    existing = [path for path in dict.fromkeys(map(os.path.abspath, paths)) if os.path.exists(path)]
    return [path for path in existing if not any(path.startswith(f"{other}/") for other in existing)]


def open_to_all(path: str) -> bool:
    """Whether any user can come to a path and read it."""
    if not os.stat(path).st_mode & stat.S_IROTH:
        return False
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & stat.S_IXOTH:
            return False
    return True


def unshare_processes() -> None:
    """The next child is process 1 of a namespace, which ends with it."""
    user, group = os.getuid(), os.getgid()
    _check(_libc.unshare(_CLONE_NEWPID | (_CLONE_NEWUSER if user else 0)), "unshare")
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def unshare_the_rest() -> None:
    """Files, network, shared memory and the host's name."""
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS), "unshare")
    _check(_libc.sethostname(b"sandbox", 7), "sethostname")


def enter_own_root(folder: str, file_bytes: int) -> None:
    """A root folder with nothing but what a program may read, and its own folder in memory at its usual place."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in readable():
        place = folder + path
        os.makedirs(place if os.path.isdir(path) else os.path.dirname(place), exist_ok=True)
        if not os.path.isdir(path):
            open(place, "x").close()
        _mount(path, place, None, _MS_BIND | _MS_REC)
    os.makedirs(folder + folder)
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    _syscall(_SYS_MOUNT_SETATTR, -1, os.fsencode(folder), _AT_RECURSIVE, attributes, len(attributes))
    options = f"size={file_bytes},nr_inodes={MOST_ENTRIES},mode=777"
    _mount("tmpfs", folder + folder, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    os.chdir(folder)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def silence() -> None:
    nowhere = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def become(user: int, folder: str) -> bool:
    """Become a user of its own; not where a container keeps root from it."""
    for number in (user, _NOBODY):
        try:
            os.chown(folder, number, number)
            os.setgroups([])
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            return True
        except OSError:
            continue
    return False


def limit_resources(cpu_seconds: int, memory_bytes: int, file_bytes: int, processes: int | None) -> None:
    import resource  # Windows does not have it

    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_STACK: _STACK_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    if processes is not None:
        limits[resource.RLIMIT_NPROC] = processes
    for kind, limit in limits.items():
        _, most = resource.getrlimit(kind)
        # One second more, until the end that no handler puts off.
        hard = limit + 1 if kind == resource.RLIMIT_CPU else limit
        hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
        try:
            resource.setrlimit(kind, (min(limit, hard), hard))
        except (OSError, ValueError):
            if sys.platform == "linux":  # macOS does not have all of them
                raise


def end_with_parent(answered: int) -> None:
    """Be killed when the parent ends; `answered` tells whether it has already: it alone has the other end."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    poll = select.poll()
    poll.register(answered, 0)
    if poll.poll(0):
        os._exit(1)


def give_up_privileges() -> None:
    """For ever: no program started from here has more."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _check(_libc.capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), struct.pack("6I", *[0] * 6)), "capset")


def restrict_files(folder: str) -> None:
    """Landlock: read what is readable, write in the program's folder; no TCP, no signals to the outside."""
    version = _syscall(_SYS_LANDLOCK_CREATE, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    rights = sum(right for since, right in _RIGHTS_SINCE_VERSION.items() if version >= since)
    attributes = struct.pack("QQQ", rights, _ALL_TCP if version >= 4 else 0, _ALL_SCOPES if version >= 6 else 0)
    rules = _syscall(_SYS_LANDLOCK_CREATE, attributes, len(attributes), 0)
    own = _READ_FILE | _WRITE_FILE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM
    allowed = dict.fromkeys(readable(), _READ_FILE | _READ_DIR)
    allowed["/dev/null"] = _READ_FILE | _WRITE_FILE | _TRUNCATE
    allowed[folder] = own | _REFER | _TRUNCATE
    for path, right in allowed.items():
        place = os.open(path, os.O_PATH)
        for_files = rights if os.path.isdir(path) else _READ_FILE | _WRITE_FILE | _TRUNCATE
        rule = struct.pack("=Qi", right & rights & for_files, place)
        _syscall(_SYS_LANDLOCK_ADD, rules, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        os.close(place)
    _syscall(_SYS_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def restrict_calls(steps: list[Instruction]) -> None:
    if not steps:
        raise OSError(errno.ENOSYS, "no seccomp filter for this machine")
    packed = (struct.pack("HBBI", code, yes, no, os.getpid() if k < 0 else k) for code, yes, no, k in steps)
    instructions = ctypes.create_string_buffer(b"".join(packed))
    pointer = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(instructions))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, pointer, 0, 0), "prctl")


def _mount(source: str | None, place: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, place, kind, options)]
    _check(_libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), f"mount {place}")


def _syscall(number: int, *arguments: bytes | int | None) -> int:
    whole = (ctypes.c_long(part) if isinstance(part, int) else part for part in arguments)
    return _check(_libc.syscall(ctypes.c_long(number), *whole), f"system call {number}")


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result
