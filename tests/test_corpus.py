"""Stage 1 end to end on a small folder, and each choice it makes on the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_extract import rustdoc_block

from nanochat_lib.config import DataConfig, ModelConfig, RunConfig, load_profile
from nanochat_lib.data import corpus, rows, select
from nanochat_lib.data.build.build import build_corpus
from nanochat_lib.data.corpus import (
    Work,
    judge_candidates,
    preprocess,
    require_compile_rate,
    without_known,
)
from nanochat_lib.data.difficulty import difficulty_of
from nanochat_lib.data.extraction.pages import rustdoc_examples, wrap_main
from nanochat_lib.data.rows import Judged
from nanochat_lib.data.shards import open_shard, read_index
from nanochat_lib.data.sources.candidates import Candidate
from nanochat_lib.data.sources.units import file_sha256
from nanochat_lib.data.tokenizer import load_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import VERIFIED_COLUMNS, Level, RustSource, Task, Verdict, Verified
from nanochat_lib.rust.syntax import features
from nanochat_lib.rust.toolchain import find_toolchain

FILES = {
    "passes": """
pub fn add(a: i32) -> i32 {
    a + %d
}

#[test]
fn adds() {
    assert_eq!(add(-1), %d - 1);
}
""",
    "wrong": """
pub fn sub_%d(a: i32) -> i32 {
    a + 2
}

#[test]
fn subtracts() {
    assert_eq!(sub_%d(5), 3);
}
""",
    "borrow": """
pub fn take_%d(s: String) -> usize {
    drop(s);
    s.len() + "%d".len()
}
""",
    "branches": """
/// Count steps.
pub fn steps_%d<T: Ord>(mut x: u32, _: T) -> u32 {
    let mut n = 0;
    while x > %d {
        if x %% 2 == 0 {
            x /= 2;
        } else {
            x -= 1;
        }
        n += 1;
    }
    n
}
""",
}
N_PACKAGES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with six packages of four kinds of file; names differ, so none is a near copy."""
    top = tmp_path_factory.mktemp("input")
    for package in range(N_PACKAGES):
        for kind, text in FILES.items():
            path = top / f"p{package}" / f"{kind}.rs"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"// Package {'abcdef'[package]}." + text % (package, package))
    return top


def config_for(folder, **changes):
    data = {"input_dir": str(folder), "max_examples": 60, "tinyrust_examples": 24} | changes
    data |= {"tinyrust_levels": (1,), "validation_fraction": 0.2}
    return RunConfig(data=DataConfig(**data), model=ModelConfig(vocab_size=400))


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    logged = []
    cache = tmp_path_factory.mktemp("cache")
    preprocess(
        config_for(folder), out, cache_dir=cache, log=lambda step, values: logged.append(values)
    )
    return out, cache, logged


def table(made, name):
    return pl.read_parquet(made[0] / f"{name}.parquet")


def summary(made):
    return json.loads((made[0] / "summary.json").read_text())


def test_only_what_rustc_and_the_tests_accept_is_verified(made):
    verified, rejected = table(made, "verified"), table(made, "rejected")
    assert tuple(verified.columns) == tuple(rejected.columns) == VERIFIED_COLUMNS
    assert set(verified["verdict"]) == {"PASSED"}
    real = verified.filter(pl.col("source") == "folder")
    assert {path.split("/")[1] for path in real["path"]} == {"passes.rs", "branches.rs", "wrong.rs"}
    whole = real.filter(pl.col("kind") == "file")
    assert not any(path.endswith("wrong.rs") for path in whole["path"])
    reasons = {
        row["path"].split("/")[1]: (row["verdict"], row["codes"], row["detail"])
        for row in rejected.to_dicts()
    }
    assert reasons["borrow.rs"][:2] == ("COMPILE_ERROR", ["E0382"])
    assert "[E0382]: borrow of moved value: `s`" in reasons["borrow.rs"][2]
    assert reasons["wrong.rs"][0] == "TEST_FAILED"


