"""The small process that starts, watches and ends sandboxed programs.

`sandbox.py` starts it as a Python of its own without this project's heavy imports and talks to it
over a socket: one request, one program, one answer. It exists for three reasons. Forking a process
with a large model in memory costs milliseconds and is unsafe in a threaded one, this one is small
and has a single thread. It adopts and kills whatever a program leaves behind. And it notices when
the workbench itself dies (end of file on the socket) and then ends the program.

A launcher serves one profile. While it waits, the next child is already forked, confined as far as
it can be without knowing the request, and blocked on a pipe: that halves the time to start.

Request: 4-byte length, JSON. Answer: 4-byte length, JSON, then the bytes of both outputs.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import time
from typing import NamedTuple

from nanochat_lib.rust.isolation import confine

_FIRST_LOOK_S, _LONGEST_WAIT_S = 0.002, 0.02
_CHUNK = 1 << 16
_STATUS_FD, _REQUEST_FD, _FIRST_FREE_FD = 3, 5, 8  # 4 is bubblewrap's filter, 7 /dev/null


def serve(control: socket.socket, level: str, profile: str) -> None:
    """Run one program per request until the other end closes."""
    _prepare(level, profile)
    with contextlib.suppress(ConnectionError, EOFError):
        while True:
            child = _fork_ahead(level, profile)
            (length,) = struct.unpack("I", _receive(control, 4))
            request = json.loads(_receive(control, length)) | {"level": level, "profile": profile}
            answer, *outputs = _run(child, request, control)
            header = json.dumps(answer).encode()
            control.sendall(struct.pack("I", len(header)) + header + b"".join(outputs))


def _prepare(level: str, profile: str) -> None:
    """Do once what every program inherits, so that starting one costs less."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    confine.become_subreaper()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # should memory run out, sandboxed programs go before the workbench
    if level == "landlock+seccomp":
        confine.renounce_privileges()
        confine.seccomp_program(profile, os.getpid())
    while os.open("/dev/null", os.O_RDONLY) < _FIRST_FREE_FD:
        pass  # keeps every later descriptor above those that a program gets
    gc.collect()
    gc.freeze()  # objects of a forked child stay shared


