"""What the processes of `gpt_keras.evaluation.sandbox` do around one program.

A fresh Python gets this module and `sandbox_confinement` on its standard input, so that it needs nothing of the
package. Every import costs each program milliseconds: few are here.

    supervisor      watches the time, the output, its parent; ends what is left; reports on its standard output
      init          where there are namespaces: process 1 of its own, with a root folder of its own
        program     gives up every right, then runs the program
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import stat
import sys
import time

from gpt_keras.evaluation.sandbox_confinement import (
    MOST_ENTRIES,
    become,
    end_with_parent,
    enter_own_root,
    give_up_privileges,
    limit_resources,
    open_to_all,
    readable,
    restrict_calls,
    restrict_files,
    silence,
    unshare_processes,
    unshare_the_rest,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpt_keras.evaluation.sandbox_filter import Instruction

REPORT = b"\0report\0"
"""Stands before the report, behind whatever Python itself had to say."""

BROKEN = "broken: "
"""Opens a reason that is not about the program: the sandbox did not come about."""

_START_SECONDS = 30.0
_SAID_BYTES = 4096
_FIRST_USER = 2_000_000_000
"""Where no system has users; the supervisor's number is added, so that no two sandboxes share one."""


class Request:
    """What to run and how.

    Attributes:
        program: Python.
        folder: The program's own, empty.
        mechanisms: Of namespaces, landlock and seccomp: those that must hold.
        filter: Of seccomp.
        seconds, cpu_seconds, memory_bytes, processes, output_bytes, file_bytes: See `sandbox.Limits`.
    """

    program: str
    folder: str
    mechanisms: list[str]
    filter: list[Instruction]
    seconds: float
    cpu_seconds: int
    memory_bytes: int
    processes: int
    output_bytes: int
    file_bytes: int

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


class _Pipes:
    """What a program's process says, the answer to it, its output, and, from an init, its exit status."""

    def __init__(self) -> None:
        self.said, self.say = os.pipe()
        self.answered, self.answer = os.pipe()
        self.printed, self.print = os.pipe()
        self.exited, self.exit = os.pipe()

    def keep(self, *kept: int) -> None:
        for pipe in {*self.__dict__.values()} - {*kept}:
            os.close(pipe)
        self.__dict__ = {name: pipe for name, pipe in self.__dict__.items() if pipe in kept}


