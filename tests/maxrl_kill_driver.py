"""Run stage 3 in child processes that are killed with SIGKILL at chosen moments.

`python maxrl_kill_driver.py FOLDER SEED`: as `kill_driver.py` does for pre-training. The judge is a
function of the program's text in place of rustc, so that a run takes seconds.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import kill_driver
import torch
from test_maxrl import TASKS, run_config, small_model, verified

from nanochat_lib.data.tinyrust.generate import generate
from nanochat_lib.data.tokenizer import train_tokenizer
from nanochat_lib.model.checkpoint import save_checkpoint
from nanochat_lib.records import Verdict
from nanochat_lib.runs import create_run, open_run
from nanochat_lib.train.maxrl import maxrl
from nanochat_lib.train.rl import rollouts

PLAN = {
    "total_steps": 12, "eval_every": 3, "checkpoint_every": 4, "warm_start_tasks": 6,
    "inner_steps": 2, "kl_weight": 0.01,
}  # fmt: skip
N_RANDOM, N_WRITING = 7, 5


def verify(programs, *_, **__):
    """Pass a third of the programs, by their text."""
    verdicts = (Verdict.PASSED, Verdict.TEST_FAILED, Verdict.COMPILE_ERROR)
    return [verified(verdicts[sum(p.source.encode()) % 3], p.program_id) for p in programs]


def train(folder):
    run, started = open_run(folder.name, folder.parent), time.monotonic()
    rollouts.verify = verify
    base = folder.parent / "base" / "final"
    maxrl(run.config, base, TASKS, run.artifacts("maxrl"), log=run.logger("maxrl"))
    return time.monotonic() - started


def new_run(folder, name):
    create_run(run_config(**PLAN), name, folder)
    return folder / name


def make_base(folder):
    folder.mkdir()
    tokenizer = train_tokenizer([e.text for e in generate((1,), 200, seed=0)], 340)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_checkpoint(
        folder / "final", small_model(), step=0, tokens_seen=7, stage="pretrain",
        tokenizer_json=folder / "tokenizer.json",
    )  # fmt: skip


def main(folder, seed):
    torch.set_num_threads(1)
    kill_driver.train = train
    make_base(folder / "base")
    status, seconds = kill_driver.child(new_run(folder, "whole"))
    assert status == 0
    rng = random.Random(seed)
    moments = [("time", rng.uniform(0, seconds)) for _ in range(N_RANDOM)]
    moments += [("writing", n) for n in rng.sample(range(1, 30), N_WRITING)]
    for i, moment in enumerate(moments):
        place = new_run(folder, f"moment_{i:02d}")
        first, _ = kill_driver.child(place, moment)
        second, _ = kill_driver.child(place)
        print(json.dumps({"place": place.name, "moment": moment, "killed": bool(first),
                          "status": second}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
