"""Pre-training on a toy language: determinism, resuming, stopping, and what is refused."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nanochat_lib import control
from nanochat_lib.config import HardwareConfig, ModelConfig, PretrainConfig, RunConfig
from nanochat_lib.data.batches import Recipe
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import load_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train import execution
from nanochat_lib.train.objective import StageOneLoss
from nanochat_lib.train.parallel import step as parts
from nanochat_lib.train.pretrain import pretrain
from nanochat_lib.train.safety import memory

TINY = ModelConfig(
    vocab_size=300, d_model=32, n_layers=1, n_loops=2, n_heads=4, n_kv_heads=2, d_ff=64,
    max_seq_len=16,
)  # fmt: skip
PLAN = PretrainConfig(
    total_steps=12, batch_size=8, micro_batch_size=4, seq_len=16, warmup_steps=2, decay_steps=4,
    gate_steps=2, eval_every=4, checkpoint_every=4, dtype="float32", compile="off",
    learning_rate=0.02, muon_learning_rate=0.03, free_text_tokens=0,
)  # fmt: skip


class ToyData:
    """A language in which token t + 1 follows token t, with 40 tokens; every step has a batch."""

    def __init__(self, largest=40):
        self.largest = largest

    def rows(self, step, recipe, chosen):
        rng = np.random.default_rng([recipe.seed, step])
        return self._rows(rng, recipe.batch_size, recipe.seq_len)[list(chosen)]

    def validation_windows(self, kind, seq_len, max_windows):
        return self._rows(np.random.default_rng(10**6), min(max_windows, 8), seq_len)

    def bytes_per_token(self, kind):
        return 2.0

    def largest_id(self):
        return self.largest - 1

    def empty_shards(self):
        return []

    def _rows(self, rng, n_rows, seq_len):
        first = rng.integers(0, self.largest, (n_rows, 1))
        return ((first + np.arange(seq_len + 1)) % self.largest).astype(np.int64)


class Recorder:
    """Collects metrics; may ask for a stop at a step."""

    def __init__(self, stop_at=None, action=None):
        self.rows, self.stop_at, self.action = [], stop_at, action

    def __call__(self, step, values):
        self.rows += [(step, name, value) for name, value in values.items()]
        if step == self.stop_at and str(Metric.LOSS) in values:
            self.action()

    def series(self, name):
        return [(step, value) for step, found, value in self.rows if found == name]

    def without_times(self):
        timed = {
            Metric.TOKENS_PER_S, Metric.PEAK_RSS_MIB, Metric.MODEL_TFLOPS, Metric.PEAK_SHARE,
        }  # fmt: skip
        return [row for row in self.rows if row[1] not in timed]


def configured(model=TINY, **plan):
    hardware = HardwareConfig(cpu_threads=1)  # more only wait for each other at these sizes
    settings = PretrainConfig(**(PLAN.model_dump() | plan))
    return RunConfig(model=model, pretrain=settings, hardware=hardware)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run that several tests look at."""
    folder = tmp_path_factory.mktemp("whole") / "pretrain"
    recorder = Recorder()
    summary = pretrain(configured(), ToyData(), folder, log=recorder)
    return folder, recorder, summary


def weights_of(folder):
    return load_checkpoint(folder / "final").model.state_dict()


