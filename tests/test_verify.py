"""Verdicts of the engine against hand-made expectations and against one plain rustc per program."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Diagnostic, Level, Program, Verdict, Verified
from nanochat_lib.rust.judging.cache import VerdictCache, cache_key
from nanochat_lib.rust.judging.jobs import surroundings_here
from nanochat_lib.rust.judging.policy import policy_of
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify, verify_stream

CASES_FILE = Path(__file__).parent / "fixtures" / "mixed_programs.rs.txt"
CONFIG = VerifyConfig(run_cpu_s=0.5, memory_mib=512)
pytestmark = pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox on this machine")


@dataclass(frozen=True)
class Case:
    """A program with the verdict a person gave it; `stricter`: plain rustc may say less."""

    name: str
    expected: str
    stricter: bool
    source: str


@cache
def cases() -> tuple[Case, ...]:
    found = []
    for part in CASES_FILE.read_text().split("//// ")[1:]:
        head, _, source = part.partition("\n")
        name, expected, *stricter = head.split()
        found.append(Case(name, expected, bool(stricter), source))
    return tuple(found)


@cache
def judged_by_us(level: Level) -> dict[str, Verified]:
    programs = [Program(case.name, case.source) for case in cases()]
    return {one.program_id: one for one in verify(programs, level, config=CONFIG)}


def plain_rustc(source: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the compiler on one program with nothing of ours in between."""
    folder.mkdir()
    (folder / "program.rs").write_text(source)
    crate = {"test": "--test", "main": "--crate-type=bin", "lib": "--crate-type=lib"}
    kind = crate[policy_of(source).kind]
    command = [str(find_toolchain().rustc), "--edition=2021", "-Awarnings", kind, *arguments]
    return subprocess.run(
        [*command, "-o", "program", "program.rs"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_verdict_is_what_a_person_expects(case: Case) -> None:
    verdict = judged_by_us(Level.TEST)[case.name].verdict
    if case.expected == "PASSED_NOT":
        assert verdict is not Verdict.PASSED
    else:
        assert verdict == case.expected, judged_by_us(Level.TEST)[case.name]


def test_check_agrees_with_plain_rustc_on_every_program(tmp_path: Path) -> None:
    ours = judged_by_us(Level.CHECK)

    def truth(case: Case) -> bool:
        return plain_rustc(case.source, tmp_path / case.name, "--emit=metadata").returncode == 0

    with ThreadPoolExecutor(2) as pool:
        compiles = dict(zip(cases(), pool.map(truth, cases()), strict=True))
    different = {
        case.name: (ours[case.name].verdict, compiles[case])
        for case in cases()
        if (ours[case.name].verdict is Verdict.PASSED) != compiles[case]
    }
    assert not different


@pytest.mark.slow
def test_running_agrees_with_plain_rustc_on_every_program(tmp_path: Path) -> None:
    ours = judged_by_us(Level.TEST)
    plain = [case for case in cases() if not case.stricter and case.expected != "PASSED_NOT"]

    def truth(case: Case) -> bool:
        folder = tmp_path / case.name
        if plain_rustc(case.source, folder).returncode:
            return False
        done = subprocess.run(["./program"], cwd=folder, capture_output=True, timeout=60)
        return done.returncode == 0

    with ThreadPoolExecutor(2) as pool:
        passes = dict(zip(plain, pool.map(truth, plain), strict=True))
    different = [
        case.name for case in plain if (ours[case.name].verdict is Verdict.PASSED) != passes[case]
    ]
    assert not different


def test_every_kind_of_verdict_occurs() -> None:
    found = {one.verdict for one in judged_by_us(Level.TEST).values()}
    assert found >= set(Verdict) - {Verdict.UNJUDGED}


def test_results_keep_the_order_and_ids_of_the_input() -> None:
    sources = ["fn main() {}", "fn main() { x }", "fn main() {}", "fn main() { let = }"]
    programs = [Program(f"p{i}", source) for i, source in enumerate(sources)]
    results = verify(programs, "check")
    assert [one.program_id for one in results] == ["p0", "p1", "p2", "p3"]
    expected = ["PASSED", "COMPILE_ERROR", "PASSED", "PARSE_ERROR"]
    assert [one.verdict for one in results] == expected


def test_diagnostics_give_code_and_place_in_the_program() -> None:
    source = 'fn main() {\n    let x: i32 = "a";\n}\n'
    for others in ([], [Program(str(i), f"fn f{i}() {{}}") for i in range(3)]):
        (result, *_) = verify([Program("it", source), *others], "check")
        assert result.diagnostics[0].code == "E0308"
        (one,) = result.diagnostics
        assert (one.line, one.column, one.end_line, one.end_column) == (2, 18, 2, 21)


def test_a_panic_message_becomes_the_detail() -> None:
    source = '#[test] fn t() { assert_eq!(1 + 1, 3, "sum of {}", 1); }'
    (result,) = verify([Program("it", source)], "test")
    assert "sum of 1" in result.detail
    assert "program" not in result.detail


@pytest.mark.parametrize("level", ["syntax", "check", "build", "test"])
def test_unusable_text_has_a_clear_outcome(level: str) -> None:
    sources = {
        "nul": "fn main() {\0}",
        "not_utf8": 'fn main() { let s = "\udcff"; }',
        "huge": "// x\n" * 2_000_000,
        "deep": "fn main() { let x = " + "(" * 20_000 + "1" + ")" * 20_000 + "; }",
        "binary": "\x7fELF\x02\x01\x01 \x03>\x01",
    }
    results = verify([Program(name, text) for name, text in sources.items()], level)
    verdicts = {one.program_id: one.verdict for one in results}
    assert verdicts["nul"] == verdicts["not_utf8"] == verdicts["binary"] == "PARSE_ERROR"
    assert verdicts["huge"] == "RESOURCE_LIMIT"
    assert level == "syntax" or verdicts["deep"] not in ("PASSED", "UNJUDGED")


def test_a_program_with_nothing_to_run_is_not_passed() -> None:
    results = verify([Program("empty", ""), Program("items", "pub fn f() {}")], "test")
    assert {one.verdict for one in results} == {Verdict.UNJUDGED}
    assert {one.verdict for one in verify([Program("empty", "")], "build")} == {Verdict.PASSED}


def test_stream_is_lazy_and_reports_progress() -> None:
    taken, seen = [], []

    def endless() -> Iterator[Program]:
        for number in range(10_000):
            taken.append(number)
            yield Program(str(number), f"fn main() {{ let x = {number}; }}")

    stream = verify_stream(
        endless(), "check", workers=1, config=VerifyConfig(batch_size=8),
        on_progress=lambda done, known: seen.append((done, known)),
    )  # fmt: skip
    first = next(stream)
    stream.close()
    assert first.verdict is Verdict.PASSED
    assert len(taken) < 100
    assert seen[0][0] == 1


def test_the_cache_answers_again_but_not_for_other_flags(tmp_path: Path) -> None:
    programs = [Program("a", "fn main() { y }"), Program("b", "fn main() {}")]
    first = verify(programs, "check", cache_dir=tmp_path)
    again = verify(programs, "check", cache_dir=tmp_path)
    assert [one.cached for one in first] == [False, False]
    assert [one.cached for one in again] == [True, True]
    assert [(o.verdict, o.diagnostics) for o in first] == [
        (o.verdict, o.diagnostics) for o in again
    ]
    assert not any(one.cached for one in verify(programs, "build", cache_dir=tmp_path))
    config = VerifyConfig(compile_cpu_s=9)
    other = verify(programs, "check", cache_dir=tmp_path, config=config)
    assert not any(one.cached for one in other)


def test_a_cut_cache_loses_only_its_last_line(tmp_path: Path) -> None:
    programs = [Program(str(i), f"fn main() {{ let x = {i}; }}") for i in range(3)]
    verify(programs, "check", cache_dir=tmp_path)
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    again = verify(programs, "check", cache_dir=tmp_path)
    assert sum(one.cached for one in again) == 2
    assert all(one.cached for one in verify(programs, "check", cache_dir=tmp_path))


def test_what_may_change_is_never_cached(tmp_path: Path) -> None:
    program, cache = Program("p", "fn main() {}"), VerdictCache(tmp_path)
    key = cache_key(program, Level.TEST, VerifyConfig(), surroundings_here())
    for verdict in (Verdict.TIMEOUT, Verdict.UNJUDGED):
        cache.put(key, Verified("p", verdict, Level.TEST))
        assert VerdictCache(tmp_path).get(key, program, Level.TEST) is None
    kept = Verified("p", Verdict.COMPILE_ERROR, Level.TEST, (Diagnostic("error", "E1", "m"),))
    cache.put(key, kept)
    assert VerdictCache(tmp_path).get(key, program, Level.TEST).diagnostics == kept.diagnostics


def test_a_full_or_missing_scratch_disk_judges_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanochat_lib.rust.judging.batch._write_modules", no_space)
    programs = [Program("a", "fn main() {}"), Program("b", "fn main() { let x = 1; }")]
    results = verify(programs, "check", cache_dir=tmp_path)
    assert {one.verdict for one in results} == {Verdict.UNJUDGED}
    assert "No space left" in results[0].detail


def test_an_unknown_level_names_the_nearest() -> None:
    with pytest.raises(WorkbenchError, match="'check'"):
        verify([], "chek")
