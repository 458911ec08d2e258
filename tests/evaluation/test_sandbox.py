"""Every hostile program is bounded, so that it does little harm where the sandbox fails."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from pathlib import Path

import pytest

from gpt_keras.data.errors import InputError
from gpt_keras.evaluation import sandbox
from gpt_keras.evaluation.sandbox import Isolation, Limits, run_program, run_programs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is of Linux")

REPOSITORY = Path(__file__).parents[2]
LIMITS = Limits(seconds=20, memory_bytes=128 << 20)
MODES = {
    "all": frozenset(sandbox.MECHANISMS),
    "without namespaces": frozenset({"landlock", "seccomp"}),
    "namespaces alone": frozenset({"namespaces"}),
}

# Before each program. One that attempts something passes if any of it succeeds. HOME is the tests' own folder.
PRELUDE = """
import ctypes, fcntl, os, signal, socket, sys, threading, time
HOME, VICTIM, PARENT, PORTS = {host!r}, {victim}, {parent}, {ports}
def attempt(*actions):
    done = []
    for action in actions:
        try:
            action()
        except OSError as error:
            print("refused:", error)
        else:
            done.append(action)
    assert done, "contained"
"""

ENDLESS = {  # end only when their time is up
    "loop": "while True: pass",
    "signals_ignored": """
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True: pass
    """,
    "sleep": "time.sleep(60)",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "output": "while True: print('x' * 1_000_000)",
    "errors": "while True: os.write(2, b'x' * 1_000_000)",
    "verdicts": """
        for descriptor in range(3, 32):
            try:
                while True: os.write(descriptor, b'end\\n' * 1000)
            except OSError:
                pass
        while True: pass
    """,
    "threads": "threading.Thread(target=time.sleep, args=(60,)).start()",
    "exit_handler": """
        import atexit
        atexit.register(time.sleep, 60)
    """,
    "failing_slowly": """
        class Slow(Exception):
            def __str__(self): time.sleep(60)
        raise Slow
    """,
    "parent_forgotten": """
        ctypes.CDLL(None).prctl(1, 0)
        time.sleep(60)
    """,
}

HOSTILE = {  # program and what the reason holds
    "fork_bomb": (
        "try:\n    for _ in range(8): os.fork()\nfinally: time.sleep(1)\nassert False, 'contained'",
        "failed: (Permission|BlockingIO|Assertion)Error",
    ),
    "daemon": (
        """
        def daemon():
            os.setsid()
            if os.fork(): os._exit(0)
            for number in (signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
            time.sleep(60)
        if not os.fork(): daemon()
        time.sleep(0.1)
        assert False, "contained"
        """,
        "failed: (PermissionError|AssertionError: contained)",
    ),
    "executes": ("os.execv('/bin/sh', ['sh', '-c', 'exit 0'])", "failed: (PermissionError|FileNotFoundError)"),
    "thread_bomb": (
        """
        import _thread
        _thread.stack_size(32768)
        for _ in range(3000): _thread.start_new_thread(time.sleep, (0.5,))
        assert False, "contained"
        """,
        "failed: (RuntimeError|error): can't start new thread|contained|out of memory",
    ),
    "memory": ("'a' * 10**11", "out of memory"),
    "list": ("grown = []\nwhile True: grown.append('x' * 1_000_000)", "out of memory"),
    "mapping": ("import mmap\nmmap.mmap(-1, 2**31)", "failed: OSError"),
    "kills_parent": (
        "os.kill(os.getppid(), 9)\ntime.sleep(0.1)\nassert False, 'contained'",
        "failed: (PermissionError|AssertionError: contained)",
    ),
    "kills_all": (
        # for real only where it is process 2 of its own
        "os.kill(-1, 9 if os.getpid() < 10 else 0)\nassert False, 'contained'",
        "failed: (PermissionError|ProcessLookupError|AssertionError: contained)",
    ),
    "kills_victim": (
        "attempt(lambda: os.kill(VICTIM, 9), lambda: os.kill(PARENT, 0), lambda: os.killpg(VICTIM, 9))",
        "contained",
    ),
    "kills_by_file": (
        """
        reading, writing = os.pipe()
        def take_aim():
            fcntl.fcntl(reading, fcntl.F_SETOWN, VICTIM)
            fcntl.fcntl(reading, 10, signal.SIGKILL)
            fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)
            os.write(writing, b"x")
        attempt(take_aim)
        """,
        "contained",
    ),
    "slows_down": ("import resource\nattempt(lambda: resource.prlimit(VICTIM, 0, (1, 1)))", "contained"),
    "traces": (
        """
        libc = ctypes.CDLL(None)
        assert libc.ptrace(16, VICTIM, None, None) == 0, "contained"
        """,
        "contained",
    ),
    "reads": (
        """
        paths = [HOME + "/secret", "/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/cmdline"]
        paths += [f"/proc/{PARENT}/environ", f"/proc/{VICTIM}/cmdline", "/dev/kmsg", "/dev/mem", "/bin/sh"]
        paths += [os.path.join(REPOSITORY, "pyproject.toml"), os.path.expanduser("~root/.bashrc")]
        attempt(*(lambda path=path: open(path, "rb").read(1) for path in paths))
        """,
        "contained",
    ),
    "lists": (
        "attempt(*(lambda path=path: os.listdir(path) for path in (HOME, REPOSITORY, '/proc', '/boot', '/etc/ssl')))",
        "failed: (AssertionError: contained|PermissionError)",
    ),
    "reads_environment": ("assert os.environ.get('SECRET') or os.getenv('PATH'), 'contained'", "contained"),
    "writes": (
        """
        folders = [HOME, REPOSITORY, "/", "/tmp", "/var/tmp", "/dev/shm", "/root", "/run", "/usr/lib", "/etc"]
        folders.append(os.path.dirname(os.__file__))
        attempt(
            *(lambda path=path: open(path + "/MARKER", "w") for path in folders),
            *(lambda path=path: os.mkdir(path + "/MARKER") for path in folders),
            *(lambda path=path: os.symlink("/", path + "/MARKER") for path in folders),
        )
        """,
        "contained",
    ),
    "changes": (
        """
        secret = HOME + "/secret"
        os.symlink(secret, "link")
        attempt(
            lambda: open(secret, "a"),
            lambda: open("link", "w"),
            lambda: os.open(secret, os.O_RDONLY | os.O_TRUNC),
            lambda: os.truncate(secret, 0),
            lambda: os.unlink(secret),
            lambda: os.rename(secret, "taken"),
            lambda: os.rename("link", HOME + "/link"),
            lambda: os.link(secret, "linked"),
            lambda: os.chown(secret, os.getuid(), os.getgid()),
            lambda: os.setxattr(secret, "user.seen", b"1"),
        )
        """,
        "contained",
    ),
    "changes_permissions": (
        """
        for path in (HOME + "/secret", HOME):
            try:
                os.chmod(path, 0)
                os.utime(path, (0, 0))
            except OSError:
                pass
        assert False, "contained"
        """,
        "contained",
    ),
    "fills_disk": (
        "for number in range(200): open(f'{number}', 'wb').write(bytes(1 << 20))\ntime.sleep(5)",
        "filled its folder|failed: OSError",
    ),
    "large_file": ("file = open('large', 'wb')\nfor _ in range(200): file.write(bytes(1 << 20))", "failed: OSError"),
    "many_files": (
        "for number in range(5000): open(f'{number}', 'wb').close()\ntime.sleep(5)",
        "filled its folder|failed: OSError",
    ),
    "deep_folders": (
        "for number in range(1500):\n    os.mkdir('d')\n    os.chdir('d')\ntime.sleep(5)",
        "filled its folder|failed: OSError",
    ),
    "closed_folders": (
        "os.makedirs('a/b/c')\nopen('a/b/c/d', 'w').close()\nos.chmod('a/b', 0)\nos.mkdir('e', 0)\nassert False",
        "failed: AssertionError",
    ),
    "removes_folder": ("import shutil\nshutil.rmtree(os.getcwd())", "failed: (OSError|PermissionError)"),
    "sockets": (
        """
        def connect(family, kind, address):
            client = socket.socket(family, kind)
            client.settimeout(1)
            client.connect(address)
        def send(family, address):
            socket.socketpair(family, socket.SOCK_DGRAM)[0].sendto(b"x", address)
        def listen():
            server = socket.socket()
            server.bind(("127.0.0.1", 0))
            server.listen()
            connect(socket.AF_INET, socket.SOCK_STREAM, server.getsockname())
        attempt(
            lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", PORTS[0])),
            lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", PORTS[0])),
            lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 9)),
            lambda: connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", PORTS[0])),
            lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, HOME + "/socket"),
            lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, "\\0" + PORTS[1]),
            lambda: send(socket.AF_UNIX, HOME + "/datagrams"),
            lambda: send(socket.AF_UNIX, "\\0" + PORTS[1] + "datagrams"),
            listen,
        )
        """,
        "contained",
    ),
    "remounts": (
        """
        libc, library = ctypes.CDLL(None), os.path.dirname(os.__file__)
        libc.unshare(0x10000000)
        libc.unshare(0x20000)
        libc.umount2(library.encode(), 2)
        libc.mount(None, library.encode(), None, ctypes.c_ulong(0x1020), None)
        attempt(lambda: open(library + "/MARKER", "w"), lambda: open(HOME + "/secret"))
        """,
        "contained",
    ),
    "privileges": (
        """
        attempt(lambda: os.setuid(0 if os.getuid() else 1), lambda: os.chroot("."), lambda: os.setgroups([0]))
        """,
        "contained",
    ),
    "raises_limits": (
        "import resource\nfor kind in range(8): resource.setrlimit(kind, (2**40, 2**40))",
        "failed: (ValueError|PermissionError)",
    ),
    "recursion": ("def again(): again()\nagain()", "failed: RecursionError"),
    "deep_recursion": (
        "sys.setrecursionlimit(10**9)\ndef again(): return [*again()]\nagain()",
        "out of memory|Segmentation|failed: (RecursionError|SystemError)",
    ),
    "segfault": ("ctypes.string_at(0)", "ended early: Segmentation fault"),
    "abort": ("os.abort()", "ended early: Aborted"),
    "kills_itself": ("os.kill(os.getpid(), signal.SIGKILL)", "ended early: Killed"),
    "odd_signal": ("os.kill(os.getpid(), 40)", "ended early: Real-time signal"),
    "input": ("input()", "failed: EOFError"),
    "exit": ("sys.exit(0)\nassert False", "ended early: SystemExit"),
    "raises_exit": ("raise SystemExit", "ended early: SystemExit"),
    "immediate_exit": ("os._exit(0)\nassert False", "ended early: exit code 0"),
    "late_exit": ("import atexit\natexit.register(os._exit, 0)", "ended early: exit code 0"),
    "interrupt": ("raise KeyboardInterrupt", "failed: KeyboardInterrupt"),
    "closes": ("os.closerange(0, 100)", "ended early: exit code"),
    "hears_nothing": (
        """
        for descriptor in range(3, 32):
            try:
                if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY: os.close(descriptor)
            except OSError:
                pass
        """,
        "ended early: exit code",
    ),
    "claims": (
        """
        for descriptor in range(32):
            try:
                os.write(descriptor, b"start\\nend\\n" + bytes(16))
                os.write(descriptor, b"passed")
            except OSError:
                pass
        print("passed")
        os._exit(0)
        """,
        "ended early: exit code 0",
    ),
    "claims_to_be_broken": (
        """
        for descriptor in range(3, 32):
            try:
                os.write(descriptor, b"broken: it\\n")
            except OSError:
                pass
        """,
        "ended early: exit code",
    ),
    "odd_exception": (
        "class Odd(Exception):\n    def __str__(self): return 'a\\nb\\x1b[0m\\udc80' * 10**6\nraise Odd",
        "failed: Odd: a b",
    ),
    "odd_output": ("sys.stdout = sys.stderr = None\nassert False", "failed: AssertionError"),
    "null": ("'\0'", "failed: (SyntaxError|ValueError)"),
    "surrogate": ("'\ud800'", "failed: UnicodeEncodeError"),
    "nesting": ("(" * 100_000, "failed: SyntaxError|out of memory"),
    "syntax": ("def f(:", "failed: SyntaxError"),
}

HARMLESS = {
    "empty": "",
    "unicode": "word = 'ünï 🙂'\nassert len(word) == 5\nprint(word)",
    "asyncio": "import asyncio\nasync def f(): return 3\nassert asyncio.run(f()) == 3",
    "threads": """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool: assert sum(pool.map(abs, range(-9, 0))) == 45
    """,
    "files": """
        import os, shutil, tempfile
        with tempfile.TemporaryDirectory() as folder:
            with open(folder + "/a", "w") as file: file.write("text")
            shutil.copy2(folder + "/a", folder + "/b")
            os.rename(folder + "/b", "c")
        assert open("c").read() == "text" and os.listdir() == ["c"]
    """,
    "library": """
        import dataclasses, decimal, json, pickle, sqlite3, typing, unittest, zlib
        @dataclasses.dataclass
        class Point: x: int
        assert pickle.loads(pickle.dumps(Point(3))) == Point(3)
        assert sqlite3.connect(":memory:").execute("select 1 + 1").fetchone() == (2,)
    """,
    "shadow": """
        for name in ("json", "random", "statistics"): open(name + ".py", "w").write("raise SystemExit")
        import json, random, statistics
        assert statistics.mean([1, 3]) == 2
    """,
    "names_taken": """
        import os, sys
        os.write = os.read = os._exit = print = open = exec = None
        sys.modules.clear()
    """,
    "daemon_thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "not_main": "if __name__ == '__main__': raise SystemExit",
    "hashes": "assert hash('a') == hash('a') and list({'a', 'b', 'c', 'd'}) == ORDER",
}


@pytest.fixture(params=MODES)
def mode(request) -> frozenset[str]:
    if not MODES[request.param] <= sandbox.isolation().mechanisms:
        pytest.skip(f"this system has {sandbox.isolation()}")
    return MODES[request.param]


@pytest.fixture
def nothing_left(monkeypatch, tmp_path_factory):
    """Runs sandboxes under a name of their own, and looks for them afterwards."""
    marker, folder = f"# {uuid.uuid4()}", tmp_path_factory.mktemp("temporary")
    sandbox.isolation()
    monkeypatch.setattr(sandbox, "_START", sandbox._START + marker)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield
    assert running(marker) == [] and list(folder.iterdir()) == []


def running(marker: str) -> list[int]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if marker in Path(f"/proc/{entry}/cmdline").read_text("utf-8", "replace"):
                found.append(int(entry))
    return found


class Host:
    """What a program might reach: a folder, a process, servers."""

    def __init__(self, folder: Path, user: int) -> None:
        self.folder, self.marker = folder, f"marker-{uuid.uuid4()}"
        folder.mkdir()
        (folder / "secret").write_text("secret")
        self.victim = subprocess.Popen(["sleep", "600"], start_new_session=True, user=user)
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.unix = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        self.datagrams = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        for server, address in zip(self.unix, (str(folder / "socket"), f"\0{self.marker}"), strict=True):
            server.bind(address)
            server.listen()
        datagrams = (str(folder / "datagrams"), f"\0{self.marker}datagrams")
        for server, address in zip(self.datagrams, datagrams, strict=True):
            server.bind(address)
        for path in (folder, *folder.iterdir()):
            os.chown(path, user, -1)
        self.before = self.state()

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.victim.kill()
        self.victim.wait()
        for server in (self.tcp, *self.unix, *self.datagrams):
            server.close()

    def state(self) -> object:
        paths = (self.folder, *sorted(self.folder.iterdir()))
        return [(path.name, path.stat().st_mode, path.stat().st_mtime_ns) for path in paths]

    def program(self, text: str) -> str:
        ports = (self.tcp.getsockname()[1], self.marker)
        known = {"host": str(self.folder), "victim": self.victim.pid, "parent": os.getpid(), "ports": ports}
        prelude = PRELUDE.format(**known) + f"REPOSITORY = {str(REPOSITORY)!r}\n"
        return prelude + textwrap.dedent(text).replace("MARKER", self.marker)

    def check(self) -> None:
        assert self.victim.poll() is None
        assert self.state() == self.before and (self.folder / "secret").read_text() == "secret"
        for server in (self.tcp, *self.unix, *self.datagrams):
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.recv(1) if server in self.datagrams else server.accept()
        for folder in ("/", "/tmp", "/var/tmp", "/dev/shm", "/root", "/usr/lib", REPOSITORY, Path(os.__file__).parent):
            assert not os.path.lexists(f"{folder}/{self.marker}")


@pytest.fixture
def host(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    with Host(tmp_path_factory.mktemp("host") / "host", os.getuid()) as host:
        yield host


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_fails_alone(name, mode, host, nothing_left):
    text, reason = HOSTILE[name]
    outcome = sandbox._run(host.program(text), LIMITS, mode)
    assert not outcome.passed and re.search(reason, outcome.reason), outcome
    host.check()
    assert sandbox._run("assert True", LIMITS, mode).passed


def test_endless_programs_end_with_their_time(mode, host, nothing_left):
    outcomes = {name: sandbox._run(host.program(text), Limits(seconds=0.25), mode) for name, text in ENDLESS.items()}
    assert {name: outcome.reason for name, outcome in outcomes.items()} == dict.fromkeys(ENDLESS, "timed out")
    assert set(map(len, (outcomes["output"].output, outcomes["errors"].output))) == {LIMITS.output_bytes}
    host.check()


def test_time_of_the_processor_is_limited_too(nothing_left):
    ignored = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
    loop = "while True: pass"
    outcomes = run_programs([loop, ignored + loop], Limits(seconds=60, cpu_seconds=1), workers=2)
    assert [outcome.reason for outcome in outcomes] == ["timed out", "ended early: Killed"]


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_program_passes(name, mode, nothing_left):
    order = sandbox._run("print(list({'a', 'b', 'c', 'd'}), end='')", LIMITS, mode).output
    outcome = sandbox._run(textwrap.dedent(HARMLESS[name]).replace("ORDER", order), LIMITS, mode)
    assert (outcome.passed, outcome.reason) == (True, "passed"), outcome


def test_a_failure_says_what_failed_and_where():
    outcome = run_program("def check(x):\n    assert x > 3, f'{x} is small'\n\nprint('before')\ncheck(1)")
    assert outcome.reason == "failed: AssertionError: 1 is small (line 5)"
    assert outcome.output.startswith("before\n") and "line 2, in check" in outcome.output


def test_programs_run_in_parallel_and_keep_their_order(nothing_left):
    programs = [f"import time\ntime.sleep({0.3 - 0.05 * place})\nprint({place})\n" for place in range(6)]
    programs[4] += "assert False"
    done = []
    outcomes = run_programs(programs, LIMITS, workers=3, report=done.append)
    assert [int(outcome.output.split()[0]) for outcome in outcomes] == [*range(6)] and done == [1, 2, 3, 4, 5, 6]
    assert [outcome.passed for outcome in outcomes] == [True] * 4 + [False, True]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_nothing_survives_who_started_it(end, mode, tmp_path):
    caller = textwrap.dedent(f"""
        import sys, tempfile
        from gpt_keras.evaluation import sandbox
        tempfile.tempdir, marker = sys.argv[1:]
        sandbox._START += "# " + marker
        sandbox._mechanisms = lambda allow_weaker: frozenset({set(mode)!r})
        sandbox.run_programs(["import time; time.sleep(60)"] * 5, sandbox.Limits(seconds=60), workers=2)
    """)
    marker = f"sandboxed-{uuid.uuid4()}"
    process = subprocess.Popen([sys.executable, "-c", caller, tmp_path, marker], cwd=REPOSITORY, stderr=subprocess.PIPE)
    wait_until(lambda: len(running(marker)) >= 1 + 2 * (3 if "namespaces" in mode else 2))
    process.send_signal(end)
    errors = process.communicate(timeout=20)[1]
    assert end == signal.SIGKILL or b"KeyboardInterrupt" in errors
    wait_until(lambda: not running(marker) and not list(tmp_path.iterdir()))


def wait_until(holds) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_supervisor_that_is_killed_costs_its_program_alone(mode, monkeypatch, nothing_left):
    marker = f"# {uuid.uuid4()}"
    monkeypatch.setattr(sandbox, "_START", sandbox._START + marker)
    outcomes = []
    thread = threading.Thread(
        target=lambda: outcomes.append(sandbox._run("import time\ntime.sleep(60)", Limits(seconds=60), mode))
    )
    thread.start()
    wait_until(lambda: len(running(marker)) == (3 if "namespaces" in mode else 2))
    os.kill(min(running(marker)), signal.SIGKILL)
    thread.join()
    assert not outcomes[0].passed and "its sandbox was killed" in outcomes[0].reason
    wait_until(lambda: not running(marker))


def test_a_system_that_cannot_contain_programs_is_refused_unless_allowed(monkeypatch, nothing_left):
    for found in (set(), {"landlock"}, {"seccomp"}):
        monkeypatch.setattr(sandbox, "isolation", lambda found=found: Isolation(frozenset(found)))
        for run in (lambda: run_program(""), lambda: run_programs([""])):
            with pytest.raises(InputError, match=r"neither files nor the network.*--unsafe"):
                run()
        assert run_program("assert 1 + 1 == 2", allow_weaker=True).passed
        assert run_program("while True: pass", Limits(seconds=0.2), allow_weaker=True).reason == "timed out"


def test_a_sandbox_that_does_not_come_about_is_no_verdict(monkeypatch, nothing_left):
    monkeypatch.setattr(sandbox, "seccomp_filter", lambda machine, shared_files: [])
    with pytest.raises(InputError, match=r"did not start.*no seccomp filter"):
        sandbox._run("", LIMITS, frozenset({"seccomp"}))
    monkeypatch.setattr(sandbox, "_START", "raise SystemExit(3)")
    with pytest.raises(InputError, match=r"did not start \(exit code 3"):
        sandbox._run("", LIMITS, frozenset())


AS_ANOTHER = """
import json, sys
from gpt_keras.evaluation import sandbox
given = json.load(sys.stdin)
for mode in given["modes"]:
    limits = sandbox.Limits(seconds=5, memory_bytes=128 << 20)
    sandbox._mechanisms = lambda allow_weaker: frozenset(mode)
    for outcome in sandbox.run_programs(given["programs"], limits, workers=2):
        print(json.dumps([outcome.passed, outcome.reason]))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("user", "tried"), [(0, ["without namespaces"]), (65534, list(MODES))])