def same_weights(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_it_learns_and_says_so(whole):
    _, recorder, summary = whole
    losses = [v for _, v in recorder.series(Metric.LOSS)]
    assert losses[0] == pytest.approx(math.log(300) - 0.05 * math.log(2), abs=0.2)
    assert losses[-1] < losses[0] - 1
    assert summary["final"]["bits_per_byte"] < summary["bits_per_byte_first"] - 0.5
    assert summary["tokens_seen"] == 12 * 8 * 16
    assert summary["steps"] == 12


def test_the_summary_on_disk_is_the_one_returned(whole):
    folder, _, summary = whole
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["dtype"] == "float32"
    assert summary["compiled"] is False
    assert summary["tokens_per_s"] > 0


def test_every_promised_metric_is_logged(whole):
    _, recorder, _ = whole
    names = {name for _, name, _ in recorder.rows}
    promised = {
        Metric.LOSS, Metric.TASK_LOSS, Metric.ENTROPY_TERM, Metric.VAL_LOSS, Metric.BITS_PER_BYTE,
        Metric.BITS_PER_BYTE_TINYRUST, f"{Metric.BITS_PER_BYTE_LOOP}1",
        f"{Metric.BITS_PER_BYTE_LOOP}2", Metric.TOKEN_ENTROPY, Metric.CALIBRATION_GAP,
        Metric.EXIT_ENTROPY, f"{Metric.EXIT_PDF}1", f"{Metric.EXIT_PDF}2", Metric.EXPECTED_LOOPS,
        Metric.ZERO_FRACTION, Metric.FLIP_RATE, Metric.LEARNING_RATE, Metric.GRAD_NORM,
        Metric.TOKENS_PER_S, Metric.PEAK_RSS_MIB, Metric.GATE_LOSS,
    }  # fmt: skip
    assert promised <= names
    assert all(type(name) is str for name in names)


def test_metrics_agree_with_each_other(whole):
    _, recorder, summary = whole
    final = summary["final"]
    assert final["bits_per_byte"] == pytest.approx(final["val_loss"] / math.log(2) / 2.0)
    assert final["bits_per_byte"] == final["bits_per_byte_loop_2"]
    assert final["exit_pdf_1"] + final["exit_pdf_2"] == pytest.approx(1)
    assert final["expected_loops"] == pytest.approx(1 + final["exit_pdf_2"])
    gap = final["token_entropy_nats"] - final["val_loss"]
    assert final["calibration_gap_nats"] == pytest.approx(gap)
    assert 0 < final["zero_fraction"] < 1
    for (_, total), (_, task), (_, term) in zip(
        *(recorder.series(n) for n in (Metric.LOSS, Metric.TASK_LOSS, Metric.ENTROPY_TERM)),
        strict=True,
    ):
        assert total == pytest.approx(task + term, rel=1e-5)


def test_equal_seeds_give_equal_losses_and_others_do_not(whole, tmp_path):
    _, recorder, _ = whole
    again, other = Recorder(), Recorder()
    pretrain(configured(), ToyData(), tmp_path / "a", log=again)
    assert again.without_times() == recorder.without_times()
    config = configured(total_steps=6, gate_steps=0)
    pretrain(config.model_copy(update={"seed": 1}), ToyData(), tmp_path / "b", log=other)
    assert other.series(Metric.LOSS)[0] != recorder.series(Metric.LOSS)[0]


def test_batches_prepared_ahead_change_nothing(whole, tmp_path):
    _, recorder, _ = whole
    hardware = HardwareConfig(cpu_threads=1, loader_workers=2, prefetch_factor=3, pin_memory=True)
    config = configured().model_copy(update={"hardware": hardware})
    ahead = Recorder()
    pretrain(config, ToyData(), tmp_path, log=ahead)
    assert ahead.without_times() == recorder.without_times()


@pytest.mark.parametrize("stop_at", [3, 8, 12])
def test_stopping_and_continuing_equals_not_stopping(whole, tmp_path, stop_at):
    folder, recorder, _ = whole
    stop = threading.Event()
    first, second = Recorder(stop_at, stop.set), Recorder()
    with pytest.raises(KeyboardInterrupt):
        pretrain(configured(), ToyData(), tmp_path / "p", log=first, stop=stop)
    assert not (tmp_path / "p" / "final").exists()
    pretrain(configured(), ToyData(), tmp_path / "p", log=second)
    assert same_weights(weights_of(folder), weights_of(tmp_path / "p"))
    assert first.without_times() + second.without_times() == recorder.without_times()


def test_a_killed_run_repeats_the_steps_after_its_last_checkpoint(whole, tmp_path):
    folder, recorder, _ = whole
    shutil.copytree(folder / "checkpoints" / "step_000008", tmp_path / "checkpoints/step_000008")
    draft = tmp_path / "checkpoints" / ".step_000012.abc.tmp"
    draft.mkdir()
    resumed = Recorder()
    pretrain(configured(), ToyData(), tmp_path, log=resumed)
    assert same_weights(weights_of(folder), weights_of(tmp_path))
    assert resumed.series(Metric.FLIP_RATE) == recorder.series(Metric.FLIP_RATE)[-1:]
    assert not draft.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_a_checkpoint_and_restore_handlers(tmp_path, number):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    recorder = Recorder(3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        pretrain(configured(), ToyData(), tmp_path, log=recorder)
    assert load_checkpoint(tmp_path / "checkpoints" / "step_000003", with_state=True).step == 3
    assert {n: signal.getsignal(n) for n in before} == before


def test_stop_works_outside_the_main_thread(tmp_path):
    stop, raised = threading.Event(), []

    def work():
        try:
            log = Recorder(2, stop.set)
            pretrain(configured(), ToyData(), tmp_path, log=log, stop=stop)
        except KeyboardInterrupt:
            raised.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == [True]


def test_a_stop_during_gate_training_resumes_there(whole, tmp_path):
    folder, _, _ = whole
    stop = threading.Event()

    def progress(done, total, text):
        if "gate" in text:
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        pretrain(configured(), ToyData(), tmp_path, log=Recorder(), stop=stop, progress=progress)
    pretrain(configured(), ToyData(), tmp_path, log=Recorder())
    assert same_weights(weights_of(folder), weights_of(tmp_path))


def test_the_last_checkpoints_and_the_best_are_kept(whole):
    folder, _, _ = whole
    kept = {p.name for p in (folder / "checkpoints").iterdir()}
    assert kept == {"step_000008", "step_000012", "best"}


def test_after_the_last_step_only_the_gate_learns_and_tables_are_rounded(whole):
    folder, _, _ = whole
    model = load_checkpoint(folder / "checkpoints" / "step_000012").model
    model.round_tables()
    before, after = model.state_dict(), weights_of(folder)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"exit_gate.weight", "exit_gate.bias"}


def test_micro_batches_add_up_to_the_batch(tmp_path):
    losses, of_gate = [], []
    for size in (2, 8):
        recorder = Recorder()
        config = configured(micro_batch_size=size, total_steps=6, gate_steps=2)
        pretrain(config, ToyData(), tmp_path / str(size), log=recorder)
        losses.append([v for _, v in recorder.series(Metric.LOSS)])
        of_gate.append([v for _, v in recorder.series(Metric.GATE_LOSS)])
    assert len(of_gate[0]) == 2
    assert of_gate[0] == pytest.approx(of_gate[1], rel=0.02)
    assert losses[0] == pytest.approx(losses[1], abs=0.01)
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)


