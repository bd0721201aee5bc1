"""Bad batches: stop or roll back, which batches are skipped, and that resuming skips the same."""

from __future__ import annotations

import itertools
import json
import math
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file
from test_pretrain import Recorder, ToyData, configured, same_weights, weights_of

from nanochat_lib.data.batches import Recipe
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train.objective import StageOneLoss
from nanochat_lib.train.parallel import step as parts
from nanochat_lib.train.pretrain import pretrain
from nanochat_lib.train.safety import spikes
from nanochat_lib.train.safety.spikes import SpikeLog, is_spike

ROLLBACK = {"on_spike": "rollback", "checkpoint_every": 4, "gate_steps": 0}


class BadBatches(ToyData):
    """Marks some batches, by number; `asked` lists the numbers that training read."""

    def __init__(self, bad=()):
        super().__init__()
        self.bad, self.asked = set(bad), []

    def rows(self, step, recipe, chosen):
        self.asked.append(step)
        rows = super().rows(step, recipe, chosen)
        if step in self.bad:
            rows[:, 0] = 299  # outside the toy language
        return rows


@pytest.fixture
def jumpy(monkeypatch):
    """A loss of NaN for every marked batch."""
    original = parts.stage_one_loss

    def with_nan(*args, **kwargs):
        loss = original(*args, **kwargs)
        if not jumpy_marked[0]:
            return loss
        return StageOneLoss(loss.total * math.nan, loss.task, loss.entropy_term, loss.pdf_mean)

    jumpy_marked = [False]
    forward = LoopLM.forward

    def noting(self, tokens, n_loops=None):
        jumpy_marked[0] = bool((tokens == 299).any())
        return forward(self, tokens, n_loops)

    monkeypatch.setattr(LoopLM, "forward", noting)
    monkeypatch.setattr(parts, "stage_one_loss", with_nan)


def run(folder, data, *, log=None, **plan):
    recorder = log or Recorder()
    pretrain(configured(**(ROLLBACK | plan)), data, folder, log=recorder)
    return recorder


def test_what_counts_as_a_spike():
    assert is_spike(math.nan, 2.0, 1.0)
    assert is_spike(2.0, 2.0, math.inf)
    assert is_spike(5.5, 2.0, 1.0)
    assert not is_spike(4.9, 2.0, 1.0)
    assert not is_spike(9.0, math.nan, 1.0)  # the first step has nothing to compare with


def test_rolling_back_skips_from_the_checkpoint_to_behind_the_bad_batch(jumpy, tmp_path):
    data = BadBatches(bad=[6])
    recorder = run(tmp_path, data)
    assert data.asked == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    (row,) = json.loads((tmp_path / "spikes.json").read_text())
    assert (row["step"], row["resumed_at"]) == (6, 4)
    assert (row["first_skipped"], row["last_skipped"], row["loss"]) == (4, 6, "nan")
    assert len(recorder.series(Metric.LOSS)) == 6 + 8  # six before it, eight after going back
    batch = load_file(tmp_path / row["batch_file"])["tokens"].numpy()
    assert np.array_equal(batch, BadBatches([6]).rows(6, Recipe(8, 16), range(8)))


def test_what_follows_a_rollback_equals_never_having_seen_those_batches(jumpy, tmp_path):
    """Independent: the same run over data from which batches 4 to 6 were taken out by hand."""

    class Without(BadBatches):
        def rows(self, step, recipe, chosen):
            return super().rows(step if step < 4 else step + 3, recipe, chosen)

    rolled = run(tmp_path / "rolled", BadBatches(bad=[6]))
    plain = run(tmp_path / "plain", Without())
    assert same_weights(weights_of(tmp_path / "rolled"), weights_of(tmp_path / "plain"))
    latest = {(step, name): value for step, name, value in rolled.without_times()}
    assert latest == {(step, name): value for step, name, value in plain.without_times()}


@pytest.mark.parametrize("stop_at", [5, 9])
def test_a_resumed_run_skips_the_same_batches(jumpy, tmp_path, stop_at):
    whole = run(tmp_path / "whole", BadBatches(bad=[6]))
    part = Recorder(stop_at, action=lambda: (_ for _ in ()).throw(InterruptedError()))
    with pytest.raises(InterruptedError):  # as abrupt as a kill: nothing is saved
        run(tmp_path / "part", BadBatches(bad=[6]), log=part)
    rest = run(tmp_path / "part", BadBatches(bad=[6]))
    assert same_weights(weights_of(tmp_path / "whole"), weights_of(tmp_path / "part"))
    latest = {(s, n): v for s, n, v in part.without_times() + rest.without_times()}
    assert latest == {(s, n): v for s, n, v in whole.without_times()}


def test_a_bad_first_step_goes_back_to_the_untrained_model(jumpy, tmp_path):
    data = BadBatches(bad=[0])
    run(tmp_path, data)
    assert data.asked == list(range(13))


def test_too_many_rollbacks_stop_with_the_reason(jumpy, tmp_path):
    with pytest.raises(WorkbenchError, match=r"step 4: .*It had gone back 2 times .*loss-spike"):
        run(tmp_path, BadBatches(bad=range(4, 40)), max_rollbacks=2)
    assert len(json.loads((tmp_path / "spikes.json").read_text())) == 2


def test_the_bad_checkpoint_is_passed_over_when_going_back(jumpy, tmp_path, caplog):
    def spoil():
        weights = tmp_path / "checkpoints" / "step_000008" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])

    run(tmp_path, BadBatches(bad=[9]), log=Recorder(9, spoil))
    (row,) = json.loads((tmp_path / "spikes.json").read_text())
    assert row["resumed_at"] == 4
    assert "differs from its checksum" in caplog.text


def test_batches_skipped_are_those_of_a_simple_count(tmp_path):
    log = SpikeLog(tmp_path)
    ranges = [(4, 6), (2, 9), (12, 12)]
    log.spikes = [spikes.Spike(0, "", "", "", "", 0, first, last) for first, last in ranges]
    skipped = {b for first, last in ranges for b in range(first, last + 1)}
    left = [batch for batch in itertools.islice(itertools.count(), 40) if batch not in skipped]
    assert [log.batch_of(step) for step in range(20)] == left[:20]


def test_a_damaged_list_of_spikes_is_refused(tmp_path):
    (tmp_path / "spikes.json").write_text("[{]")
    with pytest.raises(WorkbenchError, match=r"spikes\.json is damaged"):
        SpikeLog(tmp_path)


def test_the_newest_checkpoint_may_be_damaged_when_resuming(tmp_path, caplog):
    whole = run(tmp_path / "whole", ToyData(), on_spike="stop")
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "part" / "checkpoints")
    newest = tmp_path / "part" / "checkpoints" / "step_000012" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    rest = run(tmp_path / "part", ToyData(), on_spike="stop")
    assert "An older one is tried" in caplog.text
    assert rest.series(Metric.LOSS) == whole.series(Metric.LOSS)[8:]
    assert same_weights(weights_of(tmp_path / "whole"), weights_of(tmp_path / "part"))


def test_when_every_checkpoint_is_refused_training_does_not_begin_anew(tmp_path):
    run(tmp_path, ToyData(), on_spike="stop")
    for path in (tmp_path / "checkpoints").glob("step_*/manifest.json"):
        path.unlink()
    with pytest.raises(WorkbenchError, match=r"manifest\.json is missing"):
        run(tmp_path, ToyData(), on_spike="stop")
