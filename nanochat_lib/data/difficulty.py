"""Difficulty of a piece of Rust: easy, medium or hard, from counters of its syntax tree.

Input: `SyntaxFeatures`. Output: a class. This module is the only home of the definition: one point
for every mark of `POINTS` that is reached, and the class by the sum. The marks name what makes Rust
harder to write than to read: length, branches, generics, lifetimes, unsafe code. They are absolute,
so the class of a program does not depend on the corpus it is in.
"""

from __future__ import annotations

from nanochat_lib.rust.syntax import SyntaxFeatures

CLASSES = ("easy", "medium", "hard")
# (counter, value from which it earns a point)
POINTS: tuple[tuple[str, int], ...] = (
    ("n_lines", 9),
    ("n_lines", 25),
    ("n_branches", 1),
    ("n_branches", 4),
    ("max_nesting", 2),
    ("n_generics", 1),
    ("explicit_lifetimes", 1),
    ("unsafe_blocks", 1),
)
MEDIUM_FROM = 1
HARD_FROM = 3


def difficulty_of(features: SyntaxFeatures) -> str:
    """Return "easy", "medium" or "hard".

    A five-line example without a branch has 0 points: easy. A generic function of ten lines with
    one `if` has 3: hard.
    """
    points = sum(_counter(features, name) >= least for name, least in POINTS)
    if points >= HARD_FROM:
        return "hard"
    return "medium" if points >= MEDIUM_FROM else "easy"


def _counter(features: SyntaxFeatures, name: str) -> int:
    if name == "n_branches":  # the counter of the tree adds 1 for every function
        return features.cyclomatic_complexity - features.n_functions
    return getattr(features, name)