def test_out_of_memory_halves_the_micro_batch(tmp_path, monkeypatch, caplog):
    original = LoopLM.forward

    def small_memory(self, tokens, n_loops=None):
        if torch.is_grad_enabled() and len(tokens) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return original(self, tokens, n_loops)

    monkeypatch.setattr(LoopLM, "forward", small_memory)
    recorder = Recorder()
    with caplog.at_level(logging.WARNING):
        pretrain(configured(total_steps=6, gate_steps=0), ToyData(), tmp_path, log=recorder)
    assert "Out of memory with 4 sequences at once: going on with 2; the batch stays 8" in (
        caplog.text
    )
    reference = Recorder()
    monkeypatch.undo()
    config = configured(total_steps=6, gate_steps=0, micro_batch_size=2)
    pretrain(config, ToyData(), tmp_path / "reference", log=reference)
    assert recorder.series(Metric.LOSS) == reference.series(Metric.LOSS)


def test_other_runtime_errors_are_not_taken_for_memory():
    assert not memory.is_out_of_memory(RuntimeError("shape mismatch"))
    assert memory.is_out_of_memory(MemoryError())
    assert memory.largest_divisor(12, 5) == 4


@pytest.mark.parametrize(("jump", "word"), [(math.nan, "nan"), (50.0, "5")])
def test_a_bad_loss_stops_with_its_batch(tmp_path, monkeypatch, jump, word):
    original = parts.stage_one_loss
    calls = []

    def broken(*args, **kwargs):
        loss = original(*args, **kwargs)
        calls.append(1)
        return (
            loss
            if len(calls) < 7
            else StageOneLoss(loss.total + jump, loss.task, loss.entropy_term, loss.pdf_mean)
        )

    monkeypatch.setattr(parts, "stage_one_loss", broken)
    with pytest.raises(WorkbenchError, match=f"step 3: the loss is {word}"):
        pretrain(configured(), ToyData(), tmp_path, log=Recorder())
    batch = load_file(tmp_path / "bad_batch_step_000003.safetensors")["tokens"].numpy()
    expected = ToyData().rows(3, Recipe(batch_size=8, seq_len=16), range(8))
    assert np.array_equal(batch, expected)


def test_evaluation_callable_sees_the_model_and_adds_metrics(tmp_path):
    seen, recorder = [], Recorder()

    def on_eval(step, model):
        seen.append((step, type(model)))
        return {"pass_rate": 0.5}

    config = configured(total_steps=6, gate_steps=0)
    pretrain(config, ToyData(), tmp_path, log=recorder, on_eval=on_eval)
    assert seen == [(0, LoopLM), (4, LoopLM), (6, LoopLM)]
    assert recorder.series("pass_rate") == [(0, 0.5), (4, 0.5), (6, 0.5)]


def test_shards_of_a_larger_vocabulary_are_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="token id 399, but the model knows 300"):
        pretrain(configured(), ToyData(largest=400), tmp_path, log=Recorder())


def test_resuming_with_another_model_is_refused(whole, tmp_path):
    folder, _, _ = whole
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    other = TINY.model_copy(update={"d_ff": 32})
    with pytest.raises(WorkbenchError, match="belong to another model"):
        pretrain(configured(model=other), ToyData(), tmp_path, log=Recorder())


