"""Types and early returns written otherwise: explicit and inferred types, `?` and match."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tree_sitter import Node

from nanochat_lib.data.augment.edits import (
    Edit,
    callable_text,
    deeper,
    enclosing_function,
    field,
    guarded,
    has_long_string,
    margin,
    nodes,
    replace,
    text_of,
)

_LITERAL_TYPES = {
    "integer_literal": "i32", "float_literal": "f64", "boolean_literal": "bool",
    "char_literal": "char", "string_literal": "&str",
}  # fmt: skip
_SUFFIX = re.compile(r"(?<=\d)_?([iu](?:8|16|32|64|128|size)|f(?:32|64))$")
_STRING_MAKERS = re.compile(r"^(?:String::(?:new|from)\(|format!\()|\.to_string\(\)$")
# What only a type written beside it can decide.
_ASKS_FOR_A_TYPE = re.compile(r"\.(?:collect|parse|into|try_into|sum|product)\(|\bdefault\(\)")
_RETURNS = re.compile(r"^Err\((?:From::from\()?(?P<name>\w+)(?:\.into\(\))?\)?\)$")


def explicit_types(source: str) -> Iterator[Edit]:
    """`let x = 5;` becomes `let x: i32 = 5;`: for literals and texts, whose type can be seen."""
    for node in nodes(source, "let_declaration"):
        name, value = field(node, "pattern"), field(node, "value")
        if name is None or value is None or field(node, "type") or name.type != "identifier":
            continue
        kind = _type_of(value)
        if kind:
            yield Edit(name.end_byte, name.end_byte, f": {kind}")


def _type_of(value: Node) -> str:
    text = text_of(value)
    if value.type == "string_literal" and not text.startswith('"'):
        return ""  # b"..." and c"..."
    suffix = _SUFFIX.search(text) if value.type.endswith("_literal") else None
    if suffix:
        return suffix.group(1)
    is_call = value.type in ("call_expression", "macro_invocation")
    return (
        "String" if is_call and _STRING_MAKERS.search(text) else _LITERAL_TYPES.get(value.type, "")
    )


def inferred_types(source: str) -> Iterator[Edit]:
    """`let x: T = e;` becomes `let x = e;`."""
    for node in nodes(source, "let_declaration"):
        name, kind, value = (field(node, part) for part in ("pattern", "type", "value"))
        if name is None or kind is None or value is None or _ASKS_FOR_A_TYPE.search(text_of(value)):
            continue
        yield Edit(name.end_byte, kind.end_byte, "")


def question_to_match(source: str) -> Iterator[Edit]:
    """`e?` becomes a match that returns None or the error."""
    for node in nodes(source, "try_expression"):
        function = enclosing_function(node)
        if function is None or function.type != "function_item" or has_long_string(node):
            continue
        returned = text_of(field(function, "return_type")).split("::")[-1]
        if returned.startswith("Option<"):
            arms = ("Some(value) => value,", "None => return None,")
        elif re.match(r"(?:io|fmt)?Result\b", returned):
            arms = ("Ok(value) => value,", "Err(error) => return Err(error.into()),")
        else:
            continue
        pad = margin(node, source)
        inner = deeper(text_of(node.named_children[0]))
        lines = "".join(f"{pad}    {arm}\n" for arm in arms)
        yield replace(node, guarded(node, f"match {inner} {{\n{lines}{pad}}}"))


def match_to_question(source: str) -> Iterator[Edit]:
    """A match that only unwraps or returns None or the error becomes `e?`."""
    for node in nodes(source, "match_expression"):
        body, value = field(node, "body"), field(node, "value")
        arms = [arm for arm in (body.named_children if body else []) if arm.type == "match_arm"]
        if len(arms) != 2 or value is None:
            continue
        parts = {text_of(field(arm, "pattern")): _arm_value(arm) for arm in arms}
        if _unwraps(parts):
            yield replace(node, f"{callable_text(value)}?")


def _arm_value(arm: Node) -> str:
    return text_of(field(arm, "value")).removeprefix("{").removesuffix("}").strip().rstrip(";")


def _unwraps(arms: dict[str, str]) -> bool:
    """Return whether one arm gives what is inside and the other returns what is not there."""
    for pattern, value in arms.items():
        found = re.fullmatch(r"(?:Some|Ok)\((\w+)\)", pattern)
        others = [(p, v) for p, v in arms.items() if p != pattern]
        if not found or found.group(1) != value or len(others) != 1:
            continue
        other, returned = others[0]
        if pattern.startswith("Some("):
            return other in ("None", "_") and returned == "return None"
        error = re.fullmatch(r"Err\((\w+)\)", other)
        passed_on = _RETURNS.match(returned.removeprefix("return").strip())
        return bool(error and passed_on and error.group(1) == passed_on.group("name"))
    return False
