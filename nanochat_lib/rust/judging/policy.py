"""Decide from the text alone what a program is and what it must not share with others.

Input: the source. Output: a `Policy`: the kind of program (tests, `fn main`, library), and the
reasons, if any, to compile it alone (it can see the crate or its neighbours: `crate::`, inner
attributes, exported macros and symbols, impls that change what its neighbours infer) and to run
it alone (it can reach the process around it: `unsafe`, exits, files, raw output, panic hooks).
`verify.py` asks before it batches. Being sent alone costs time and never changes a verdict, so
every doubt is decided that way.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from nanochat_lib.rust.syntax import Token, tokens

Kind = Literal["test", "main", "lib"]
# What rustc is told when a program is a crate of its own.
CRATE_OF: dict[Kind, str] = {
    "test": "--test",
    "main": "--crate-type=bin",
    "lib": "--crate-type=lib",
}

MAX_BATCHED_CHARS = 60_000
MAX_BATCHED_DEPTH = 100  # of brackets; rustc's own stack bears several hundred


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words (identifiers) that let a program see or change the crate around it.
_COMPILE_ALONE = _words(
    "extern asm global_asm naked_asm macro_export macro_use no_mangle export_name link_name "
    "link_section link_ordinal global_allocator panic_handler alloc_error_handler no_main no_std "
    "no_core proc_macro include include_str include_bytes option_env env module_path type_name "
    "type_name_of_val deny forbid Location caller rustc_builtin_macro"
)
# Words that let a running program see that it is one of many: its thread's name, libtest's hooks.
_RUN_ALONE = _words(
    "os catch_unwind resume_unwind set_hook take_hook update_hook Backtrace set_output_capture"
)
# Words that let it reach its process, its neighbours' memory and files, or the judge's channel.
_OWN_PROCESS = _words("unsafe fs net stdout abort")
# Pairs of words: the first is an everyday name, dangerous only beside one of the second.
_RUN_ALONE_PAIRS = (("thread", frozenset(("current",))), ("process", frozenset(("id",))))
_OWN_PROCESS_PAIRS = (("process", frozenset(("exit", "Command", "Stdio", "Child", "abort"))),)
# A type or trait of this name may be the standard one wherever the local one is not in scope.
_STANDARD = _words(
    "i8 i16 i32 i64 i128 isize u8 u16 u32 u64 u128 usize f32 f64 bool char str String Vec Option "
    "Result Box Rc Arc Cow RefCell Cell HashMap HashSet BTreeMap BTreeSet VecDeque"
)
_OPEN, _CLOSE = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}


@dataclass(frozen=True)
class Policy:
    """What the text of a program allows."""

    kind: Kind
    compile_alone: str = ""  # the reason, or empty
    run_alone: str = ""  # the reason to run it from a binary of its own
    own_process: str = ""  # the reason to run it in a process of its own
    n_tests: int = 0  # `#[test]` attributes outside of macro definitions
    is_balanced: bool = True  # brackets match
    has_tests_apart: bool = False  # what is wrong without its test module is wrong with it too


def policy_of(source: str, edition: str = "2021") -> Policy:
    """Return the policy of a program from its tokens; unreadable text is sent alone."""
    if not source.isascii():
        source = unicodedata.normalize("NFC", source)  # as rustc compares identifiers
    if len(source) > MAX_BATCHED_CHARS:
        return Policy(_guess_kind(source), "longer than a batch takes", "long")
    lexed = list(tokens(source))
    texts = [token.text for token in lexed]
    kind = _kind(texts)
    reason = ""
    if any(token.kind == "open_quote" for token in lexed):
        reason = "an unterminated string or comment"
    elif not _is_balanced(lexed):
        return Policy(kind, is_balanced=False)
    elif edition not in ("2021", "2024"):
        reason = "an edition whose paths start at the crate"
    else:
        reason = _crate_reason(texts) or _shape_reason(source, lexed, kind) or _impl_reason(texts)
    words = {text.removeprefix("r#") for text in texts}
    alone = reason or _found(words, _RUN_ALONE, _RUN_ALONE_PAIRS)
    own_process = _found(words, _OWN_PROCESS, _OWN_PROCESS_PAIRS)
    return Policy(
        kind,
        reason,
        alone,
        own_process,
        n_tests=_count_tests(texts),
        has_tests_apart=kind == "test" and _has_tests_apart(texts),
    )


def _is_balanced(lexed: list[Token]) -> bool:
    """Return whether brackets match, as rustc's lexer demands."""
    is_open: list[str] = []
    for token in lexed:
        if token.text in _OPEN:
            is_open.append(_OPEN[token.text])
        elif token.text in _CLOSE and (not is_open or is_open.pop() != token.text):
            return False
    return not is_open


