"""Level 3: strings, Option and Result, tuples, building vectors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from nanochat_lib.data.tinyrust import grammar
from nanochat_lib.data.tinyrust.family import INTEGERS, Err, Family, Ok, Sketch, Some

LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = ("tree", "Rust", "a", "of", "owl42", "blue sky", "Zebra", "x-9", "level", "Ox", "seven 7")


@dataclass(frozen=True)
class CharTest:
    """A condition on one character; `phrase` completes "characters ..."."""

    key: str
    phrase: str
    rust: str
    holds: Callable[[str], bool]
    constants: tuple[str, ...] = ()


def char_test(rng: Random) -> CharTest:
    """Draw a condition on a character: a class, a letter, or everything but a letter."""
    a = rng.choice(LETTERS)
    return rng.choice(
        (
            CharTest("same", f"equal to '{a}'", f"c == '{a}'", lambda c: c == a, (a,)),
            CharTest("other", f"different from '{a}'", f"c != '{a}'", lambda c: c != a, (a,)),
            CharTest("before", f"less than '{a}'", f"c < '{a}'", lambda c: c < a, (a,)),
            CharTest("after", f"greater than '{a}'", f"c > '{a}'", lambda c: c > a, (a,)),
            CharTest("digit", "digits", "c.is_ascii_digit()", lambda c: c in "0123456789"),
            CharTest("upper", "uppercase", "c.is_ascii_uppercase()", str.isupper),
            CharTest("lower", "lowercase", "c.is_ascii_lowercase()", str.islower),
            CharTest("letter", "letters", "c.is_ascii_alphabetic()", str.isalpha),
        )
    )


def text_inputs(letters: tuple[str, ...] = ()) -> Callable[[Random], list[tuple]]:
    """Return a drawer of single ASCII texts: the empty one, words, and the given letters."""

    def draw(rng: Random) -> list[tuple]:
        near = [chr(ord(a) + d) for a in letters for d in (-1, 0, 1)]
        mixed = [*near, *letters, *rng.choices(LETTERS + "ABZ 059", k=6)]
        rng.shuffle(mixed)
        return [("",), ("".join(near) + "aB3 z",), ("".join(mixed),), *_word_pairs(rng)]

    return draw


def _word_pairs(rng: Random) -> list[tuple]:
    return [(" ".join(rng.sample(_WORDS, 2)),) for _ in range(3)]


def count_chars(rng: Random) -> Sketch:
    """How many characters satisfy a condition."""
    test = char_test(rng)
    return Sketch(
        name=f"count_{test.key}",
        doc=f"Counts the characters that are {test.phrase}.",
        arguments=(("text", "&str"),),
        result="usize",
        bodies=(
            f"text.chars().filter(|&c| {test.rust}).count()".replace("|&c| c.is_", "|c| c.is_"),
            f"let mut count = 0;\nfor c in text.chars() {{\n    if {test.rust} {{\n"
            "        count += 1;\n    }\n}\ncount",
        ),
        inputs=text_inputs(test.constants),
        reference=lambda text: sum(map(test.holds, text)),
        parameters=(test.key, *test.constants),
    )


_ENDINGS = (
    ("plain", "", "collect()", lambda text: text),
    ("reversed", " in reverse order", "rev().collect()", lambda text: text[::-1]),
    ("upper", " in upper case", "map(|c| c.to_ascii_uppercase()).collect()", str.upper),
    ("lower", " in lower case", "map(|c| c.to_ascii_lowercase()).collect()", str.lower),
)


def keep_chars(rng: Random) -> Sketch:
    """Keep or remove characters, possibly changed, as a new string."""
    test, (ending, words, method, change) = char_test(rng), rng.choice(_ENDINGS)
    keeps = rng.random() < 0.5
    condition = test.rust if keeps else f"!({test.rust})"
    verb, order = ("keep" if keeps else "remove"), (".rev()" if ending == "reversed" else "")
    pushed = {"upper": "c.to_ascii_uppercase()", "lower": "c.to_ascii_lowercase()"}.get(ending, "c")
    doc = (
        f"Keeps the characters that are {test.phrase}"
        if keeps
        else f"Removes the characters that are {test.phrase}"
    )
    if words:
        doc += f" and returns {'them' if keeps else 'the rest'}{words}"
    return Sketch(
        name=f"{verb}_{test.key}_{ending}",
        doc=doc + ".",
        arguments=(("text", "&str"),),
        result="String",
        bodies=(
            f"text.chars().filter(|c| {_on_reference(condition)}).{method}",
            f"let mut result = String::new();\nfor c in text.chars(){order} {{\n"
            f"    if {condition} {{\n        result.push({pushed});\n    }}\n}}\nresult",
        ),
        inputs=text_inputs(test.constants),
        reference=lambda text: change("".join(c for c in text if test.holds(c) == keeps)),
        composition=(verb, test.key, ending),
        parameters=test.constants or ("none",),
    )


def _on_reference(condition: str) -> str:
    """Return a condition on `c: char` as one on `c: &char` (methods need no star)."""
    return re.sub(r"\bc (==|!=|<|>) ", r"*c \1 ", condition)


def decorate(rng: Random) -> Sketch:
    """Put constant texts around the text, or repeat it."""
    mark, n = rng.choice((*_WORDS[:3], "!", "--", "#", "ab", "<>")), rng.randint(2, 6)
    key, doc, body, reference = rng.choice(
        (
            ("before", f'Puts "{mark}" before the text.', f'format!("{mark}{{text}}")',
             lambda text: mark + text),
            ("after", f'Puts "{mark}" after the text.', f'format!("{{text}}{mark}")',
             lambda text: text + mark),
            ("around", f'Puts "{mark}" before and after the text.',
             f'format!("{mark}{{text}}{mark}")', lambda text: mark + text + mark),
            ("repeat", f'Repeats the text {n} times and ends with "{mark}".',
             f'text.repeat({n}) + "{mark}"', lambda text: text * n + mark),
            ("twice", f'Writes the text twice with "{mark}" between.',
             f'format!("{{text}}{mark}{{text}}")', lambda text: text + mark + text),
        )
    )  # fmt: skip
    return Sketch(
        name=f"decorate_{key}",
        doc=doc,
        arguments=(("text", "&str"),),
        result="String",
        bodies=(body,),
        inputs=text_inputs(),
        reference=reference,
        parameters=(key, mark, n if key == "repeat" else 0),
    )


_WORD_ENDS = (
    ("count", "counts them", "usize", "count()", len),
    ("join", "joins them with '-'", "String", 'collect::<Vec<_>>().join("-")', "-".join),
    (
        "owned", "returns them in order", "Vec<String>", "map(|word| word.to_string()).collect()",
        list,
    ),
    (
        "lengths", "returns their lengths", "Vec<usize>", "map(|word| word.len()).collect()",
        lambda words: [len(word) for word in words],
    ),
)  # fmt: skip


def words(rng: Random) -> Sketch:
    """Filter the words of a text, then count, join, own or measure them."""
    key, end, result, method, finish = rng.choice(_WORD_ENDS)
    c, letter = rng.randint(1, 6), rng.choice(LETTERS)
    name, phrase, code, holds, parameter = rng.choice(
        (
            ("longer", f"longer than {c} bytes", f"word.len() > {c}", lambda w: len(w) > c, c),
            ("shorter", f"shorter than {c + 1} bytes", f"word.len() < {c + 1}",
             lambda w: len(w) < c + 1, c),
            ("containing", f"containing '{letter}'", f"word.contains('{letter}')",
             lambda w: letter in w, letter),
            ("starting", f"starting with '{letter}'", f"word.starts_with('{letter}')",
             lambda w: w.startswith(letter), letter),
        )
    )  # fmt: skip
    # What the prompt does not show must not decide its tests.
    c, letter = (parameter, "a") if isinstance(parameter, int) else (3, letter)
    draw = text_inputs((letter,))
    return Sketch(
        name=f"{name}_words_{key}",
        doc=f"Takes the words {phrase} and {end}.",
        arguments=(("text", "&str"),),
        result=result,
        bodies=(f"text.split_whitespace().filter(|word| {code}).{method}",),
        inputs=lambda rng: [*draw(rng), (f"{letter}x y{letter}z zz {'q' * c} {'q' * (c + 1)}",)],
        reference=lambda text: finish([word for word in text.split() if holds(word)]),
        composition=(name, key),
        parameters=(parameter,),
    )


def collect_vec(rng: Random) -> Sketch:
    """Filter and map a slice into a new vector."""
    kind, test, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    return Sketch(
        name=f"collect_{test.key}_{op.key}",
        doc=f"Keeps the values that are {test.phrase}, {op.done_to('each')} and collects them.",
        arguments=(("values", f"&[{kind}]"),),
        result=f"Vec<{kind}>",
        bodies=(
            f"values.iter().copied().filter(|&x| {test.rust('x')}).map(|x| {op.of('x')}).collect()",
            f"let mut result = Vec::new();\nfor &x in values {{\n    if {test.rust('x')} {{\n"
            f"        result.push({op.of('x')});\n    }}\n}}\nresult",
        ),
        inputs=grammar.slice_inputs((*test.constants, *op.constants)),
        reference=lambda values: [op.apply(x) for x in values if test.holds(x)],
        composition=(test.key, op.key),
        parameters=(kind, *test.constants, *op.constants),
    )


def first_match(rng: Random) -> Sketch:
    """Map the first matching value, if there is one."""
    kind, test, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    return Sketch(
        name=f"first_{test.key}_{op.key}",
        doc=f"Finds the first value that is {test.phrase} and {op.done_to('it')}.",
        arguments=(("values", f"&[{kind}]"),),
        result=f"Option<{kind}>",
        bodies=(
            f"values.iter().copied().find(|&x| {test.rust('x')}).map(|x| {op.of('x')})",
            f"for &x in values {{\n    if {test.rust('x')} {{\n        return Some({op.of('x')});\n"
            "    }\n}\nNone",
        ),
        inputs=grammar.slice_inputs((*test.constants, *op.constants)),
        reference=lambda values: next((Some(op.apply(x)) for x in values if test.holds(x)), None),
        composition=(test.key, op.key),
        parameters=(kind, *test.constants, *op.constants),
    )


_MESSAGES = ("not a number", "bad input", "no number", "cannot parse", "invalid text")


def parse_number(rng: Random) -> Sketch:
    """Parse a number and map it, or return an error message."""
    kind, op, message = rng.choice(INTEGERS), grammar.int_map(rng), rng.choice(_MESSAGES)

    def reference(text: str) -> Ok | Err:
        if re.fullmatch(r"[+-]?[0-9]+", text):
            return Ok(op.apply(int(text)))
        return Err(message)

    return Sketch(
        name=f"parse_{op.key}",
        doc=f'Parses a number and {op.done_to("it")},\nor returns the error "{message}".',
        arguments=(("text", "&str"),),
        result=f"Result<{kind}, String>",
        bodies=(
            f"match text.parse::<{kind}>() {{\n    Ok(n) => Ok({op.of('n')}),\n"
            f'    Err(_) => Err("{message}".to_string()),\n}}',
            f'let n = text.parse::<{kind}>().map_err(|_| "{message}".to_string())?;\n'
            f"Ok({op.of('n')})",
            f'text.parse::<{kind}>().map(|n| {op.of("n")}).map_err(|_| "{message}".to_string())',
        ),
        inputs=lambda rng: [
            *((text,) for text in ("", "x", "-", "3.5", "12 ", "0", "-8")),
            *((str(x),) for (x,) in grammar.integer_inputs(op.constants)(rng)),
        ],
        reference=reference,
        composition=("parse", op.key),
        parameters=(kind, message, *op.constants),
    )


def checked(rng: Random) -> Sketch:
    """Accept an integer by a condition, or return None or an error."""
    kind, test, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    message = rng.choice(("", "wrong", "not allowed", "rejected", "bad value"))
    good, bad = (Ok, Err(message)) if message else (Some, None)
    miss = f'Err("{message}".to_string())' if message else "None"
    wrap = good.__name__
    otherwise = f'returns the error "{message}"' if message else "returns None"
    done = f"{wrap}({op.of('n')})"
    test_code = test.rust("n")
    return Sketch(
        name=f"{op.key}_{test.key}_or_{'error' if message else 'none'}",
        doc=f"If `n` is {test.phrase}, {op.done_to('it')}, otherwise {otherwise}.",
        arguments=(("n", kind),),
        result=f"Result<{kind}, String>" if message else f"Option<{kind}>",
        bodies=(
            f"if {test_code} {{\n    {done}\n}} else {{\n    {miss}\n}}",
            f"match n {{\n    n if {test_code} => {done},\n    _ => {miss},\n}}",
        ),
        inputs=grammar.integer_inputs((*test.constants, *op.constants)),
        reference=lambda n: good(op.apply(n)) if test.holds(n) else bad,
        composition=(wrap, test.key, op.key),
        parameters=(kind, message, *test.constants, *op.constants),
    )


def split_tuple(rng: Random) -> Sketch:
    """Sum or count matching and other values as a pair."""
    kind, test = rng.choice(INTEGERS), grammar.predicate(rng)
    counting = rng.random() < 0.5
    step, of = ("1", "usize") if counting else ("x", kind)
    words = "Counts" if counting else "Sums"
    key = "count" if counting else "sum"
    finish = len if counting else sum
    chain = "count()" if counting else f"sum::<{kind}>()"
    yes = f"let yes = values.iter().filter(|&&x| {test.rust('x')}).{chain};"
    return Sketch(
        name=f"split_{key}_{test.key}",
        doc=f"{words} the values that are {test.phrase}, and the others, as a pair.",
        arguments=(("values", f"&[{kind}]"),),
        result=f"({of}, {of})",
        bodies=(
            f"let mut yes = 0;\nlet mut no = 0;\nfor &x in values {{\n    if {test.rust('x')} {{\n"
            f"        yes += {step};\n    }} else {{\n        no += {step};\n    }}\n}}\n(yes, no)",
            f"{yes}\n(yes, values.{'len()' if counting else f'iter().{chain}'} - yes)",
        ),
        inputs=grammar.slice_inputs(test.constants),
        reference=lambda values: (
            finish([x for x in values if test.holds(x)]),
            finish([x for x in values if not test.holds(x)]),
        ),
        composition=(key, test.key),
        parameters=(kind, *test.constants),
    )


def multiples(rng: Random) -> Sketch:
    """Build the vector of the first n members of a sequence."""
    kind, op, start = rng.choice(INTEGERS), grammar.int_map(rng), rng.randint(0, 20)
    return Sketch(
        name=f"sequence_{op.key}",
        doc=f"Counts from {start} to `n`, {op.done_to('each number')} and collects the results.",
        arguments=(("n", kind),),
        result=f"Vec<{kind}>",
        bodies=(
            f"({start}..=n).map(|x| {op.of('x')}).collect()",
            f"let mut result = Vec::new();\nfor x in {start}..=n {{\n"
            f"    result.push({op.of('x')});\n}}\nresult",
        ),
        inputs=lambda rng: [
            (start + d,) for d in (-1, 0, 1, 4, max([6, *(c + 1 - start for c in op.constants)]))
        ],
        reference=lambda n: [op.apply(x) for x in range(start, n + 1)],
        composition=("sequence", op.key),
        parameters=(kind, start, *op.constants),
    )


def running(rng: Random) -> Sketch:
    """Running totals or extremes from a start value (held out)."""
    kind, c = rng.choice(INTEGERS), rng.randint(1, grammar.LARGEST)
    key, phrase, code, step = rng.choice(
        (
            ("total", "total", "state += x;", lambda a, b: a + b),
            ("largest", "largest value", "state = state.max(x);", max),
            ("smallest", "smallest value", "state = state.min(x);", min),
        )
    )
    return Sketch(
        name=f"running_{key}",
        doc=f"Returns the running {phrase} after each value, starting from {c}.",
        arguments=(("values", f"&[{kind}]"),),
        result=f"Vec<{kind}>",
        bodies=(
            f"let mut state = {c};\nlet mut result = Vec::new();\nfor &x in values {{\n"
            f"    {code}\n    result.push(state);\n}}\nresult",
        ),
        inputs=grammar.slice_inputs((c,)),
        reference=lambda values: list(accumulate(values, step, initial=c))[1:],
        parameters=(kind, key, c),
    )


FAMILIES = (
    Family("count_chars", 3, count_chars),
    Family("keep_chars", 3, keep_chars),
    Family("decorate", 3, decorate),
    Family("words", 3, words),
    Family("collect_vec", 3, collect_vec),
    Family("first_match", 3, first_match),
    Family("parse_number", 3, parse_number),
    Family("checked", 3, checked),
    Family("split_tuple", 3, split_tuple),
    Family("multiples", 3, multiples),
    Family("running", 3, running, held=True),
)
