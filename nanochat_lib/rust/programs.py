"""From a task and a completion to a program, and from raw generated text to a completion.

`truncate_completion` cuts what a model wrote after the brace that closes the function of the
prompt; `assemble` puts prelude, prompt, completion and tests together. `tampering` names what a
completion does to the tests instead of passing them; `assemble` turns it into a compile error,
because rustc alone would let it pass. Source of the program's shape: `records.Task`.
"""

from __future__ import annotations

from itertools import pairwise

from nanochat_lib.records import Program, Task
from nanochat_lib.rust.syntax import Token, tokens

# Macros that tests are written with: a completion that defines one decides its own tests.
_TEST_MACROS = frozenset(
    ("assert", "assert_eq", "assert_ne", "debug_assert", "debug_assert_eq", "debug_assert_ne")
) | {"panic", "assert_matches", "matches", "unreachable", "todo", "unimplemented", "vec", "format"}


def assemble(task: Task, completion: str) -> Program:
    """Return the program that judges a completion: prelude, prompt, completion, newline, tests.

    A completion that tampers with its tests gets a `compile_error!` that says so.
    """
    source = task.prelude + task.prompt + completion + "\n" + task.tests
    reason = tampering(completion)
    if reason:
        source += f'\ncompile_error!("the completion tampers with its tests: {reason}");\n'
    return Program(program_id=task.task_id, source=source)


def tampering(completion: str) -> str:
    """Return how a completion interferes with the tests that follow it, or an empty string.

    A macro named like `assert_eq` silences the tests' own; an exported macro reaches them through
    `use super::*`; an attribute left hanging (`#[cfg(any())]`) removes them; a second `mod tests`
    or a `#[test]` of its own could stand in for them.
    """
    lexed = list(tokens(completion))
    texts = [token.text.removeprefix("r#") for token in lexed]
    if "macro_export" in texts or "macro_use" in texts:
        return "it exports a macro"
    padded = [*texts, "", ""]
    for first, second, third in zip(texts, padded[1:], padded[2:], strict=False):
        if first == "macro_rules" and second == "!" and third in _TEST_MACROS:
            return f"it defines the macro {third}"
        if first == "mod" and second == "tests":
            return "it has its own module of tests"
        if (first, second) == ("[", "test") and third == "]":
            return "it has its own tests"
    if "use" in texts and "as" in texts and _renames_into(texts):
        return "it imports something under the name of a test macro"
    if texts and texts[-1] == "]" and _ends_in_attribute(texts):
        return "it ends with an attribute for what follows"
    return ""


def _renames_into(texts: list[str]) -> bool:
    return any(a == "as" and b in _TEST_MACROS for a, b in pairwise(texts))


def _ends_in_attribute(texts: list[str]) -> bool:
    """Return whether the last bracket group is `#[...]`."""
    depth = 0
    for index in range(len(texts) - 1, -1, -1):
        depth += (texts[index] == "]") - (texts[index] == "[")
        if depth == 0:
            return index > 0 and texts[index - 1] == "#"
    return False


def truncate_completion(completion: str, stop_tokens: tuple[str, ...] = ()) -> str:
    """Cut a completion after the brace that closes the function its prompt opened.

    Braces in strings, characters and comments do not count. Text without that brace is returned up
    to the first stop token found outside of strings and comments, or whole.

    Args:
        completion: generated text that starts inside the function's body.
        stop_tokens: texts at which generation should have stopped, such as `"\\n}"`; the
            completion ends before the earliest.

    Example: `" x + 1 }\\nfn other() {}"` -> `" x + 1 }"`.
    """
    end, lexed, depth = len(completion), list(tokens(completion, comments=True)), 1
    for token in lexed:
        depth += (token.text == "{") - (token.text == "}")
        if depth == 0:
            end = token.start + 1
            break
    stops = [_find_stop(completion, lexed, stop, end) for stop in stop_tokens if stop]
    return completion[: min([end, *stops])]


def _find_stop(completion: str, lexed: list[Token], stop: str, end: int) -> int:
    """Return where a stop token first begins outside of strings and comments, or `end`."""
    hidden = [
        (token.start, token.start + len(token.text))
        for token in lexed
        if token.kind in ("string", "char", "line_comment", "block_comment")
    ]
    place = completion.find(stop)
    while 0 <= place < end:
        if not any(start < place < stop_at for start, stop_at in hidden):
            return place
        place = completion.find(stop, place + 1)
    return end
