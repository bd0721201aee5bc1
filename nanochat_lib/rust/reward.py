"""Rewards of stage 3: the binary success, and the brief's shaped formula with its hacks known.

Input: a `Verified` and the source it judges. Output: a number, or None where the program could not
be judged (such an attempt is left out, never scored zero). Source: the brief, "Reward computation":
`base + complexity_bonus * cyclomatic + lifetime_bonus * proper_lifetimes - unsafe_penalty *
unsafe_blocks` for code that compiles. How we differ: the counted terms are capped, because nothing
else stops a program from growing them without end; code that does not compile earns 0.

Known hacks of the shaped formula, each a test: an empty file earns the base, dead branches and
unused lifetimes earn bonuses, failing every test costs nothing (`todo!()`, a constant, `exit(0)`
and a printed success earn what honest work earns). Hence `tests` is the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nanochat_lib.records import Level, Verdict, Verified
from nanochat_lib.rust.syntax import SyntaxFeatures, features


@dataclass(frozen=True)
class RewardCoefficients:
    """Weights of the shaped reward, in units of reward."""

    base: float = 1.0  # for compiling at all
    complexity_bonus: float = 0.02  # per unit of cyclomatic complexity
    lifetime_bonus: float = 0.05  # per explicit lifetime in code that compiles
    unsafe_penalty: float = 0.2  # per unsafe block
    most_complexity: int = 10
    most_lifetimes: int = 4


def success(verified: Verified) -> bool:
    """Return whether tests ran and all passed; the default success of stage 3."""
    return verified.verdict is Verdict.PASSED and verified.level is Level.TEST


def reward_parts(
    verified: Verified,
    syntax: SyntaxFeatures,
    coefficients: RewardCoefficients | None = None,
) -> dict[str, float]:
    """Return what each term of the brief's formula pays; all 0 for code that does not compile.

    Example: compiles, complexity 3, no lifetime, one unsafe block ->
    base 1, complexity 0.02 * 3, lifetimes 0, unsafe -0.2.
    """
    weights = coefficients or RewardCoefficients()
    complexity = min(syntax.cyclomatic_complexity, weights.most_complexity)
    lifetimes = min(syntax.explicit_lifetimes, weights.most_lifetimes)
    parts = {
        "base": weights.base,
        "complexity": weights.complexity_bonus * complexity,
        "lifetimes": weights.lifetime_bonus * lifetimes,
        "unsafe": -weights.unsafe_penalty * syntax.unsafe_blocks,
    }
    return parts if has_compiled(verified) else dict.fromkeys(parts, 0.0)


def shaped_reward(
    verified: Verified,
    syntax: SyntaxFeatures,
    coefficients: RewardCoefficients | None = None,
) -> float:
    """Return the brief's reward for a program that was built; 0 for one that does not compile.

    Example: compiles, complexity 3, no lifetime, one unsafe block ->
    1 + 0.02 * 3 - 0.2 * 1 = 0.86.
    """
    return sum(reward_parts(verified, syntax, coefficients).values())


def has_compiled(verified: Verified) -> bool:
    """Return whether a full build succeeded, whatever happened when it ran."""
    stopped = verified.verdict in (Verdict.TIMEOUT, Verdict.RESOURCE_LIMIT)
    if stopped:
        return verified.level is Level.TEST and not verified.detail.startswith("rustc")
    return verified.verdict.compiled


def reward_of(
    verified: Verified,
    source: str,
    *,
    kind: Literal["tests", "shaped"] = "tests",
    coefficients: RewardCoefficients | None = None,
) -> float | None:
    """Return the reward of one attempt, or None when it could not be judged.

    Args:
        verified: judgement at level `test`.
        source: the text whose style is counted: the completed function, without its tests.
        kind: `tests`: 1.0 when tests ran and all passed, else 0.0; `shaped`: the formula above.
        coefficients: weights of the shaped reward.
    """
    if verified.verdict is Verdict.UNJUDGED:
        return None
    if kind == "tests":
        return float(success(verified))
    return shaped_reward(verified, features(source), coefficients)
