"""Programs that try to escape, each compiled or run in the sandbox, and what the host sees of it.

The hostile programs lie in fixtures/hostile. A test fails when the program says that something
worked (ESCAPED), when a secret shows up in its output or its files, when a file of the host has
changed, when a server of the host was reached, or when a process is left.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.rust import sandbox
from nanochat_lib.rust.isolation import confine
from nanochat_lib.rust.sandbox import Limits, SandboxError, SandboxUnavailable, run_sandboxed
from nanochat_lib.rust.toolchain import find_toolchain

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = Path(__file__).parent / "fixtures" / "hostile"
SECRET = "the-secret-of-the-host-5ec7e7"
LIMITS = Limits(cpu_s=0.5, wall_s=60, memory_mib=512, output_kib=64, file_mib=16, n_processes=32)
COMPILE = Limits(cpu_s=0.5, wall_s=90, memory_mib=2048, output_kib=64, file_mib=64)
needs_landlock = pytest.mark.skipif(
    sandbox.sandbox_level() != "landlock+seccomp", reason="Landlock or seccomp is missing here"
)

# How each program must end when it is contained. "exit" comes with exit code 0: it tried
# everything it had, and says so.
RUN_ENDS = {
    "endless_loop": "cpu_limit", "spinning_threads": "cpu_limit", "ignore_cpu_signal": "cpu_limit",
    "sleep_forever": "wall_limit", "thread_bomb": "process_limit",
    "memory_bomb": "memory_limit", "huge_allocation": "memory_limit",
    "stdout_flood": "output_limit", "stderr_flood": "output_limit",
    "huge_file": "file_limit", "sparse_file": "file_limit", "fill_the_disk": "file_limit",
    "stack_overflow": "signal", "abort": "signal", "wild_pointer": "signal",
    "kill_itself": "signal", "old_system_calls": "signal",
} | dict.fromkeys((
    "fork_bomb", "daemonise", "leave_group", "spawn_shell", "exec_shell", "write_and_exec",
    "memfd_exec", "huge_mapping", "read_secret", "write_secret", "delete_secret", "change_mode",
    "change_mode_by_fd", "symlink_out", "hard_link_out", "create_outside", "traverse_parents",
    "list_folders", "read_proc", "write_proc", "open_devices", "make_nodes", "tcp_connect",
    "tcp_listen", "udp_send", "unix_connect", "abstract_connect", "datagram_pair", "raw_sockets",
    "kill_others", "queue_signals", "ptrace_others", "slow_others", "raise_limits",
    "shed_restrictions", "change_root", "change_user", "change_machine", "kernel_surface",
    "x32_system_calls", "shared_memory", "find_descriptors", "read_environment", "read_stdin",
    "type_for_the_user", "watch_files",
), "exit")  # fmt: skip
OTHER_LIMITS = {
    "sleep_forever": {"wall_s": 0.4},
    "memory_bomb": {"cpu_s": 20},
    "error_flood": {"cpu_s": 20},
}
HELPERS = {"main", "run_escaped"}

# Here "exit" comes with an exit code other than 0: rustc refuses.
COMPILE_ENDS = dict.fromkeys((
    "endless_const", "macro_explosion", "macro_recursion", "match_explosion", "self_include",
    "trait_recursion", "type_explosion",
), ("cpu_limit", "memory_limit")) | {
    "error_flood": ("output_limit",),
} | dict.fromkeys((
    "assemble_secret", "const_memory", "crate_name", "doc_include", "environment", "feature_gate",
    "huge_static", "include_code", "include_disk", "include_endless", "include_environment",
    "include_folder", "include_random", "include_secret", "include_shadow", "include_traversal",
    "link_missing", "link_path", "module_path",
), ("exit",))  # fmt: skip


@dataclasses.dataclass
class Host:
    """What a hostile program would like to reach."""

    folder: Path
    victim: subprocess.Popen
    servers: dict[str, socket.socket]

    @property
    def secret(self) -> Path:
        return self.folder / "secret.txt"

    def arguments(self) -> list[str]:
        port = str(self.servers["tcp"].getsockname()[1])
        unix, abstract = (self.servers[name].getsockname() for name in ("unix", "abstract"))
        readable = str(self.folder / "readable.txt")
        return [str(self.secret), readable, str(self.victim.pid), port, unix, abstract[1:].decode()]

    def state(self) -> dict[str, tuple]:
        """Return content, mode, owner and times of everything in the folder."""
        return {
            path.name: (path.read_bytes() if path.is_file() else b"", *os.lstat(path)[:10])
            for path in sorted(self.folder.iterdir())
        }

    def was_reached(self) -> list[str]:
        reached = []
        for name, server in self.servers.items():
            with contextlib.suppress(BlockingIOError):
                server.recvfrom(1) if name == "udp" else server.accept()
                reached.append(name)
        return reached


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A folder with a secret, a process, and servers of four kinds."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "secret.txt").write_text(SECRET)
    (folder / "readable.txt").write_text("may be read, may not be changed")
    servers = {
        "tcp": socket.create_server(("127.0.0.1", 0)),
        "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "unix": socket.socket(socket.AF_UNIX),
        "abstract": socket.socket(socket.AF_UNIX),
    }
    servers["udp"].bind(servers["tcp"].getsockname())
    servers["unix"].bind(str(folder / "s"))
    servers["abstract"].bind(f"\0nanochat-{os.getpid()}")
    for name, server in servers.items():
        server.setblocking(False)
        if name != "udp":
            server.listen()
    victim = subprocess.Popen(["sleep", "600"])
    yield Host(folder, victim, servers)
    victim.kill()
    victim.wait()
    for server in servers.values():
        server.close()


@pytest.fixture(scope="module")
def hostile_binary(tmp_path_factory):
    """All run-time programs, compiled together in the sandbox."""
    folder = tmp_path_factory.mktemp("build")
    rustc = find_toolchain().rustc
    done = run_sandboxed(
        [rustc, "--edition", "2021", "-Awarnings", "--out-dir", folder, HOSTILE / "main.rs"],
        work_dir=folder, profile="compile", limits=sandbox.COMPILE_LIMITS, readable=[HOSTILE],
    )  # fmt: skip
    assert (done.ended, done.returncode) == ("exit", 0), done.stderr.decode()
    return folder / "main"


def processes_in(folder: Path) -> list[str]:
    """Return the processes whose program or current folder lies in a folder."""
    found = []
    for link in (f"/proc/{pid}/{name}" for pid in os.listdir("/proc") if pid.isdigit()
                 for name in ("exe", "cwd")):  # fmt: skip
        with contextlib.suppress(OSError):
            if str(folder) in os.readlink(link):
                found.append(link)
    return found


def assert_contained(done, host: Host, before: dict, work_dir: Path) -> None:
    said = done.stdout + done.stderr
    assert b"ESCAPED" not in said, said.decode(errors="replace")
    assert SECRET.encode() not in said
    assert len(done.stdout) <= (LIMITS.output_kib << 10) + 1
    assert len(done.stderr) <= (LIMITS.output_kib << 10) + 1
    for path in work_dir.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20:
            assert SECRET.encode() not in path.read_bytes()
    assert host.state() == before
    assert host.was_reached() == []
    assert host.victim.poll() is None
    assert processes_in(work_dir) == []
    assert done.sandbox == sandbox.sandbox_level()


def test_every_hostile_fixture_is_used():
    names = {path.stem for path in HOSTILE.glob("*.rs")}
    expected = {f"run_{name}" for name in RUN_ENDS} | {f"compile_{name}" for name in COMPILE_ENDS}
    assert names == expected | HELPERS


@needs_landlock
@pytest.mark.parametrize("name", RUN_ENDS)
def test_hostile_program_is_contained(name, host, hostile_binary, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_SECRET", SECRET)
    limits = dataclasses.replace(LIMITS, **OTHER_LIMITS.get(name, {}))
    before = host.state()
    done = run_sandboxed(
        [hostile_binary, f"run_{name}", *host.arguments()],
        work_dir=tmp_path, profile="run", limits=limits, readable=[host.folder / "readable.txt"],
    )  # fmt: skip
    assert_contained(done, host, before, tmp_path)
    assert done.ended == RUN_ENDS[name], done
    if done.ended == "exit":
        assert (done.returncode, done.stderr) == (0, b""), done
        assert done.stdout.endswith(b"finished\n")
    else:
        assert done.returncode != 0


@needs_landlock
@pytest.mark.parametrize("name", COMPILE_ENDS)
def test_hostile_source_is_contained(name, host, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_SECRET", SECRET)
    source = shutil.copy(HOSTILE / f"compile_{name}.rs", tmp_path)
    limits = dataclasses.replace(COMPILE, **OTHER_LIMITS.get(name, {}))
    before = host.state()
    done = run_sandboxed(
        [find_toolchain().rustc, "--edition", "2021", "--crate-type", "cdylib", "-Awarnings",
         source],
        work_dir=tmp_path, profile="compile", limits=limits, env={"VICTIM": str(host.secret)},
    )  # fmt: skip
    assert_contained(done, host, before, tmp_path)
    assert done.ended in COMPILE_ENDS[name], done
    assert done.returncode != 0
    assert b"root:" not in done.stderr  # the first line of the password file
    assert not (tmp_path.parent / "outside").exists()
    assert not list(tmp_path.glob("*.so"))


@needs_landlock
def test_deeply_nested_source_is_contained(host, tmp_path):
    source = tmp_path / "deep.rs"
    source.write_text("pub const X: u8 = " + "(" * 200_000 + "1" + ")" * 200_000 + ";")
    before = host.state()
    done = run_sandboxed(
        [find_toolchain().rustc, "--crate-type", "lib", source],
        work_dir=tmp_path, profile="compile", limits=COMPILE,
    )  # fmt: skip
    assert_contained(done, host, before, tmp_path)
    assert done.ended in {"exit", "signal", "cpu_limit", "memory_limit"}
    assert done.returncode != 0


# --- What honest programs may do --------------------------------------------------------------


def compile_program(folder: Path, text: str) -> Path:
    (folder / "honest.rs").write_text(textwrap.dedent(text))
    done = run_sandboxed(
        [find_toolchain().rustc, "--edition", "2021", "honest.rs"],
        work_dir=folder, profile="compile", limits=sandbox.COMPILE_LIMITS,
    )  # fmt: skip
    assert (done.ended, done.returncode) == ("exit", 0), done.stderr.decode()
    return folder / "honest"


def test_honest_program_computes_threads_and_writes_files(tmp_path):
    program = compile_program(
        tmp_path,
        """
        fn main() {
            let parts: Vec<_> = (0..8u64)
                .map(|i| std::thread::spawn(move || (0..1000).map(|x| x * i).sum::<u64>()))
                .collect();
            let total: u64 = parts.into_iter().map(|part| part.join().unwrap()).sum();
            std::fs::create_dir("kept").unwrap();
            std::fs::write("kept/total.txt", total.to_string()).unwrap();
            std::fs::rename("kept/total.txt", "total.txt").unwrap();
            print!("{}", std::fs::read_to_string("total.txt").unwrap());
            eprint!("{}", std::env::args().nth(1).unwrap());
            std::process::exit(7);
        }
        """,
    )
    done = run_sandboxed([program, "später"], work_dir=tmp_path, profile="run", limits=LIMITS)
    assert (done.ended, done.returncode) == ("exit", 7)
    assert done.stdout == str(sum(x * i for i in range(8) for x in range(1000))).encode()
    assert done.stderr == "später".encode()
    assert (tmp_path / "total.txt").read_bytes() == done.stdout


def test_panic_is_an_exit_with_its_message(tmp_path):
    program = compile_program(tmp_path, 'fn main() { panic!("on purpose") }')
    done = run_sandboxed([program], work_dir=tmp_path, profile="run", limits=LIMITS)
    assert (done.ended, done.returncode) == ("exit", 101)
    assert b"on purpose" in done.stderr


def test_output_is_whole_up_to_the_limit(tmp_path):
    size = LIMITS.output_kib << 10
    (tmp_path / "big").write_bytes(bytes(range(256)) * (size // 256 + 1))
    for n_bytes, ended in ((size, "exit"), (size + 1, "output_limit")):
        done = run_sandboxed(
            ["/usr/bin/head", "-c", str(n_bytes), "big"],
            work_dir=tmp_path, profile="run", limits=LIMITS,
        )  # fmt: skip
        assert done.ended == ended
        assert done.stdout == (tmp_path / "big").read_bytes()[:n_bytes]


def test_cpu_time_decides_and_waiting_is_free(tmp_path):
    limits = dataclasses.replace(LIMITS, cpu_s=0.2)
    done = run_sandboxed(["/bin/sleep", "0.6"], work_dir=tmp_path, profile="run", limits=limits)
    assert (done.ended, done.returncode) == ("exit", 0)
    assert done.cpu_s < 0.2 < 0.6 <= done.wall_s


def test_program_has_no_privileges(tmp_path):
    """Read from outside, in /proc, what the kernel says about a running program."""
    argv = ["/bin/sleep", "0.7531"]
    task = threading.Thread(
        target=run_sandboxed, args=(argv,),
        kwargs={"work_dir": tmp_path, "profile": "run", "limits": LIMITS},
    )  # fmt: skip
    task.start()
    status = {}
    while not status and task.is_alive():
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes() == b"/bin/sleep\x000.7531\x00":
                    lines = (path.parent / "status").read_text().splitlines()
                    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        time.sleep(0.01)
    task.join()
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) & ~0b110 == 0  # but DAC_OVERRIDE and DAC_READ_SEARCH
    if sandbox.sandbox_level() == "landlock+seccomp":
        assert status["Seccomp"] == "2"


# --- Launchers --------------------------------------------------------------------------------


def test_many_threads_run_programs_at_once(tmp_path):
    results = {}

    def work(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        for turn in range(4):
            text = f"{number}.{turn}"
            done = run_sandboxed(["/bin/echo", text], work_dir=folder, profile="run", limits=LIMITS)
            results[text] = done.stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {f"{n}.{t}": f"{n}.{t}\n".encode() for n in range(6) for t in range(4)}


def test_dead_launcher_is_an_error_and_the_next_call_works(tmp_path):
    arguments = {"work_dir": tmp_path, "profile": "run", "limits": LIMITS}
    run_sandboxed(["/bin/true"], **arguments)
    (launcher,) = (idle[-1] for (_, profile), idle in sandbox._pool().idle.items()
                   if profile == "run" and idle)  # fmt: skip
    launcher.process.kill()
    launcher.process.wait()
    with pytest.raises(SandboxError, match="launcher"):
        run_sandboxed(["/bin/true"], **arguments)
    assert run_sandboxed(["/bin/true"], **arguments).returncode == 0


def test_killed_waiting_child_is_not_the_programs_fault(tmp_path):
    arguments = {"work_dir": tmp_path, "profile": "run", "limits": LIMITS}
    run_sandboxed(["/bin/true"], **arguments)
    launcher = sandbox._pool().idle[sandbox.sandbox_level(), "run"][-1]
    children = Path(f"/proc/{launcher.process.pid}/task/{launcher.process.pid}/children")
    wait_until(children.read_text)
    (child,) = map(int, children.read_text().split())
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: Path(f"/proc/{child}/stat").read_text().split()[2] == "Z")
    with pytest.raises(SandboxError, match="waited"):
        run_sandboxed(["/bin/true"], **arguments)
    assert run_sandboxed(["/bin/true"], **arguments).returncode == 0


def test_program_ends_when_the_workbench_is_killed(tmp_path):
    code = f"""
        from pathlib import Path
        from nanochat_lib.rust.sandbox import Limits, run_sandboxed
        limits = Limits(cpu_s=100, wall_s=100)
        print("started", flush=True)
        run_sandboxed(["/bin/sleep", "90"], work_dir=Path({str(tmp_path)!r}), profile="run",
                      limits=limits)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE
    )
    with parent:
        parent.stdout.readline()
        wait_until(lambda: processes_in(tmp_path))
        parent.kill()
    wait_until(lambda: not processes_in(tmp_path))


