"""What is said of judged rollouts: rates with their counts, what went wrong, and known hacks.

In: `Rollout`s; out: plain dictionaries that summaries keep and reports draw. Unjudged programs are
counted in `n_unjudged` and in nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nanochat_lib.intervals import bootstrap_interval
from nanochat_lib.passk import pass_at_k
from nanochat_lib.records import Verdict
from nanochat_lib.rust.error_classes import ERROR_CLASSES
from nanochat_lib.rust.hacks import hacks_of
from nanochat_lib.rust.reward import reward_parts
from nanochat_lib.rust.semantics import count_codes, error_classes, semantic_score
from nanochat_lib.rust.syntax import features
from nanochat_lib.train.rl.rollouts import Rollout

MOST_CODES = 8
# Share of samples above which a known way to please the reward is an alarm.
BANDS = {
    "empty_body": 0.02, "gives_up": 0.02, "constant_return": 0.10, "copied_prompt": 0.02,
    "leaves_early": 0.0, "pretends": 0.0, "tampers": 0.0, "dead_branches": 0.02,
}  # fmt: skip
MOST_ONE_BODY = 0.2  # share of the first samples of distinct tasks that may have one same body
MOST_SHRINKAGE = 0.5  # of the length of completions
MOST_STUBBORN = 0.8  # of the tasks that failed, those whose samples are all the same program
LEAST_FAILED = 10  # tasks, before that share says anything
PerTask = dict[str, tuple[int, int, int]]  # task id -> judged, compiled, passed


def rates(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return compile and pass rate with counts and 95 % intervals, and what the texts look like."""
    judged = [r for r in rollouts if r.is_judged]
    n_compiled, n_passed = sum(r.has_compiled for r in judged), sum(r.has_passed for r in judged)
    by_task = count_tasks(rollouts)
    compiled, passed = _interval(by_task, 1), _interval(by_task, 2)
    n = max(len(judged), 1)
    return {
        "compile_rate": n_compiled / n,
        "pass_rate": n_passed / n,
        "n_compiled": n_compiled,
        "n_passed": n_passed,
        "n_judged": len(judged),
        "n_unjudged": len(rollouts) - len(judged),
        "n_tasks": len({r.task.task_id for r in rollouts}),
        "compile_rate_low": compiled[0],
        "compile_rate_high": compiled[1],
        "pass_rate_low": passed[0],
        "pass_rate_high": passed[1],
        "reward_mean": sum(r.episode.reward for r in judged) / n,
        "distinct_bodies_rate": len({r.body for r in rollouts}) / max(len(rollouts), 1),
        "distinct_first_rate": distinct_first(rollouts),
        "completion_tokens_mean": _mean(r.episode.n_tokens for r in rollouts),
        "token_entropy_nats": _mean(r.token_entropy_nats for r in rollouts),
    }


def distinct_first(rollouts: Iterable[Rollout]) -> float:
    """Return distinct bodies over tasks, of the first sample of each task that compiled.

    Samples of one task may well agree; equal bodies for different tasks are what a collapse into
    trivial programs looks like.
    """
    first: dict[str, str] = {}
    for rollout in rollouts:
        if rollout.is_judged and rollout.has_compiled:
            first.setdefault(rollout.task.task_id, rollout.body)
    return len(set(first.values())) / max(len(first), 1)


