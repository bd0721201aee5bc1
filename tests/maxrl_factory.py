"""What stage 3 writes, made up: its metrics and its summary, in today's shape and in an older one.

The numbers are nobody's measurements; counts, shares and rates agree with each other.
"""

from __future__ import annotations

import random
from typing import Any

from nanochat_lib.records import Metric

N_UPDATES = 12
Row = dict[str, Any]


def maxrl_values(step: int, last: int, noise: random.Random) -> dict[str, float]:
    """Return the metrics of one update, with those of a look at held-out tasks now and then."""
    progress = step / last
    values = {
        Metric.COMPILE_RATE: 0.55 + 0.35 * progress + noise.gauss(0, 0.02),
        Metric.PASS_RATE: 0.25 + 0.4 * progress + noise.gauss(0, 0.02),
        Metric.MIXED_GROUPS: 0.6 - 0.1 * progress,
        Metric.TOKEN_ENTROPY: 0.4 - 0.1 * progress,
        Metric.DISTINCT_BODIES: 0.8 - 0.3 * progress,
        Metric.GENERATE_S: 3.0 + noise.gauss(0, 0.1),
        Metric.VERIFY_S: 4.1 + noise.gauss(0, 0.2),
        Metric.WAIT_S: 0.3 + abs(noise.gauss(0, 0.05)),
        Metric.UPDATE_S: 1.2 + noise.gauss(0, 0.05),
        Metric.COMPLETION_TOKENS_S: 900 + noise.gauss(0, 30),
        Metric.PROGRAMS_S: 16 + noise.gauss(0, 1),
    }
    if step in (1, last) or step % 6 == 0:
        values |= {
            Metric.HELD_OUT_COMPILE_RATE: 0.5 + 0.3 * progress,
            Metric.HELD_OUT_PASS_RATE: 0.2 + 0.33 * progress,
        }
    return values


def maxrl_summary(hostile: str = "") -> Row:
    """Return a finished stage's summary; `hostile` stands where a model's or user's text goes."""
    before, after = whole_look(21, 70), whole_look(51, 88)
    return {
        "before": before,
        "after": after,
        "gains": paired(0.31, 0.19) | {"level1": paired(0.4, 0.1), "level2": paired(0.02, 0.0)},
        "looks": [point(0, "before", 10, 30), point(6, "during", 17, 38),
                  point(12, "after", 26, 44)],
        "examples": [example(), example() | {"after": hostile, "why_before": hostile}],
        "guards": after["guards"] | {
            "length_collapse": guard(22.1, 23.4, 0.06, 0.5),
            "entropy_collapse": guard(0.31, 0.36, 0.31, 0.02),
        },
        "advantage": "maxrl", "reward": "tests", "reward_threshold": 0.9,
        "gate": "frozen; all loops run while sampling and training",
        "steps": N_UPDATES, "samples_per_task": 4,
        "warm_start": {"n_tasks": 32, "n_judged": 256, "n_passed": 80, "n_used": 61, "n_steps": 2},
        "curriculum": [
            family("sum_where", 1, 40, 88, 0.55), family("zip_reduce", 2, 3, 64, 0.08),
            family(f"mine/{hostile}", 0, 1, 8, 0.125), family("never_tried", 3, 0, 0, None),
        ],
        "sandbox": "landlock+seccomp", "n_rollouts": 768, "n_unjudged": 3,
        "seconds": {
            "held_out_generate_s": 9.0, "held_out_verify_s": 14.0, "held_out_wait_s": 6.0,
            "generate_s": 36.0, "verify_s": 49.2, "wait_s": 3.6, "update_s": 14.4,
            "updates_s": 60.0,
        },
    }  # fmt: skip