def test_compiling_is_chosen_by_the_size_of_the_run(monkeypatch):
    plan, small = PLAN.model_copy(update={"compile": "auto"}), TINY
    big = ModelConfig(d_model=1024, d_ff=3072, n_heads=8, n_kv_heads=8, n_layers=12)
    long_plan = plan.model_copy(update={"total_steps": 10**5})
    monkeypatch.setattr(execution, "find_cxx", lambda: "/usr/bin/c++")
    assert not execution.choose_compile(plan, small, torch.float32)
    assert execution.choose_compile(long_plan, big, torch.float32)
    assert execution.choose_compile(plan.model_copy(update={"compile": "on"}), small, torch.float32)
    monkeypatch.setattr(execution, "find_cxx", lambda: None)
    assert not execution.choose_compile(long_plan, big, torch.float32)


def test_threads_are_restored(tmp_path):
    before = torch.get_num_threads()
    with execution.cpu_threads(1, tmp_path) as n:
        assert n == torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_resumed_stage_takes_the_threads_it_began_with(tmp_path, monkeypatch):
    """Whatever the cores are busy with by then: the last bits of a sum depend on the number."""
    monkeypatch.setattr(execution, "usable_cores", lambda: 2)
    monkeypatch.setattr(execution, "_busy_seconds", lambda n: 10.0 if n > 1 else 1.0)
    with execution.cpu_threads(2, tmp_path) as n:
        assert n == 1
    monkeypatch.setattr(execution, "_busy_seconds", lambda n: 1.0)
    with execution.cpu_threads(2, tmp_path) as n:
        assert n == 1
    with execution.cpu_threads(2, tmp_path / "fresh") as n:
        assert n == 2


def test_bfloat16_trains_too(tmp_path):
    recorder = Recorder()
    config = configured(total_steps=6, gate_steps=0, dtype="bfloat16")
    summary = pretrain(config, ToyData(), tmp_path, log=recorder)
    losses = [v for _, v in recorder.series(Metric.LOSS)]
    assert summary["dtype"] == "bfloat16"
    assert losses[-1] < losses[0]


def test_a_compiler_that_fails_is_said_in_one_sentence(tmp_path, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("the linker is missing\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(execution, "find_cxx", lambda: "/usr/bin/c++")
    config = configured(total_steps=6, gate_steps=0, compile="on")
    summary = pretrain(config, ToyData(), tmp_path, log=Recorder())
    assert summary["compiled"] is False
    assert "runs without it: the linker is missing" in caplog.text
    assert "and more" not in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(not execution.find_cxx(), reason="no C++ compiler on this machine")
def test_compiled_training_gives_the_losses_of_eager_training(tmp_path):
    losses = {}
    for mode in ("off", "on"):
        recorder = Recorder()
        config = configured(total_steps=6, gate_steps=0, compile=mode)
        summary = pretrain(config, ToyData(), tmp_path / mode, log=recorder)
        assert summary["compiled"] == (mode == "on")
        losses[mode] = [v for _, v in recorder.series(Metric.LOSS)]
    assert losses["on"] == pytest.approx(losses["off"], abs=0.03)
    assert losses["on"][0] == pytest.approx(losses["off"][0], abs=1e-4)


def test_a_checkpoint_asked_for_is_written_and_changes_nothing(whole, tmp_path):
    _, reference, _ = whole
    recorder = Recorder(6, lambda: control.ask(tmp_path, control.CHECKPOINT))
    pretrain(configured(keep_checkpoints=9), ToyData(), tmp_path, log=recorder)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert kept == ["step_000004", "step_000006", "step_000008", "step_000012"]
    assert recorder.without_times() == reference.without_times()


def test_a_stop_asked_for_by_a_file_resumes_like_any_other(whole, tmp_path):
    _, reference, _ = whole
    first, second = Recorder(5, lambda: control.ask(tmp_path, control.STOP)), Recorder()
    with pytest.raises(KeyboardInterrupt):
        pretrain(configured(), ToyData(), tmp_path, log=first)
    assert (tmp_path / "checkpoints" / "step_000005").is_dir()
    pretrain(configured(), ToyData(), tmp_path, log=second)
    assert first.without_times() + second.without_times() == reference.without_times()


def test_a_pause_holds_training_and_changes_nothing(whole, tmp_path):
    _, reference, _ = whole
    recorder = Recorder(5, lambda: control.ask(tmp_path, control.PAUSE))
    thread = threading.Thread(
        target=pretrain, args=(configured(), ToyData(), tmp_path), kwargs={"log": recorder}
    )
    thread.start()
    while not control.is_asked(tmp_path, control.PAUSED):
        time.sleep(0.01)
    n_rows = len(recorder.rows)
    time.sleep(0.5)
    assert len(recorder.rows) == n_rows
    control.take_back(tmp_path, control.PAUSE)
    thread.join(60)
    assert recorder.without_times() == reference.without_times()
