"""Run a program that nobody trusts: rustc on generated source, or what came out of it.

The first choice is Landlock + seccomp + resource limits, by system calls alone (`confine.py`), the
second bubblewrap; with neither, `SandboxUnavailable` unless the caller opts out by name. Either
way the program has a process group of its own, an empty environment, /dev/null as input, bounded
output, no inherited file, no network, and only the work folder to write to. CPU time decides a
timeout, wall time is the backstop. When it ends, everything it started ends with it.

What it does not protect against: bugs in the kernel, and programs measuring the machine (file
names and sizes outside the work folder can be tested with `stat`, though nothing can be read). In
the work folder a program may create many empty files within its CPU limit.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.rust.isolation import confine
from nanochat_lib.rust.toolchain import find_toolchain

Ended = Literal[
    "exit", "signal", "cpu_limit", "wall_limit", "output_limit", "memory_limit",
    "process_limit", "file_limit",
]  # fmt: skip

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store")
_PROGRAMS = ("/bin", "/usr/bin", "/usr/local/bin", "/usr/libexec", "/etc/alternatives")
_FILES = ("/etc/ld.so.cache",)
_LAUNCH = (
    "import socket, sys; sys.path.append(sys.argv[1]); "
    "from nanochat_lib.rust.isolation.launcher import serve; "
    "serve(socket.socket(fileno=0), *sys.argv[2:])"
)


class SandboxUnavailable(WorkbenchError):
    """Neither Landlock + seccomp nor bubblewrap works here."""


class SandboxError(WorkbenchError):
    """A program could not be started or watched, so nothing is known about it."""


@dataclass(frozen=True)
class Limits:
    """What one program may use. The defaults suit a small test program."""

    cpu_s: float = 2.0  # CPU seconds of the process
    wall_s: float = 10.0  # seconds from start to end, the backstop for sleepers
    memory_mib: int = 1024  # address space per process
    output_kib: int = 256  # of stdout and of stderr, each
    file_mib: int = 64  # size of one file; in the run profile also all that is written
    n_processes: int = 64  # threads in the run profile


# rustc maps its own libraries (about 600 MiB) and a gigabyte more in a large batch.
COMPILE_LIMITS = Limits(cpu_s=10.0, wall_s=60.0, memory_mib=6144, output_kib=4096, file_mib=512)
RUN_LIMITS = Limits()


@dataclass(frozen=True)
class Completed:
    """How a program ended. `returncode` is minus the signal when one ended it."""

    returncode: int
    stdout: bytes  # at most output_kib, and one byte more when the limit was passed
    stderr: bytes
    cpu_s: float  # of the program and all its children
    wall_s: float
    ended: Ended
    sandbox: str  # "landlock+seccomp" | "bubblewrap" | "none"


@cache
def sandbox_level() -> str:
    """Return the best sandbox this machine has: landlock+seccomp, bubblewrap or none."""
    if confine.landlock_abi() >= 1 and confine.has_seccomp():
        return "landlock+seccomp"
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "none"
    probe = [bwrap, "--unshare-all", "--ro-bind", "/", "/", "/bin/sh", "-c", ":"]
    done = subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return "bubblewrap" if done.returncode == 0 else "none"


def run_sandboxed(
    argv: Sequence[str | Path],
    *,
    work_dir: Path,
    profile: Literal["compile", "run"],
    limits: Limits,
    allow_unsandboxed: bool = False,
    env: dict[str, str] | None = None,
    readable: Iterable[Path] = (),
) -> Completed:
    """Run one program to its end inside the sandbox.

    Args:
        argv: absolute path of the program, and its arguments.
        work_dir: the current folder, and the only one it may write to.
        profile: "compile" (toolchain and linker, child processes) or "run" (threads only).
        limits: what it may use.
        allow_unsandboxed: run even where no sandbox works; `Completed.sandbox` then says "none".
        env: added to the otherwise nearly empty environment.
        readable: more files and folders that it may read.

    Raises:
        SandboxUnavailable: no sandbox works here, and the caller has not opted out.
        SandboxError: the program or its folder is missing, or its launcher died.
    """
    level = sandbox_level()
    if level == "none" and not allow_unsandboxed:
        raise SandboxUnavailable(_what_is_missing())
    command = [str(part) for part in argv]
    folder = _checked_work_dir(work_dir)
    rules = _rules(profile, command[0], folder, [str(path) for path in readable])
    request = {
        "argv": _bubblewrap(rules, folder) + command if level == "bubblewrap" else command,
        "env": _environment(profile, folder) | (env or {}),
        "work_dir": folder,
        "limits": asdict(limits),
        "rules": rules,
    }
    answer, stdout, stderr = _ask((level, profile), request)
    if answer["failed"]:
        raise SandboxError(f"Could not run {command[0]} in {folder}: {answer['failed']}.")
    kept = {name: answer[name] for name in ("returncode", "cpu_s", "wall_s", "ended")}
    return Completed(stdout=stdout, stderr=stderr, sandbox=level, **kept)


def _what_is_missing() -> str:
    missing = []
    if confine.landlock_abi() < 1:
        missing.append("Landlock (Linux 5.13 or newer with 'landlock' among its security modules)")
    if not confine.has_seccomp():
        missing.append("seccomp filters on x86_64 or aarch64")
    missing.append("a working bubblewrap ('bwrap' that may create namespaces)")
    return (
        "No sandbox for generated programs: expected Landlock and seccomp, or bubblewrap; missing "
        f"here: {'; '.join(missing)}. Install bubblewrap or use a newer kernel, or accept the risk "
        "with verify.allow_unsandboxed=true, which every report will show."
    )


def _checked_work_dir(work_dir: Path) -> str:
    """Return the real path of a folder that is narrow enough to be given away."""
    try:
        folder = work_dir.resolve(strict=True)
    except OSError as error:
        raise SandboxError(f"The work folder {work_dir} cannot be used: {error}.") from error
    given_away = [Path.home(), Path(sys.prefix), Path(__file__), *map(Path, _LIBRARIES)]
    if any(path.is_relative_to(folder) for path in given_away):
        raise WorkbenchError(
            f"The work folder of a sandboxed program must be a scratch folder; {folder} holds the "
            "home folder, this program or the system's libraries. Use a temporary folder."
        )
    return str(folder)


def _rules(
    profile: str, program: str, folder: str, readable: Sequence[str]
) -> list[confine.PathRule]:
    """Return what may be read, executed and written."""
    rule = confine.PathRule
    reading = confine.READ_EXECUTE if profile == "compile" else confine.READ
    rules = [rule(path, reading) for path in _LIBRARIES]
    # The program itself and the dynamic loader: the kernel opens both for execution.
    rules += [rule(path, confine.READ_EXECUTE) for path in (program, *_loaders())]
    rules += [rule(path, confine.READ) for path in (*_FILES, *readable)]
    rules.append(rule("/dev/null", confine.READ | confine.WRITE_FILE))
    if profile == "compile":
        rules += [rule(path, confine.READ_EXECUTE) for path in _PROGRAMS]
        rules.append(rule(str(find_toolchain().sysroot), confine.READ_EXECUTE))
    return [*rules, rule(folder, confine.WORK)]


@cache
def _loaders() -> tuple[str, ...]:
    """Return the dynamic loaders of this machine's C libraries."""
    names = ("ld-linux*.so*", "ld-musl-*.so*")
    folders = ("/lib", "/lib64", "/lib/*-linux-gnu")
    found = {
        os.path.realpath(p) for d in folders for n in names for p in Path("/").glob(d[1:] + "/" + n)
    }
    return tuple(sorted(found))