def _guess_kind(source: str) -> Kind:
    return "test" if "#[test]" in source else "main" if "fn main" in source else "lib"


def _kind(texts: list[str]) -> Kind:
    if next(_sequence(texts, "#", "[", "test", "]"), None) is not None:
        return "test"
    return "main" if next(_sequence(texts, "fn", "main"), None) is not None else "lib"


def _sequence(texts: list[str], *wanted: str) -> Iterator[int]:
    """Yield the places where the wanted tokens follow each other."""
    for place, text in enumerate(texts):
        if text == wanted[0] and texts[place : place + len(wanted)] == list(wanted):
            yield place


def _count_tests(texts: list[str]) -> int:
    """Count functions with `#[test]` outside of macro definitions, whose expansions are unknown.

    The attribute counts once for a function, as for rustc, which warns where it is repeated.
    """
    hidden = [(place, _closing(texts, place + 3)) for place in _sequence(texts, "macro_rules", "!")]
    return sum(
        not any(start < place < end for start, end in hidden)
        for place in _sequence(texts, "#", "[", "test", "]")
        if not _is_repeated(texts, place + 4)
    )


def _is_repeated(texts: list[str], place: int) -> bool:
    """Return whether another `#[test]` is among the attributes that follow."""
    while texts[place : place + 2] == ["#", "["]:
        if texts[place + 2 : place + 4] == ["test", "]"]:
            return True
        place = _closing(texts, place + 1) + 1
    return False


def _closing(texts: list[str], place: int) -> int:
    """Return where the bracket opened at `place` closes, or the end."""
    depth = 0
    for index in range(place, len(texts)):
        if texts[index] in _OPEN:
            depth += 1
        elif texts[index] in _CLOSE:
            depth -= 1
            if depth <= 0:
                return index
    return len(texts)


def _has_tests_apart(texts: list[str]) -> bool:
    """Return whether all tests are in one `#[cfg(test)] mod` that the rest cannot notice.

    The rest must not name that module nor ask for `test` itself, and the module must not implement
    anything for the rest. Then every error of the rest alone is an error of the whole.
    """
    places = list(_sequence(texts, "#", "[", "cfg", "(", "test", ")", "]", "mod"))
    if len(places) != 1 or texts[places[0] + 9 : places[0] + 10] != ["{"]:
        return False
    start = places[0]
    end = _closing(texts, start + 9)
    before, inside, behind = texts[:start], texts[start + 10 : end], texts[end + 1 :]
    is_at_top = sum((text in _OPEN) - (text in _CLOSE) for text in before) == 0
    name = texts[start + 8]
    return (
        is_at_top
        and "impl" not in inside
        and {name, "cfg", "cfg_attr", "test"}.isdisjoint(before + behind)
    )


def _crate_reason(texts: list[str]) -> str:
    """Return how the program can see the crate root or leave a mark on it."""
    found = _COMPILE_ALONE.intersection(text.removeprefix("r#") for text in texts)
    if found:
        return f"uses {min(found)}"
    if next(_sequence(texts, "#", "!"), None) is not None:
        return "has inner attributes"
    for place, text in enumerate(texts):
        if text == "crate" and texts[place - 2 : place] != ["pub", "("]:
            return "names the crate"
        if text == "mod" and not _is_inline_module(texts, place):
            return "declares a module elsewhere"
        if text in ("file", "line", "column") and texts[place + 1 : place + 2] == ["!"]:
            return f"uses {text}!"
    return _super_reason(texts)


def _is_inline_module(texts: list[str], place: int) -> bool:
    name, brace = [*texts[place + 1 : place + 3], "", ""][:2]
    return name.isidentifier() and brace == "{"


def _super_reason(texts: list[str]) -> str:
    """Return a reason when a chain of `super` leads above the program's own top."""
    is_module: list[bool] = []
    chain = 0
    for place, text in enumerate(texts):
        if text in _OPEN:
            is_module.append(text == "{" and place > 1 and texts[place - 2] == "mod")
        elif text in _CLOSE and is_module:
            is_module.pop()
        if len(is_module) > MAX_BATCHED_DEPTH:
            return "nests deeper than a batch takes"
        if text == "super":
            chain += 1
            if chain > sum(is_module):
                return "names the module above it"
        elif text != ":":
            chain = 0
    return ""


