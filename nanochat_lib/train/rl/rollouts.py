"""Stage 3's programs: sample completions of tasks, let rustc judge them, count what came out.

In: tasks and a decode engine (`generate`). Out: `Rollout`s, with the tokens that the policy
gradient needs, and rates with their counts. The gate has no part here: sampling runs all loops
(exit_threshold 1), as the policy update does, so both see the same distribution.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from nanochat_lib.config import MaxRLConfig, VerifyConfig
from nanochat_lib.data.tokenizer import END_OF_TEXT_ID, encode_prompt
from nanochat_lib.intervals import bootstrap_interval
from nanochat_lib.records import Episode, Level, Task, Verdict
from nanochat_lib.rust.hacks import hacks_of
from nanochat_lib.rust.programs import assemble, truncate_completion
from nanochat_lib.rust.reward import has_compiled, reward_of
from nanochat_lib.rust.verify import verify


class Generates(Protocol):
    """What is used of `model.engine.Engine`."""

    def generate(self, prompts: list[list[int]], **settings: Any) -> list[Any]:
        """Return one generation (tokens, token_entropy) per prompt."""
        ...


@dataclass(frozen=True)
class Rollout:
    """One sampled program with its judgement."""

    task: Task
    episode: Episode
    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]  # those that decided the program: up to its last brace
    token_entropy_nats: float  # mean over the sampled tokens

    @property
    def is_judged(self) -> bool:
        """Return whether rustc and the tests gave a verdict."""
        return self.episode.verified.verdict is not Verdict.UNJUDGED

    @property
    def has_compiled(self) -> bool:
        """Return whether the program was built."""
        return has_compiled(self.episode.verified)

    @property
    def has_passed(self) -> bool:
        """Return whether all tests passed, whatever the reward is."""
        return self.episode.verified.verdict is Verdict.PASSED


@dataclass(frozen=True)
class Sampler:
    """A policy ready to complete prompts."""

    engine: Generates
    tokenizer: Tokenizer
    max_seq_len: int

    def fits(self, task: Task, max_new_tokens: int) -> bool:
        """Return whether a prompt leaves room for a whole completion."""
        used = len(encode_prompt(self.tokenizer, task.prompt))
        return used + max_new_tokens <= self.max_seq_len

    def sample(
        self, tasks: Sequence[Task], n_samples: int, config: MaxRLConfig, *, seed: int
    ) -> list[Draft]:
        """Return `n_samples` completions per task, in the order of the tasks.

        Args:
            tasks: all must fit (see `fits`).
            n_samples: completions per task.
            config: temperature and length.
            seed: of the sampling.
        """
        encoded = [(task, encode_prompt(self.tokenizer, task.prompt)) for task in tasks]
        jobs = [(task, ids, i) for task, ids in encoded for i in range(n_samples)]
        generations = self.engine.generate(
            [ids for _, ids, _ in jobs],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=seed,
            stop_ids=frozenset({END_OF_TEXT_ID}),
            exit_threshold=1.0,
        )
        return [self._draft(*job, found) for job, found in zip(jobs, generations, strict=True)]

    def _draft(self, task: Task, ids: list[int], sample_idx: int, found: Any) -> Draft:
        tokens = tuple(found.tokens)
        text = "\n" + self._decode(tokens)
        completion = truncate_completion(text, task.stop_tokens)
        decided = self._tokens_up_to(tokens, len(completion), is_cut=completion != text)
        entropy = found.token_entropy[: max(decided, 1)]
        mean_entropy = float(np.mean(entropy)) if len(entropy) else 0.0
        return Draft(task, sample_idx, tuple(ids), tokens[:decided], completion, mean_entropy)

    def _tokens_up_to(self, tokens: tuple[int, ...], n_chars: int, *, is_cut: bool) -> int:
        """Return how many tokens decide the first `n_chars` of the completion.

        What comes after the closing brace decides nothing, so leaving its tokens out of the
        gradient keeps the estimate unbiased and makes it less noisy. A completion that was not
        cut was decided by every token, the end of text included.
        """
        low, high = 0, len(tokens)
        while is_cut and low < high:
            middle = (low + high) // 2
            if len("\n" + self._decode(tokens[:middle])) < n_chars:
                low = middle + 1
            else:
                high = middle
        return high

    def _decode(self, tokens: tuple[int, ...]) -> str:
        return self.tokenizer.decode([token for token in tokens if token != END_OF_TEXT_ID])


@dataclass(frozen=True)
class Draft:
    """A completion before it is judged."""

    task: Task
    sample_idx: int
    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    completion: str
    token_entropy_nats: float


def judge(
    drafts: Sequence[Draft],
    config: MaxRLConfig,
    verify_config: VerifyConfig,
    *,
    cache_dir: Path | None,
    workers: int | None = None,
) -> list[Rollout]:
    """Build the programs, run their tests and give rewards; the order is kept.

    The reward is 1 where the configured reward reaches `reward_threshold`, else 0: the estimators
    need a binary one. Programs that could not be judged have reward 0 and `is_judged` False.
    """
    programs = [assemble(draft.task, draft.completion) for draft in drafts]
    verdicts = verify(
        programs, Level.TEST, config=verify_config, cache_dir=cache_dir, workers=workers
    )
    rollouts = []
    for draft, verified in zip(drafts, verdicts, strict=True):
        task = draft.task
        source = task.prompt + draft.completion
        value = reward_of(verified, source, kind=config.reward)
        reward = float(value is not None and value >= config.reward_threshold)
        episode = Episode(
            task.task_id, draft.sample_idx, draft.completion, verified, len(draft.tokens),
            reward=reward,
        )  # fmt: skip
        rollouts.append(
            Rollout(task, episode, draft.prompt_ids, draft.tokens, draft.token_entropy_nats)
        )
    return rollouts


def rates(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return compile and pass rate with their counts, and what the texts look like.

    Unjudged programs are counted in `n_unjudged` and in nothing else.
    """
    judged = [r for r in rollouts if r.is_judged]
    n_compiled, n_passed = sum(r.has_compiled for r in judged), sum(r.has_passed for r in judged)
    low, high = interval_over_tasks(judged)
    n = max(len(judged), 1)
    return {
        "compile_rate": n_compiled / n,
        "pass_rate": n_passed / n,
        "n_compiled": n_compiled,
        "n_passed": n_passed,
        "n_judged": len(judged),
        "n_unjudged": len(rollouts) - len(judged),
        "n_tasks": len({r.task.task_id for r in rollouts}),
        "pass_rate_low": low,
        "pass_rate_high": high,
        "reward_mean": sum(r.episode.reward for r in judged) / n,
        "distinct_bodies_rate": len({_squeezed(r) for r in rollouts}) / max(len(rollouts), 1),
        "completion_tokens_mean": _mean(r.episode.n_tokens for r in rollouts),
        "token_entropy_nats": _mean(r.token_entropy_nats for r in rollouts),
    }