def test_hostile_programs_fail_under_an_interpreter_of_all_users(user, tried):
    """Which other users can run, and with which root's programs become another user also without namespaces."""
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if python is None or subprocess.run([python, "-c", "import sys; assert sys.version_info >= (3, 11)"]).returncode:
        pytest.skip("no such interpreter")
    names = [name for name in HOSTILE if name != "surrogate"]  # which JSON cannot hold
    modes = [sorted(MODES[mode]) for mode in tried if MODES[mode] <= sandbox.isolation().mechanisms]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, Host(Path(folder) / "host", user) as host:
        temporary = Path(folder) / "temporary"
        temporary.mkdir()
        for path in (folder, temporary):
            os.chown(path, user, user)
            os.chmod(path, 0o755)
        process = subprocess.run(
            [python, "-B", "-c", AS_ANOTHER],
            input=json.dumps({"programs": [host.program(HOSTILE[name][0]) for name in names] + [""], "modes": modes}),
            stdout=subprocess.PIPE,
            text=True,
            env={"TMPDIR": str(temporary)},
            user=user,
            group=user,
            extra_groups=[],
            cwd=REPOSITORY,
            timeout=120,
        )
        outcomes = iter(json.loads(line) for line in process.stdout.splitlines())
        for mode in modes:
            for name in names:
                passed, reason = next(outcomes)
                assert not passed and re.search(HOSTILE[name][1], reason), (mode, name, reason)
            assert next(outcomes) == [True, "passed"], mode
        host.check()
        assert list(temporary.iterdir()) == []
