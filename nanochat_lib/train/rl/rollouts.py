"""Stage 3's programs: completions sampled from tasks, and rustc's judgement of them.

In: tasks and a decode engine (`generate`). Out: `Rollout`s, with the tokens that the policy
gradient needs. The gate has no part here: sampling runs all loops (exit_threshold 1), as the policy
update does, so both see the same distribution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from nanochat_lib.config import MaxRLConfig, VerifyConfig
from nanochat_lib.data.tokenizer import END_OF_TEXT_ID, STOP_IDS, encode_prompt
from nanochat_lib.model.request import Decoder, Generation, Sampling
from nanochat_lib.records import Episode, Level, Task, Verdict
from nanochat_lib.rust.programs import assemble, truncate_completion
from nanochat_lib.rust.reward import has_compiled, reward_of
from nanochat_lib.rust.verify import verify


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

    @property
    def body(self) -> str:
        """Return the completion without regard to white space."""
        return " ".join(self.episode.completion.split())


@dataclass(frozen=True)
class Draft:
    """A completion before it is judged."""

    task: Task
    sample_idx: int
    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    completion: str
    token_entropy_nats: float


@dataclass(frozen=True)
class Sampler:
    """A policy ready to complete prompts."""

    engine: Decoder
    tokenizer: Tokenizer
    max_seq_len: int

    def fits(self, task: Task, max_new_tokens: int) -> bool:
        """Return whether a prompt leaves room for a whole completion."""
        used = len(encode_prompt(self.tokenizer, task.prompt))
        return used + max_new_tokens <= self.max_seq_len

    def sample(
        self,
        tasks: Sequence[Task],
        n_samples: int,
        config: MaxRLConfig,
        *,
        seed: int,
        first: int = 0,
    ) -> list[Draft]:
        """Return `n_samples` completions per task, in the order of the tasks.

        Args:
            tasks: all must fit (see `fits`).
            n_samples: completions per task.
            config: temperature and length.
            seed: of the sampling.
            first: place of the first task among all that share the seed: parts of a list of tasks
                are completed as the whole list would be.
        """
        encoded = [(task, encode_prompt(self.tokenizer, task.prompt)) for task in tasks]
        jobs = [(task, ids, i) for task, ids in encoded for i in range(n_samples)]
        offset = (seed << 32) + first * n_samples
        generations = self.engine.generate(
            [ids for _, ids, _ in jobs],
            Sampling(config.max_new_tokens, config.temperature, stop_ids=STOP_IDS),
            seed=[offset + i for i in range(len(jobs))],
        )
        return [self._draft(*job, found) for job, found in zip(jobs, generations, strict=True)]

    def _draft(self, task: Task, ids: list[int], sample_idx: int, found: Generation) -> Draft:
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


def stable_seed(seed: int, purpose: str) -> int:
    """Return a 32-bit seed that depends only on the run's seed and what it is for."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:4], "big")
