"""Change a text inside the program that was judged, hidden lines and indentation as they are.

Documentation shows a part of a program: `fn main` around it and set-up lines are hidden. The lines
of the text are found in the program one after the other; every run of changed lines replaces the
run it stands for. Where a hidden line lies inside such a run, there is no answer.
"""

from __future__ import annotations

from difflib import SequenceMatcher


def changed_program(text: str, changed: str, program: str) -> str | None:
    """Return the program with the changed text in the place of the text; None: no place for it."""
    if program.count(text) == 1:
        return program.replace(text, changed)
    before, after, lines = text.split("\n"), changed.split("\n"), program.split("\n")
    places = _places(before, lines)
    if places is None:
        return None
    result = [*lines]
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for kind, start, end, new_start, new_end in reversed(matcher.get_opcodes()):
        if kind == "equal":
            continue
        first = places[start] if start < len(places) else places[-1] + 1
        last = places[end - 1] + 1 if end > start else first
        if last - first != end - start:
            return None
        near = lines[min(first, len(lines) - 1)] if start < len(before) else lines[places[-1]]
        shown = before[min(start, len(before) - 1)]
        margin = near[: _width(near) - _width(shown)] if near.strip() else _margin(places, lines)
        new = [margin + line if line else line for line in after[new_start:new_end]]
        result[first:last] = new
    made = "\n".join(result)
    return made if _places(after, result) is not None else None


def _places(text: list[str], program: list[str]) -> list[int] | None:
    """Return where the lines of a text stand in a program, in order, blanks around them aside."""
    found, at = [], 0
    for line in text:
        wanted = line.strip()
        while at < len(program) and program[at].strip() != wanted:
            at += 1
        if at == len(program):
            return None
        found.append(at)
        at += 1
    return found


def _margin(places: list[int], program: list[str]) -> str:
    """Return the smallest indentation of the text's lines in the program."""
    shown = [program[place] for place in places if program[place].strip()]
    return min((line[: _width(line)] for line in shown), key=len, default="")


def _width(line: str) -> int:
    return len(line) - len(line.lstrip())
