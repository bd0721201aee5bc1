"""The large corpus: what enters it, and that killing the build changes no byte of it."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from test_archives import deb_bytes, tar_bytes
from test_corpus import SOLUTION
from typer.testing import CliRunner

from nanochat_lib.cli.__main__ import app
from nanochat_lib.config import PROJECT_ROOT, load_profile
from nanochat_lib.data.build import build, plan, prepare
from nanochat_lib.data.build.bench import measure
from nanochat_lib.data.build.build import build_corpus
from nanochat_lib.data.build.state import State
from nanochat_lib.data.sources.units import SourceUnavailable, Unit, file_sha256
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import VERIFIED_COLUMNS, Program, Task, Verdict
from nanochat_lib.rust.programs import assemble
from nanochat_lib.rust.verify import verify

# Five functions of different words, so that they are no near repeats of each other.
SOURCE = """\
/// Count the {word} marks.
///
/// ```
/// # let hidden = 1;
/// let {word} = [1, 2, 3];
/// assert_eq!({word}.len() + hidden, 4);
/// ```
pub fn count_{word}(text: &str) -> usize {{
    let mut {word}_marks = 0;
    for {word} in text.bytes() {{
        if {word} == b'{letter}' {{
            {word}_marks += 1;
        }}
    }}
    {word}_marks
}}

pub fn needs_{word}() -> serde::{word}::Value {{
    unimplemented!("{word}")
}}

#[cfg(test)]
mod tests {{
    use super::*;

