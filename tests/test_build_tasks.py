"""Tasks of a corpus: what wrong bodies do to them, and that no package is on both sides."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest
from test_build import config_for, write

from nanochat_lib.config import VerifyConfig
from nanochat_lib.data.build import build, tasks
from nanochat_lib.data.build.build import build_corpus
from nanochat_lib.data.build.state import State
from nanochat_lib.data.build.tasks import outcomes_of, write_tasks
from nanochat_lib.data.rows import Judged
from nanochat_lib.data.select import NGRAM_TOKENS, known_tasks
from nanochat_lib.data.sources.built import CORPUS_TASKS, carry_tasks
from nanochat_lib.data.sources.candidates import Candidate
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.evals.tasks import load_tasks
from nanochat_lib.records import Level, RustSource, Task, Verdict, Verified
from nanochat_lib.rust.programs import assemble
from nanochat_lib.rust.verify import verify


def task(signature, body, test, prelude=""):
    inside = test if "#[test]" in test else f"#[test]\nfn checks() {{\n{test}\n}}"
    module = f"#[cfg(test)]\nmod tests {{\nuse super::*;\n{inside}\n}}\n"
    return Task("t", f"{signature} {{", f"\n{body}\n}}", module, "corpus", prelude)


TRIALS = {
    "sound": (task("fn f(x: i32) -> i32", "x + 1", "assert_eq!(f(1), 2);"), tasks.KEPT),
    "what it returns has no name": (
        task("fn f() -> impl Iterator<Item = u8>", "0..3", "assert_eq!(f().count(), 3);"),
        tasks.KEPT,
    ),
    "it borrows": (
        task("fn f(x: &mut Vec<u8>) -> &mut u8", "&mut x[0]", "assert_eq!(*f(&mut vec![3]), 3);"),
        tasks.KEPT,
    ),
    "a constant needs it": (
        task("const fn f() -> u8", "7", "assert_eq!(SEVEN, 7);", "const SEVEN: u8 = f();\n"),
        tasks.KEPT,
    ),
    "only a panic is asked for": (
        task("fn f(x: u8)", "assert!(x > 1);", "#[test]\n#[should_panic]\nfn checks() { f(0) }"),
        tasks.FREE,
    ),
    "never called": (task("fn f() -> u8", "7", "assert!(f as fn() -> u8 == f);"), tasks.FREE),
    "its panic is caught": (
        task("fn f() -> u8", "7", "let _ = std::panic::catch_unwind(f);"),
        tasks.FREE,
    ),
    "zero will do": (
        task("fn f(x: u8) -> Option<u8>", "x.checked_sub(3)", "assert_eq!(f(0), None);"),
        tasks.CONSTANT,
    ),
    "nothing is compared": (task("fn f() -> u8", "7", "let _ = f();"), tasks.CONSTANT),
    "it fails": (task("fn f() -> u8", "6", "assert_eq!(f(), 7);"), tasks.UNSOUND),
    "it does not compile": (task("fn f() -> u8", '"7"', "assert_eq!(f(), 7);"), tasks.UNSOUND),
    "of another edition": (
        task("fn f() -> u8", "let async = 7;\nasync", "assert_eq!(f(), 7);"),
        tasks.UNSOUND,
    ),
    "it decides its own tests": (
        task("fn f() -> u8", "macro_rules! assert_eq { () => {} }\n7", "assert_eq!(f(), 7);"),
        tasks.UNSOUND,
    ),
    "an attribute must come first": (
        task("fn f() -> u8", "#![allow(unused)]\n7", "assert_eq!(f(), 7);"),
        tasks.UNKNOWN,
    ),
}


def test_a_task_stays_when_its_own_body_passes_and_no_wrong_one_does():
    found = outcomes_of([made for made, _ in TRIALS.values()], VerifyConfig())
    assert dict(zip(TRIALS, found, strict=True)) == {
        name: outcome for name, (_, outcome) in TRIALS.items()
    }


def test_what_cannot_be_judged_is_no_task(monkeypatch):
    def unjudged(programs, level, **_):
        return [Verified(p.program_id, Verdict.UNJUDGED, Level(level)) for p in programs]

    monkeypatch.setattr(tasks, "verify", unjudged)
    assert outcomes_of([TRIALS["sound"][0]], VerifyConfig()) == [tasks.UNKNOWN]


# Words of its own keep each function from being a near repeat of another.
SOURCE = """\
/// Mix {word} into a number, {n} parts of it.
///
/// ```
/// use {word}_lib::mix_{word};
///
/// assert_eq!(mix_{word}(1, 2), {n} + 2);
/// # assert_eq!(mix_{word}(0, 0), 0);
/// ```
pub fn mix_{word}({word}: u64, {word}_rest: u64) -> u64 {{
    let {word}_parts = {word}.wrapping_mul({n});
    let {word}_sum = {word}_parts.wrapping_add({word}_rest);
    let {word}_whole = {word}_sum.rotate_left(0);
    {word}_whole ^ ({word}_parts & 0) ^ ({word}_rest & 0)
}}

