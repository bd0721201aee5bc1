"""Run pre-training in child processes that are killed with SIGKILL at chosen moments.

`python kill_driver.py FOLDER SEED`: trains once undisturbed in FOLDER/whole, then once for each of
twenty moments drawn from SEED in FOLDER/<moment>, where the child dies at that moment and another
one goes on. Prints one JSON line per moment. Children are forked before any tensor is computed, so
that a start costs milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from test_pretrain import ToyData, configured

from nanochat_lib.model import checkpoint
from nanochat_lib.runs import create_run, open_run
from nanochat_lib.train import gate
from nanochat_lib.train.pretrain import pretrain

SETTINGS = {
    "total_steps": 40, "checkpoint_every": 6, "eval_every": 5, "gate_steps": 8,
    "warmup_steps": 2, "decay_steps": 10, "on_spike": "rollback",
}  # fmt: skip
BAD_BATCH = 27
N_RANDOM, N_WRITING, N_GATE = 10, 7, 3


class WithBadBatch(ToyData):
    """One batch in another language, whose loss is a spike."""

    def rows(self, step, recipe, chosen):
        rows = super().rows(step, recipe, chosen)
        return 299 - np.arange(rows.size).reshape(rows.shape) % 30 if step == BAD_BATCH else rows


def die():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def die_at_call(owner, name, number, counter):
    """Die before the `number`-th call of functions that share a counter."""
    original = getattr(owner, name)

    def counted(*args, **kwargs):
        counter[0] += 1
        if counter[0] == number:
            die()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def arm(moment):
    """Prepare the death of this process."""
    kind, value = moment
    if kind == "time":
        threading.Timer(value, die).start()
    elif kind == "writing":
        counter = [0]
        for owner, name in ((checkpoint, "save_file"), (checkpoint, "_sync"),
                            (checkpoint, "_write_json"), (checkpoint.os, "replace"),
                            (checkpoint.shutil, "rmtree")):  # fmt: skip
            die_at_call(owner, name, value, counter)
    elif kind == "gate":
        die_at_call(gate, "_gate_step", value, [0])


def train(folder):
    run = open_run(folder.name, folder.parent)
    started = time.monotonic()
    data = WithBadBatch()
    pretrain(run.config, data, run.artifacts("pretrain"), log=run.logger("pretrain"))
    return time.monotonic() - started


def child(folder, moment=None):
    """Train in a forked process; return its exit status and how long it took."""
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            if moment is not None:
                arm(moment)
            train(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    return status, time.monotonic() - started


def new_run(folder, name):
    create_run(configured(**SETTINGS), name, folder)
    return folder / name


def main(folder, seed):
    torch.set_num_threads(1)
    status, seconds = child(new_run(folder, "whole"))
    assert status == 0
    rng = random.Random(seed)
    moments = [("time", rng.uniform(0, seconds)) for _ in range(N_RANDOM)]
    moments += [("writing", n) for n in rng.sample(range(1, 110), N_WRITING)]
    moments += [("gate", n) for n in rng.sample(range(1, SETTINGS["gate_steps"] + 1), N_GATE)]
    for i, moment in enumerate(moments):
        place = new_run(folder, f"moment_{i:02d}")
        first, _ = child(place, moment)
        second, _ = child(place)
        killed = os.WIFSIGNALED(first) and os.WTERMSIG(first) == signal.SIGKILL
        print(json.dumps({"place": place.name, "moment": moment, "killed": killed,
                          "status": second}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
