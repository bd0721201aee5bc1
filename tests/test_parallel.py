"""Training by two processes on a CPU: what one process would have computed, and no orphans."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_pretrain import TINY, Recorder, ToyData, configured, same_weights, weights_of

from nanochat_lib.config import HardwareConfig, LongContextConfig, load_profile
from nanochat_lib.data.batches import Recipe
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import save_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train.long_context import extend_context
from nanochat_lib.train.parallel import group
from nanochat_lib.train.parallel import step as parts
from nanochat_lib.train.parallel.choice import choose_processes
from nanochat_lib.train.parallel.step import Step
from nanochat_lib.train.pretrain import pretrain

CPU = torch.device("cpu")


def shared(n=2, **plan):
    """Return the toy configuration for `n` processes."""
    config = configured(**plan)
    hardware = config.hardware.model_copy(update={"train_processes": n})
    return config.model_copy(update={"hardware": hardware})


def without_number(rows):
    """Return metrics without the number of processes."""
    return [row for row in rows if row[1] != Metric.PROCESSES]


class Elsewhere(ToyData):
    """Behaves in another process, where it arrives pickled, as `there` says."""

    def __setstate__(self, state):
        self.__dict__ |= state
        self.there()

    def there(self):
        """Do something to the other process."""


def test_two_processes_compute_what_one_does_bit_by_bit(tmp_path):
    """A step of two micro-batches is a sum of two gradients, in one process and in two.

    The run of two processes is interrupted twice: its first and last steps are those of one.
    """
    whole = Recorder()
    pretrain(configured(), ToyData(), tmp_path / "one", log=whole)
    found = []
    for n, stop_at in ((1, 3), (2, 9), (1, None)):
        stop = threading.Event()
        recorder = Recorder(stop_at, stop.set)
        try:
            pretrain(shared(n), ToyData(), tmp_path / "p", log=recorder, stop=stop)
        except KeyboardInterrupt:
            assert multiprocessing.active_children() == []
        found += recorder.without_times()
    assert json.loads((tmp_path / "p/summary.json").read_text())["processes"] == 1
    n_by_step = {step: n for step, name, n in found if name == Metric.PROCESSES}
    assert n_by_step == {0: 1, 4: 2, 8: 2, 12: 1}
    assert without_number(found) == without_number(whole.without_times())
    assert same_weights(weights_of(tmp_path / "one"), weights_of(tmp_path / "p"))


class Failing(Elsewhere):
    """Breaks the second process, each time in another way."""

    def __init__(self, how):
        super().__init__()
        self.how, self.is_elsewhere = how, False

    def there(self):
        self.is_elsewhere = True
        if self.how == "start":
            raise ImportError("no such thing")
        if self.how == "drift":
            before_each(Step, "update", lambda step: step.model.head.weight.data.add_(2**-20))
        if self.how == "exchange":
            calls = itertools.count()
            before_each(group, "sum_gradients", lambda _: next(calls) == 3 and die(after_s=0.5))

    def rows(self, step, recipe, chosen):
        if self.is_elsewhere and step == 3:
            if self.how == "kill":
                die()
            if self.how == "error":
                raise WorkbenchError("The shard is gone.")
        return super().rows(step, recipe, chosen)


def before_each(owner, name, action):
    """Let every call of a function begin with an action on its first argument."""
    original = getattr(owner, name)

    def extended(*arguments):
        action(arguments[0])
        return original(*arguments)

    setattr(owner, name, extended)


def die(after_s=0.0):
    time.sleep(after_s)
    os.kill(os.getpid(), signal.SIGKILL)


KILLED = "Process 1 of 2 that trains with this one was killed by SIGKILL"


@pytest.mark.parametrize(
    ("how", "text", "n_steps"),
    [
        ("exchange", KILLED, 3),  # while the first one waits for its gradients
        ("error", "Process 1 of 2 failed: The shard is gone.", 3),
        ("drift", "The weights of process 1 of 2 differ from those of process 0", 4),
        pytest.param("kill", KILLED, 3, marks=pytest.mark.slow),
        pytest.param("start", "this one ended with status 1", 0, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_fails_ends_all_within_seconds(tmp_path, how, text, n_steps):
    threads = torch.get_num_threads()
    recorder = Recorder()
    began = time.monotonic()
    with pytest.raises(WorkbenchError, match=text):
        pretrain(shared(), Failing(how), tmp_path, log=recorder)
    assert time.monotonic() - began < 30  # most of it is the start of a process
    assert multiprocessing.active_children() == []
    assert not torch.distributed.is_initialized()
    assert torch.get_num_threads() == threads
    assert len(recorder.series(Metric.LOSS)) == n_steps
    assert not (tmp_path / "checkpoints" / "step_000004").exists()


class Trouble(Elsewhere):
    """The second process lacks memory for more than two sequences, and has a bad batch, 6."""

    def there(self):
        forward, loss = LoopLM.forward, parts.stage_one_loss

        def small_memory(model, tokens, n_loops=None):
            if torch.is_grad_enabled() and len(tokens) > 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
            return forward(model, tokens, n_loops)

        def with_nan(model, output, targets, *rest, **options):
            found = loss(model, output, targets, *rest, **options)
            return replace(found, total=found.total * math.nan) if self.is_bad else found

        LoopLM.forward, parts.stage_one_loss = small_memory, with_nan

    def rows(self, step, recipe, chosen):
        self.is_bad = step == 6
        return super().rows(step, recipe, chosen)


class WithoutTrouble(ToyData):
    """What is left of that data when training went back to step 4 and skipped three batches."""

    def rows(self, step, recipe, chosen):
        return super().rows(step if step < 4 else step + 3, recipe, chosen)


def test_memory_and_bad_batches_of_one_process_are_those_of_all(tmp_path, caplog):
    """And recomputed activations, AdamW and int8 products; beside one process without trouble.

    Four gradients are added up in another order, so the last bits differ, and later what rounds to
    int8 and to codes: six steps agree to 1e-5, all twelve to 1 % (gradient norms 5 %, weights 2 %).
    """
    settings = {
        "on_spike": "rollback", "gate_steps": 0, "optimizer": "adamw", "products": "int8",
        "activation_checkpointing": "loop",
    }  # fmt: skip
    one, two = Recorder(), Recorder()
    pretrain(configured(micro_batch_size=2, **settings), WithoutTrouble(), tmp_path / "1", log=one)
    summary = pretrain(shared(**settings), Trouble(), tmp_path / "2", log=two)
    assert "Out of memory with 4 sequences at once: going on with 2" in caplog.text
    (spike,) = json.loads((tmp_path / "2" / "spikes.json").read_text())
    assert (spike["step"], spike["resumed_at"], spike["loss"]) == (6, 4, "nan")
    batch = load_file(tmp_path / "2" / spike["batch_file"])["tokens"].numpy()
    assert np.array_equal(batch, ToyData().rows(6, Recipe(8, 16), range(8)))
    assert summary["processes"] == 2
    assert summary["final"]["bits_per_byte"] < summary["bits_per_byte_first"] - 0.5
    for name, far in ((Metric.LOSS, 0.01), (Metric.GRAD_NORM, 0.05), (Metric.EXPECTED_LOOPS, 0.01)):
        expected, found = dict(one.series(name)), dict(two.series(name))
        assert list(found) == list(expected)
        pairs = [(found[step], expected[step]) for step in expected]
        assert all(f == pytest.approx(e, rel=1e-5) for f, e in pairs[:6]), name
        assert all(f == pytest.approx(e, rel=far) for f, e in pairs), name
    weights = weights_of(tmp_path / "2")
    for name, value in weights_of(tmp_path / "1").items():
        assert float((weights[name] - value).norm()) < 0.02 * float(value.norm()), name


def test_no_process_survives_a_killed_one(tmp_path):
    script = Path(__file__).with_name("parallel_driver.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    told = json.loads(done.stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (is_alive(told["pid"]) or Path(told["folder"]).exists()):
        time.sleep(0.1)
    assert not is_alive(told["pid"])
    assert not Path(told["folder"]).exists()


def is_alive(pid):
    """Return whether a process runs; one that waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class Gpus:
    """A machine's GPUs, as torch tells of them."""

    def __init__(self, monkeypatch, *names):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: names[i])


