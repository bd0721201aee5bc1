"""Training by two processes on GPUs: what one process computes, and what happens when one dies.

With one GPU both processes use it and gloo adds up their gradients, which shows all but NCCL; with
two, NCCL does.
"""

from __future__ import annotations

import multiprocessing
import time

import pytest
import torch
from test_parallel import KILLED, Elsewhere, Failing
from test_pretrain import Recorder, ToyData, configured

from kernels.cuda.driver import why_unavailable
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Metric
from nanochat_lib.train import execution, trainer
from nanochat_lib.train.parallel import group
from nanochat_lib.train.pretrain import pretrain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable() or "a GPU is there"),
]


class SharedGpu(Elsewhere):
    """Lets the second process use the first GPU, too, by gloo."""

    def there(self):
        choose = execution.choose_device
        execution.choose_device = lambda hardware, rank=0: choose(hardware)
        group.BACKENDS["cuda"] = "gloo"


class DiesOnSharedGpu(Failing):
    """Whose second process is killed in an exchange."""

    def there(self):
        if torch.cuda.device_count() < 2:
            SharedGpu.there(self)
        super().there()


def on_gpus(n, **plan):
    """Return the toy configuration for a machine with GPUs."""
    config = configured(**plan)
    hardware = {"n_gpus": max(1, torch.cuda.device_count()), "train_processes": n}
    return config.model_copy(update={"hardware": config.hardware.model_copy(update=hardware)})


@pytest.fixture
def one_gpu(monkeypatch):
    """Let two processes share a GPU, where there are not two."""
    if torch.cuda.device_count() < 2:
        monkeypatch.setitem(group.BACKENDS, "cuda", "gloo")
        monkeypatch.setattr(
            trainer, "choose_processes", lambda hardware, *_: hardware.train_processes
        )
        return SharedGpu()
    return ToyData()


def test_two_processes_compute_what_one_does(one_gpu, tmp_path):
    one, two = Recorder(), Recorder()
    pretrain(on_gpus(1), ToyData(), tmp_path / "1", log=one)
    summary = pretrain(on_gpus(2), one_gpu, tmp_path / "2", log=two)
    assert summary["processes"] == 2
    losses = [[value for _, value in log.series(Metric.LOSS)] for log in (one, two)]
    assert losses[1][:4] == pytest.approx(losses[0][:4], rel=1e-4)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_int8_products_and_bfloat16_learn_alike(one_gpu, tmp_path):
    curves = []
    for n, data in ((1, ToyData()), (2, one_gpu)):
        log = Recorder()
        plan = {"products": "int8", "dtype": "bfloat16", "gate_steps": 0}
        pretrain(on_gpus(n, **plan), data, tmp_path / str(n), log=log)
        curves.append([value for _, value in log.series(Metric.LOSS)])
    assert curves[1] == pytest.approx(curves[0], rel=0.05)
    assert curves[1][-1] < curves[1][0] - 1


def test_a_process_that_dies_in_an_exchange_is_noticed(one_gpu, tmp_path):
    began = time.monotonic()
    with pytest.raises(WorkbenchError, match=KILLED):
        pretrain(on_gpus(2), DiesOnSharedGpu("exchange"), tmp_path, log=Recorder())
    assert time.monotonic() - began < 60
    assert multiprocessing.active_children() == []
    assert float(torch.ones(8, device="cuda").sum()) == 8  # the GPU works on


def test_more_processes_than_gpus_are_refused(tmp_path):
    n = torch.cuda.device_count() + 1
    with pytest.raises(WorkbenchError, match=f"train_processes is {n}, but there are {n - 1} GPUs"):
        pretrain(on_gpus(n, batch_size=4 * n), ToyData(), tmp_path, log=Recorder())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs: NCCL needs two")
def test_every_gpu_trains_when_nothing_is_said(tmp_path):
    summary = pretrain(on_gpus(0), ToyData(), tmp_path, log=Recorder())
    assert summary["processes"] == torch.cuda.device_count()
