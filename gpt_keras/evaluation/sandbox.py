"""Run Python that a language model wrote, such as the programs of HumanEval and MBPP with their tests, and say whether
it passes.

Each program gets a fresh process that can do no harm, whatever it tries: it reads Python's standard library and
nothing else, writes in a temporary folder alone, starts no process, reaches no network and no other process, and ends
with all it has started when its time, memory or disk is used up. Linux has two ways to that, used together where both
are allowed; either is enough:

    namespaces               its own root folder, processes, network; its folder in memory
    Landlock and seccomp     (in containers as a rule) rules for files; system calls refused

Elsewhere a program would run with no more than limits on it, which the caller has to allow.

What a program can still do: forge its own verdict. It shares an interpreter with what runs it, so one written against
this very module can play that part, as any program can define an `==` that always holds. An early exit, closed files
or printed claims do not pass. It can also tell, without namespaces, which files exist and how large they are, and
take up a gigabyte of disk in files that it has deleted and keeps open, until it ends.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import marshal
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass

from gpt_keras.data.errors import InputError
from gpt_keras.evaluation.sandbox_filter import seccomp_filter

MECHANISMS = ("namespaces", "landlock", "seccomp")

_START = """
import marshal, sys
for name, code in marshal.load(sys.stdin.buffer):
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.main()
"""
_GRACE_SECONDS = 60.0
"""For a start and an end under heavy load, after which a supervisor counts as lost."""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        seconds: From its start to its end.
        cpu_seconds: Of all its threads together.
        memory_bytes: Address space, in which the interpreter takes some tens of megabytes.
        processes: Threads, the first one included. Not with Landlock and seccomp alone, where only memory limits them.
        output_bytes: How much of the end of its output is kept; the rest is thrown away.
        file_bytes: In its temporary folder.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 << 20
    processes: int = 64
    output_bytes: int = 64 << 10
    file_bytes: int = 16 << 20


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    passed: It ran to its very end without an exception.
    reason: "passed", "failed: AssertionError (line 7)", "timed out", "out of memory", "filled its folder" or
        "ended early: exit code 0", for example.
    output: The end of what it printed, to both streams.
    """

    passed: bool
    reason: str
    output: str


@dataclass(frozen=True)
class Isolation:
    """What keeps programs in on this system.

    Attributes:
        mechanisms: Those of `MECHANISMS` that it allows.
    """

    mechanisms: frozenset[str]

    @property
    def enough(self) -> bool:
        """Whether neither files nor the network are within a program's reach."""
        return "namespaces" in self.mechanisms or {"landlock", "seccomp"} <= self.mechanisms

    def __str__(self) -> str:
        present = ", ".join(name for name in MECHANISMS if name in self.mechanisms)
        return present or "limits on time, memory and files alone"


@functools.cache
def isolation() -> Isolation:
    """What this system allows, found out by use."""

    def works(mechanism: str) -> bool:
        try:
            return _run("", Limits(), frozenset({mechanism})).passed
        except InputError:
            return False

    return Isolation(frozenset(filter(works, MECHANISMS if sys.platform == "linux" else ())))


def check_isolation(allow_weaker: bool = False) -> None:
    """See that this system can contain programs, before there are any.

    Args:
        allow_weaker: As `run_program`.

    Raises:
        InputError: It cannot.
    """
    _mechanisms(allow_weaker)


def run_program(program: str, limits: Limits = Limits(), allow_weaker: bool = False) -> Outcome:
    """Run one program to its end, that of its threads and exit handlers included.

    Its module is called "program" and not "__main__": what stands under `if __name__ == "__main__"` does not run, nor
    does it in the harnesses with which HumanEval's and MBPP's figures are published. Its standard input is empty, its
    hashes are the same in each run, and no packages beyond the standard library are there.

    Args:
        program: Python of this interpreter's version.
        limits: What it may use.
        allow_weaker: Run it although this system can keep it from neither files nor the network.

    Raises:
        InputError: This system cannot contain it, or did not start it.
    """
    return _run(program, limits, _mechanisms(allow_weaker))