def wait_until(condition, within_s: float = 20) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("level", ["none", "bubblewrap"])
def test_daemon_of_a_weaker_sandbox_dies_too(level, tmp_path, monkeypatch):
    skip_without(level)
    monkeypatch.setattr(sandbox, "sandbox_level", lambda: level)
    script = "setsid sh -c 'while :; do sleep 1; done' >/dev/null 2>&1 & exit 3"
    done = run_sandboxed(
        ["/bin/sh", "-c", script],
        work_dir=tmp_path, profile="compile", limits=LIMITS, allow_unsandboxed=True,
    )  # fmt: skip
    assert (done.ended, done.returncode, done.sandbox) == ("exit", 3, level)
    assert processes_in(tmp_path) == []


# --- Which sandbox ----------------------------------------------------------------------------


def skip_without(level: str) -> None:
    if level == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")


def test_no_sandbox_is_refused_and_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(confine, "landlock_abi", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "sandbox_level", sandbox.sandbox_level.__wrapped__)
    arguments = {"work_dir": tmp_path, "profile": "run", "limits": LIMITS}
    with pytest.raises(SandboxUnavailable, match="Landlock.*bubblewrap"):
        run_sandboxed(["/bin/true"], **arguments)
    done = run_sandboxed(["/bin/true"], allow_unsandboxed=True, **arguments)
    assert (done.returncode, done.sandbox) == (0, "none")


