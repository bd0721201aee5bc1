"""Write programs that pass in other ways, and keep what the compiler finds to be the same.

Input: `Parent`s, texts whose programs passed. Output: accepted variants with the row they come
from, and what became of every rewrite. A variant is built and run as its parent was. It is dropped
when its text repeats one that is known, when it does not pass, or when other tests ran: a rewrite
that changes what a program does must not get through. A variant belongs to its parent's group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from nanochat_lib.config import VerifyConfig
from nanochat_lib.data.augment import control, naming, values
from nanochat_lib.data.augment.edits import Edit, apply_edits
from nanochat_lib.data.augment.embedding import changed_program
from nanochat_lib.records import Level, Program, Verdict, Verified
from nanochat_lib.rust.syntax import parses
from nanochat_lib.rust.verify import verify

Rewrite = Callable[[str, str, Random], Iterable[Edit]]  # text, its program, chances


def _of_text(rewrite: Callable[[str], Iterable[Edit]]) -> Rewrite:
    return lambda text, program, rng: rewrite(text)


_FIXED = (
    control.if_let_to_match, control.match_to_if_let, control.while_to_loop,
    control.loop_to_while, control.for_to_iterator, control.iterator_to_for,
    control.collect_to_loop, control.loop_to_collect, values.explicit_types,
    values.inferred_types, values.question_to_match, values.match_to_question,
)  # fmt: skip
REWRITES: dict[str, Rewrite] = {
    "rename_locals": naming.rename_locals,
    "reorder_items": naming.reorder_items,
    **{rewrite.__name__: _of_text(rewrite) for rewrite in _FIXED},
}
# One wrong guess of a type would lose the variant, so these change one place at a time.
_ONE_PLACE = frozenset(("explicit_types", "inferred_types"))


@dataclass(frozen=True)
class Parent:
    """A text that may be rewritten, and how its program was judged."""

    name: str  # decides the chances, with the seed
    text: str
    program: str  # holds the text, maybe among lines that it does not show
    verified: Verified
    edition: str = "2021"


@dataclass(frozen=True)
class Variant:
    """A text of the same meaning."""

    place: int  # of its parent
    rewrite: str
    text: str
    program: str


@dataclass
class Count:
    """What became of one rewrite."""

    n_applied: int = 0  # texts that it could change
    n_duplicate: int = 0  # of them, already known
    n_judged: int = 0
    n_unjudged: int = 0
    n_accepted: int = 0


@dataclass
class Augmented:
    """The variants that are kept, with their verdicts, and the counts by rewrite."""

    kept: list[tuple[Variant, Verified]] = field(default_factory=list)
    counts: dict[str, Count] = field(default_factory=dict)

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each rewrite; its rate is that of the variants judged."""
        return [
            {"rewrite": name, **vars(count), "rate": count.n_accepted / max(count.n_judged, 1)}
            for name, count in self.counts.items()
        ]


def rewritten(text: str, program: str, rng: Random) -> Iterator[tuple[str, str]]:
    """Yield (rewrite, changed text) for every rewrite that applies and still parses."""
    for name, rewrite in REWRITES.items():
        edits = list(rewrite(text, program, rng))
        if name in _ONE_PLACE and edits:
            edits = [rng.choice(edits)]
        changed = apply_edits(text, edits) if edits else text
        if changed != text and parses(changed):
            yield name, changed


def augment(
    parents: Sequence[Parent],
    per_parent: int,
    seed: int,
    *,
    config: VerifyConfig | None = None,
    cache_dir: Path | None = None,
) -> Augmented:
    """Rewrite texts and keep what passes as its parent did.

    Args:
        per_parent: most variants tried of each text; which ones is drawn by the seed.
    """
    result = Augmented(counts={name: Count() for name in REWRITES})
    known = {_squeezed(parent.text) for parent in parents}
    chosen = list(_drawn(parents, per_parent, seed, known, result.counts))
    for level in sorted({parents[v.place].verified.level for v in chosen}):
        part = [v for v in chosen if parents[v.place].verified.level is level]
        judged = _judge(part, parents, level, config, cache_dir)
        for variant, verified in zip(part, judged, strict=True):
            _settle(variant, verified, parents[variant.place].verified, result)
    result.kept.sort(key=lambda pair: pair[0].place)
    return result


def _drawn(
    parents: Sequence[Parent],
    per_parent: int,
    seed: int,
    known: set[str],
    counts: dict[str, Count],
) -> Iterator[Variant]:
    """Yield the variants to be judged, each text once."""
    for place, parent in enumerate(parents):
        rng = Random(f"augment {seed} {parent.name}")
        found = list(rewritten(parent.text, parent.program, rng))
        for name, text in rng.sample(found, min(per_parent, len(found))):
            program = changed_program(parent.text, text, parent.program)
            if program is None:
                continue
            counts[name].n_applied += 1
            squeezed = _squeezed(text)
            if squeezed in known:
                counts[name].n_duplicate += 1
                continue
            known.add(squeezed)
            yield Variant(place, name, text, program)


def _judge(
    variants: Sequence[Variant],
    parents: Sequence[Parent],
    level: Level,
    config: VerifyConfig | None,
    cache_dir: Path | None,
) -> list[Verified]:
    programs = [
        Program(f"{parents[v.place].name}~{v.rewrite}", v.program, parents[v.place].edition)
        for v in variants
    ]
    return verify(programs, level, config=config, cache_dir=cache_dir)


def _settle(variant: Variant, verified: Verified, before: Verified, result: Augmented) -> None:
    count = result.counts[variant.rewrite]
    if verified.verdict is Verdict.UNJUDGED:
        count.n_unjudged += 1
        return
    count.n_judged += 1
    if (verified.verdict, verified.n_tests) == (before.verdict, before.n_tests):
        count.n_accepted += 1
        result.kept.append((variant, verified))


def _squeezed(text: str) -> str:
    return " ".join(text.split())
