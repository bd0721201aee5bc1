"""Programs whose outcome is not deterministic: judge what ran once more, and compare.

Input: programs and their verdicts from level `test`. Output: for each, whether a second judgement
gave another verdict. A program may ask for the time, for random numbers, for the order of a hash
map: one verdict on it is a draw. Such a program keeps its first verdict and is declared.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanochat_lib.config import VerifyConfig
from nanochat_lib.records import Level, Program, Verdict, Verified
from nanochat_lib.rust.reward import has_compiled
from nanochat_lib.rust.verify import verify


def find_flaky(
    programs: Sequence[Program],
    verdicts: Sequence[Verified],
    *,
    config: VerifyConfig | None = None,
    workers: int | None = None,
    n_repeats: int = 1,
) -> list[bool | None]:
    """Judge the programs that were run again, without a cache, and tell which changed their mind.

    Args:
        programs: as they were judged.
        verdicts: of the same programs, from level `test`.
        config: limits of verification; the same as the first time.
        workers: threads; None: one per CPU.
        n_repeats: judgements after the first. A program that fails once in n runs is found by
            one repeat with the chance 2 (1/n) (1 - 1/n) only.

    Returns: True: another verdict; False: the same; None: not run, or not judged again.
    """
    places = [
        i for i, found in enumerate(verdicts) if found.level is Level.TEST and has_compiled(found)
    ]
    again: list[set[Verdict]] = [set() for _ in places]
    for _ in range(n_repeats):
        looks = verify([programs[i] for i in places], Level.TEST, config=config, workers=workers)
        for seen, look in zip(again, looks, strict=True):
            seen.add(look.verdict)
    answers: list[bool | None] = [None] * len(programs)
    for i, seen in zip(places, again, strict=True):
        seen.discard(Verdict.UNJUDGED)
        answers[i] = bool(seen - {verdicts[i].verdict}) if seen else None
    return answers
