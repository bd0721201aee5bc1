"""Confine the calling process: Landlock, a seccomp filter, capabilities and resource limits.

Everything here is raw system calls by ctypes, no helper program. The launcher calls it in the
child between fork and exec; nothing is undone afterwards, because none of it can be. Landlock
decides which files exist for the program, seccomp which system calls do, resource limits how much
of the machine it gets. `seccomp_program` builds classic BPF: the architecture is checked first,
then the call number against a list of what is allowed, then the arguments of the few calls whose
danger lies there. What is not listed fails with EPERM; numbers newer than this table fail with
ENOSYS, so that a libc falls back to an older call.

Source: Linux `Documentation/userspace-api/landlock.rst` and `seccomp_filter.rst`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import stat
import struct
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_prctl = _libc.prctl
_MACHINE = platform.machine()

# --- Landlock -------------------------------------------------------------------------------

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_DIR, MAKE_REG, MAKE_SYM = 1 << 7, 1 << 8, 1 << 12
REFER, TRUNCATE = 1 << 13, 1 << 14
READ = READ_FILE | READ_DIR
READ_EXECUTE = READ | EXECUTE
# No device nodes, sockets or pipes in the work folder, and nothing executable.
WORK = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM
WORK |= REFER | TRUNCATE
_ONLY_FOR_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
# The highest file right of each ABI: 13 rights at first, then REFER, TRUNCATE and IOCTL_DEV.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_TCP = 0b11  # bind, connect
_SCOPE_ALL = 0b11  # abstract sockets, signals
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # same on every architecture


class PathRule(NamedTuple):
    """Landlock rights on a file, or on a folder and everything below it."""

    path: str
    rights: int


def landlock_abi() -> int:
    """Return the kernel's Landlock version, 0 when it has none or it is switched off."""
    return max(0, _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def restrict_files(rules: Iterable[PathRule]) -> None:
    """Deny every file but those of the rules, and TCP, foreign signals and abstract sockets.

    A rule whose path does not exist is left out: it could allow nothing.
    """
    abi = landlock_abi()
    handled = (1 << _FILE_RIGHTS[min(abi, max(_FILE_RIGHTS))]) - 1
    attribute = struct.pack("QQQ", handled, _NET_TCP if abi >= 4 else 0, _SCOPE_ALL)
    size = 8 if abi < 4 else 16 if abi < 6 else 24  # older kernels refuse longer structures
    ruleset = _checked(_CREATE_RULESET, attribute, ctypes.c_size_t(size), 0)
    for path, rights in rules:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            _allow_path(ruleset, path, rights & handled)
    _checked(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        rights &= _ONLY_FOR_FILES
    try:
        _checked(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def _checked(number: int, *arguments: object) -> int:
    result = _syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"system call {number}: {os.strerror(code)}")
    return result


# --- seccomp --------------------------------------------------------------------------------

_NAMES_X86_64 = """
0 read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction
rt_sigprocmask rt_sigreturn ioctl pread64 pwrite64 readv writev access pipe select sched_yield
mremap msync mincore madvise 32 dup dup2 pause nanosleep getitimer alarm setitimer getpid sendfile
socket 44 sendto recvfrom sendmsg recvmsg shutdown 51 getsockname getpeername socketpair setsockopt
getsockopt clone fork vfork execve exit wait4 kill uname 72 fcntl flock fsync fdatasync truncate
ftruncate getdents getcwd chdir fchdir rename mkdir rmdir creat link unlink symlink readlink chmod
fchmod 95 umask gettimeofday getrlimit getrusage sysinfo times 102 getuid 104 getgid 107 geteuid
getegid 110 getppid getpgrp 115 getgroups 118 getresuid 120 getresgid getpgid 124 getsid capget 127
rt_sigpending rt_sigtimedwait 130 rt_sigsuspend sigaltstack 137 statfs fstatfs 140 getpriority 143
sched_getparam 145 sched_getscheduler sched_get_priority_max sched_get_priority_min 157 prctl
arch_prctl 160 setrlimit 186 gettid 202 futex 204 sched_getaffinity 213 epoll_create 217 getdents64
set_tid_address restart_syscall 221 fadvise64 timer_create timer_settime timer_gettime
timer_getoverrun timer_delete 228 clock_gettime clock_getres clock_nanosleep exit_group epoll_wait
epoll_ctl tgkill 247 waitid 257 openat mkdirat 262 newfstatat unlinkat renameat linkat symlinkat
readlinkat fchmodat faccessat pselect6 ppoll 273 set_robust_list get_robust_list splice 280
utimensat epoll_pwait 283 timerfd_create eventfd fallocate timerfd_settime timerfd_gettime 290
eventfd2 epoll_create1 dup3 pipe2 295 preadv pwritev 302 prlimit64 309 getcpu 316 renameat2 318
getrandom 324 membarrier 326 copy_file_range preadv2 pwritev2 332 statx 334 rseq 435 clone3
close_range 439 faccessat2 441 epoll_pwait2 444 landlock_create_ruleset landlock_add_rule
landlock_restrict_self 449 futex_waitv
"""
# The table of asm-generic/unistd.h, which arm64 uses unchanged.
_NAMES_AARCH64 = """
17 getcwd 19 eventfd2 epoll_create1 epoll_ctl epoll_pwait dup dup3 fcntl 29 ioctl 32 flock 34
mkdirat unlinkat symlinkat linkat renameat 43 statfs fstatfs truncate ftruncate fallocate faccessat
chdir fchdir 52 fchmod fchmodat 56 openat close 59 pipe2 61 getdents64 lseek read write readv writev
pread64 pwrite64 preadv pwritev sendfile pselect6 ppoll 76 splice 78 readlinkat newfstatat fstat 82
fsync fdatasync 85 timerfd_create timerfd_settime timerfd_gettime utimensat 90 capget 93 exit
exit_group waitid set_tid_address 98 futex set_robust_list get_robust_list nanosleep getitimer
setitimer 107 timer_create timer_gettime timer_getoverrun timer_settime timer_delete 113
clock_gettime clock_getres clock_nanosleep 120 sched_getscheduler sched_getparam 123
sched_getaffinity sched_yield sched_get_priority_max sched_get_priority_min 128 restart_syscall kill
131 tgkill sigaltstack rt_sigsuspend rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait 139
rt_sigreturn 141 getpriority 148 getresuid 150 getresgid 153 times 155 getpgid getsid 158 getgroups
160 uname 163 getrlimit setrlimit getrusage umask prctl getcpu gettimeofday 172 getpid getppid
getuid geteuid getgid getegid gettid sysinfo 198 socket socketpair 204 getsockname getpeername
sendto recvfrom setsockopt getsockopt shutdown sendmsg recvmsg 214 brk munmap mremap 220 clone
execve mmap fadvise64 226 mprotect msync 232 mincore madvise 260 wait4 prlimit64 276 renameat2 278
getrandom 283 membarrier 285 copy_file_range preadv2 pwritev2 291 statx 293 rseq 435 clone3
close_range 439 faccessat2 441 epoll_pwait2 444 landlock_create_ruleset landlock_add_rule
landlock_restrict_self 449 futex_waitv
"""
_HIGHEST_KNOWN = 449

# Only rustc and its linker get these: child processes, a connected pair of sockets, file modes.
_COMPILE_ONLY_NAMES = """
fork vfork socketpair sendto sendmsg shutdown getsockopt setsockopt getsockname
getpeername chmod fchmod fchmodat utimensat fallocate
"""
# Always refused; clone3 hides its flags in memory, and ENOSYS makes a libc use clone instead.
_ERRORS = {"socket": 13, "clone3": 38}
_TTY_OR_FLAGS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIO*
_FCNTL_HARMLESS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032, 1033, 1034)
_PRCTL_HARMLESS = (3, 15, 16, 0x53564D41)  # GET_DUMPABLE, SET_NAME, GET_NAME, SET_VMA
_NEW_NAMESPACES = 0x7E020000
_CLONE_PARENT, _CLONE_THREAD = 0x8000, 0x10000

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQ, _JUMP_GT, _JUMP_GE, _JUMP_SET = 0x15, 0x25, 0x35, 0x45
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_OWN_PID = 0x7FFFFFFF  # stands for the pid in a template; no real one is that high
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
# An instruction with named jumps: code, constant, where to go if true, if false.
_Check = list[tuple[int, int, str, str]]


def _instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, k)


