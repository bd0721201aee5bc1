"""How much of the toolchain's documentation compiles, before anything is dropped.

Input: the documentation of the installed toolchain. Output: a row per book and for all of them:
examples judged, how many compile, and how many of those that ask for no unstable feature. Nothing
is deduplicated and no length is refused. Run it with `python -m nanochat_lib.data.build.raw_rates`.
"""

from __future__ import annotations

import sys
from collections import Counter

from nanochat_lib.config import VerifyConfig
from nanochat_lib.data.select import needs_nightly
from nanochat_lib.data.sources.toolchain import toolchain_candidates
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Level, Program, Verdict
from nanochat_lib.rust.toolchain import find_toolchain
from nanochat_lib.rust.verify import verify

EXAMPLE_KIND = "doc_example"


def raw_rates(most: int | None = None) -> list[dict[str, str | int]]:
    """Judge the toolchain's documentation examples.

    Args:
        most: stop after this many, evenly taken from all; None for all.

    Returns:
        Rows of book, n_judged, n_unjudged, n_compiled, n_stable (no unstable feature asked for) and
        n_stable_compiled; the last row, "all", is their sum.

    Raises:
        WorkbenchError: the toolchain carries no documentation.
    """
    toolchain = find_toolchain()
    if toolchain.docs is None:
        raise WorkbenchError(
            "This toolchain carries no documentation. `rustup component add rust-docs` installs it."
        )
    found = [c for c in toolchain_candidates(toolchain.docs) if c.row.kind == EXAMPLE_KIND]
    chosen = found[:: max(1, len(found) // most)] if most else found
    programs = [Program(str(i), c.program, c.edition) for i, c in enumerate(chosen)]
    verdicts = verify(programs, Level.BUILD, config=VerifyConfig())
    books: dict[str, Counter[str]] = {}
    for candidate, verdict in zip(chosen, verdicts, strict=True):
        counts = books.setdefault(candidate.row.package, Counter())
        if verdict.verdict == Verdict.UNJUDGED:
            counts["n_unjudged"] += 1
            continue
        is_stable = not needs_nightly(candidate)
        counts["n_judged"] += 1
        counts["n_compiled"] += verdict.verdict.compiled
        counts["n_stable"] += is_stable
        counts["n_stable_compiled"] += is_stable and verdict.verdict.compiled
    books["all"] = sum(books.values(), Counter())
    names = ("n_judged", "n_unjudged", "n_compiled", "n_stable", "n_stable_compiled")
    return [{"book": book} | {name: c[name] for name in names} for book, c in books.items()]


def main() -> None:
    """Print the rates."""
    for row in raw_rates():
        stable = row["n_stable_compiled"] / max(1, row["n_stable"])
        sys.stdout.write(
            f"{row['book']:24} {row['n_judged']:6,} judged, {row['n_unjudged']:,} not: "
            f"{row['n_compiled'] / max(1, row['n_judged']):6.1%} compile; without unstable "
            f"features {stable:6.1%} of {row['n_stable']:,}\n"
        )


if __name__ == "__main__":
    main()
