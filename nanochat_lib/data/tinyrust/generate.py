"""Generate TinyRust: graded, documented Rust functions with tests, in four disjoint splits.

Input: levels, a number and a seed. Output: `TinyExample`s: a `Task` (prompt up to the opening
brace, canonical solution, tests) and the `text` a model is trained on (prompt + solution, no
tests). Families live in the folders `levels` and `themes`, operations in `grammar`. Rust itself is
judged by rustc; expected values come from Python references that share no code with it.

Splits, decided once by a stable hash and never by order or seed:
    held_family       families marked `held`: their kind of function is never trained on
    held_composition  a family's combination of operations (such as even, square, sum)
    held_parameters   a combination with particular constants and types
    train             the rest
All idioms, tests and seeds of one (family, composition, parameters) share its split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from nanochat_lib.data.tinyrust.family import Family, Sketch, indent, literal, plain
from nanochat_lib.data.tinyrust.levels import level1, level2, level3, level4, level5
from nanochat_lib.data.tinyrust.themes import (
    borrowing,
    choices,
    floats,
    generic,
    machines,
    tables,
)
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Task

_MODULES = (
    level1, level2, level3, level4, level5, floats, choices, borrowing, generic, tables, machines,
)  # fmt: skip
FAMILIES: tuple[Family, ...] = tuple(family for module in _MODULES for family in module.FAMILIES)
SPLITS = ("train", "held_parameters", "held_composition", "held_family")
HELD_SHARE = 0.1  # of compositions, and again of parameters
TEST_NAME = "matches_the_reference"
TESTS_HEAD = (
    f"#[cfg(test)]\nmod tests {{\n    use super::*;\n\n    #[test]\n    fn {TEST_NAME}() {{\n"
)
_MAX_MISSES = 300  # repeats in a row after which a family counts as exhausted


@dataclass(frozen=True)
class TinyExample:
    """A task with the text that a language model is trained on."""

    task: Task
    text: str  # prompt + canonical_solution


def generate(
    levels: Collection[int], n: int, seed: int, splits: Collection[str] = SPLITS
) -> Iterator[TinyExample]:
    """Yield `n` distinct examples, levels and families in equal shares, the same for a seed.

    Args:
        levels: any of 1 to 5.
        n: examples wanted; a family that runs out leaves its share to the others.
        splits: yield only examples of these splits.

    Raises:
        WorkbenchError: an unknown level or split, or fewer than `n` distinct examples exist.
    """
    _check_names(levels, splits)
    rng = Random(f"tinyrust {seed}")
    open_families = {
        level: [f for f in FAMILIES if f.level == level and _may_hold(f, splits)]
        for level in sorted(set(levels))
    }
    seen: set[str] = set()
    while len(seen) < n:
        choices = [level for level, families in open_families.items() if families]
        if not choices:
            raise WorkbenchError(
                f"TinyRust has only {len(seen)} distinct examples for levels "
                f"{sorted(set(levels))} and splits {sorted(splits)}; {n} were asked for. "
                "Lower data.tinyrust_examples or add levels."
            )
        families = open_families[rng.choice(choices)]
        family = rng.choice(families)
        example = _draw_new(family, rng, splits, seen)
        if example is None:
            families.remove(family)
        else:
            yield example


def split_of(family: Family, sketch: Sketch) -> str:
    """Return the split of a sketch: a function of what it is, never of when it was drawn."""
    if family.held:
        return "held_family"
    composition = (family.name, *sketch.composition)
    if len(sketch.composition) > 1 and _unit_hash("composition", composition) < HELD_SHARE:
        return "held_composition"
    if _unit_hash("parameters", (*composition, *sketch.parameters)) < HELD_SHARE:
        return "held_parameters"
    return "train"


def write_out(family: Family, sketch: Sketch, idiom: int) -> TinyExample:
    """Turn a sketch into a task, with the body of one idiom."""
    arguments = ", ".join(f"{name}: {kind}" for name, kind in sketch.arguments)
    doc = "\n".join(f"/// {line}" for line in sketch.doc.split("\n"))
    items = f"{sketch.items}\n\n" if sketch.items else ""
    result = f" -> {sketch.result}" if sketch.result else ""
    head = f"fn {sketch.name}{sketch.generics}({arguments}){result}{sketch.bounds} {{"
    prompt = f"{items}{doc}\n{head}"
    solution = f"\n{indent(sketch.bodies[idiom])}\n}}"
    digest = hashlib.sha256((prompt + solution).encode()).hexdigest()[:12]
    task = Task(
        task_id=f"tinyrust/{family.name}/{digest}",
        prompt=prompt,
        canonical_solution=solution,
        tests=_tests(sketch, Random(f"tests {prompt}")),
        task_set="tinyrust",
        level=family.level,
        family=family.name,
        split=split_of(family, sketch),
    )
    return TinyExample(task, prompt + solution)


def _draw_new(
    family: Family, rng: Random, splits: Collection[str], seen: set[str]
) -> TinyExample | None:
    """Return an example not seen before, or None when the family seems exhausted."""
    for _ in range(_MAX_MISSES):
        sketch = family.sketch(rng)
        idiom = rng.randrange(len(sketch.bodies))
        if split_of(family, sketch) not in splits:
            continue
        example = write_out(family, sketch, idiom)
        if example.text not in seen:
            seen.add(example.text)
            return example
    return None


def _tests(sketch: Sketch, rng: Random) -> str:
    *kinds, result = sketch.types
    lines = []
    for inputs in sketch.inputs(rng):
        given = [literal(x, kind) for x, kind in zip(inputs, kinds, strict=True)]
        call = sketch.call.format(*given, name=sketch.name, given=", ".join(given))
        expected = literal(sketch.reference(*map(plain, inputs)), result)
        lines.append(f"({call}, {expected}),")
    # One table and one assertion: rustc spends a third less on it than on an assertion for each
    # case, and what a case borrows lives as long as the loop.
    cases = indent("\n".join(dict.fromkeys(lines)), 3)
    return (
        f"{TESTS_HEAD}        for (found, expected) in [\n{cases}\n        ] {{\n"
        "            assert_eq!(found, expected);\n        }\n    }\n}\n"
    )


def _unit_hash(salt: str, key: Sequence) -> float:
    """Return a number in [0, 1) that depends only on the arguments."""
    digest = hashlib.sha256(repr((salt, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _may_hold(family: Family, splits: Collection[str]) -> bool:
    return ("held_family" in splits) if family.held else bool(set(splits) - {"held_family"})


def _check_names(levels: Collection[int], splits: Collection[str]) -> None:
    known = {family.level for family in FAMILIES}
    if not levels or not set(levels) <= known:
        raise WorkbenchError(f"TinyRust levels must be among {sorted(known)}, found {levels}.")
    if not splits or not set(splits) <= set(SPLITS):
        raise WorkbenchError(f"TinyRust splits must be among {SPLITS}, found {sorted(splits)}.")