def _numbers(table: str) -> dict[str, int]:
    """Read a table in which a number is that of the name behind it, from where names count on."""
    numbers, number = {}, 0
    for word in table.split():
        if word.isdigit():
            number = int(word)
        else:
            numbers[word] = number
            number += 1
    return numbers


def _load(index: int) -> _Check:
    """Load the low half of an argument; both machines are little endian."""
    return [(_LOAD, 16 + 8 * index, "", "")]


def _must_be(*values: int) -> _Check:
    """Fail unless the loaded word is one of the values."""
    return [(_JUMP_EQ, value, "next", "") for value in values[:-1]] + [
        (_JUMP_EQ, values[-1], "", "fail")
    ]


def _must_have(bits: int) -> _Check:
    return [(_JUMP_SET, bits, "", "fail")]


def _must_lack(bits: int) -> _Check:
    return [(_JUMP_SET, bits, "fail", "")]


def _call(number: int, *checks: _Check, error: int = _EPERM) -> bytes:
    """Return code for one call: allow it when every check holds, else return the error.

    In a check "" goes on with the next instruction, "next" with the next check, and "fail" to the
    error that stands after ALLOW. No checks at all: the call always fails.
    """
    length = sum(map(len, checks))
    body, place = b"", 0
    for check in checks:
        end = place + len(check)
        for code, k, if_true, if_false in check:
            target = {"": place + 1, "next": end, "fail": length + 1}
            jumps = target[if_true] - place - 1, target[if_false] - place - 1
            body += _instruction(code, k, *jumps)
            place += 1
    body += _instruction(_RETURN, _ALLOW) if checks else b""
    body += _instruction(_RETURN, _ERRNO | error)
    return _instruction(_JUMP_EQ, number, 0, len(body) // 8) + body


def _argument_rules(profile: str, *, own_pid: bool) -> dict[str, tuple[_Check, ...]]:
    """Return the checks of the calls whose arguments decide."""
    thread = [_must_have(_CLONE_THREAD)] if profile == "run" else []
    own = [_must_be(_OWN_PID)] if own_pid else [_load(0)]
    rules = {
        "clone": (_load(0), _must_lack(_NEW_NAMESPACES | _CLONE_PARENT), *thread),
        "kill": (_load(0), *own),
        "tgkill": (_load(0), *own),
        "ioctl": (_load(1), _must_be(*_TTY_OR_FLAGS)),
        "fcntl": (_load(1), _must_be(*_FCNTL_HARMLESS)),
        "prctl": (_load(0), _must_be(*_PRCTL_HARMLESS)),
        "prlimit64": (_load(0), _must_be(0)),  # its own: hard limits can only be lowered
        "socketpair": (),
    }
    if profile == "compile":
        # Local streams only: a datagram socket could write to the address of a host's service.
        kind = [(_AND, 0x0F, "", "")]
        rules["socketpair"] = (_load(0), _must_be(1), _load(1), kind, _must_be(1, 5))
    return rules


def seccomp_program(profile: str, pid: int | None = None, machine: str | None = None) -> bytes:
    """Return the BPF program of a profile, "compile" or "run".

    Args:
        profile: what the program is for.
        pid: the one process that may be signalled; None: any that the kernel allows.
        machine: the architecture, by default this machine's.
    """
    program = _template(profile, pid is not None, machine or _MACHINE)
    if pid is None:
        return program
    return program.replace(struct.pack("I", _OWN_PID), struct.pack("I", pid))


@cache
def _template(profile: str, own_pid: bool, machine: str) -> bytes:
    numbers = _numbers({"x86_64": _NAMES_X86_64, "aarch64": _NAMES_AARCH64}[machine])
    rules = _argument_rules(profile, own_pid=own_pid)
    denied = {*rules, *_ERRORS, *(_COMPILE_ONLY_NAMES.split() if profile == "run" else ())}
    plain = sorted(number for name, number in numbers.items() if name not in denied)
    code = _instruction(_LOAD, 4) + _instruction(_JUMP_EQ, _AUDIT_ARCH[machine], 1, 0)
    code += _instruction(_RETURN, _KILL) + _instruction(_LOAD, 0) + _ranges(plain)
    for name, checks in rules.items():
        code += _call(numbers[name], *checks) if name in numbers else b""
    for name, error in _ERRORS.items():
        code += _call(numbers[name], error=error)
    code += _instruction(_JUMP_GT, _HIGHEST_KNOWN, 0, 1) + _instruction(_RETURN, _ERRNO | _ENOSYS)
    return code + _instruction(_RETURN, _ERRNO | _EPERM)


def _ranges(numbers: list[int]) -> bytes:
    """Return code that allows the numbers, a run of neighbours at a time."""
    code, first = b"", 0
    for i, number in enumerate(numbers):
        if i + 1 == len(numbers) or numbers[i + 1] != number + 1:
            code += _instruction(_JUMP_GE, numbers[first], 0, 2)
            code += _instruction(_JUMP_GT, number, 1, 0) + _instruction(_RETURN, _ALLOW)
            first = i + 1
    return code


def has_seccomp() -> bool:
    """Return whether this kernel filters system calls and this table knows the machine."""
    number = _SECCOMP.get(_MACHINE)
    action = struct.pack("I", _ERRNO)  # SECCOMP_GET_ACTION_AVAIL
    return number is not None and _syscall(number, 2, 0, action) == 0


def restrict_calls(program: bytes) -> None:
    """Install a filter for this process and everything it starts."""
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _checked(_SECCOMP[_MACHINE], 1, 0, header)


# --- Privileges and resources ---------------------------------------------------------------

_CAPSET = {"x86_64": 126, "aarch64": 91}
# Kept so that root can read a toolchain and a work folder in someone's private home. Landlock
# still decides which files these are.
_KEPT_CAPABILITIES = 1 << 1 | 1 << 2  # DAC_OVERRIDE, DAC_READ_SEARCH


def renounce_privileges() -> None:
    """Give up gaining privileges by exec, and every capability of root but two, for good."""
    if _prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    if os.geteuid() == 0:
        kept = _KEPT_CAPABILITIES
        header = struct.pack("Ii", 0x20080522, 0)
        with contextlib.suppress(PermissionError):  # a container may hold fewer than these already
            _checked(_CAPSET[_MACHINE], header, struct.pack("6I", kept, kept, 0, 0, 0, 0))


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies; exec keeps this."""
    _prctl(1, 9, 0, 0, 0)


def become_subreaper() -> None:
    """Adopt orphaned grandchildren, so that a daemonised program can still be killed."""
    _prctl(36, 1, 0, 0, 0)


def limit_resources(limits: dict[str, float], profile: str) -> None:
    """Set hard limits: CPU seconds (rounded up), address space, file size, open files, no core."""
    mib = 1 << 20
    cpu_s = int(limits["cpu_s"]) + 2  # the launcher's own clock is finer and comes first
    wanted = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: int(limits["memory_mib"]) * mib,
        resource.RLIMIT_FSIZE: int(limits["file_mib"]) * mib,
        resource.RLIMIT_NOFILE: 128 if profile == "run" else 1024,
        resource.RLIMIT_STACK: (8 if profile == "run" else 64) * mib,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 64 << 10,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for name, value in wanted.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))