def main() -> None:
    """Read a request, serve it, and write the report: whether it passed, the reason, the end of its output."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as it may be inherited, it leaves no exit status
    request = Request(**marshal.load(sys.stdin.buffer))
    try:
        report = _supervise(request)
    except BaseException as error:
        report = (False, f"{BROKEN}{type(error).__name__}: {error}", b"")
    remove(request.folder)
    try:
        sys.stdout.buffer.write(REPORT + marshal.dumps(report))
        sys.stdout.buffer.flush()
    finally:
        os._exit(0)


def _supervise(request: Request) -> tuple[bool, str, bytes]:
    if os.access("/proc/self/oom_score_adj", os.W_OK):  # where memory is short, end this and not the parent
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    os.umask(0o022)
    user = _FIRST_USER + os.getpid() if os.getuid() == 0 else None
    pipes, namespaces = _Pipes(), "namespaces" in request.mechanisms
    if namespaces:
        unshare_processes()
    elif user is not None and not all(map(open_to_all, [*readable(), os.path.dirname(request.folder)])):
        user = None  # stays root, without a root's rights: another user could not import anything
    child = os.fork()
    if child == 0:
        try:
            if namespaces:
                _be_init(request, pipes, user)
            _be_program(request, pipes, user)
        except BaseException as error:
            os.write(pipes.say, f"{BROKEN}{type(error).__name__}: {error}".encode(errors="replace"))
        finally:
            os._exit(1)
    pipes.keep(pipes.said, pipes.answer, pipes.printed, pipes.exited)
    return _Watch(request, pipes, child).report()


class _Watch:
    """The supervisor's view of one program."""

    def __init__(self, request: Request, pipes: _Pipes, child: int) -> None:
        self._request, self._pipes, self._child = request, pipes, child
        self._said, self._printed = bytearray(), bytearray()
        self._nonce = os.urandom(16)
        self._asked = False
        self._status: int | None = None

    def report(self) -> tuple[bool, str, bytes]:
        try:
            stopped = self._wait()
        finally:
            status = self._end()
        said = bytes(self._said)
        passed = not stopped and status == 0 and said == b"start\nend\n" + self._nonce
        return passed, "passed" if passed else stopped or _reason(said, status), bytes(self._printed)

    def _wait(self) -> str:
        """Until the child has ended, or the reason to end it."""
        poll = select.poll()
        try:
            ended = os.pidfd_open(self._child)
            poll.register(ended, select.POLLIN)
        except (AttributeError, OSError):  # not Linux, or an old one
            ended = -1
        parent = 0
        for source in (parent, self._pipes.said, self._pipes.printed):
            poll.register(source, select.POLLIN)
        shared_files = "namespaces" not in self._request.mechanisms
        started, deadline, look = False, time.monotonic() + _START_SECONDS, 0.0
        while True:
            for source, _ in poll.poll(50 if ended >= 0 else 5):
                if source == parent:
                    return "stopped"
                if source == ended:
                    return ""
                if not self._read(source):
                    poll.unregister(source)
            if ended < 0 and (waited := os.waitpid(self._child, os.WNOHANG))[0]:
                self._status = waited[1]
                return ""
            now = time.monotonic()
            if not started and self._said.startswith(b"start\n"):
                started, deadline = True, now + self._request.seconds
            if now > deadline:
                return "timed out" if started else f"{BROKEN}it did not start in {_START_SECONDS:.0f} s"
            if shared_files and now > look:
                look = now + 0.1
                if _holds_too_much(self._request.folder, self._request.file_bytes):
                    return "filled its folder"

    def _read(self, source: int) -> bool:
        """Whether more may come."""
        data = os.read(source, 1 << 16)
        if source == self._pipes.printed:
            self._printed += data
            del self._printed[: max(0, len(self._printed) - self._request.output_bytes)]
        else:
            self._said += data[: _SAID_BYTES - len(self._said)]
            if self._said.endswith(b"end\n") and not self._asked:
                self._asked = True
                try:
                    os.write(self._pipes.answer, self._nonce)
                except BrokenPipeError:  # it has closed its end, and does not pass then
                    return True
        return bool(data)

    def _end(self) -> int:
        """End what still runs, and take in what it left in the pipes; the program's exit status."""
        for kill in (os.killpg, os.kill):
            try:
                kill(self._child, signal.SIGKILL)
            except OSError:  # it had made no group yet, or has ended
                continue
        status = os.waitpid(self._child, 0)[1] if self._status is None else self._status
        for source in (self._pipes.said, self._pipes.printed):
            os.set_blocking(source, False)
            try:
                while self._read(source):
                    pass
            except BlockingIOError:
                continue
        if "namespaces" in self._request.mechanisms:
            os.set_blocking(self._pipes.exited, False)
            exited = os.read(self._pipes.exited, 4)
            status = int.from_bytes(exited, "little") if exited else signal.SIGKILL
        return status


def _reason(said: bytes, status: int) -> str:
    start, _, rest = said.decode("utf-8", "replace").partition("\n")
    if start.startswith(BROKEN):
        return start
    if start != "start":
        return f"{BROKEN}its process ended at the start, with status {status:#x}"
    # From here on the program itself may have said it.
    if rest.startswith(("failed: ", "out of memory", "ended early: ")):
        return "".join(letter if letter.isprintable() else " " for letter in rest).strip()
    if not os.WIFSIGNALED(status):
        return f"ended early: exit code {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU:
        return "timed out"
    return f"ended early: {signal.strsignal(number) or f'signal {number}'}"


def _holds_too_much(folder: str, limit: int) -> bool:
    pending, total, entries = [folder], 0, 0
    while pending:
        try:
            with os.scandir(pending.pop()) as found:
                for entry in found:
                    entries += 1
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    if total > limit or entries > MOST_ENTRIES:
                        return True
        except OSError:  # it is the program's to change, meanwhile
            continue
    return False