def test_the_summary_agrees_with_the_tables(made):
    found, verified, rejected = summary(made), table(made, "verified"), table(made, "rejected")
    before = found["compile_rate"]["before"]
    n_errors = rejected["verdict"].to_list().count("COMPILE_ERROR")
    assert before["n_judged"] - before["n_compiled"] == n_errors
    assert (
        found["compile_rate"]["after"]["n_compiled"] == found["compile_rate"]["after"]["n_judged"]
    )
    steps = {line["step"]: line["n"] for line in found["funnel"]}
    real = verified.filter(pl.col("source") == "folder")
    assert len(real) == sum(found["difficulty"]["after"].values())
    variants = real.filter(pl.col("source_id").str.contains("~"))
    assert steps["train"] + steps["validation"] == len(real) - len(variants)
    assert len(variants) == sum(row["n_accepted"] for row in found["augmentation"]) > 0
    assert set(variants["split"]) == {"train"}
    assert steps["judged"] == steps["passed"] + len(rejected)
    assert found["error_codes"][0]["code"] == "E0382"
    assert found["error_codes"][0]["n"] == n_errors
    assert found["tinyrust"]["n"] == len(verified) - len(real) == 24
    assert {c: found["difficulty"]["after"][c] for c in ("easy", "medium", "hard")} == {
        c: real["difficulty"].to_list().count(c) for c in ("easy", "medium", "hard")
    }
    assert found["rustc"] == find_toolchain().version
    assert found["n_unjudged"] == 0


def test_no_group_is_in_both_splits_and_both_have_text(made):
    real = table(made, "verified").filter(pl.col("source") == "folder")
    groups = {s: set(real.filter(pl.col("split") == s)["group"]) for s in ("train", "validation")}
    assert groups["train"]
    assert groups["validation"]
    assert not groups["train"] & groups["validation"]


def test_held_out_rows_that_repeat_training_text_are_dropped(made):
    """As bindings of one library by two packages do; with nothing else held out all would stay."""

    def judged(name, text):
        row = RustSource(name, text, "file", "folder", name, name, "MIT", name)
        split = "train" if name == "trained" else "validation"
        return Judged(Candidate(row, text), Verified(name, Verdict.PASSED, Level.BUILD), split)

    copied = "pub fn area(width: u32, height: u32) -> u32 { width * height + " + "+".join("abcdef")
    found = [
        judged("trained", f"// ours\n{copied}"),
        judged("copy", f"mod m {{}}\n{copied}"),
        judged("own", "pub fn nothing() {}"),
    ]
    assert [j.row.source_id for j in without_known(found)] == ["trained", "own"]
    assert without_known(found[:2]) == found[:2]


def test_shards_hold_exactly_the_rows_of_their_split(made):
    verified, shards = table(made, "verified"), made[0] / "shards"
    tokenizer = load_tokenizer(made[0] / "tokenizer.json")
    is_real, is_train = pl.col("source") == "folder", pl.col("split") == "train"
    wanted = {
        "real_train": is_real & is_train,
        "real_validation": is_real & ~is_train,
        "tinyrust_train": ~is_real & is_train,
        "tinyrust_validation": ~is_real & ~is_train,
    }
    index = read_index(shards)
    for name, rule in wanted.items():
        texts = verified.filter(rule)["text"].to_list()
        tokens = open_shard(shards, name, index[name])
        documents = np.split(tokens, np.flatnonzero(tokens == 0) + 1)[:-1]
        assert [tokenizer.decode(d[:-1].tolist()) for d in documents] == texts
        assert summary(made)["tokens"][name] == len(tokens)
    held_out = verified.filter(wanted["real_validation"])["text"].to_list()
    assert (made[0] / "validation_real.txt").read_text() == "\n".join(held_out)


def test_tasks_are_whole_and_their_text_is_the_verified_one(made):
    tasks = [Task(**json.loads(line)) for line in (made[0] / "tasks.jsonl").open()]
    texts = set(table(made, "verified").filter(pl.col("source") == "tinyrust")["text"])
    assert {task.prompt + task.canonical_solution for task in tasks} == texts
    assert len({task.task_id for task in tasks}) == 24
    assert all(
        "#[test]" in task.tests and task.tests not in text for task in tasks for text in texts
    )


def test_a_second_run_writes_the_same_bytes(made, folder, tmp_path):
    preprocess(config_for(folder), tmp_path, cache_dir=made[1])
    names = [p.relative_to(made[0]) for p in sorted(made[0].rglob("*")) if p.is_file()]
    assert len(names) == 12
    for name in names:
        if name.name != "summary.json":
            assert (tmp_path / name).read_bytes() == (made[0] / name).read_bytes(), name
    first, second = summary(made), json.loads((tmp_path / "summary.json").read_text())
    for timed in ("seconds", "verify_cpu_s"):
        del first[timed], second[timed]
    assert first == second


def test_the_card_beside_the_shards_has_licences_counts_and_hashes(made):
    card = (made[0] / "shards" / "DATASET_CARD.md").read_text()
    assert "| unknown | " in card
    for name, n_tokens in summary(made)["tokens"].items():
        assert f"| {name} | {n_tokens:,} |" in card
        assert file_sha256(made[0] / "shards" / f"{name}.bin") in card
    assert "| folder | file | " in card