@pytest.mark.parametrize(
    ("n_gpus", "batch", "names", "expected"),
    [
        (2, 4, ["4090", "4090"], 2),
        (2, 4, ["4090"], 1),  # the machine has fewer than the profile
        (1, 4, ["4090", "4090"], 1),  # and the profile fewer than the machine
        (4, 6, ["A100"] * 4, 3),  # what shares the batch evenly
        (2, 1, ["4090", "4090"], 1),
        (2, 4, ["4090", "3090"], 1),  # they round differently
    ],
)
def test_one_process_for_each_gpu(monkeypatch, n_gpus, batch, names, expected):
    Gpus(monkeypatch, *names)
    hardware = HardwareConfig(n_gpus=n_gpus)
    assert choose_processes(hardware, batch, torch.device("cuda", 0)) == expected
    assert choose_processes(hardware, batch, CPU) == 1


def test_more_processes_than_gpus_or_than_share_a_batch_are_refused(monkeypatch):
    Gpus(monkeypatch, "4090", "4090")
    hardware = HardwareConfig(n_gpus=2, train_processes=3)
    with pytest.raises(WorkbenchError, match=r"train_processes is 3, but there are 2 GPUs"):
        choose_processes(hardware, 6, torch.device("cuda", 0))
    with pytest.raises(WorkbenchError, match="A batch of 4 sequences cannot be shared by 3"):
        choose_processes(hardware, 4, CPU)
    for key in ("pretrain.batch_size", "long_context.batch_size"):
        overrides = {"hardware.train_processes": 4, "pretrain.batch_size": 8, key: 2}
        overrides |= {"pretrain.micro_batch_size": 1}
        with pytest.raises(WorkbenchError, match=rf"{key} 2 .*train_processes 4"):
            load_profile("laptop", overrides)


