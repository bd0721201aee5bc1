"""Stage 3: rollouts and their tokens, guards, the policy step, and whole runs that stop and go on.

Whole runs use a judge of a few lines in place of rustc (it likes programs whose body starts with a
lower-case letter), so that learning can be seen in seconds; rustc itself judges in one test.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nanochat_lib.config import HardwareConfig, MaxRLConfig, ModelConfig, RunConfig, VerifyConfig
from nanochat_lib.data.tinyrust.generate import generate
from nanochat_lib.data.tokenizer import END_OF_TEXT_ID, encode_prompt, train_tokenizer
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import load_checkpoint, save_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.request import Generation, Sampling
from nanochat_lib.records import Episode, Level, Metric, Program, Task, Verdict, Verified
from nanochat_lib.train.maxrl import _Trainer, maxrl
from nanochat_lib.train.rl import attempts as attempts_module
from nanochat_lib.train.rl import rollouts as rollouts_module
from nanochat_lib.train.rl.measures import drift_guards, guards, rates
from nanochat_lib.train.rl.policy import Policy, score
from nanochat_lib.train.rl.rollouts import Rollout, Sampler, judge, stable_seed

TASKS = [e.task for e in generate((1,), 400, seed=0)]
PLAN = MaxRLConfig(
    total_steps=4, prompts_per_step=4, rollouts_per_prompt=8, max_new_tokens=8, eval_every=2,
    eval_tasks=6, final_eval_tasks=6, eval_samples=4, checkpoint_every=2, levels=(1,),
    learning_rate=0.02, prompts_per_part=2, dtype="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([e.text for e in generate((1,), 200, seed=0)], 340)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer.save(str(folder / "tokenizer.json"))
    save_checkpoint(
        folder / "final", small_model(), step=0, tokens_seen=7, stage="pretrain",
        tokenizer_json=folder / "tokenizer.json",
    )  # fmt: skip
    return folder / "final"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices gain nothing from threads; on a busy machine their barriers cost seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_model(*, ternary: bool = True) -> LoopLM:
    config = ModelConfig(
        vocab_size=340, d_model=32, n_layers=1, n_loops=2, n_heads=2, n_kv_heads=1, d_ff=64,
        max_seq_len=160, ternary=ternary,
    )  # fmt: skip
    return LoopLM(config, seed=1)


def run_config(**changes: Any) -> RunConfig:
    return RunConfig(maxrl=PLAN.model_copy(update=changes), hardware=HardwareConfig(cpu_threads=1))


def verified(verdict: Verdict, program_id: str = "t") -> Verified:
    return Verified(program_id, verdict, Level.TEST)


def rollout(
    completion: str = "\n    n + 1\n}", verdict: Verdict = Verdict.PASSED, task: Task = TASKS[0],
    tokens: tuple[int, ...] = (5, 6), prompt_ids: tuple[int, ...] = (9, 8, 7),
) -> Rollout:  # fmt: skip
    reward = float(verdict is Verdict.PASSED)
    episode = Episode(task.task_id, 0, completion, verified(verdict), len(tokens), reward=reward)
    return Rollout(task, episode, prompt_ids, tokens, 1.0)


@dataclass
class Scripted:
    """Stands for the decode engine: every prompt is answered by the next text of a list."""

    tokenizer: Any
    texts: list[str]
    calls: list[Sampling] = field(default_factory=list)

    def generate(self, prompts, sampling: Sampling, *, seed: list[int]) -> list[Generation]:
        self.calls.append(sampling)
        found = []
        for i, _ in enumerate(prompts):
            tokens = [*self.tokenizer.encode(self.texts[i % len(self.texts)]).ids, END_OF_TEXT_ID]
            n = len(tokens)
            found.append(Generation(tokens, [2] * n, [0.5] * n, passes=n))
        return found


def test_tokens_after_the_closing_brace_are_left_out(tokenizer) -> None:
    texts = ["    n + 7\n}\nfn other() {}\n", "    n + 7\n}", "    n + 7"]
    sampler = Sampler(Scripted(tokenizer, texts), tokenizer, 160)
    cut, whole, unfinished = sampler.sample([TASKS[0]], 3, PLAN, seed=0)
    assert cut.completion == whole.completion == "\n    n + 7\n}"
    assert tokenizer.decode(list(cut.tokens)).startswith("    n + 7\n}")
    assert not tokenizer.decode(list(cut.tokens[:-1])).startswith("    n + 7\n}")
    assert whole.tokens[-1] == END_OF_TEXT_ID  # the model's own end decided it
    assert unfinished.completion == "\n    n + 7"
    assert len(unfinished.tokens) == len(tokenizer.encode("    n + 7").ids) + 1
    assert cut.prompt_ids == tuple(encode_prompt(tokenizer, TASKS[0].prompt))


def test_sampling_runs_all_loops_at_the_configured_temperature(tokenizer) -> None:
    engine = Scripted(tokenizer, ["    n\n}"])
    Sampler(engine, tokenizer, 160).sample(TASKS[:2], 2, PLAN, seed=3)
    (sampling,) = engine.calls
    assert sampling.exit_threshold == 1.0
    assert sampling.temperature == PLAN.temperature
    assert sampling.stop_ids == frozenset({END_OF_TEXT_ID})


def test_rustc_gives_the_rewards(tokenizer, tmp_path: Path) -> None:
    task = next(t for t in TASKS if t.family == "int_op")
    solution = task.canonical_solution.removeprefix("\n")
    texts = [solution, "    n - 123456\n}", "    n +\n}", "    todo!()\n}"]
    drafts = Sampler(Scripted(tokenizer, texts), tokenizer, 160).sample([task], 4, PLAN, seed=0)
    judged = judge(drafts, PLAN, VerifyConfig(), cache_dir=tmp_path)
    assert [r.episode.reward for r in judged] == [1.0, 0.0, 0.0, 0.0]
    assert [r.has_compiled for r in judged] == [True, True, False, True]
    assert all(r.is_judged for r in judged)
    found = rates(judged)
    assert (found["n_compiled"], found["n_passed"], found["n_judged"]) == (3, 1, 4)


def test_unjudged_programs_are_counted_apart() -> None:
    found = rates(
        [rollout(), rollout(verdict=Verdict.TEST_FAILED), rollout(verdict=Verdict.UNJUDGED)]
    )
    assert found["n_judged"] == 2
    assert found["n_unjudged"] == 1
    assert found["pass_rate"] == 0.5
    assert found["compile_rate"] == 1.0


def test_rates_of_nothing_are_zero_with_zero_counts() -> None:
    found = rates([])
    assert found["n_judged"] == 0
    assert found["pass_rate"] == 0.0


def test_interval_resamples_tasks_and_not_samples() -> None:
    """Ten tasks, each all passed or all failed: as uncertain as ten draws, not eighty."""
    found = rates([rollout(verdict=v, task=t) for t, v in _ten_tasks() for _ in range(8)])
    assert found["pass_rate_low"] <= 0.25
    assert found["pass_rate_high"] >= 0.75
    certain = rates([rollout()] * 5)
    assert (certain["pass_rate_low"], certain["pass_rate_high"]) == (1.0, 1.0)


def _ten_tasks() -> list[tuple[Task, Verdict]]:
    return [
        (task, Verdict.PASSED if i % 2 else Verdict.TEST_FAILED)
        for i, task in enumerate(TASKS[:10])
    ]


@pytest.mark.parametrize(
    ("completion", "guard"),
    [
        ("\n}", "empty_body"),
        ("\n    // nothing\n}", "empty_body"),
        ("\n    todo!()\n}", "gives_up"),
        ("\n    loop { }\n}", "gives_up"),
        ("\n    42\n}", "constant_return"),
        ("\n    Some(3)\n}", "constant_return"),
        (f"\n    {TASKS[0].prompt.splitlines()[-1]}\n}}", "copied_prompt"),
    ],
)
def test_guards_see_the_known_hacks(completion: str, guard: str) -> None:
    found = guards([rollout(completion)])
    assert found[guard]["n"] == 1
    assert found[guard]["alarm"]
    honest = guards([rollout(TASKS[0].canonical_solution)])
    assert not any(entry["n"] for entry in honest.values())


def test_canonical_solutions_set_off_no_guard() -> None:
    solutions = [rollout(t.canonical_solution, task=t) for t in TASKS]
    found = guards(solutions)
    assert not [name for name, entry in found.items() if entry["alarm"]]


def test_shrinking_completions_are_an_alarm() -> None:
    long, short = {"completion_tokens_mean": 40.0}, {"completion_tokens_mean": 10.0}
    assert drift_guards(long, short)["length_collapse"]["alarm"]
    assert not any(entry["alarm"] for entry in drift_guards(short, long).values())


def test_padding_does_not_change_log_probabilities() -> None:
    model = small_model()
    made = [
        rollout(tokens=(5, 6, 300), prompt_ids=(9, 8, 7, 11)),
        rollout(tokens=(4,), prompt_ids=(33,)),
        rollout(tokens=(1, 2, 3, 4, 5), prompt_ids=(12, 13)),
    ]
    log_prob, mask, *_ = score(model, made, temperature=0.7)
    assert mask.sum(1).tolist() == [3, 1, 5]
    for row, where, one in zip(log_prob, mask, made, strict=True):
        ids = torch.tensor([[*one.prompt_ids, *one.tokens]])
        logits = model.logits(model(ids).hidden[-1])[0] / 0.7
        expected = [
            logits[len(one.prompt_ids) - 1 + i].log_softmax(-1)[token]
            for i, token in enumerate(one.tokens)
        ]
        torch.testing.assert_close(row[where], torch.stack(expected), rtol=1e-4, atol=1e-5)


def update(policy: Policy, made: list[Rollout], advantage: list[float]) -> float:
    """Take one whole update; return the norm of its gradient."""
    scale = float(len(made) * PLAN.max_new_tokens)
    policy.begin()
    policy.learn(made, np.array(advantage), scale=scale)
    return policy.step(scale=scale).grad_norm


def test_an_update_makes_good_rollouts_likelier_and_leaves_the_gate_alone() -> None:
    model = small_model()
    policy = Policy(model, PLAN.model_copy(update={"learning_rate": 0.003}))
    gate = {n: p.clone() for n, p in model.named_parameters() if n.startswith("exit_gate")}
    made = [rollout(tokens=(5, 6)), rollout(tokens=(40, 41), verdict=Verdict.TEST_FAILED)]

    def gap() -> float:
        with torch.no_grad():
            good, bad = score(model, made, 1.0).log_prob.sum(1)
        return float(good - bad)

    before = gap()
    assert update(policy, made, [1.0, -1.0]) > 0
    assert gap() > before + 0.01
    for name, parameter in model.named_parameters():
        if name in gate:
            assert torch.equal(parameter, gate[name])


def test_no_advantage_changes_nothing() -> None:
    model = small_model()
    policy = Policy(model, PLAN)
    update(policy, [rollout(), rollout(tokens=(40, 41))], [1.0, -1.0])
    before = {n: p.clone() for n, p in model.named_parameters()}
    assert update(policy, [rollout(), rollout()], [0.0, 0.0]) == 0.0
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_micro_batches_do_not_change_the_step(monkeypatch) -> None:
    weights = []
    for size in (2, 64):
        monkeypatch.setattr("nanochat_lib.train.rl.policy.MICRO_BATCH", size)
        model = small_model(ternary=False)  # rounding to int8 would magnify the last bits
        made = [rollout(tokens=(5 + i, 6), prompt_ids=(3,) * (1 + i)) for i in range(5)]
        policy = Policy(model, PLAN)
        update(policy, made, [1.0, -0.5, 2.0, 0.3, -1.0])
        weights.append(policy.state_tensors())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-6)


@pytest.fixture
def easy_judge(monkeypatch) -> None:
    """A program passes when its body starts with a lower-case letter."""
    prompts = {task.task_id: task.prompt for task in TASKS}

    def verify(programs: list[Program], *_: Any, **__: Any) -> list[Verified]:
        def verdict(program: Program) -> Verdict:
            body = program.source.split(prompts[program.program_id], 1)[1][1:]
            return Verdict.PASSED if body[:1].islower() else Verdict.TEST_FAILED

        return [verified(verdict(p), p.program_id) for p in programs]

    monkeypatch.setattr(rollouts_module, "verify", verify)


def collect(rows: list[tuple[int, dict[str, float]]]):
    return lambda step, values: rows.append((step, values))


def without_seconds(rows: list[tuple[int, dict[str, float]]]) -> list:
    timed = {
        Metric.GENERATE_S, Metric.VERIFY_S, Metric.WAIT_S, Metric.UPDATE_S,
        Metric.COMPLETION_TOKENS_S, Metric.PROGRAMS_S,
    }  # fmt: skip
    return [(s, {k: v for k, v in values.items() if k not in timed}) for s, values in rows]


def test_the_policy_learns_what_the_judge_likes(base, tmp_path, easy_judge) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    config = run_config(total_steps=24, eval_every=12, checkpoint_every=12)
    summary = maxrl(config, base, TASKS, tmp_path, log=collect(rows))
    before, after = summary["before"], summary["after"]
    assert after["pass_rate"] > before["pass_rate"] + 0.3
    assert after["pass_rate_low"] > before["pass_rate_high"]
    assert before["n_judged"] == after["n_judged"] == 6 * 4
    assert [s for s, v in rows if Metric.HELD_OUT_PASS_RATE in v] == [0, 12, 24]
    assert summary["steps"] == 24
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    final = load_checkpoint(tmp_path / "final")
    assert (final.stage, final.step, final.tokens_seen) == ("maxrl", 24, 7)
    assert final.tokenizer_path is not None
    assert set(summary["examples"][0]) >= {
        "task_id", "prompt", "before", "after", "verdict_before", "verdict_after",
    }  # fmt: skip
    assert set(after["by_split"]) >= {"held_parameters", "held_family"}


def test_a_stopped_run_goes_on_as_if_it_had_not(base, tmp_path, easy_judge) -> None:
    straight: list[tuple[int, dict[str, float]]] = []
    whole = maxrl(run_config(), base, TASKS, tmp_path / "whole", log=collect(straight))
    stop, parts = threading.Event(), []

    def log(step: int, values: dict[str, float]) -> None:
        parts.append((step, values))
        if step == 3:
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        maxrl(run_config(), base, TASKS, tmp_path / "cut", log=log, stop=stop)
    assert (tmp_path / "cut/checkpoints/step_000003").is_dir()
    resumed = maxrl(run_config(), base, TASKS, tmp_path / "cut", log=collect(parts))
    assert without_seconds(parts) == without_seconds(straight)
    for key in ("before", "after", "looks", "gains", "examples", "guards", "curriculum"):
        assert resumed[key] == whole[key]
    first, second = (load_checkpoint(tmp_path / name / "final").model for name in ("whole", "cut"))
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("calls", [1, 5], ids=["before the first update", "in an update"])
def test_a_stop_does_not_wait_for_what_is_being_judged(
    base, tmp_path, easy_judge, monkeypatch, calls
) -> None:
    """Sampling and judging are left behind; the run goes on as if it had not been stopped."""
    whole: list = []
    maxrl(run_config(), base, TASKS, tmp_path / "whole", log=collect(whole))
    real, seen, stop = attempts_module.judge, [], threading.Event()

    def slow_judge(*args: Any, **settings: Any) -> Any:
        seen.append(1)
        if len(seen) == calls:
            stop.set()
            time.sleep(5)
        return real(*args, **settings)

    parts: list = []
    with monkeypatch.context() as patched:
        patched.setattr(attempts_module, "judge", slow_judge)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            maxrl(run_config(), base, TASKS, tmp_path / "cut", log=collect(parts), stop=stop)
        assert time.monotonic() - began < 4
    maxrl(run_config(), base, TASKS, tmp_path / "cut", log=collect(parts))
    assert without_seconds(parts) == without_seconds(whole)


def test_only_training_tasks_are_trained_on(base, tmp_path, easy_judge, monkeypatch) -> None:
    trained: set[str] = set()
    learn = Policy.learn

    def spy(self, made, advantage, **settings):
        trained.update(r.task.split for r in made)
        return learn(self, made, advantage, **settings)

    monkeypatch.setattr(Policy, "learn", spy)
    maxrl(run_config(total_steps=2), base, TASKS, tmp_path, log=lambda step, values: None)
    assert trained == {"train"}


@pytest.mark.parametrize(
    ("tasks", "changes", "words"),
    [
        ([], {}, "needs TinyRust tasks of split 'train'"),
        ([t for t in TASKS if t.split == "train"], {}, "split 'held_parameters'"),
        (TASKS, {"levels": (4,)}, "levels"),
        (TASKS, {"max_new_tokens": 150}, "room for maxrl.max_new_tokens"),
    ],
)
def test_impossible_wishes_are_refused(base, tmp_path, tasks, changes, words) -> None:
    with pytest.raises(WorkbenchError, match=words):
        maxrl(run_config(**changes), base, tasks, tmp_path, log=lambda step, values: None)


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path: Path) -> None:
    bare = save_checkpoint(
        tmp_path / "bare", small_model(), step=0, tokens_seen=0, stage="pretrain",
        tokenizer_json=None,
    )  # fmt: skip
    with pytest.raises(WorkbenchError, match=r"tokenizer\.json"):
        maxrl(run_config(), bare, TASKS, tmp_path / "run", log=lambda step, values: None)


def test_seeds_depend_on_purpose() -> None:
    assert stable_seed(0, "update 1") == stable_seed(0, "update 1")
    assert len({stable_seed(s, f"update {i}") for s in range(3) for i in range(20)}) == 60


@pytest.mark.parametrize(("wanted", "expected"), [(True, [0.92, 0.94, 0.94]), (False, [None] * 3)])
def test_the_threshold_rises_while_too_little_compiles(wanted, expected) -> None:
    config = RunConfig.model_validate(
        {"maxrl": {"adjust_reward_threshold": wanted}, "targets": {"compile_rate": 0.8}}
    )
    record: dict = {}
    trainer = SimpleNamespace(config=config, record=record)
    found = []
    for compile_rate in (0.1, 0.5, 0.9):
        _Trainer._adjust_threshold(trainer, compile_rate)
        found.append(record.get("reward_threshold"))
    assert found == [pytest.approx(e) if e else None for e in expected]