def interval_over_tasks(rollouts: Iterable[Rollout]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the pass rate over tasks; (0, 1) without rollouts."""
    by_task: dict[str, list[int]] = defaultdict(list)
    for rollout in rollouts:
        by_task[rollout.task.task_id].append(rollout.has_passed)
    if not by_task:
        return 0.0, 1.0
    counts = np.array([(sum(passed), len(passed)) for passed in by_task.values()])
    return bootstrap_interval(counts[:, 0], counts[:, 1])


def guards(rollouts: Sequence[Rollout]) -> dict[str, dict[str, Any]]:
    """Count the known ways to please a reward without solving the task.

    Returns: per guard `n`, `of`, `share`, the `band` above which it is an alarm, and `alarm`.
    """
    found = Counter(
        name for r in rollouts for name in hacks_of(r.task.prompt, r.episode.completion)
    )
    n_same = len(rollouts) - len({(r.task.task_id, _squeezed(r)) for r in rollouts})
    counts = {
        "empty_body": (found["empty_body"], 0.02),
        "gives_up": (found["gives_up"], 0.02),
        "constant_return": (found["constant_return"], 0.10),
        "copied_prompt": (found["copied_prompt"], 0.02),
        "duplicate_of_same_task": (n_same, 0.90),
    }
    n = max(len(rollouts), 1)
    return {
        name: {"n": k, "of": len(rollouts), "share": k / n, "band": band, "alarm": k / n > band}
        for name, (k, band) in counts.items()
    }


def length_guard(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return an alarm when completions shrank below half their length (`rates` of two looks)."""
    old, new = before["completion_tokens_mean"], after["completion_tokens_mean"]
    share = 1 - new / old if old else 0.0
    return {"n": round(new, 1), "of": round(old, 1), "share": share, "band": 0.5,
            "alarm": share > 0.5}  # fmt: skip


def _squeezed(rollout: Rollout) -> str:
    return " ".join(rollout.episode.completion.split())


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else 0.0