def _receive(control: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = control.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


class _Child(NamedTuple):
    """A process that waits to become a program, and our ends of the pipes to it."""

    pid: int
    request: int  # to write
    out: int
    err: int
    status: int  # why it could not start; exec closes it


def _fork_ahead(level: str, profile: str) -> _Child:
    (theirs, request), *outward = (os.pipe() for _ in range(4))
    ours, writers = [read for read, _ in outward], [write for _, write in outward]
    pid = os.fork()
    if pid == 0:
        os.close(request)
        _become(theirs, writers, level, profile)
    for fd in (theirs, *writers):
        os.close(fd)
    return _Child(pid, request, *ours)


def _run(child: _Child, request: dict, control: socket.socket) -> tuple[dict, bytes, bytes]:
    """Start a program, watch it until it ends or passes a limit, and leave nothing of it."""
    started, spent = time.monotonic(), _children_cpu_s()
    try:
        failed = _send(child.request, request) or _read_all(child.status)
        program = _Program(child, request, started)
        reason = "" if failed else program.watch(control)
        code = _end(child.pid)
        if request["level"] == "bubblewrap" and 128 < code < 128 + signal.NSIG:
            code = 128 - code  # it says so when signal n ended the program
        reason = program.drain() or reason
    finally:
        for fd in (child.out, child.err, child.status):
            os.close(fd)
    cpu_s = _children_cpu_s() - spent
    stdout, stderr = (bytes(data) for data in program.outputs.values())
    answer = {
        "failed": failed.decode(errors="replace"),
        "returncode": code,
        "ended": reason or _reason(code, cpu_s, program.limits, stderr),
        "cpu_s": cpu_s,
        "wall_s": time.monotonic() - started,
        "sizes": [len(stdout), len(stderr)],
    }
    return answer, stdout, stderr


def _send(fd: int, request: dict) -> bytes:
    """Give the waiting child its request; return why that failed, or nothing."""
    try:
        with open(fd, "w") as pipe:
            json.dump(request, pipe)
    except BrokenPipeError:
        return b"the process that waited for it was killed"
    return b""


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _read_all(fd: int) -> bytes:
    """Read to the end of a pipe, which exec closes."""
    data = b""
    while part := os.read(fd, _CHUNK):
        data += part
    return data


# --- In the child -----------------------------------------------------------------------------


def _become(request_fd: int, writers: list[int], level: str, profile: str) -> None:
    """Turn this forked process into the program that the request names; never returns."""
    try:
        os.setsid()
        confine.die_with_parent()
        has_filter = level == "bubblewrap" and confine.has_seccomp()
        more = [_memory_file(confine.seccomp_program(profile))] if has_filter else []
        # Standard input, both outputs, the status pipe, perhaps bubblewrap's filter; nothing else.
        sources = [_FIRST_FREE_FD - 1, *writers, *more]
        request_fd = os.dup2(request_fd, _REQUEST_FD, inheritable=False)
        for target, source in enumerate(sources):
            os.dup2(source, target, inheritable=target != _STATUS_FD)
        os.closerange(_REQUEST_FD + 1, 1 << 20)
        for name in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores both, and exec inherits it
            signal.signal(name, signal.SIG_DFL)
        if level == "landlock+seccomp":
            confine.restrict_calls(confine.seccomp_program(profile, os.getpid()))
        _start(json.loads(_read_all(request_fd)))
    except (OSError, ValueError) as error:
        os.write(_STATUS_FD, str(error).encode()[:4000])
    finally:
        os._exit(127)


def _start(request: dict) -> None:
    os.chdir(request["work_dir"])
    confine.limit_resources(request["limits"], request["profile"])
    if request["level"] == "landlock+seccomp":
        confine.restrict_files(request["rules"])
    os.execve(request["argv"][0], request["argv"], request["env"])


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("filter")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


# --- Watching and ending ----------------------------------------------------------------------


class _Program:
    """A started program, its limits, and what it has printed so far."""

    def __init__(self, child: _Child, request: dict, started: float) -> None:
        self.pid, self.started = child.pid, started
        self.limits, self.profile = request["limits"], request["profile"]
        self.outputs = {child.out: bytearray(), child.err: bytearray()}
        for fd in self.outputs:
            os.set_blocking(fd, False)

    def watch(self, control: socket.socket) -> str:
        """Wait for the end of the program; return the limit it passed, or ""."""
        poller, wait_s = select.poll(), _FIRST_LOOK_S
        poller.register(control, select.POLLRDHUP)
        pidfd = os.pidfd_open(self.pid)
        for fd in (pidfd, *self.outputs):
            poller.register(fd, select.POLLIN)
        try:
            while True:
                ready = {fd for fd, _ in poller.poll(wait_s * 1000)}
                for fd in ready & set(self.outputs):
                    if not self._read(fd):
                        poller.unregister(fd)
                if pidfd in ready:
                    return ""
                if control.fileno() in ready:
                    return "abandoned"
                if reason := self._passed():
                    return reason
                wait_s = min(wait_s * 1.5, _LONGEST_WAIT_S)
        finally:
            os.close(pidfd)

    def drain(self) -> str:
        """Read what is left in the pipes of a dead program."""
        for fd in self.outputs:
            while self._read(fd):
                pass
        return "output_limit" if self._is_flooded() else ""

    def _read(self, fd: int) -> bool:
        """Take one piece of output, one byte more than the limit at most; False at the end."""
        kept = self.outputs[fd]
        room = (self.limits["output_kib"] << 10) + 1 - len(kept)
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(fd, min(_CHUNK, room)) if room else b""
        kept += data
        return bool(data)

    def _is_flooded(self) -> bool:
        limit = self.limits["output_kib"] << 10
        return any(len(kept) > limit for kept in self.outputs.values())

    def _passed(self) -> str:
        limits = self.limits
        if self._is_flooded():
            return "output_limit"
        if _cpu_s(self.pid) >= limits["cpu_s"]:
            return "cpu_limit"
        if time.monotonic() - self.started >= limits["wall_s"]:
            return "wall_limit"
        if self.profile == "run" and _n_threads(self.pid) > limits["n_processes"]:
            return "process_limit"
        if self.profile == "run" and _written_bytes(self.pid) > limits["file_mib"] << 20:
            return "file_limit"
        return ""


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of one process, by the kernel's clock for it."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


def _n_threads(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2
    except OSError:
        return 0


def _written_bytes(pid: int) -> int:
    """Return what a process has written, by calls or through mapped pages."""
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            counts = dict(line.split(b": ") for line in file.read().splitlines())
    except OSError:
        return 0
    return max(int(counts[b"wchar"]), int(counts[b"write_bytes"]))


def _end(pid: int) -> int:
    """Kill the program's group and every orphan adopted from it; return its exit code."""
    code = 0
    while True:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return code
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _reason(code: int, cpu_s: float, limits: dict, stderr: bytes) -> str:
    """Name what ended a program that the launcher did not stop itself."""
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu_s >= limits["cpu_s"]):
        return "cpu_limit"
    if code == -signal.SIGXFSZ:
        return "file_limit"
    if code == -signal.SIGABRT and (b"memory allocation of" in stderr or b"out of mem" in stderr):
        return "memory_limit"
    return "signal" if code < 0 else "exit"
