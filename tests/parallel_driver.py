"""Train by two processes and die of SIGKILL at step 3.

`python parallel_driver.py FOLDER` prints the other process's id and the folder where both met.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from test_parallel import shared
from test_pretrain import Recorder, ToyData

from nanochat_lib.train.parallel import ranks
from nanochat_lib.train.pretrain import pretrain


def main(folder: Path) -> None:
    met = []
    original = ranks.tempfile.TemporaryDirectory
    ranks.tempfile.TemporaryDirectory = lambda prefix: met.append(original(prefix=prefix)) or met[0]

    def die() -> None:
        (other,) = multiprocessing.active_children()
        print(json.dumps({"pid": other.pid, "folder": met[0].name}), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    pretrain(shared(), ToyData(), folder, log=Recorder(3, die))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