    fn given_{word}() -> &'static str {{
        "{letter}x{letter}"
    }}

    #[test]
    fn counts_{word}() {{
        assert_eq!(count_{word}(given_{word}()), 2);
    }}
}}
"""
WORDS = ("apple", "berry", "cedar", "daisy", "elder", "fern", "grape", "hazel")


def package(word, licence='license = "MIT"'):
    return {
        f"{word}-1.0/Cargo.toml": f'[package]\nname = "{word}"\nversion = "1.0"\n{licence}\n'
        'edition = "2021"\n',
        f"{word}-1.0/src/lib.rs": SOURCE.format(word=word, letter=word[0]),
    }


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def config_for(folder, **changes):
    values = {"corpus.sources": ["folder"], "corpus.folder": str(folder)} | changes
    return load_profile("laptop", {"data.validation_fraction": 0.3, **values})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    top = tmp_path_factory.mktemp("input")
    for word in WORDS:
        write(top, package(word))
    near = SOURCE.format(word="apple", letter="a").replace("= 0;", "= 7;")
    gpl = package("violet", 'license = "GPL-3.0-only"')
    other_crate = "use serde::Value;\n\npub fn same(value: Value) -> Value {\n    value\n}\n"
    write(top, {"other-1.0/src/lib.rs": other_crate})
    return write(top, {**gpl, "near-1.0/src/lib.rs": near, "bench-1.0/src/lib.rs": SOLUTION})


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    benchmark = write(out, {"b.jsonl.gz": gzip.compress(json.dumps({"x": SOLUTION}).encode())})
    config = config_for(folder, **{"corpus.benchmark_files": [str(benchmark / "b.jsonl.gz")]})
    return out, build_corpus(config, out)


def steps(summary):
    return {row["step"].removeprefix("without: "): row["n"] for row in summary["funnel"]}


def test_verified_rows_are_what_rustc_accepts_with_their_origin(made):
    rows = pl.read_parquet(made[0] / "verified.parquet")
    assert tuple(rows.columns) == VERIFIED_COLUMNS
    assert set(rows["verdict"]) == {"PASSED"}
    first = rows.filter(pl.col("package") == "apple")
    assert sorted(first["kind"]) == ["doc_example", "function", "test"]
    assert set(first["licence"]) == {"MIT"}
    assert set(first["version"]) == {"1.0"}
    assert set(first["path"]) == {"apple-1.0/src/lib.rs"}
    example = first.filter(pl.col("kind") == "doc_example").to_dicts()[0]
    assert "hidden = 1" in example["program"]
    assert "hidden = 1" not in example["text"]
    programs = [Program(r["source_id"], r["program"], r["edition"]) for r in rows.to_dicts()]
    assert all(v.verdict.compiled for v in verify(programs, "build"))


def test_what_is_dropped_is_counted_by_reason(made):
    summary = made[1]
    found = steps(summary)
    assert summary["dropped_licences"] == {"GPL-3.0-only": 1}
    assert found["for an unstable toolchain"] - found["names another crate or file"] == 2
    assert found["names another crate or file"] - found["benchmark text"] == 2  # slice and file
    assert found["benchmark text"] > found["near repeat"]
    texts = "\n".join(pl.read_parquet(made[0] / "verified.parquet")["text"])
    assert "fn longest" not in texts
    assert texts.count("apple_marks = 0") == 2  # the slice and the tested function
    assert "apple_marks = 7" not in texts
    assert found["train"] + found["validation"] == found["passed"]


def test_no_package_is_in_both_splits(made):
    rows = pl.read_parquet(made[0] / "verified.parquet")
    groups = rows.group_by("group").agg(pl.col("split").n_unique())
    assert set(groups["split"]) == {1}
    assert set(rows["split"]) == {"train", "validation"}


def test_tasks_are_prompts_whose_tests_pass_and_fail_as_they_should(made):
    tasks = [Task(**json.loads(line)) for line in (made[0] / "tasks.jsonl").open()]
    assert len(tasks) == len(WORDS)
    assert all(t.prompt.endswith("{") and t.task_set == "corpus" for t in tasks)
    right = verify([assemble(t, t.canonical_solution) for t in tasks], "test")
    wrong = verify([assemble(t, "\n    text.len() + 99\n}") for t in tasks], "test")
    assert {v.verdict for v in right} == {"PASSED"}
    assert {v.verdict for v in wrong} == {"TEST_FAILED"}


def test_the_card_and_the_summary_say_where_everything_comes_from(made, folder):
    out, summary = made
    card = (out / "DATASET_CARD.md").read_text()
    for text in ("| GPL-3.0-only | 1 |", "| MIT | ", summary["units_sha256"], "folder"):
        assert text in card
    for name, digest in summary["files_sha256"].items():
        assert file_sha256(out / name) == digest
        assert digest in card
    assert summary["compile_rate"]["after"]["n_judged"] > 0
    assert json.loads((out / "summary.json").read_text())["rows"] == summary["rows"]


def test_a_finished_corpus_is_written_again_byte_for_byte(made, folder, tmp_path):
    settings = {"corpus.benchmark_files": [str(made[0] / "b.jsonl.gz")]}
    config = config_for(folder, **settings)
    before = made[1]["files_sha256"]
    assert build_corpus(config, made[0])["files_sha256"] == before
    assert build_corpus(config, tmp_path)["files_sha256"] == before


def test_other_settings_in_the_same_folder_are_refused(made, folder):
    with pytest.raises(WorkbenchError, match="other settings"):
        build_corpus(config_for(folder), made[0])


SCRIPT = """
import sys
from pathlib import Path
from nanochat_lib.config import load_profile
from nanochat_lib.data.build import build
build.LOT_ROWS, build._FILES_AT_ONCE, build._PROGRAMS_BETWEEN_LOOKS = 12, 2, 1
values = {"corpus.sources": ["folder"], "corpus.folder": sys.argv[1], "verify.cluster": sys.argv[3]}
config = load_profile("laptop", {"data.validation_fraction": 0.3, **values})
build.build_corpus(config, Path(sys.argv[2]), progress=lambda text: print(text, flush=True))
"""


def start(folder, out, cluster=""):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(out), cluster],
        stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT, start_new_session=True,
    )  # fmt: skip


def kill_often(folder, out, n_kills, most_lines, seed):
    """Kill builds at random moments; one that ends before its moment is begun anew."""
    rng, n_killed = random.Random(seed), 0
    while n_killed < n_kills:
        process = start(folder, out)
        for _ in range(rng.randint(1, most_lines)):
            process.stdout.readline()
        time.sleep(rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            n_killed += 1
        else:
            shutil.rmtree(out)


def tables(out):
    return {p.name: p.read_bytes() for p in sorted(out.glob("*.parquet"))} | {
        "tasks.jsonl": (out / "tasks.jsonl").read_bytes()
    }


@pytest.mark.parametrize("n_kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_and_resumed_gives_the_same_bytes(folder, tmp_path, n_kills):
    whole = start(folder, tmp_path / "whole")
    n_lines = len(whole.communicate()[0].splitlines())
    kill_often(folder, tmp_path / "killed", n_kills, most_lines=n_lines // 2, seed=n_kills)
    assert start(folder, tmp_path / "killed").wait() == 0
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
    assert len(pl.read_parquet(tmp_path / "killed" / "rejected.parquet")) > 0


MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
from nanochat_lib.config import load_profile
from nanochat_lib.data.build import build, finish, state, tasks
state._CACHE_KIB = 2048  # full in both, so that only growth is left
from nanochat_lib.records import Level, Verdict, Verified
def passed(programs, level, **_):
    return [Verified(p.program_id, Verdict.PASSED, Level(level)) for p in programs]
build.verify = finish.verify = tasks.verify = passed
values = {"corpus.sources": ["folder"], "corpus.folder": sys.argv[1]}
summary = build.build_corpus(load_profile("laptop", values), Path(sys.argv[2]))
print(summary["rows"]["verified"], summary["peak_rss_mib"])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Judging is left out: it has a bound of its own, and would take minutes."""
    found = {}
    rng = random.Random(0)
    for n_packages in (1000, 4000):
        top = tmp_path / str(n_packages)
        for n in range(n_packages):
            word = "".join(rng.choices("bcdfgklmnprst", k=12))
            filler = "".join(f"    let _{c} = {word}_marks;\n" for c in rng.sample("abcdefgh", 6))
            text = package(word)[f"{word}-1.0/src/lib.rs"].replace(
                "_marks = 0;", f"_marks = 0;\n{filler}"
            )
            write(top, {f"{n}/lib.rs": text})
        command = [
            sys.executable,
            "-c",
            MEMORY_SCRIPT,
            str(top),
            str(tmp_path / f"out{n_packages}"),
        ]
        said = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, check=True)
        found[n_packages] = tuple(map(int, said.stdout.split()))
    assert found[4000][0] > 3.5 * found[1000][0]
    assert found[4000][1] < 1.15 * found[1000][1], found


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_gives_the_same_bytes(folder, tmp_path):
    distributed = pytest.importorskip("distributed", reason="Dask is in the cluster extra")
    assert start(folder, tmp_path / "here").wait() == 0
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        process = start(folder, tmp_path / "there", cluster.scheduler_address)
        for line in process.stdout:
            if line.startswith("judging"):
                break
        worker = next(iter(cluster.workers.values()))
        os.kill(worker.process.pid, signal.SIGKILL)
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert tables(tmp_path / "there") == tables(tmp_path / "here")


