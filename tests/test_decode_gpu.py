"""The decoding benchmark without a GPU: the CPU engine stands where the GPU engine would."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from test_engine import small_model

from kernels.bench_gpu import start
from nanochat_lib.data.tokenizer import train_tokenizer
from nanochat_lib.model.checkpoint import save_checkpoint
from nanochat_lib.model.engine import Engine
from nanochat_lib.model.engine_gpu import GpuEngine
from nanochat_lib.publish import decode_gpu
from nanochat_lib.publish.decode_gpu import Way, checks, format_report

MODEL = small_model()


class MadeUpEngine:
    """The CPU engine as a GPU that holds 32 rows; some ways to run the loops may fail."""

    def __init__(self, config, weights, max_batch, draft, failing: str) -> None:
        self.n_rows = max_batch if draft is None else min(max_batch, 32 // draft.tokens)
        self.config, self.weights, self.max_seq_len = config, weights, config.max_seq_len
        self.engine = Engine.from_model(MODEL, max_batch=self.n_rows, threads=1, draft=draft)
        self.failing, self.loops, self.asked = failing, "graph", []

    def use(self, loops):
        self.loops = loops

    def generate(self, prompts, sampling):
        self.asked.append((self.loops, len(prompts), sampling))
        if self.loops == self.failing:
            raise RuntimeError("CUDA driver: too many blocks (720)\nand more")
        return self.engine.generate(prompts, sampling)


@pytest.fixture
def made_up(monkeypatch):
    """Let a GPU be there, and texts be short; return what made each engine, and what may fail."""
    here = SimpleNamespace(engines=[], failing="")

    def made(config, weights, max_batch, draft=None):
        here.engines.append(MadeUpEngine(config, weights, max_batch, draft, here.failing))
        return here.engines[-1]

    monkeypatch.setattr(GpuEngine, "from_weights", made)
    monkeypatch.setattr(start, "why_unavailable", lambda: "")
    monkeypatch.setattr(decode_gpu, "facts", lambda: {"gpu": "Made-up GPU"})
    monkeypatch.setattr(decode_gpu, "CONFIG", MODEL.config)
    monkeypatch.setattr("nanochat_lib.model.looplm.LoopLM", lambda config: MODEL)
    for name, value in {"N_TOKENS": 6, "N_REPEATS": 2, "SEQUENCES": (1, 16)}.items():
        monkeypatch.setattr(decode_gpu, name, value)
    return here


def measured(tmp_path, *more: str) -> dict:
    assert decode_gpu.main(["--out", str(tmp_path / "out" / "decode.json"), *more]) == 0
    return json.loads((tmp_path / "out" / "decode.json").read_text())


def test_every_way_is_timed_and_told(made_up, tmp_path, capsys):
    report = measured(tmp_path)
    rows = {Way(*(row[name] for name in Way.__dataclass_fields__)): row for row in report["rows"]}
    wanted = set()
    for loops in ("graph", "persistent"):
        for n in (1, 16):
            wanted |= {Way(n, loops), Way(n, loops, 0), Way(n, loops, exit_threshold=0.7)}
        wanted |= {Way(8, loops, 0), Way(1, loops, 0, 1.0, 4), Way(8, loops, 0, 1.0, 4)}
    assert set(rows) == wanted
    for way, row in rows.items():
        assert row["repeats"] == 2
        assert row["n_tokens"] == 6 * way.sequences
        assert row["tokens_per_s"] > 0
        assert ("tokens_per_pass" in row) == bool(way.draft_tokens)
        assert 1 <= row["mean_loops"] <= 3
    assert rows[Way(1, "graph", 0)]["mean_loops"] == 3
    assert rows[Way(16, "graph", exit_threshold=0.7)]["mean_loops"] < 3
    one = rows[Way(1, "graph", 0, 1.0, 4)]
    assert one["tokens_per_pass"] * one["passes_per_token"] == pytest.approx(1)
    assert one["of_drafted"] == pytest.approx(one["tokens_per_pass"] / 4)
    assert report["agreement"]["plain"]["fault"] == report["agreement"]["drafting"]["fault"] == ""
    (check,) = report["checks"]
    drawn = [rows[Way(1, loops)]["tokens_per_s"] for loops in ("graph", "persistent")]
    assert check["value"] == max(drawn)
    text = capsys.readouterr().out
    assert "16 sequences graph      drawn " in text
    assert "tokens a pass (n = 2)" in text
    assert "one sequence, all loops, tokens/s" in text


def test_weights_are_packed_once_and_sequences_written_together(made_up, tmp_path):
    measured(tmp_path, "--loops", "graph")
    assert len({id(engine.weights) for engine in made_up.engines}) == 1
    sizes = [(engine.n_rows, len(engine.asked)) for engine in made_up.engines]
    # three rounds each of three ways, of one where only drafts are compared with, and comparisons
    assert sizes == [(1, 9 + 3), (1, 3 + 2), (16, 9), (8, 3), (8, 3)]
    assert {n for one in made_up.engines for _, n, _ in one.asked if one.n_rows == 8} == {8}
    assert {loops for one in made_up.engines for loops, *_ in one.asked} == {"graph"}


def test_a_way_that_fails_is_told_and_the_others_are_timed(made_up, tmp_path, capsys):
    made_up.failing = "persistent"
    report = measured(tmp_path)
    for row in report["rows"]:
        assert row.get("note", "") == (
            "CUDA driver: too many blocks (720)" if row["loops"] == "persistent" else ""
        )
        assert ("tokens_per_s" in row) == (row["loops"] == "graph")
    assert "failed: CUDA driver: too many blocks (720)" in capsys.readouterr().out
    assert report["checks"]


def test_when_time_runs_out_fewer_repeats_are_told(made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(decode_gpu, "MAX_SECONDS", 0.0)
    monkeypatch.setattr(decode_gpu, "N_REPEATS", 50)
    report = measured(tmp_path, "--loops", "graph")
    assert {row["repeats"] for row in report["rows"]} == {1}


def test_a_checkpoint_is_timed_in_place_of_a_random_model(made_up, tmp_path, capsys):
    path = tmp_path / "tokenizer.json"
    train_tokenizer(["fn add(a: i32) -> i32 {}\n"] * 20, 300).save(str(path))
    facts = {"step": 1, "tokens_seen": 1, "stage": "pretrain", "tokenizer_json": path}
    save_checkpoint(tmp_path / "trained", MODEL, **facts)
    report = measured(tmp_path, "--checkpoint", str(tmp_path / "trained"), "--loops", "graph")
    assert report["model"] == "trained"
    assert report["checks"] == []  # the target is one of the random model
    out = tmp_path / "none.json"
    wrong = ["--out", str(out), "--checkpoint", str(tmp_path / "nowhere")]
    assert decode_gpu.main(wrong) == 1
    assert "Nothing was measured: " in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("wrong", [[], ["--out", "x", "--loops", "eager"]])
def test_wrong_arguments_are_refused(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        decode_gpu.main(wrong)
    assert "usage" in capsys.readouterr().err


def test_the_target_is_that_of_one_sequence_with_all_loops():
    rows = [
        decode_gpu.asdict(way) | {"tokens_per_s": speed}
        for way, speed in {
            Way(1, "graph"): 2900.0, Way(1, "persistent"): 3100.0, Way(32, "graph"): 90_000.0,
            Way(1, "graph", exit_threshold=0.7): 5000.0, Way(1, "graph", 0, 1.0, 4): 6000.0,
        }.items()
    ]  # fmt: skip
    (check,) = checks(rows)
    assert (check["value"], check["met"]) == (3100.0, True)
    assert checks([row for row in rows if row["sequences"] > 1]) == []
    noted = decode_gpu.asdict(Way(1, "graph")) | {"note": "no"}
    report = {"gpu": "G", "model": "random", "stored_parameters": 3e8, "rows": [noted]}
    text = format_report(report | {"checks": [], "agreement": {"plain": {"fault": "far off"}}})
    assert "failed: no" in text
    assert "plain, beside the CPU engine: far off" in text
