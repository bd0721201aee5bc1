"""The cache answers what was judged, and its damage or loss costs time only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_lib.config import PROJECT_ROOT, VerifyConfig
from nanochat_lib.records import Diagnostic, Level, Program, Verdict, Verified
from nanochat_lib.rust.judging.cache import VerdictCache, cache_key
from nanochat_lib.rust.judging.jobs import Surroundings
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.verify import verify

needs_sandbox = pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox on this machine")
PROGRAMS = [Program(str(i), f"fn main() {{ let x: u8 = {i}; }}") for i in (1, 2, 300)]
KEY = "a" * 64
ERROR = Verified("p", Verdict.COMPILE_ERROR, Level.CHECK, (Diagnostic("error", "E1", "m", 1, 2),))


def test_a_key_covers_what_decides_and_nothing_else() -> None:
    program, here = PROGRAMS[0], Surroundings("1.95.0", "abc", "x86_64", "none")
    key = cache_key(program, Level.TEST, VerifyConfig(), here)
    same = VerifyConfig(batch_size=3, cluster="tcp://a:1", allow_unsandboxed=True)
    assert cache_key(Program("other name", program.source), Level.TEST, same, here) == key
    others = [
        (Program("1", program.source + " "), Level.TEST, VerifyConfig(), here),
        (Program("1", program.source, "2024"), Level.TEST, VerifyConfig(), here),
        (program, Level.BUILD, VerifyConfig(), here),
        (program, Level.TEST, VerifyConfig(run_cpu_s=1), here),
        (program, Level.TEST, VerifyConfig(), Surroundings("1.95.0", "abd", "x86_64", "none")),
        (program, Level.TEST, VerifyConfig(), Surroundings("1.95.0", "abc", "x86_64", "bwrap")),
    ]
    assert len({key, *(cache_key(*other) for other in others)}) == len(others) + 1


DAMAGES = {
    "cut": lambda line: line[:-9],
    "empty": lambda line: b"",
    "zeros": lambda line: bytes(len(line)),
    "not_json": lambda line: line.replace(b",", b";"),
    "unknown_verdict": lambda line: line.replace(b"COMPILE_ERROR", b"COMPILE_ERRXR"),
    "unknown_field": lambda line: line.replace(b'"column"', b'"colunm"'),
    "missing_field": lambda line: line.replace(b'"n_tests"', b'"m_tests"'),
    "no_list": lambda line: json.dumps(json.loads(line) | {"diagnostics": 3}).encode(),
    "not_utf8": lambda line: line.replace(b"E1", b"\xff\xfe"),
    "two_in_one": lambda line: line[:-30] + line,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_is_judged_anew_and_hurts_no_other(damage: str, tmp_path: Path) -> None:
    cache, other = VerdictCache(tmp_path), "b" * 64
    cache.put(KEY, ERROR)
    cache.put(other, ERROR)
    first, second = cache.path.read_bytes().splitlines()
    cache.path.write_bytes(DAMAGES[damage](first) + b"\n" + second + b"\n")
    again, program = VerdictCache(tmp_path), PROGRAMS[0]
    assert again.get(KEY, program, Level.CHECK) is None
    assert again.get(other, program, Level.CHECK).verdict is Verdict.COMPILE_ERROR
    again.put(KEY, ERROR)
    healed = VerdictCache(tmp_path).get(KEY, program, Level.CHECK)
    assert healed.diagnostics == ERROR.diagnostics


def test_a_line_without_the_end_of_spans_is_still_read(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path)
    cache.put(KEY, ERROR)
    line = cache.path.read_text().replace(',"end_line":0,"end_column":0', "")
    cache.path.write_text(line)
    assert "end_line" not in line
    assert (
        VerdictCache(tmp_path).get(KEY, PROGRAMS[0], Level.CHECK).diagnostics == ERROR.diagnostics
    )


def _expected() -> list[str]:
    return ["PASSED", "PASSED", "COMPILE_ERROR"]


@needs_sandbox
def test_a_cache_that_cannot_be_made_is_said_once_and_judging_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    found = verify(PROGRAMS, "check", cache_dir=tmp_path / "file" / "cache")
    assert [one.verdict for one in found] == _expected()
    assert len([r for r in caplog.records if "are not kept" in r.getMessage()]) == 1


@needs_sandbox
def test_a_read_only_cache_answers_and_keeps_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    verify(PROGRAMS[:1], "check", cache_dir=folder)
    before = (folder / "verdicts.jsonl").read_bytes()
    if os.geteuid():
        (folder / "verdicts.jsonl").chmod(0o444)
        folder.chmod(0o555)
    elif subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], check=False).returncode:
        pytest.skip("root may write everywhere, and mounting read-only failed")
    try:
        found = verify(PROGRAMS, "check", cache_dir=folder)
    finally:
        if os.geteuid():
            folder.chmod(0o755)
        else:
            subprocess.run(["umount", folder], check=True)
    assert [one.verdict for one in found] == _expected()
    assert [one.cached for one in found] == [True, False, False]
    assert (folder / "verdicts.jsonl").read_bytes() == before
    assert len([r for r in caplog.records if "are not kept" in r.getMessage()]) == 1


FULL = """
import resource, sys
from pathlib import Path
from nanochat_lib.records import Level, Verdict, Verified
from nanochat_lib.rust.judging.cache import VerdictCache
cache = VerdictCache(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
for letter in "abcdefgh":
    cache.put(letter * 64, Verified("p", Verdict.PASSED, Level.CHECK))
"""


def test_a_full_disk_leaves_whole_lines_and_a_torn_one_that_heals(tmp_path: Path) -> None:
    """The limit on file sizes cuts a write in the middle, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("are not kept") == 1
    assert (tmp_path / "verdicts.jsonl").stat().st_size == 700
    cache, program = VerdictCache(tmp_path), PROGRAMS[0]
    kept = [name for name in "abcdefgh" if cache.get(name * 64, program, Level.CHECK)]
    assert kept == list("abcdefgh")[: len(kept)]
    assert 0 < len(kept) < 8
    cache.put("z" * 64, ERROR)
    again = VerdictCache(tmp_path)
    assert again.get("z" * 64, program, Level.CHECK).verdict is Verdict.COMPILE_ERROR