def test_stopping_leaves_a_corpus_that_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "LOT_ROWS", 12)
    monkeypatch.setattr(build, "_FILES_AT_ONCE", 2)
    stop = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        build_corpus(config_for(folder), tmp_path, progress=lambda text: stop.set(), stop=stop)
    assert not (tmp_path / "verified.parquet").exists()
    assert build_corpus(config_for(folder), tmp_path)["rows"]["verified"] > 0


def test_bad_input_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    top = write(
        tmp_path / "in",
        {
            **package("apple"), **package("berry"), "latin.rs": b"// \xe9\n",
            "big.rs": b"/" * 1_000_001,
        },
    )  # fmt: skip
    (top / "loop").symlink_to(top)
    cedar = {f"usr/share/cargo/registry/{n}": c.encode() for n, c in package("cedar").items()}
    daisy = {n: c.encode() for n, c in package("daisy").items()}
    archives = {
        "a.deb": deb_bytes(cedar),
        "b.tar.gz": gzip.compress(tar_bytes({"../../up.rs": b"fn up() {}", **daisy})),
        "c.tar.gz": b"nonsense",
    }
    write(tmp_path, archives)
    units = [
        Unit("pypi", name, "1", str(tmp_path / name), file_sha256(tmp_path / name))
        for name in archives
    ]

    def offline(*_):
        raise SourceUnavailable("is this machine online?")

    monkeypatch.setattr(plan, "pypi_units", lambda *_: units)
    monkeypatch.setattr(plan, "hub_units", offline)
    sources = {
        "corpus.sources": ["hub", "pypi", "folder"], "corpus.pypi_projects": ["x"],
        "corpus.hub_datasets": ["y"],
    }  # fmt: skip
    summary = build_corpus(config_for(top, **sources), tmp_path / "out")
    assert set(pl.read_parquet(tmp_path / "out/verified.parquet")["package"]) == {
        "apple", "berry", "cedar", "daisy",
    }  # fmt: skip
    assert summary["skipped_files"] == {
        "larger than 1 MB": 1, "not UTF-8": 1, "path outside its archive": 1, "symbolic links": 1,
        "unusable archives": 1,
    }  # fmt: skip
    offline_source, damaged = summary["problems"]
    assert offline_source == "hub is left out: is this machine online?"
    assert damaged.startswith("pypi/c.tar.gz: c.tar.gz is damaged")
    assert not (tmp_path / "up.rs").exists()
    assert not (tmp_path / "out/unpacked").exists()


def test_an_empty_corpus_says_what_was_passed_over(tmp_path):
    top = write(tmp_path / "in", {"a.rs": "fn f( {", "b.rs": b"\xff"})
    with pytest.raises(WorkbenchError, match=r"corpus is empty: .*'not UTF-8': 1"):
        build_corpus(config_for(top), tmp_path / "out")
    with pytest.raises(WorkbenchError, match="does not exist"):
        build_corpus(config_for(tmp_path / "nowhere"), tmp_path / "other")