def test_a_built_corpus_is_a_source(folder, tmp_path):
    values = {"corpus.sources": ["folder"], "corpus.folder": str(folder)}
    build_corpus(load_profile("laptop", values), tmp_path / "corpus")
    config = config_for(folder, input_dir="", corpus_dir=str(tmp_path / "corpus"))
    found = preprocess(config, tmp_path / "out")
    assert (
        found["compile_rate"]["before"]["n_compiled"] == found["compile_rate"]["before"]["n_judged"]
    )
    assert {row["source"] for row in found["compile_rate"]["by_source"]} == {"folder", "tinyrust"}
    lines = (tmp_path / "out/corpus_tasks.jsonl").read_text().splitlines()
    assert found["corpus_tasks"]["by_kind"] == {"unit_tests": len(lines)}
    assert "corpus_tasks.jsonl" in (tmp_path / "out/shards/DATASET_CARD.md").read_text()
    with pytest.raises(WorkbenchError, match="nanochat corpus --out"):
        preprocess(config_for(folder, input_dir="", corpus_dir=str(tmp_path)), tmp_path / "other")
    with pytest.raises(WorkbenchError, match="either input_dir or corpus_dir"):
        load_profile("laptop", {"data.input_dir": "a", "data.corpus_dir": "b"})


def test_the_compile_rate_is_logged_by_its_metric_name(made):
    before = summary(made)["compile_rate"]["before"]
    (values,) = made[2]
    assert values["compile_rate"] == before["n_compiled"] / before["n_judged"]


def test_stopping_ends_the_stage_without_a_summary(folder, tmp_path):
    stop = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        preprocess(
            config_for(folder),
            tmp_path,
            stop=stop,
            progress=lambda done, total, text: stop.set() if "judging" in text else None,
        )
    assert not (tmp_path / "summary.json").exists()


def test_without_docs_and_folder_the_component_is_named(tmp_path, monkeypatch):
    bare = replace(find_toolchain(), docs=None)
    monkeypatch.setattr(corpus, "find_toolchain", lambda: bare)
    with pytest.raises(WorkbenchError, match=r"rustup component add rust-docs.*data\.input_dir"):
        preprocess(RunConfig(), tmp_path)


def test_a_folder_in_which_nothing_compiles_names_the_errors(tmp_path):
    (tmp_path / "a.rs").write_text("// Alone.\npub fn f() -> u8 {\n    missing::call()\n}\n")
    with pytest.raises(WorkbenchError, match=r"None of 2 Rust examples.*E0433"):
        preprocess(config_for(tmp_path, tinyrust_examples=0), tmp_path / "out")


def test_one_verified_file_cannot_be_split(tmp_path):
    (tmp_path / "a.rs").write_text("pub fn f() -> u8 {\n    let x = 7;\n    x\n}\n")
    with pytest.raises(WorkbenchError, match="fewer than two files"):
        preprocess(config_for(tmp_path, tinyrust_examples=0), tmp_path / "out")


def test_a_low_compile_rate_says_the_numbers_and_what_to_do():
    require_compile_rate({"n_compiled": 85, "n_judged": 100}, 0.85)
    with pytest.raises(WorkbenchError, match=r"84 of 100 .* 0\.85.*delete the verification cache"):
        require_compile_rate({"n_compiled": 84, "n_judged": 100}, 0.85)
    with pytest.raises(WorkbenchError):
        require_compile_rate({"n_compiled": 0, "n_judged": 0}, 0.0)


def candidate(text, n=0, group="g", kind="doc_example", **row):
    source = RustSource(
        source_id=f"{group}#{n}", text=text, kind=kind, source="toolchain_docs", package="std",
        path=group, licence="MIT", group=group, **row,
    )  # fmt: skip
    return Candidate(source, wrap_main(text), "2021")


def test_examples_are_judged_with_rustdocs_meaning(tmp_path):
    panics, quiet = (
        example.program
        for text in ("panic!();", "let _ = 1;")
        for example in rustdoc_examples(rustdoc_block(text, wrap_main(text), " should_panic"))
    )
    endless = candidate("loop { std::hint::spin_loop(); }", 2, runnable=False)
    programs = [
        replace(candidate("panic!();", 0), program=panics),
        replace(candidate("let _ = 1;", 1), program=quiet),
        endless,
        candidate("assert_eq!(1 + 1, 3);", 3),
        candidate('let n: u8 = "x";', 4),
    ]
    judged = judge_candidates(Work(RunConfig(), tmp_path), programs)
    assert [j.verified.verdict for j in judged] == [
        Verdict.PASSED, Verdict.TEST_FAILED, Verdict.PASSED, Verdict.RUN_ERROR,
        Verdict.COMPILE_ERROR,
    ]  # fmt: skip
    builds = judge_candidates(
        Work(RunConfig(data=DataConfig(use_semantic_verification=False)), tmp_path), programs
    )
    assert [j.compiled or j.verified.verdict is Verdict.PASSED for j in builds] == [True] * 4 + [
        False
    ]


