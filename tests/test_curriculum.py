"""Which tasks a policy tries, which are held out, and sampling while others are judged."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from test_maxrl import PLAN, TASKS, rollout

from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Metric, Verdict
from nanochat_lib.train.execution import Abandoned
from nanochat_lib.train.rl import attempts as attempts_module
from nanochat_lib.train.rl import measures
from nanochat_lib.train.rl.attempts import MOST_WAITING, Attempts
from nanochat_lib.train.rl.curriculum import LEAST_WEIGHT, Curriculum, split_tasks

EASY, HARD = TASKS[0], next(t for t in TASKS if t.family != TASKS[0].family)


def tried(task, n_passed, n):
    verdicts = [Verdict.PASSED] * n_passed + [Verdict.TEST_FAILED] * (n - n_passed)
    return [rollout(task=task, verdict=verdict) for verdict in verdicts]


@pytest.mark.parametrize(("n_passed", "n"), [(0, 8), (3, 8), (8, 8), (40, 80)])
def test_a_family_is_drawn_by_the_chance_that_its_rollouts_differ(n_passed, n) -> None:
    """Enumerated: of all outcomes of 4 rollouts, those with both passes and failures."""
    curriculum = Curriculum([EASY, HARD], 4, {})
    curriculum.learn(tried(EASY, n_passed, n))
    p = (n_passed + 1) / (n + 2)
    mixed = sum(
        math.prod(p if passed else 1 - p for passed in outcome)
        for outcome in itertools.product((0, 1), repeat=4)
        if 0 < sum(outcome) < 4
    )
    assert curriculum.weight(EASY.family) == pytest.approx(mixed + LEAST_WEIGHT)


def test_hopeless_and_solved_families_are_tried_less_but_never_dropped() -> None:
    curriculum = Curriculum([EASY, HARD], 8, {})
    for _ in range(12):
        curriculum.learn(tried(EASY, 8, 8))
        curriculum.learn(tried(HARD, 4, 8))
    drawn = Counter(task.family for task in curriculum.choose(2000, seed="a"))
    assert 0 < drawn[EASY.family] < drawn[HARD.family] / 3
    share = next(row["weight"] for row in curriculum.table() if row["family"] == EASY.family)
    assert drawn[EASY.family] / 2000 == pytest.approx(share, abs=0.03)


def test_old_results_are_forgotten() -> None:
    curriculum = Curriculum([EASY], 8, {})
    for _ in range(40):
        curriculum.learn(tried(EASY, 0, 8))
    hopeless = curriculum.weight(EASY.family)
    for _ in range(8):
        curriculum.learn(tried(EASY, 4, 8))
    assert curriculum.weight(EASY.family) > 3 * hopeless
    (row,) = curriculum.table()
    assert (row["n_passed"], row["n_tried"]) == (32, 48 * 8)


def test_draws_follow_from_seed_and_state_alone() -> None:
    state: dict = {}
    first = Curriculum(TASKS, 8, state)
    first.learn(tried(EASY, 2, 8))
    again = Curriculum(TASKS, 8, dict(state))
    assert first.choose(20, seed="7 tasks 3") == again.choose(20, seed="7 tasks 3")
    assert first.choose(20, seed="7 tasks 3") != first.choose(20, seed="7 tasks 4")


def test_unjudged_rollouts_are_not_tries() -> None:
    curriculum = Curriculum([EASY], 8, {})
    curriculum.learn([rollout(task=EASY, verdict=Verdict.UNJUDGED)] * 4)
    (row,) = curriculum.table()
    assert (row["n_tried"], row["pass_rate_recent"]) == (0, None)


def leveled():
    return [
        replace(TASKS[0], task_id=f"{split} {level} {i}", prompt=f"{split}{level}{i}",
                split=split, level=level)
        for split in ("train", "held_parameters", "held_family")
        for level, n in ((1, 50), (2, 50), (3, 4))
        for i in range(n)
    ]  # fmt: skip


def test_held_out_tasks_take_every_level_in_turn() -> None:
    train, held_out = split_tasks(leveled(), (1, 2, 3), 30, seed=0)
    assert {task.split for task in train} == {"train"}
    main = held_out["held_parameters"]
    assert Counter(task.level for task in main) == {1: 13, 2: 13, 3: 4}
    assert Counter(task.level for task in main[:9]) == {1: 3, 2: 3, 3: 3}
    assert len(held_out["held_family"]) == 10
    assert split_tasks(leveled(), (1, 2, 3), 30, seed=0)[1] == held_out
    assert split_tasks(leveled(), (1, 2, 3), 30, seed=1)[1] != held_out


def test_levels_not_asked_for_are_left_out() -> None:
    train, held_out = split_tasks(leveled(), (2,), 30, seed=0)
    assert {task.level for task in [*train, *held_out["held_parameters"]]} == {2}
    with pytest.raises(WorkbenchError, match="split 'train'"):
        split_tasks(leveled(), (5,), 30, seed=0)


def test_gains_are_paired_by_task() -> None:
    before = {"a": (4, 4, 0), "b": (4, 2, 2), "gone": (1, 1, 1)}
    after = {"a": (4, 4, 2), "b": (2, 2, 2)}
    found = measures.gains(before, after)
    assert found["pass_rate"]["rise"] == pytest.approx((0.5 + 0.5) / 2)
    assert found["compile_rate"]["rise"] == pytest.approx((0 + 0.5) / 2)
    assert (found["pass_rate"]["low"], found["pass_rate"]["high"]) == (0.5, 0.5)
    assert found["pass_rate"]["n_tasks"] == 2


def test_equal_bodies_for_different_tasks_are_a_collapse() -> None:
    others = [replace(EASY, task_id=f"t{i}") for i in range(10)]
    same = [rollout(task=task) for task in others]
    assert measures.distinct_first(same) == pytest.approx(0.1)
    assert measures.guards(same)["one_body"]["alarm"]
    varied = [rollout(task=task, completion=f"\n    n + {i}\n}}") for i, task in enumerate(others)]
    assert measures.distinct_first(varied) == 1.0
    assert not measures.guards(varied)["one_body"]["alarm"]
    assert measures.distinct_first([rollout(task=EASY)] * 8) == 1.0  # one task: may well agree


@dataclass
class Slow:
    """Samples at once, and is judged slowly; notes the order of things."""

    events: list
    judge_s: float = 0.0

    def sample(self, tasks, n_samples, plan, *, seed, first):
        self.events.append(("sampled", first, time.monotonic()))
        return [(task, i) for task in tasks for i in range(n_samples)]

    def judge(self, drafts, plan, verify, *, cache_dir, workers):
        time.sleep(self.judge_s)
        self.events.append(("judged", drafts[0][0], time.monotonic()))
        return [rollout(task=task) for task, _ in drafts]


def attempts_with(slow, monkeypatch, is_stopping=lambda: False) -> Attempts:
    monkeypatch.setattr(attempts_module, "judge", slow.judge)
    return Attempts(slow, VerifyConfig(), None, None, is_stopping)


def test_parts_are_sampled_while_earlier_ones_are_judged(monkeypatch) -> None:
    slow, seconds = Slow([], judge_s=0.2), Counter()
    plan = PLAN.model_copy(update={"prompts_per_part": 2})
    found = attempts_with(slow, monkeypatch).all(TASKS[:6], 2, plan, seed=0, seconds=seconds)
    assert [r.task for r in found] == [t for t in TASKS[:6] for _ in range(2)]
    kinds = [kind for kind, *_ in slow.events]
    assert kinds == ["sampled"] * 3 + ["judged"] * 3
    assert seconds[Metric.VERIFY_S] >= 0.6
    assert seconds[Metric.WAIT_S] <= seconds[Metric.VERIFY_S] + 0.2


def test_no_more_than_a_few_parts_wait_for_the_judge(monkeypatch) -> None:
    slow, seconds = Slow([], judge_s=0.03), Counter()
    plan = PLAN.model_copy(update={"prompts_per_part": 1})
    attempts_with(slow, monkeypatch).all(TASKS[:12], 1, plan, seed=0, seconds=seconds)
    ahead = most = 0
    for kind, *_ in slow.events:
        ahead += 1 if kind == "sampled" else -1
        most = max(most, ahead)
    assert most <= MOST_WAITING + 1


def test_a_stop_leaves_the_judge_behind(monkeypatch) -> None:
    slow, stop = Slow([], judge_s=3.0), threading.Event()
    attempts = attempts_with(slow, monkeypatch, stop.is_set)
    began = time.monotonic()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(Abandoned):
        attempts.all(TASKS[:4], 1, PLAN, seed=0, seconds=Counter())
    assert time.monotonic() - began < 2


def test_being_sure_of_what_is_wrong_is_an_alarm() -> None:
    tasks = [replace(EASY, task_id=f"t{i}") for i in range(12)]

    def looked(n_stubborn: int, n_solved: int = 0):
        made = []
        for i, task in enumerate(tasks):
            for k in range(4):
                body = f"\n    n + {i}{'' if i < n_stubborn else k}\n}}"
                verdict = Verdict.PASSED if i >= 12 - n_solved and not k else Verdict.TEST_FAILED
                made.append(rollout(task=task, completion=body, verdict=verdict))
        return measures.guards(made)

    assert looked(10)["stubborn"] == {"n": 10, "of": 12, "share": 10 / 12, "band": 0.8,
                                      "alarm": True}  # fmt: skip
    assert not looked(9)["stubborn"]["alarm"]
    assert looked(0, n_solved=2)["stubborn"]["of"] == 10
    assert "stubborn" not in looked(0, n_solved=3)  # too few failed to say anything


def test_closing_ends_the_threads(monkeypatch) -> None:
    attempts = attempts_with(Slow([]), monkeypatch)
    attempts.all(TASKS[:2], 1, PLAN, seed=0, seconds=Counter())
    mine = {*attempts._sampling._threads, *attempts._judging._threads}
    attempts.close()
    for thread in mine:
        thread.join(timeout=5)
    assert len(mine) == 2
    assert not any(thread.is_alive() for thread in mine)