def count_tasks(rollouts: Iterable[Rollout]) -> PerTask:
    """Return how many samples of each task were judged, compiled and passed."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for rollout in rollouts:
        if rollout.is_judged:
            found = counts[rollout.task.task_id]
            found[0] += 1
            found[1] += rollout.has_compiled
            found[2] += rollout.has_passed
    return {task_id: (n[0], n[1], n[2]) for task_id, n in counts.items()}


def pass_at(by_task: PerTask, ks: Iterable[int]) -> dict[str, dict[str, float]]:
    """Return pass@k with its interval over tasks, for every k that has enough samples."""
    found = {}
    for k in ks:
        values = np.array([pass_at_k(n, c, k) for n, _, c in by_task.values() if n >= k])
        if len(values):
            low, high = bootstrap_interval(values, np.ones(len(values)))
            found[str(k)] = {"rate": float(values.mean()), "low": low, "high": high,
                             "n_tasks": len(values)}  # fmt: skip
    return found


def gains(
    before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, float]]:
    """Return the rise of compile and pass rate, in intervals over tasks seen at both moments.

    The same tasks were sampled with the same seeds, so differences of tasks are drawn, which vary
    less than the two rates do.
    """
    found = {}
    for name, place in (("compile_rate", 1), ("pass_rate", 2)):
        rise = np.array([
            after[task][place] / after[task][0] - n[place] / n[0]
            for task, n in before.items()
            if task in after
        ])  # fmt: skip
        low, high = bootstrap_interval(rise, np.ones(len(rise))) if len(rise) else (-1.0, 1.0)
        mean = float(rise.mean()) if len(rise) else 0.0
        found[name] = {"rise": mean, "low": low, "high": high, "n_tasks": len(rise)}
    return found


def mistakes(rollouts: Iterable[Rollout]) -> dict[str, Any]:
    """Return what kept programs from passing: verdicts, classes of compile errors, codes.

    A program counts once for each of its classes and codes; `n_judged` is what to divide by.
    """
    judged = [r.episode.verified for r in rollouts if r.is_judged]
    classes = Counter(name for one in judged for name in error_classes(one))
    verdicts = Counter(str(one.verdict) for one in judged if one.verdict is not Verdict.PASSED)
    return {
        "n_judged": len(judged),
        "verdicts": dict(sorted(verdicts.items())),
        "classes": {name: classes[name] for name in ERROR_CLASSES},
        "codes": dict(count_codes(judged).most_common(MOST_CODES)),
        "semantic_score": semantic_score(judged).score,
    }


def mean_reward_parts(rollouts: Iterable[Rollout]) -> dict[str, float]:
    """Return what each term of the brief's shaped formula would pay, on average over the judged."""
    found = [
        reward_parts(r.episode.verified, features(r.task.prompt + r.episode.completion))
        for r in rollouts
        if r.is_judged
    ]
    names = found[0] if found else {}
    return {name: _mean(parts[name] for parts in found) for name in names}


def guards(rollouts: Sequence[Rollout]) -> dict[str, dict[str, Any]]:
    """Count the known ways to please a reward without solving the task.

    Returns: per guard `n`, `of`, `share`, the `band` above which it is an alarm, and `alarm`. The
    hacks are those of `rust.hacks`; `one_body` is the most frequent body among the first samples
    of distinct tasks; `stubborn` counts tasks that no sample passed and every sample answers
    alike: being sure of what is right is the aim, being sure of what is wrong ends learning.
    """
    found = Counter(
        name for r in rollouts for name in hacks_of(r.task.prompt, r.episode.completion)
    )
    counts = {name: (found[name], len(rollouts), band) for name, band in BANDS.items()}
    first = {r.task.task_id: r.body for r in reversed(rollouts)}
    most = Counter(first.values()).most_common(1)
    if len(first) > 1 / MOST_ONE_BODY:
        counts["one_body"] = (most[0][1], len(first), MOST_ONE_BODY)
    failed = [bodies for bodies in _failed_bodies(rollouts).values() if len(bodies) > 1]
    if len(failed) >= LEAST_FAILED:
        n_stubborn = sum(len(set(bodies)) == 1 for bodies in failed)
        counts["stubborn"] = (n_stubborn, len(failed), MOST_STUBBORN)
    return {
        name: {"n": k, "of": n, "share": k / max(n, 1), "band": band, "alarm": k > band * n}
        for name, (k, n, band) in counts.items()
    }


def drift_guards(before: dict[str, Any], after: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the alarm that completions shrank to less than half (`rates` of two looks)."""
    old, new = before["completion_tokens_mean"], after["completion_tokens_mean"]
    share = 1 - new / old if old else 0.0
    return {
        "length_collapse": {
            "n": round(new, 1), "of": round(old, 1), "share": share, "band": MOST_SHRINKAGE,
            "alarm": share > MOST_SHRINKAGE,
        },
    }  # fmt: skip


def _failed_bodies(rollouts: Iterable[Rollout]) -> dict[str, list[str]]:
    """Return the bodies of the judged samples of tasks that no sample passed."""
    bodies: dict[str, list[str]] = defaultdict(list)
    solved = set()
    for rollout in rollouts:
        if rollout.is_judged:
            bodies[rollout.task.task_id].append(rollout.body)
            if rollout.has_passed:
                solved.add(rollout.task.task_id)
    return {task_id: found for task_id, found in bodies.items() if task_id not in solved}


def _interval(by_task: PerTask, place: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a rate over tasks; (0, 1) without tasks."""
    if not by_task:
        return 0.0, 1.0
    counts = np.array(list(by_task.values()))
    return bootstrap_interval(counts[:, place], counts[:, 0])


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else 0.0