def _environment(profile: str, folder: str) -> dict[str, str]:
    """Return the environment: nothing of ours, but what a linker and a temporary file need."""
    environment = {"LANG": "C", "TMPDIR": folder, "HOME": folder}
    if profile == "compile":
        environment["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    return environment


def _bubblewrap(rules: Sequence[confine.PathRule], folder: str) -> list[str]:
    """Return the same rules as a bubblewrap command; its namespaces hide everything else."""
    command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent"]
    command += ["--new-session", "--dev", "/dev", "--proc", "/proc", "--chdir", folder]
    if confine.has_seccomp():
        command += ["--seccomp", "4"]
    for path, rights in rules:
        if path.startswith("/dev/"):
            continue
        bind = "--bind-try" if rights & confine.MAKE_REG else "--ro-bind-try"
        command += [bind, path, path]
    return [*command, "--"]


# --- Launchers --------------------------------------------------------------------------------


class _Launcher:
    """One launcher process, for one profile, and the socket to it."""

    def __init__(self, level: str, profile: str) -> None:
        self.control, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-I", "-S", "-c", _LAUNCH, root, level, profile]
        with theirs:
            # A session of its own: Ctrl-C in a terminal must reach the workbench alone.
            self.process = subprocess.Popen(
                command, stdin=theirs, stdout=subprocess.DEVNULL, start_new_session=True
            )

    def ask(self, request: dict) -> tuple[dict, bytes, bytes]:
        """Send one request and wait for its answer."""
        body = json.dumps(request).encode()
        self.control.sendall(struct.pack("I", len(body)) + body)
        (length,) = struct.unpack("I", self._receive(4))
        answer = json.loads(self._receive(length))
        stdout, stderr = (self._receive(size) for size in answer["sizes"])
        return answer, stdout, stderr

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            received = self.control.recv_into(view)
            if not received:
                raise ConnectionError("the launcher closed the connection")
            view = view[received:]
        return bytes(data)

    def hang_up(self) -> None:
        """Wake whoever waits for an answer; the launcher ends its program and itself."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up, whereupon the launcher ends its program and itself."""
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)