def test_bubblewrap_is_the_second_choice(host, hostile_binary, tmp_path, monkeypatch):
    skip_without("bubblewrap")
    monkeypatch.setattr(confine, "landlock_abi", lambda: 0)
    monkeypatch.setattr(sandbox, "sandbox_level", sandbox.sandbox_level.__wrapped__)
    if sandbox.sandbox_level() == "none":
        pytest.skip("bubblewrap may not create namespaces here")
    program = compile_program(tmp_path, 'fn main() { println!("hello") }')
    done = run_sandboxed([program], work_dir=tmp_path, profile="run", limits=LIMITS)
    assert (done.ended, done.returncode, done.stdout) == ("exit", 0, b"hello\n")
    for name in ("read_secret", "tcp_connect", "unix_connect", "abstract_connect", "fork_bomb",
                 "find_descriptors", "stdout_flood", "abort",
                 "memory_bomb"):  # fmt: skip
        before = host.state()
        done = run_sandboxed(
            [hostile_binary, f"run_{name}", *host.arguments()],
            work_dir=tmp_path, profile="run", limits=LIMITS,
        )  # fmt: skip
        assert_contained(done, host, before, tmp_path)
        assert done.ended == RUN_ENDS[name], (name, done)


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_ordinary_user_is_sandboxed_too(host, hostile_binary, tmp_path_factory):
    """As `nobody`, with a Python and a copy of this package that it may read."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    python = next(filter(None, map(usable_by_nobody, (sys.executable, "/usr/bin/python3"))), None)
    if python is None:
        pytest.skip("no Python 3.11 that an ordinary user may run")
    folder = Path("/tmp") / f"nanochat-{os.getpid()}"
    shutil.copytree(ROOT / "nanochat_lib" / "rust", folder / "nanochat_lib" / "rust")
    shutil.copy(ROOT / "nanochat_lib" / "errors.py", folder / "nanochat_lib")
    shutil.copy(hostile_binary, folder / "main")
    work = folder / "work"
    work.mkdir()
    for path in (folder, *folder.rglob("*")):
        os.chmod(path, 0o755)
    os.chown(work, 65534, 65534)
    code = f"""
        from pathlib import Path
        from nanochat_lib.rust.sandbox import Limits, run_sandboxed
        for name in ("read_secret", "kill_others", "fork_bomb", "tcp_connect", "thread_bomb"):
            done = run_sandboxed(["{folder}/main", "run_" + name, *{host.arguments()!r}],
                                 work_dir=Path("{work}"), profile="run", limits=Limits())
            print(name, done.ended, done.sandbox, b"ESCAPED" in done.stdout)
    """
    try:
        done = subprocess.run(
            [python, "-c", textwrap.dedent(code)],
            cwd=folder, capture_output=True, text=True, check=False, **nobody,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    level = sandbox.sandbox_level()
    ends = {name: RUN_ENDS[name] for name in
            ("read_secret", "kill_others", "fork_bomb", "tcp_connect", "thread_bomb")}  # fmt: skip
    expected = [f"{name} {ended} {level} False" for name, ended in ends.items()]
    assert done.stdout.splitlines() == expected, done.stderr


def usable_by_nobody(python: str) -> str | None:
    command = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    with contextlib.suppress(OSError):
        if subprocess.run(command, user=65534, group=65534, check=False).returncode == 0:
            return python
    return None


@pytest.mark.parametrize("folder", ["/", "/usr", str(Path.home()), str(ROOT)])
def test_wide_work_folder_is_refused(folder):
    with pytest.raises(WorkbenchError, match="scratch"):
        run_sandboxed(["/bin/true"], work_dir=Path(folder), profile="run", limits=LIMITS)


def test_missing_program_and_folder_are_errors(tmp_path):
    arguments = {"profile": "run", "limits": LIMITS}
    with pytest.raises(SandboxError, match="No such file"):
        run_sandboxed([tmp_path / "missing"], work_dir=tmp_path, **arguments)
    with pytest.raises(SandboxError, match="No such file"):
        run_sandboxed(["/bin/true"], work_dir=tmp_path / "missing", **arguments)
    with pytest.raises(SandboxError, match="Permission"):
        run_sandboxed([tmp_path], work_dir=tmp_path, **arguments)


# --- The filter, judged by a small interpreter of classic BPF -----------------------------------

ALLOW, KILL, EPERM, EACCES, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x5000D, 0x50026
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def evaluate(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Run a filter as the kernel would, and return its verdict."""
    data = struct.pack("IIQ6Q", number, arch, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    code = list(struct.iter_unpack("HBBI", program))
    word, at = 0, 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == 0x06:
            return k
        if operation == 0x20:
            (word,) = struct.unpack_from("I", data, k)
        elif operation == 0x54:
            word &= k
        else:
            test = {0x15: word == k, 0x25: word > k, 0x35: word >= k, 0x45: bool(word & k)}
            at += if_true if test[operation] else if_false


def numbers_of(machine: str) -> dict[str, int]:
    if not HEADERS[machine].exists():
        pytest.skip(f"no kernel header {HEADERS[machine]}")
    text = HEADERS[machine].read_text()
    found = re.findall(r"#define __NR(?:3264)?_(\w+)[ \t]+(\d+)\n", text)
    numbers = {name: int(number) for name, number in found}
    return numbers | ({"newfstatat": numbers["fstatat"]} if "fstatat" in numbers else {})


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("profile", ["compile", "run"])
def test_filter_decides_as_documented(machine, profile):
    numbers, pid = numbers_of(machine), 4711
    program = confine.seccomp_program(profile, pid, machine)
    arch = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]

    def verdict(name: str, *arguments: int) -> int:
        return evaluate(program, arch, numbers[name], *arguments)

    for_compile = ALLOW if profile == "compile" else EPERM
    assert evaluate(program, 0x40000003, 20) == KILL  # i386
    assert {verdict(name) for name in ("read", "openat", "mmap", "futex", "execve")} == {ALLOW}
    assert verdict("kill", pid, 9) == verdict("tgkill", pid, 1, 6) == ALLOW
    assert verdict("kill", pid + 1, 9) == verdict("kill", 2**32 - 1, 9) == EPERM
    assert verdict("clone", 0x3D0F00) == ALLOW  # a thread
    assert verdict("clone", 17) == for_compile  # a process
    assert verdict("clone", 0x10000000 | 0x10000) == EPERM  # a user namespace
    assert verdict("clone3") == ENOSYS
    assert verdict("socket", 2, 1) == EACCES
    assert verdict("socketpair", 1, 0x80001) == verdict("fchmod") == for_compile
    assert verdict("socketpair", 1, 2) == verdict("socketpair", 2, 1) == EPERM
    assert verdict("ioctl", 0, 0x5401) == ALLOW
    assert verdict("ioctl", 0, 0x5412) == EPERM  # TIOCSTI
    assert verdict("prctl", 15) == ALLOW
    assert verdict("prctl", 4) == EPERM
    assert verdict("prlimit64", 0, 7) == ALLOW
    assert verdict("prlimit64", pid, 7) == EPERM
    assert evaluate(program, arch, 5000) == ENOSYS
    dangerous = """ptrace mount umount2 bpf setns unshare chroot pivot_root keyctl add_key
        perf_event_open userfaultfd init_module finit_module kexec_load reboot swapon setuid setgid
        setresuid setgroups process_vm_readv process_vm_writev io_uring_setup io_uring_enter connect
        bind listen accept accept4 setsid setpgid memfd_create execveat open_by_handle_at mknodat
        fchownat setxattr pidfd_open pidfd_getfd pidfd_send_signal rt_sigqueueinfo shmget msgget
        semget mq_open clock_settime sethostname quotactl syslog acct seccomp capset personality
        sched_setaffinity setpriority inotify_init1 fanotify_init vhangup tkill sync"""
    assert {verdict(name) for name in dangerous.split() if numbers[name] < 449} == {EPERM}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_tables_of_system_calls_agree_with_the_kernel(machine):
    table = {"x86_64": confine._NAMES_X86_64, "aarch64": confine._NAMES_AARCH64}[machine]
    numbers = numbers_of(machine)
    ours = confine._numbers(table)
    known = {name: number for name, number in ours.items() if name in numbers}
    assert known == {name: numbers[name] for name in known}
    assert len(known) > 120
    assert set(ours) - set(known) <= {"futex_waitv", "epoll_pwait2"}  # newer than old headers