def test_an_interrupt_while_processes_start_leaves_none(tmp_path):
    """A terminal's Ctrl-C reaches every process; only the first one acts on it."""
    stop, pids = threading.Event(), []

    def on_eval(step, model):
        pids.extend(child.pid for child in multiprocessing.active_children())
        for pid in pids:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        stop.set()
        return {}

    with pytest.raises(KeyboardInterrupt, match="stopped at step 0"):
        pretrain(shared(), ToyData(), tmp_path, log=Recorder(), stop=stop, on_eval=on_eval)
    assert len(pids) == 1
    assert not any(map(is_alive, pids))
    assert (tmp_path / "checkpoints" / "step_000000").is_dir()


@pytest.mark.slow
def test_stage_four_shares_its_batches_too(tmp_path):
    base = save_checkpoint(
        tmp_path / "base", LoopLM(TINY, seed=3), step=1, tokens_seen=0, stage="pretrain",
        tokenizer_json=None,
    )  # fmt: skip
    stage = LongContextConfig(seq_len=64, total_steps=4, batch_size=4, learning_rate=0.01)
    curves = {}
    for n in (1, 2):
        recorder = Recorder()
        config = shared(n).model_copy(update={"long_context": stage})
        summary = extend_context(config, base, ToyData(), tmp_path / str(n), log=recorder)
        assert summary["processes"] == n
        curves[n] = [value for _, value in recorder.series(Metric.LOSS)]
    assert curves[2] == pytest.approx(curves[1], rel=1e-3)
