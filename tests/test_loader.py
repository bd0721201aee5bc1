"""The loader: batches that depend on the step alone, however they are prepared and shared out."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from nanochat_lib.config import HardwareConfig
from nanochat_lib.data.batches import Recipe, TokenData
from nanochat_lib.data.loader import Loader
from nanochat_lib.data.shards import write_index, write_shard
from nanochat_lib.data.tokenizer import train_tokenizer
from nanochat_lib.errors import WorkbenchError

RECIPE = Recipe(batch_size=6, seq_len=16, seed=5, tinyrust_share=0.4)
TEXTS = {
    f"{kind}_{split}": [f"fn {kind}_{split}_{i}(x: i32) -> i32 {{ x + {i} }}" for i in range(30)]
    for kind in ("real", "tinyrust")
    for split in ("train", "validation")
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TokenData:
    folder = tmp_path_factory.mktemp("preprocess")
    shards = folder / "shards"
    shards.mkdir()
    tokenizer = train_tokenizer([t for texts in TEXTS.values() for t in texts], 320)
    infos = {n: write_shard(shards / f"{n}.bin", t, tokenizer) for n, t in TEXTS.items()}
    write_index(shards, infos)
    return TokenData.open(folder)


def truth(data: TokenData, step: int) -> np.ndarray:
    recipe = vars(RECIPE)
    return data.batch(step, **recipe)


def loader(data: TokenData, n_workers: int = 0, **ranks: int) -> Loader:
    hardware = HardwareConfig(loader_workers=n_workers, prefetch_factor=3, pin_memory=True)
    return Loader(data, RECIPE, hardware, **ranks)


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_any_start_gives_the_batches_of_an_uninterrupted_run(data, n_workers) -> None:
    """Sixty steps are several epochs; the second loader starts in the middle of one."""
    running, resumed = loader(data, n_workers), loader(data, n_workers)
    rows = [running.batch(step).numpy() for step in range(60)]
    assert all((rows[step] == truth(data, step)).all() for step in range(60))
    assert all((resumed.batch(step).numpy() == rows[step]).all() for step in range(37, 60))
    assert (resumed.batch(3).numpy() == rows[3]).all()  # and back
    running.close()
    assert (running.batch(11).numpy() == rows[11]).all()
    running.close()
    resumed.close()


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 6])
def test_the_ranks_together_see_the_batch_of_one_process(data, n_ranks) -> None:
    ranks = [loader(data, rank=rank, n_ranks=n_ranks) for rank in range(n_ranks)]
    for step in range(12):
        shares = [one.batch(step).numpy() for one in ranks]
        assert {len(share) for share in shares} == {RECIPE.batch_size // n_ranks}
        assert (np.concatenate(shares) == truth(data, step)).all()


def test_another_process_maps_the_shards_too(data) -> None:
    """It is sent where they lie, not what they hold."""
    sent = pickle.dumps(data)
    n_bytes = sum(found.tokens.nbytes for found in data.documents.values())
    received = pickle.loads(sent)
    assert len(sent) < n_bytes / 2
    assert (truth(received, 7) == truth(data, 7)).all()
    assert received.infos == data.infos


def test_ranks_that_cannot_share_a_batch_are_refused(data) -> None:
    for rank, n_ranks in ((0, 4), (2, 2), (-1, 2)):
        with pytest.raises(WorkbenchError, match="cannot be shared"):
            loader(data, rank=rank, n_ranks=n_ranks)


@pytest.mark.parametrize("n_workers", [0, 1])
def test_loading_leaves_the_random_numbers_of_training_alone(data, n_workers) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = loader(data, n_workers)
    for step in range(4):
        one.batch(step)
    one.close()
    assert (torch.get_rng_state() == before).all()
