"""The one exception type whose text is meant for the user.

Everything a person can get wrong (a flag, a file, a profile, a missing tool) raises
`WorkbenchError`; the command line prints its text without a traceback. Programming errors stay
ordinary exceptions. Failing Rust code is data (a `Verdict`), never an exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorkbenchError(Exception):
    """A problem the user can mend: what was expected, what was found, what to do."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint that names the nearest valid name, or all of them when none is near."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.55)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Valid names: {', '.join(names)}."