def _shape_reason(source: str, lexed: list, kind: Kind) -> str:
    """Return why nothing may be appended to the text, or why `--test` would change its meaning."""
    texts = [token.text for token in lexed]
    if kind == "test":
        return ""
    if "doctest" in texts or _may_ask_for_test(texts):
        return "asks whether it is being tested"
    if kind == "lib":
        return ""
    last = lexed[-1]
    rest = source[last.start + len(last.text) :]
    if last.text not in ("}", ";") or "///" in rest or "/**" in rest:
        return "ends with something unfinished"
    return "" if _has_plain_main(texts) else "has an unusual main"


def _may_ask_for_test(texts: list[str]) -> bool:
    """Return whether the word `test` may be more than a function of the program's own.

    `cfg(test)`, `#[core::prelude::v1::test]`, an import or a macro that makes an attribute of it
    would mean something else under `--test`.
    """
    places = [place for place, text in enumerate(texts) if text == "test"]
    if places and not {"cfg", "cfg_attr", "macro_rules"}.isdisjoint(texts):
        return True
    return any(texts[i + 1 : i + 2] != ["("] or texts[i - 1 : i] in ([":"], ["["]) for i in places)


def _has_plain_main(texts: list[str]) -> bool:
    """Return whether there is one `fn main()` at the top, without anything before or after it."""
    places = list(_sequence(texts, "fn", "main"))
    if len(places) != 1:
        return False
    place = places[0]
    depth = sum((text in _OPEN) - (text in _CLOSE) for text in texts[:place])
    before = texts[place - 1] if place else ""
    is_free = before in ("", "}", ";", "]", "pub", ")")
    after = texts[place + 2 :]
    if depth or not is_free or after[:2] != ["(", ")"] or "{" not in after:
        return False
    head = after[2 : after.index("{")]
    return "where" not in head and (not head or head[:2] == ["-", ">"])


def _impl_reason(texts: list[str]) -> str:
    """Return a reason when an impl can change what neighbours infer.

    Only a foreign trait for a foreign type can (`impl Add<Meters> for f64`: with it, `1.0 + x`
    has a second meaning everywhere in the crate). The trait or the type must be the program's own
    by name, and the name neither imported nor one of the standard library's.
    """
    defined = {texts[i + 1] for i in _keyword_places(texts, ("struct", "enum", "union", "trait"))}
    own = defined - _names_in_use(texts) - _STANDARD
    for place in _keyword_places(texts, ("impl",)):
        trait, self_type = _impl_head(texts, place + 1)
        if self_type and _root(trait) not in own and _root(self_type) not in own:
            return f"implements {_root(trait)} for {_root(self_type) or 'another type'}"
    return ""


def _keyword_places(texts: list[str], keywords: Iterable[str]) -> Iterator[int]:
    return (i for i, text in enumerate(texts[:-1]) if text in keywords)


def _names_in_use(texts: list[str]) -> set[str]:
    names: set[str] = set()
    for place in _keyword_places(texts, ("use",)):
        end = texts.index(";", place) if ";" in texts[place:] else len(texts)
        names.update(texts[place + 1 : end])
    return names


def _impl_head(texts: list[str], place: int) -> tuple[list[str], list[str]]:
    """Return the tokens of the trait and of the self type of an impl; no type: an inherent one."""
    angle, parts = 0, [[], []]
    side = 0
    for index in range(place, len(texts)):
        text = texts[index]
        if text == "<":
            angle += 1
        elif text == ">" and texts[index - 1] not in "-=":
            angle -= 1
        elif angle <= 0:
            if text in ("{", ";", "where", ")", ",", "="):
                break
            if text == "for" and not side and texts[index + 1 : index + 2] != ["<"]:
                side = 1
            else:
                parts[side].append(text)
    return parts[0], parts[1]


def _root(path: list[str]) -> str:
    """Return the last name of a path, without references and `mut`: `&'a mut a::B` -> `B`."""
    names = [t for t in path if t.isidentifier() and t not in ("mut", "dyn", "const", "for")]
    has_only_path = all(t.isidentifier() or t in "&:!" or t.startswith("'") for t in path)
    return names[-1] if names and has_only_path else ""


def _found(
    words: set[str], dangerous: frozenset[str], pairs: Iterable[tuple[str, frozenset[str]]]
) -> str:
    """Return which dangerous word, or pair of words, a program uses, or an empty string."""
    found = dangerous & words
    if found:
        return f"uses {min(found)}"
    for first, others in pairs:
        if first in words and others & words:
            return f"uses {first} and {min(others & words)}"
    return ""
