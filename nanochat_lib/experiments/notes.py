"""What a person says about a run: tags, the hypothesis before it and the conclusion after it.

Input and output: `notes.json` in the run folder. It is a file of its own because a stage that runs
rewrites `run.json`; it is replaced whole, under a lock, so that two terminals lose nothing. The
index, the comparison and `nanochat runs` show it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.runs import read_run_json, write_atomic

TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,39}")
MAX_CHARACTERS = 4000


@dataclass(frozen=True)
class Notes:
    """Tags in the order they were given, and two texts."""

    tags: tuple[str, ...] = ()
    hypothesis: str = ""
    conclusion: str = ""


def read_notes(run_dir: Path) -> Notes:
    """Return the notes of a run; empty ones when there are none.

    Raises:
        WorkbenchError: the file is damaged.
    """
    path = run_dir / "notes.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        texts = {name: found.get(name, "") for name in ("hypothesis", "conclusion")}
        tags = tuple(found.get("tags", ()))
    except FileNotFoundError:
        return Notes()
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise WorkbenchError(
            f"{path} is damaged: expected an object with tags, hypothesis and conclusion, found "
            f"{error}. Mend it by hand or remove it."
        ) from error
    if not all(isinstance(text, str) for text in (*tags, *texts.values())):
        raise WorkbenchError(f"{path} is damaged: expected texts. Mend it by hand or remove it.")
    return Notes(tags, **texts)


def write_notes(
    run_dir: Path,
    *,
    hypothesis: str | None = None,
    conclusion: str | None = None,
    add_tags: Sequence[str] = (),
    remove_tags: Sequence[str] = (),
) -> Notes:
    """Change the notes of a run and return them; a text that is not given stays.

    Args:
        run_dir: an existing run folder.
        hypothesis: what is expected of the run, and why; empty: remove it.
        conclusion: what the run showed; empty: remove it.
        add_tags: letters, digits, '.', '_', ':' and '-', at most 40.
        remove_tags: tags to take away; one that is not there is an error.

    Raises:
        WorkbenchError: no such run, an unusable tag, a text that is too long, a damaged file.
    """
    read_run_json(run_dir)
    _check(add_tags, hypothesis or "", conclusion or "")
    with _locked(run_dir):
        now = read_notes(run_dir)
        if absent := [tag for tag in remove_tags if tag not in now.tags]:
            known = ", ".join(now.tags) or "none"
            raise WorkbenchError(f"Run {run_dir.name} has no tag {absent[0]!r}; its tags: {known}.")
        kept = [tag for tag in (*now.tags, *add_tags) if tag not in remove_tags]
        changed: dict[str, Any] = {"tags": tuple(dict.fromkeys(kept))}
        texts = {"hypothesis": hypothesis, "conclusion": conclusion}
        changed |= {name: text.strip() for name, text in texts.items() if text is not None}
        notes = Notes(**{**asdict(now), **changed})
        write_atomic(run_dir / "notes.json", json.dumps(asdict(notes), indent=1) + "\n")
    return notes


def _check(tags: Sequence[str], *texts: str) -> None:
    for tag in tags:
        if not TAG.fullmatch(tag):
            raise WorkbenchError(
                f"Tag {tag!r} is not usable: letters, digits, '.', '_', ':' and '-', at most 40, "
                "beginning with a letter or digit."
            )
    for text in texts:
        if len(text) > MAX_CHARACTERS:
            raise WorkbenchError(
                f"A note has at most {MAX_CHARACTERS:,} characters, found {len(text):,}. Keep the "
                "long form in a file of your own and name it here."
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which its owner's death frees."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
