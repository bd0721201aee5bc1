"""TinyRust tasks that a model has not read yet: prompts for learning by trying.

In: what stage 1 wrote; out: further tasks of the training split with other parameters, each
confirmed by rustc. A model remembers the examples it was trained on, so it passes their tests
without having understood them, and learns nothing by trying them; held-out splits stay held out.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from nanochat_lib.config import VerifyConfig
from nanochat_lib.data.tinyrust.confirm import confirm
from nanochat_lib.data.tinyrust.generate import TinyExample, generate
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Task, Verdict

_SPARE = 2  # generated for every one wanted and every one known, before a family runs out


def unseen_tasks(
    levels: Collection[int],
    n: int,
    *,
    seed: int,
    known: Collection[str],
    config: VerifyConfig,
    cache_dir: Path | None,
) -> list[Task]:
    """Return `n` tasks of the training split whose prompts are not known, the same for a seed.

    Args:
        levels: any of 1 to 5, in equal shares as far as families have enough parameters.
        seed: of the generator.
        known: prompts of stage 1.
        config: limits of the verification engine.
        cache_dir: of the verification engine.

    Raises:
        WorkbenchError: there are not so many, or rustc could not be asked.
    """
    found: dict[str, TinyExample] = {}
    try:
        for example in generate(levels, _SPARE * (n + len(known)), seed, splits=("train",)):
            if example.task.prompt not in known:
                found.setdefault(example.task.prompt, example)
            if len(found) == n:
                break
    except WorkbenchError:  # the generator ran out; what it gave may be enough
        pass
    if len(found) < n:
        raise WorkbenchError(
            f"TinyRust has only {len(found)} tasks of levels {tuple(sorted(levels))} beside those "
            f"of stage 1; maxrl.new_tasks asks for {n}. Lower it, or data.tinyrust_examples."
        )
    examples = list(found.values())
    verdicts = confirm(examples, config=config, cache_dir=cache_dir)
    return [
        example.task
        for example, verified in zip(examples, verdicts, strict=True)
        if verified.verdict is Verdict.PASSED
    ]