def whole_look(n_passed: int, n_compiled: int) -> Row:
    """Return what is said before or after: 96 programs of 24 tasks, by level and split."""
    main = rates(n_passed, n_compiled, 96, 24)
    easy, hard = rates(n_passed - 4, n_compiled // 2, 48, 12), rates(4, n_compiled // 2, 48, 12)
    family_ = rates(0, 9, 32, 8)
    return main | {
        "by_level": {"1": easy, "2": hard},
        "by_split": {"held_parameters": main, "held_family": family_},
        "pass_at": {
            str(k): {"rate": min(1.0, (n_passed / 96) * k**0.4), "low": n_passed / 96 - 0.1,
                     "high": min(1.0, (n_passed / 96) * k**0.4 + 0.1), "n_tasks": 24}
            for k in (1, 2, 4)
        },
        "mistakes": mistakes(96, n_passed, n_compiled),
        "guards": {
            "empty_body": guard(1, 96, 1 / 96, 0.02), "pretends": guard(0, 96, 0.0, 0.0),
            "one_body": guard(2, 24, 2 / 24, 0.2),
        },
        "sandbox": "landlock+seccomp",
    }  # fmt: skip


def rates(n_passed: int, n_compiled: int, n: int, n_tasks: int) -> Row:
    """Return the rates of a look with their counts and intervals."""
    passed, compiled = n_passed / n, n_compiled / n
    width = 0.08 if n_passed else 0.0  # a bootstrap over zeros has none
    return {
        "compile_rate": compiled, "pass_rate": passed, "n_compiled": n_compiled,
        "n_passed": n_passed, "n_judged": n, "n_unjudged": 0, "n_tasks": n_tasks,
        "compile_rate_low": compiled - 0.07, "compile_rate_high": min(1.0, compiled + 0.07),
        "pass_rate_low": max(0.0, passed - width), "pass_rate_high": passed + width,
        "reward_mean": passed, "distinct_bodies_rate": 0.7, "distinct_first_rate": 0.9,
        "completion_tokens_mean": 22.5, "token_entropy_nats": 0.35,
    }  # fmt: skip


def point(step: int, moment: str, n_passed: int, n_compiled: int) -> Row:
    """Return a point of the curves: 48 programs of 12 tasks."""
    return rates(n_passed, n_compiled, 48, 12) | {
        "step": step, "moment": moment, "by_level": {"1": n_passed / 48},
        "mistakes": mistakes(48, n_passed, n_compiled),
        "reward_parts": {"base": n_compiled / 48, "complexity": 0.03, "lifetimes": 0.0,
                         "unsafe": 0.0},
        "guards": {"empty_body": 1 / 48 if step == 6 else 0.0, "pretends": 0.0, "one_body": 1 / 12},
        "kl_nats": 0.002 * step, "expected_loops": 1.5, "token_entropy_nats": 0.35 - 0.01 * step,
    }  # fmt: skip


def mistakes(n: int, n_passed: int, n_compiled: int) -> Row:
    """Return what kept programs from passing."""
    n_broken = n - n_compiled
    n_unread = n_broken // 3
    return {
        "n_judged": n,
        "verdicts": {"COMPILE_ERROR": n_broken - n_unread, "PARSE_ERROR": n_unread,
                     "TEST_FAILED": n_compiled - n_passed},
        "classes": {"resolution": n_broken // 4, "types": n_broken // 2, "lifetimes": 0,
                    "ownership": 0, "others": n_unread},
        "codes": {"E0308": n_broken // 2, "E0425": n_broken // 4},
        "semantic_score": (n_passed + n_compiled) / (2 * n),
    }  # fmt: skip


def guard(n: float, of: float, share: float, band: float, *, alarm: bool = False) -> Row:
    """Return one guard as it is counted."""
    return {"n": n, "of": of, "share": share, "band": band, "alarm": alarm}


def paired(passed: float, compiled: float) -> Row:
    """Return the paired differences of both rates, each within 5 points."""
    return {
        f"{kind}_rate": {"rise": rise, "low": rise - 0.05, "high": rise + 0.05, "n_tasks": 24}
        for kind, rise in (("pass", passed), ("compile", compiled))
    }


def family(name: str, level: int, n_passed: int, n_tried: int, recent: float | None) -> Row:
    """Return a row of the curriculum's table."""
    return {
        "family": name, "level": level, "n_tasks": 30, "n_passed": n_passed, "n_tried": n_tried,
        "pass_rate_recent": recent, "weight": 0.25,
    }  # fmt: skip


def example() -> Row:
    """Return a pair of programs for one task."""
    return {
        "task_id": "sum_where/1", "prompt": "fn sum(values: &[i32]) -> i32 {",
        "before": "\n    values.len()\n}", "after": "\n    values.iter().sum()\n}",
        "verdict_before": "COMPILE_ERROR", "verdict_after": "PASSED",
        "why_before": "mismatched types", "why_after": "",
    }  # fmt: skip


def old_summary() -> Row:
    """Return a summary as it was before looks, gains, pass@k and the curriculum were kept."""
    found = maxrl_summary()
    kept = {
        when: {k: v for k, v in found[when].items() if k not in ("pass_at", "mistakes", "guards")}
        for when in ("before", "after")
    }
    return kept | {
        "examples": found["examples"],
        "guards": {"empty_body": guard(1, 96, 1 / 96, 0.02)},
        "advantage": "maxrl",
        "steps": N_UPDATES,
        "n_unjudged": 0,
        "seconds": {"generate_s": 36.0, "verify_s": 49.2, "update_s": 14.4},
    }
