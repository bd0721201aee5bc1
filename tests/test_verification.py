"""The corpus is mixed and repeatable, the oracle can disagree, the benchmark counts all sides."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from nanochat_lib.evals.verification import bench, oracle
from nanochat_lib.evals.verification.corpus import mixed_corpus, mutants_of
from nanochat_lib.evals.verification.mutate import EDITS, mutants
from nanochat_lib.records import Level, Program, Verdict, Verified
from nanochat_lib.rust.sandbox import sandbox_level
from nanochat_lib.rust.syntax import tokens

needs_sandbox = pytest.mark.skipif(sandbox_level() == "none", reason="no sandbox on this machine")
SOURCE = """fn longest<'a>(xs: &'a [String], n: i32) -> String {
    let mut best = xs[0].clone();
    for x in xs.iter() {
        if x.len() > best.len() + 1 { best = format!("{x}{n}"); }
    }
    best
}"""


@pytest.mark.parametrize("kind", EDITS)
def test_every_kind_of_mutant_changes_the_text(kind: str) -> None:
    found = {EDITS[kind](SOURCE, list(tokens(SOURCE)), Random(seed)) for seed in range(20)}
    assert any(text not in (None, SOURCE) for text in found)


def test_mutants_are_distinct_and_repeatable() -> None:
    found = mutants(SOURCE, 30, Random(1))
    assert len({text for _, text in found}) == len(found) > 20
    assert found == mutants(SOURCE, 30, Random(1))


@needs_sandbox
def test_a_mixed_corpus_is_repeatable_and_judged_alike_by_plain_rustc() -> None:
    programs = mixed_corpus(40, seed=3)
    assert programs == mixed_corpus(40, seed=3)
    assert len({program.source for program in programs}) == 40
    result = oracle.differences([*programs, *mutants_of(programs, 40, seed=3)], Level.TEST)
    assert result["different"] == []
    assert result["n"] == 80
    assert result["plain"]["not built"] >= 80 / 3
    assert result["plain"]["passed"] >= 10


def test_the_oracle_reports_a_wrong_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that passes everything is found out, and what it did not judge is no difference."""
    verdicts = [Verdict.PASSED, Verdict.PASSED, Verdict.UNJUDGED]

    def pass_everything(programs: list[Program], level: Level) -> list[Verified]:
        pairs = zip(programs, verdicts, strict=True)
        return [Verified(program.program_id, verdict, level) for program, verdict in pairs]

    monkeypatch.setattr(oracle, "verify", pass_everything)
    programs = [
        Program("good", "fn main() {}"),
        Program("bad", "fn main() { x }"),
        Program("unknown", "fn main() { y }"),
    ]
    result = oracle.differences(programs, Level.CHECK)
    assert [one["program"] for one in result["different"]] == ["bad"]
    assert result["n_unjudged"] == 1


@needs_sandbox
@pytest.mark.slow
def test_the_benchmark_has_a_row_per_side_and_all_agree(tmp_path: Path) -> None:
    rows = bench.measure(mixed_corpus(16, seed=4), Level.CHECK, tmp_path, 1)
    assert [row.side for row in rows][:2] == ["engine", "one rustc each"]
    assert len(rows) == 4
    assert all(row.n_different == 0 and row.n_programs == 16 and row.cpu_ms > 0 for row in rows)
    assert rows[0].cpu_ratio == 1.0
    start = bench.measure_start()
    found = {"machine": {"cpu": "x"}, "rustc": "1", "sandbox_start": start, "rows": []}
    assert re.search(r"costs -?\d+\.\d ms more than bare", bench.format_table(found))