def run_programs(
    programs: Sequence[str],
    limits: Limits = Limits(),
    workers: int | None = None,
    report: Callable[[int], None] = lambda done: None,
    allow_weaker: bool = False,
) -> list[Outcome]:
    """As `run_program` for many, some at a time; the outcomes come in the order of the programs.

    Args:
        programs: Python.
        limits: For each.
        workers: How many run at a time; by default one for each processor.
        report: Told after each how many are done.
        allow_weaker: As there.

    Raises:
        InputError: This system cannot contain them, or did not start one.
    """
    mechanisms, stop = _mechanisms(allow_weaker), threading.Event()
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        futures = [pool.submit(_run, program, limits, mechanisms, stop) for program in programs]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            report(done)
        return [future.result() for future in futures]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _mechanisms(allow_weaker: bool) -> frozenset[str]:
    if os.name != "posix":
        raise InputError("generated programs run on Linux and macOS only: use one of them, or a Linux container")
    found = isolation()
    if not found.enough and not allow_weaker:
        raise InputError(
            f"this system keeps generated programs from neither files nor the network (it has {found}; needed are "
            "namespaces, or Landlock and seccomp: Linux 6 or newer); allow it with --unsafe where nothing can be lost"
        )
    return found.mechanisms


def _run(program: str, limits: Limits, mechanisms: frozenset[str], stop: threading.Event | None = None) -> Outcome:
    """Run a program with just these mechanisms, until `stop` is set."""
    from gpt_keras.evaluation import sandbox_child  # cannot be imported on Windows

    folder = tempfile.mkdtemp(prefix="sandbox-")
    try:
        request = {
            "program": program,
            "folder": folder,
            "mechanisms": sorted(mechanisms),
            "filter": seccomp_filter(os.uname().machine, shared_files="namespaces" not in mechanisms),
            **asdict(limits),
        }
        sent = _modules() + marshal.dumps(request)
        data, code = _report(sent, limits.seconds + _GRACE_SECONDS, stop)
    finally:
        sandbox_child.remove(folder)
    said, mark, report = data.partition(sandbox_child.REPORT)
    if mark:
        passed, reason, output = marshal.loads(report)
        if not reason.startswith(sandbox_child.BROKEN):
            return Outcome(passed, reason, output.decode("utf-8", "replace"))
        raise InputError(f"the sandbox did not start ({reason.removeprefix(sandbox_child.BROKEN)})")
    if code < 0:
        return Outcome(False, f"ended early: its sandbox was killed by signal {-code}", "")
    words = said.decode("utf-8", "replace").split("\n")
    raise InputError(f"the sandbox did not start ({' '.join(words).strip() or f'exit code {code}'})")


@functools.cache
def _modules() -> bytes:
    """What `_START` reads."""
    from gpt_keras.evaluation import sandbox_child, sandbox_confinement

    sources = {module.__name__: inspect.getsource(module) for module in (sandbox_confinement, sandbox_child)}
    return marshal.dumps([(name, compile(source, name, "exec", dont_inherit=True)) for name, source in sources.items()])


def _report(request: bytes, seconds: float, stop: threading.Event | None) -> tuple[bytes, int]:
    """All that a supervisor wrote, and its exit code; when this returns or raises, nothing of it is left."""
    # Programs that depend on the order of a set would pass now and then.
    environment = {"PYTHONHASHSEED": "0"}
    if "LD_LIBRARY_PATH" in os.environ:  # some interpreters do not start without it
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    process = subprocess.Popen(
        [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", _START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # the terminal's Ctrl-C is for the caller, who then ends this
    )
    assert process.stdin is not None and process.stdout is not None
    data, deadline = bytearray(), time.monotonic() + seconds
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request)
            process.stdin.flush()
        poll = select.poll()
        poll.register(process.stdout)
        while time.monotonic() < deadline and not (stop and stop.is_set()):
            if poll.poll(100):
                part = os.read(process.stdout.fileno(), 1 << 16)
                if not part:
                    break
                data += part
    finally:
        # The supervisor takes this for its parent's end, and ends everything.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
    return bytes(data), process.returncode