def remove(folder: str) -> None:
    """Remove a folder, however deep it is and whatever its permissions are; what cannot be removed stays."""
    deadline = time.monotonic() + 30
    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            while (names := os.listdir(top)) and time.monotonic() < deadline:
                for name in names:
                    _remove_or_flatten(top, name)
        finally:
            os.close(top)
        os.rmdir(folder)
    except OSError:
        return


def _remove_or_flatten(top: int, name: str) -> None:
    """Remove a file; of a folder, put the folders in it beside it and remove the rest."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=top)
        return
    os.chmod(name, 0o700, dir_fd=top)
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        for inner in os.listdir(folder):
            if stat.S_ISDIR(os.stat(inner, dir_fd=folder, follow_symlinks=False).st_mode):
                os.chmod(inner, 0o700, dir_fd=folder)
                os.rename(inner, os.urandom(16).hex(), src_dir_fd=folder, dst_dir_fd=top)
            else:
                os.unlink(inner, dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def _be_init(request: Request, pipes: _Pipes, user: int | None) -> None:
    """Give the program its namespaces; returns in its process. This one, with the rights to do so, only waits."""
    pipes.keep(pipes.say, pipes.answered, pipes.print, pipes.exit)
    end_with_parent(pipes.answered)
    unshare_the_rest()
    enter_own_root(request.folder, request.file_bytes)
    program = os.fork()
    if program == 0:
        return
    pipes.keep(pipes.exit)
    silence()
    while True:
        process, status = os.wait()
        if process == program:
            os.write(pipes.exit, status.to_bytes(4, "little"))
            os._exit(0)


def _be_program(request: Request, pipes: _Pipes, user: int | None) -> None:
    """Give up every right, and run the program."""
    pipes.keep(pipes.say, pipes.answered, pipes.print)
    os.setsid()
    silence()
    os.dup2(pipes.print, 1)
    os.dup2(pipes.print, 2)
    pipes.keep(pipes.say, pipes.answered)
    alone = user is not None and become(user, request.folder)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(HOME=request.folder, TMPDIR=request.folder)
    # Where the user has other processes, these count too.
    processes = request.processes if alone or "namespaces" in request.mechanisms else None
    limit_resources(request.cpu_seconds, request.memory_bytes, request.file_bytes, processes)
    if sys.platform == "linux":
        end_with_parent(pipes.answered)
        give_up_privileges()
    if "landlock" in request.mechanisms:
        restrict_files(request.folder)
    if "seccomp" in request.mechanisms:
        restrict_calls(request.filter)
    _run(request.program, pipes.say, pipes.answered)


def _run(program: str, say: int, answered: int) -> None:
    """Run the program to its very end: its threads and what it registered for the exit included.

    Only then is the supervisor asked for the word that makes it pass. Until then that is in no memory and no pipe that
    the program can reach, so it can only play this function's part, not leave it out.
    """
    # The program may put others in their place.
    write, read, leave, modules = os.write, os.read, os._exit, sys.modules
    print_error, no_memory = sys.excepthook, b"out of memory"
    for name in [name for name in modules if name.startswith("gpt_keras.")]:
        del modules[name]
    module = type(sys)("program")
    modules["program"] = modules["__main__"] = module
    sys.argv = ["program.py"]
    write(say, b"start\n")
    try:
        exec(compile(program, "program.py", "exec", dont_inherit=True), module.__dict__)
        if "threading" in modules:
            modules["threading"]._shutdown()
        import atexit

        atexit._run_exitfuncs()
    except MemoryError:
        module.__dict__.clear()
        write(say, no_memory)
    except SystemExit as error:
        write(say, f"ended early: SystemExit{_words(error.code)}".encode("utf-8", "replace"))
    except BaseException as error:
        _flush()
        within = error.__traceback__ and error.__traceback__.tb_next
        place = f" (line {within.tb_lineno})" if within else ""
        print_error(type(error), error.with_traceback(within), within)
        write(say, f"failed: {type(error).__name__}{_words(error)}{place}".encode("utf-8", "replace"))
    else:
        _flush()
        write(say, b"end\n")
        write(say, read(answered, 16))
        leave(0)
    _flush()
    leave(1)


def _words(value: object) -> str:
    try:
        return f": {value}"[:200].rstrip(": ")
    except BaseException:  # the text of an exception is the program's too
        return ""


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            continue