/// Promise of {word} that nobody keeps.
///
/// ```should_panic
/// {word}_lib::refuse_{word}("anything at {n}");
/// ```
pub fn refuse_{word}({word}_reason: &str) -> ! {{
    let {word}_text = format!("{word} {{}} refused {n}", {word}_reason.len());
    panic!("{{}} of {word}", {word}_text.to_uppercase())
}}

/// Halve {word}, and say `None` of {word} that is odd.
pub fn halve_{word}({word}_given: u64) -> Option<u64> {{
    let {word}_half = {word}_given / 2;
    let is_{word}_even = {word}_half * 2 == {word}_given;
    is_{word}_even.then_some({word}_half)
}}

/// Count {word}, by unit tests and by an example.
///
/// ```
/// assert_eq!({word}_lib::count_{word}("{word}, {word}"), 2);
/// ```
pub fn count_{word}({word}_text: &str) -> usize {{
    let {word}_name = "{word}";
    {word}_text.match_indices({word}_name).map(|({word}_at, _)| {word}_at).count()
}}

#[cfg(test)]
mod tests {{
    use super::*;

    #[test]
    fn {word}_is_odd() {{
        assert!(halve_{word}({n} * 2 + 1).is_none());
    }}

    #[test]
    fn {word}_counts() {{
        assert_eq!(count_{word}("a {word}"), 1);
    }}
}}
"""
WORDS = {"maple": 11, "nutmeg": 23, "olive": 31, "pepper": 47, "quince": 59}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    top = tmp_path_factory.mktemp("documented")
    for word, n in WORDS.items():
        manifest = (
            f'[package]\nname = "{word}"\nversion = "1.0"\nlicense = "MIT"\nedition = "2021"\n'
            f'[lib]\nname = "{word}_lib"\n'
        )
        source = SOURCE.format(word=word, n=n)
        write(top, {f"{word}/Cargo.toml": manifest, f"{word}/src/lib.rs": source})
    return top


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, build_corpus(config_for(folder), out)


def test_tasks_say_kind_package_split_and_licence(made):
    out, summary = made
    found = load_tasks(out / "tasks.jsonl")
    assert Counter(t.flags for t in found) == {
        ("documentation", "licence MIT"): len(WORDS), ("unit_tests", "licence MIT"): len(WORDS),
    }  # fmt: skip
    assert {t.task_set for t in found} == {"corpus"}
    rows = pl.read_parquet(out / "verified.parquet").select("package", "split").unique()
    wanted = {name: {"train": "train", "validation": "held_package"}[s] for name, s in rows.rows()}
    assert {t.family: t.split for t in found} == wanted
    assert set(wanted.values()) == {"train", "held_package"}
    assert sum(row["n_held_package"] for row in summary["tasks"]) == sum(
        t.split == "held_package" for t in found
    )


def test_tasks_pass_with_their_own_body_and_fail_with_another(made):
    found = load_tasks(made[0] / "tasks.jsonl")
    assert {t.prompt.rpartition("fn ")[2].partition("_")[0] for t in found} == {"mix", "count"}
    right = verify([assemble(t, t.canonical_solution) for t in found], "test")
    assert {v.verdict for v in right} == {Verdict.PASSED}
    wrong = verify([assemble(t, "\n    12345\n}") for t in found], "test")
    assert {v.verdict for v in wrong} == {Verdict.TEST_FAILED}
    mixed = [t for t in found if "fn mix" in t.prompt]
    assert not any("assert" in t.prompt for t in mixed)
    assert all(t.prompt.startswith("/// Mix ") and t.prompt.endswith("{") for t in mixed)


def test_what_is_dropped_is_counted(made):
    by_kind = {row["kind"]: row for row in made[1]["tasks"]}
    n = len(WORDS)
    documentation, units = by_kind["documentation"], by_kind["unit_tests"]
    assert documentation["n_judged"] == documentation["n_passed"] == 3 * n
    assert {why: k for why, k in documentation["dropped"].items() if k} == {
        tasks.FREE: n, tasks.REPEATED: n,
    }  # fmt: skip
    assert {why: k for why, k in units["dropped"].items() if k} == {tasks.CONSTANT: n}
    assert documentation["n_kept"] == units["n_kept"] == n
    assert made[1]["rows"]["tasks"] == 2 * n


def test_tasks_of_documentation_are_no_rows(made):
    out, summary = made
    rows = pl.concat(pl.read_parquet(out / f"{name}.parquet") for name in ("verified", "rejected"))
    assert not any(rows["source_id"].str.contains("doctask"))
    funnel = {row["step"]: row["n"] for row in summary["funnel"]}
    assert funnel["judged"] == len(rows) == sum(
        row["n_judged"] for row in summary["compile_rate"]["by_source"]
    )  # fmt: skip


def test_the_card_counts_the_tasks(made):
    card = (made[0] / "DATASET_CARD.md").read_text()
    n = len(WORDS)
    held = made[1]["tasks"][1]["n_held_package"]
    assert f"| documentation | {3 * n} | {3 * n} | {3 * n} | {n} | {n - held} | {held} |" in card
    assert f"- documentation: {n} dropped, {tasks.FREE}" in card


def test_a_build_that_is_stopped_among_the_trials_goes_on_there(
    made, folder, tmp_path, monkeypatch
):
    stop = threading.Event()
    monkeypatch.setattr(tasks, "_LOT_TASKS", 4)
    n_lots = Counter()

    def progress(text):
        n_lots["trials"] += text.startswith("trying wrong bodies")
        if n_lots["trials"] == 2:
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        build_corpus(config_for(folder), tmp_path, progress=progress, stop=stop)
    (n_tried,) = State(tmp_path, 0.8).query("SELECT COUNT(*) FROM trials")[0]
    assert 0 < n_tried < 5 * len(WORDS)
    build_corpus(config_for(folder), tmp_path)
    names = ("tasks.jsonl", "verified.parquet", "rejected.parquet")
    assert [(tmp_path / n).read_bytes() for n in names] == [
        (made[0] / n).read_bytes() for n in names
    ]


def test_a_corpus_of_an_older_version_must_be_built_anew(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "code_hash", lambda _: "older")
    build_corpus(config_for(folder), tmp_path)
    monkeypatch.undo()
    with pytest.raises(WorkbenchError, match="another version of this project: give another"):
        build_corpus(config_for(folder), tmp_path)


def test_a_held_out_task_that_training_knows_is_dropped(made, tmp_path):
    state = State(made[0], 0.8)
    counts = write_tasks(state, frozenset({"maple"}), tmp_path / "tasks.jsonl")
    assert [row["dropped"][tasks.KNOWN] for row in counts] == [0, 0]
    held = [t for t in load_tasks(tmp_path / "tasks.jsonl") if t.split == "held_package"]
    assert {t.family for t in held} == {"maple"}
    copied = "fn other() {}\n" + held[1].prompt + held[1].canonical_solution
    assert known_tasks(held, ["fn nothing() {}", copied]) == {held[1].task_id}
    some = " ".join(copied.split()[: NGRAM_TOKENS // 4])
    assert known_tasks(held, [some]) == frozenset()
    assert known_tasks([], [copied]) == frozenset()


def row_of(package, split, text="fn a() {}"):
    source = RustSource(f"{package}/1", text, "function", "debian", package, "p", "MIT", package)
    return Judged(Candidate(source, text), Verified("1", Verdict.PASSED, Level.BUILD), split)


def test_stage_1_splits_tasks_as_its_own_rows(made, tmp_path):
    corpus = [*load_tasks(made[0] / "tasks.jsonl")]
    before = {t.family: t.split for t in corpus}
    trained, *held = sorted(before, key=lambda name: before[name] == "train")  # one of them held
    other = held.pop()
    copied = next(t for t in corpus if t.family == held[0])
    kept = [
        row_of(trained, "train"), row_of(trained, "validation"),
        *(row_of(name, "validation") for name in held),
        row_of("elsewhere", "train", copied.prompt + copied.canonical_solution),
    ]  # fmt: skip
    counts = carry_tasks(str(made[0]), kept, tmp_path)
    found = load_tasks(tmp_path / CORPUS_TASKS)
    splits = {name: {t.split for t in found if t.family == name} for name in before}
    assert splits[trained] == {"train"}
    assert all(splits[name] == {"held_package"} for name in held)
    assert splits[other] == {before[other]}
    assert {t.task_id for t in corpus} - {t.task_id for t in found} == {copied.task_id}
    assert counts == {
        "n": len(found), "by_kind": dict(sorted(Counter(t.flags[0] for t in found).items())),
        "by_split": dict(sorted(Counter(t.split for t in found).items())), "n_known": 1, "note": "",
    }  # fmt: skip


def test_stage_1_has_no_tasks_of_a_corpus_without_one(made, tmp_path):
    carry_tasks(str(made[0]), [], tmp_path)
    assert (tmp_path / CORPUS_TASKS).exists()
    assert carry_tasks("", [], tmp_path) == {}
    assert not (tmp_path / CORPUS_TASKS).exists()


def test_tasks_of_an_older_corpus_are_left_out_with_a_word(made, tmp_path):
    assert "build it again" in carry_tasks(str(tmp_path), [], tmp_path)["note"]
    older = replace(load_tasks(made[0] / "tasks.jsonl")[0], family="", split="", flags=())
    line = json.dumps(older.__dict__) + "\n"
    write(tmp_path, {"tasks.jsonl": line})
    found = carry_tasks(str(tmp_path), [], tmp_path)
    assert found["n"] == 0
    assert "older version" in found["note"]
    assert not (tmp_path / CORPUS_TASKS).exists()
    for bad in ("{}", "nonsense", "[]", '{"prompt": 3, "other": 4}'):
        write(tmp_path, {"tasks.jsonl": line + bad + "\n"})
        with pytest.raises(WorkbenchError, match=r"tasks.jsonl, line 2: not a task"):
            carry_tasks(str(tmp_path), [], tmp_path)