class _Pool:
    """Launchers that wait for work; as many exist as threads have asked at once."""

    def __init__(self) -> None:
        self.lock, self.owner = threading.Lock(), os.getpid()
        self.idle: dict[tuple[str, str], list[_Launcher]] = {}
        self.busy: dict[int, _Launcher] = {}  # by thread

    def take(self, kind: tuple[str, str]) -> _Launcher:
        """Return an idle launcher or start one; a forked process never uses its parent's."""
        with self.lock:
            if self.owner != os.getpid():
                self.idle, self.busy, self.owner = {}, {}, os.getpid()
            idle = self.idle.get(kind)
            launcher = idle.pop() if idle else None
        launcher = launcher or _Launcher(*kind)  # not under the lock: it starts a process
        self.busy[threading.get_ident()] = launcher
        return launcher

    def give(self, kind: tuple[str, str], launcher: _Launcher) -> None:
        """Keep a launcher for the next call."""
        with self.lock:
            self.busy.pop(threading.get_ident(), None)
            self.idle.setdefault(kind, []).append(launcher)

    def discard(self, launcher: _Launcher) -> None:
        """End a launcher that did not answer."""
        with self.lock:
            self.busy.pop(threading.get_ident(), None)
        launcher.close()

    def close(self) -> None:
        """End every idle launcher of this process."""
        if self.owner == os.getpid():
            for launcher in (launcher for idle in self.idle.values() for launcher in idle):
                launcher.close()


@cache
def _pool() -> _Pool:
    pool = _Pool()
    atexit.register(pool.close)
    return pool


def _ask(kind: tuple[str, str], request: dict) -> tuple[dict, bytes, bytes]:
    """Have one program run; on any trouble the launcher goes, and its program with it."""
    pool = _pool()
    launcher = pool.take(kind)
    try:
        answer = launcher.ask(request)
    except OSError as error:
        pool.discard(launcher)
        raise SandboxError(f"The launcher of sandboxed programs died: {error}.") from error
    except BaseException:  # Ctrl-C: the launcher would answer somebody else's question
        pool.discard(launcher)
        raise
    pool.give(kind, launcher)
    return answer


def end_programs(threads: Iterable[int]) -> None:
    """End what runs in the sandbox for these threads (by identifier): they get a SandboxError."""
    pool = _pool()
    with pool.lock:
        for launcher in filter(None, map(pool.busy.get, threads)):
            launcher.hang_up()