def test_one_package_cannot_be_split(tmp_path):
    top = write(tmp_path / "in", package("apple"))
    with pytest.raises(WorkbenchError, match="one package"):
        build_corpus(config_for(top), tmp_path / "out")


def test_a_corpus_that_compiles_too_seldom_fails_clearly(folder, tmp_path, monkeypatch):
    config = config_for(folder, **{"data.min_compile_rate": 1.0})
    monkeypatch.setattr("nanochat_lib.data.build.finish.verify", lambda *_, **__: [])
    with pytest.raises(WorkbenchError, match=r"0 of 0 sampled rows.*min_compile_rate"):
        build_corpus(config, tmp_path)


def test_rows_that_could_not_be_judged_are_tried_once_more(folder, tmp_path, monkeypatch):
    asked = []

    def judge(programs, level, **options):
        asked.append(len(programs))
        found = verify(programs, level, **options)
        is_first = len(asked) <= 2  # one lot for each level
        return [replace(v, verdict=Verdict.UNJUDGED) if is_first else v for v in found]

    monkeypatch.setattr(build, "verify", judge)
    summary = build_corpus(config_for(folder), tmp_path)
    assert len(asked) == 4
    assert asked[:2] == asked[2:]
    assert summary["rows"]["verified"] > 0
    assert "UNJUDGED" not in set(pl.read_parquet(tmp_path / "rejected.parquet")["verdict"])


def test_without_semantic_verification_nothing_is_run(folder, tmp_path):
    config = config_for(folder, **{"data.use_semantic_verification": False})
    build_corpus(config, tmp_path)
    rows = pl.read_parquet(tmp_path / "verified.parquet")
    assert rows["n_tests"].sum() == 0
    assert (tmp_path / "tasks.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["pypi"], "needs corpus.pypi_projects"),
        (["hub"], "needs corpus.hub_datasets"),
        (["folder"], "needs corpus.folder"),
    ],
)
def test_nothing_is_downloaded_that_the_user_did_not_name(tmp_path, sources, message):
    config = load_profile("laptop", {"corpus.sources": sources})
    with pytest.raises(WorkbenchError, match=message):
        build_corpus(config, tmp_path)


def test_likeness_estimates_the_share_of_shingles_in_common():
    words = [f"word{n}" for n in range(400)]
    for n_changed, wanted in ((0, 1.0), (100, 0.6), (400, 0.0)):
        other = words[: 400 - n_changed] + [f"other{n}" for n in range(n_changed)]
        sets = [{tuple(text[i : i + 5]) for i in range(len(text) - 4)} for text in (words, other)]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        assert exact == pytest.approx(wanted, abs=0.02)
        found = prepare.likeness(
            prepare.minhash(" ".join(words)).tobytes(), prepare.minhash(" ".join(other)).tobytes()
        )
        assert found == pytest.approx(exact, abs=0.12)


def test_a_damaged_state_file_says_what_to_do(tmp_path):
    (tmp_path / "state.sqlite").write_bytes(b"not a database, certainly not" * 99)
    with pytest.raises(WorkbenchError, match="delete it"):
        State(tmp_path, 0.8)
    assert Path(tmp_path / "state.sqlite").exists()


def test_the_benchmark_judges_the_rows_of_the_build(folder, tmp_path):
    found = measure(config_for(folder), tmp_path)
    rows = [pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("verified", "rejected")]
    assert found["n_rows"] == sum(map(len, rows))
    assert found["engine_cpu_s"] > 0
    assert 0 < found["cpu_ratio"] < 1.5


def test_the_command_writes_a_page_that_runs_nothing(folder, tmp_path):
    settings = ["--set", 'corpus.sources=["folder"]', "--set", f"corpus.folder={folder}"]
    done = CliRunner().invoke(app, ["corpus", "--out", str(tmp_path), *settings])
    assert done.exit_code == 0, done.output
    assert "Funnel" in done.output
    page = (tmp_path / "report.html").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    rejected = pl.read_parquet(tmp_path / "rejected.parquet")
    assert "<script" not in page
    assert "script-src &#39;none&#39;" in page or "script-src 'none'" in page
    assert f"{summary['rows']['verified']} verified rows" in page
    assert page.count("<details>") == len(rejected)
    assert all(row["source_id"] in page for row in rejected.to_dicts())
    assert "GPL-3.0-only" in page
    assert "E0433" in page