def test_copies_for_other_number_types_are_near_repeats():
    texts = [
        "let x = 5u8;\nassert_eq!(x.pow(2), 25);", "let  x = 5u8;\nassert_eq!(x.pow(2), 25);",
        "let x = 7i64;\nassert_eq!(x.pow(2), 49);", "let y = 5u8;\nassert_eq!(y.pow(2), 25);",
    ]  # fmt: skip
    distinct = select.drop_repeats(candidate(t, n) for n, t in enumerate(texts))
    assert (distinct.n_exact, distinct.n_near) == (1, 1)
    assert [c.row.text for c in distinct.kept] == [texts[0], texts[3]]


def test_candidates_are_spread_over_kinds_and_groups():
    many = [candidate(f"t{i}", i, "big") for i in range(500)]
    many += [candidate(f"u{i}", i, f"small{i % 5}") for i in range(25)]
    many += [candidate(f"f{i}", i, "big_f", kind="function") for i in range(300)]
    chosen = select.take_spread(many, 80, seed=0)
    counts = Counter((c.row.kind, c.row.group) for c in chosen)
    assert counts["function", "big_f"] == 20
    assert all(counts["doc_example", f"small{i}"] == 5 for i in range(5))
    assert counts["doc_example", "big"] == 35
    assert chosen == select.take_spread(many[::-1], 80, seed=0)
    assert chosen != select.take_spread(many, 80, seed=1)
    assert len(select.take_spread(many, 10_000, seed=0)) == len(many)


SOLUTION = """\
/// Return the longest run.
fn longest(values: &[i32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        best = best.max(i);
    }
    best
}"""


def test_a_copied_solution_is_found_whatever_surrounds_it():
    benchmarks = select.Benchmarks([f"//@ task 1\n{SOLUTION}\n//@ tests\nassert!(true);"])
    assert benchmarks.overlap("mod a {\n" + SOLUTION.replace("    ", "\t") + "\n}")
    assert benchmarks.overlap(SOLUTION[60:])
    assert not benchmarks.overlap("for (i, value) in values.iter().enumerate() {\n    sum += i;\n}")
    assert not benchmarks.overlap("")
    assert not select.Benchmarks([]).overlap(SOLUTION)


def test_the_shipped_problems_are_found_in_themselves():
    texts = corpus.benchmark_texts()
    assert texts
    benchmarks = select.Benchmarks(texts)
    assert all(benchmarks.overlap(text) for text in texts)


@given(
    st.dictionaries(st.text(max_size=8), st.integers(1, 5000), min_size=2, max_size=40),
    st.floats(0.02, 0.49),
    st.integers(0, 5),
)
def test_some_groups_are_held_out_and_some_are_not(sizes, fraction, seed):
    held = select.held_out_groups(sizes, fraction, seed)
    assert held
    assert held < set(sizes)
    wanted = fraction * sum(sizes.values())
    if len(held) > 1:
        assert sum(sizes[g] for g in held) <= 1.5 * wanted


def test_quotas_keep_the_first_of_each_class_and_say_what_lacks():
    names = ["easy"] * 8 + ["hard"] * 2
    kept, deficit = select.keep_quota(range(10), names, {"easy": 0.3, "medium": 0.5, "hard": 0.2})
    assert kept == [0, 1, 2, 8, 9]
    assert deficit == {"easy": 0, "medium": 5, "hard": 0}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("let x = 1;\nassert_eq!(x, 1);", "easy"),
        (
            "fn f(x: i32) -> i32 {\n    if x > 0 {\n        1\n    } else {\n        2\n    }\n}",
            "medium",
        ),
        ("fn f<'a, T>(x: &'a [T]) -> Option<&'a T> {\n    x.first()\n}", "medium"),
        (FILES["branches"] % (1, 1), "hard"),
    ],
)
def test_difficulty_follows_its_definition(text, name):
    assert difficulty_of(features(text)) == name


def test_compression_is_what_the_xz_program_gives(tmp_path):
    text = 'fn main() {\n    println!("é");\n}\n' * 40 + SOLUTION
    found = rows.compression(text)
    assert found["n_bytes"] == len(text.encode())
    if shutil.which("xz"):
        packed = subprocess.run(["xz", "-9e", "-c"], input=text.encode(), capture_output=True)
        wanted = 8 * len(packed.stdout) / len(text.encode())
        assert found["xz_bits_per_byte"] == pytest.approx(wanted, rel=1e-3)
    assert 0 < found["zstd_bits_per_byte"] < 8
