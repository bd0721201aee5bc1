"""Control flow written otherwise: if-let and match, while and loop, for and iterators.

Each rewrite takes a source and returns the edits for all places it fits; none: it does not apply.
It keeps the meaning where the names mean what they usually do; rustc and the tests decide.
"""

from __future__ import annotations

from collections.abc import Iterator

from tree_sitter import Node

from nanochat_lib.data.augment.edits import (
    Edit,
    callable_text,
    deeper,
    field,
    guarded,
    has_long_string,
    inside,
    is_statement,
    label_of,
    leaves,
    margin,
    nodes,
    replace,
    text_of,
)

# The pattern of an `else`, by the beginning of the other one.
_OPPOSITES = {"Some(": ("_", "None"), "Ok(": ("_", "Err(_)"), "Err(": ("_", "Ok(_)")}
# Methods whose result needs no `.into_iter()`.
_GIVES_AN_ITERATOR = frozenset(
    ("iter", "iter_mut", "into_iter", "chars", "bytes", "lines", "split", "split_whitespace", "rev",
     "enumerate", "zip", "skip", "take", "step_by", "windows", "chunks", "map", "filter", "drain",
     "char_indices", "keys", "values")
)  # fmt: skip


def if_let_to_match(source: str) -> Iterator[Edit]:
    """`if let P = e { a } else { b }` becomes `match e { P => { a } _ => { b } }`."""
    for node in nodes(source, "if_expression"):
        test, block = field(node, "condition"), field(node, "consequence")
        chained = node.parent is not None and node.parent.type == "else_clause"
        if test is None or test.type != "let_condition" or chained or has_long_string(node):
            continue
        other = field(node, "alternative")
        otherwise = text_of(other).removeprefix("else").strip() or "{}"
        pad = margin(node, source)
        yield replace(
            node,
            f"match {text_of(field(test, 'value'))} {{\n"
            f"{pad}    {text_of(field(test, 'pattern'))} => {deeper(text_of(block))}\n"
            f"{pad}    _ => {deeper(otherwise)}\n{pad}}}",
        )


def match_to_if_let(source: str) -> Iterator[Edit]:
    """`match e { P => a, _ => b }` becomes `if let P = e { a } else { b }`."""
    for node in nodes(source, "match_expression"):
        arms = _arms(node)
        if len(arms) != 2 or has_long_string(node):
            continue
        (pattern, first), (other, second) = arms
        opposites = next((o for p, o in _OPPOSITES.items() if pattern.startswith(p)), ("_",))
        if other not in opposites or pattern in ("true", "false"):
            continue
        pad = margin(node, source)
        otherwise = _as_block(second, pad)
        tail = "" if not inside(second) and second.type == "block" else f" else {otherwise}"
        head = f"if let {pattern} = {text_of(field(node, 'value'))} "
        yield replace(node, guarded(node, head + _as_block(first, pad) + tail))


def _arms(match: Node) -> list[tuple[str, Node]]:
    """Return (pattern, value) of each arm; nothing when one has a guard or an attribute."""
    body = field(match, "body")
    arms = [arm for arm in (body.named_children if body else []) if arm.type == "match_arm"]
    found = []
    for arm in arms:
        pattern, value = field(arm, "pattern"), field(arm, "value")
        has_attribute = arm.named_children and arm.named_children[0].type == "attribute_item"
        if pattern is None or value is None or field(pattern, "condition") or has_attribute:
            return []
        found.append((text_of(pattern), value))
    return found


def _as_block(value: Node, pad: str) -> str:
    """Return the value of an arm as a block at a margin; arms stand one level deeper."""
    text = text_of(value).replace("\n    ", "\n")
    return text if value.type == "block" else f"{{\n{pad}    {deeper(text)}\n{pad}}}"


def while_to_loop(source: str) -> Iterator[Edit]:
    """`while c { a }` becomes `loop { if !(c) { break; } a }`; `while let` takes a `let else`."""
    for node in nodes(source, "while_expression"):
        test, block = field(node, "condition"), field(node, "body")
        if test is None or block is None or test.type == "let_chain":
            continue
        pad = margin(node, source)
        if test.type == "let_condition":
            pattern, value = text_of(field(test, "pattern")), text_of(field(test, "value"))
            check = f"let {pattern} = {value} else {{\n{pad}        break;\n{pad}    }};"
        else:
            check = f"if !({text_of(test)}) {{\n{pad}        break;\n{pad}    }}"
        body = f"\n{pad}    {inside(block)}" if inside(block) else ""
        yield replace(node, f"{label_of(node)}loop {{\n{pad}    {check}{body}\n{pad}}}")


def loop_to_while(source: str) -> Iterator[Edit]:
    """`loop { if c { break; } a }` becomes `while !(c) { a }`."""
    for node in nodes(source, "loop_expression"):
        block = field(node, "body")
        first = block.named_children[0] if block is not None and block.named_children else None
        test = first.named_children[0] if first is not None and first.named_children else None
        if block is None or first is None or test is None or not is_statement(node):
            continue
        condition, body = field(test, "condition"), field(test, "consequence")
        only_breaks = (
            body is not None and inside(body) == "break;" and not field(test, "alternative")
        )
        if test.type != "if_expression" or condition is None or not only_breaks:
            continue
        if condition.type.startswith("let_"):
            continue
        pad = margin(node, source)
        rest = source.encode()[first.end_byte : block.end_byte - 1].decode().strip()
        head = f"{label_of(node)}while {_negated(condition)} {{"
        yield replace(node, f"{head}\n{pad}    {rest}\n{pad}}}" if rest else f"{head}}}")


def _negated(condition: Node) -> str:
    """Return the opposite of a condition: `!(c)` is `c`."""
    text = text_of(condition)
    if condition.type == "unary_expression" and text.startswith("!"):
        inner = text[1:].strip()
        only = condition.named_children[0]
        return inner[1:-1] if only.type == "parenthesized_expression" else inner
    return f"!({text})"


def for_to_iterator(source: str) -> Iterator[Edit]:
    """`for p in e { a }` becomes `e.into_iter().for_each(|p| { a });` where nothing jumps out."""
    for node in nodes(source, "for_expression"):
        pattern, value, block = (field(node, name) for name in ("pattern", "value", "body"))
        if pattern is None or value is None or block is None or not is_statement(node):
            continue
        if leaves(block) or label_of(node):
            continue
        yield replace(node, f"{_iterated(value)}.for_each(|{text_of(pattern)}| {text_of(block)});")


def _iterated(value: Node) -> str:
    """Return what a for loop walks as an iterator."""
    text = text_of(value)
    only = value.named_children[-1] if value.named_children else None
    if value.type == "reference_expression" and only is not None:
        method = "iter_mut" if text.removeprefix("&").lstrip().startswith("mut ") else "iter"
        return f"{callable_text(only)}.{method}()"
    if value.type == "range_expression":
        return f"({text})"
    method = field(value, "function") if value.type == "call_expression" else None
    if method is not None and text_of(field(method, "field")) in _GIVES_AN_ITERATOR:
        return text
    return f"{callable_text(value)}.into_iter()"


def iterator_to_for(source: str) -> Iterator[Edit]:
    """`e.for_each(|p| a);` becomes `for p in e { a }`."""
    for node in nodes(source, "expression_statement"):
        call = node.named_children[0] if node.named_children else None
        method = field(call, "function") if call is not None else None
        if call is None or method is None or text_of(field(method, "field")) != "for_each":
            continue
        closure = next(iter(field(call, "arguments").named_children), None)  # type: ignore
        if closure is None or closure.type != "closure_expression" or leaves(closure):
            continue
        given, body = field(closure, "parameters"), field(closure, "body")
        if given is None or body is None or len(given.named_children) != 1:
            continue
        if given.named_children[0].type == "parameter":  # with a type, which `for` has no room for
            continue
        pad = margin(node, source)
        block = text_of(body) if body.type == "block" else f"{{\n{pad}    {text_of(body)};\n{pad}}}"
        head = f"for {text_of(given.named_children[0])} in {text_of(field(method, 'value'))} "
        yield replace(node, head + block)


def collect_to_loop(source: str) -> Iterator[Edit]:
    """`let v: Vec<T> = e.collect();` becomes an empty vector and a loop that pushes."""
    for node in nodes(source, "let_declaration"):
        kind, value = text_of(field(node, "type")), field(node, "value")
        method = field(value, "function") if value is not None else None
        name = field(node, "pattern")
        if method is None or name is None or name.type != "identifier" or "item" in source:
            continue
        if not kind.startswith("Vec<") or text_of(field(method, "field")) != "collect":
            continue
        pad = margin(node, source)
        yield replace(
            node,
            f"let mut {text_of(name)}: {kind} = Vec::new();\n"
            f"{pad}for item in {text_of(field(method, 'value'))} {{\n"
            f"{pad}    {text_of(name)}.push(item);\n{pad}}}",
        )


def loop_to_collect(source: str) -> Iterator[Edit]:
    """An empty vector and a loop that only pushes become `e.map(|p| x).collect()`."""
    for loop in nodes(source, "for_expression"):
        statement = (
            loop.parent if loop.parent and loop.parent.type == "expression_statement" else loop
        )
        made, block = statement.prev_named_sibling, field(loop, "body")
        if made is None or made.type != "let_declaration" or block is None or label_of(loop):
            continue
        name = text_of(field(made, "pattern"))
        empty = text_of(field(made, "value")) in ("Vec::new()", "vec![]")
        pushed = inside(block)
        head, tail = f"{name}.push(", ");"
        only_one = len(block.named_children) == 1
        if not empty or not only_one or leaves(block) or not pushed.startswith(head):
            continue
        kind = text_of(field(made, "type")) or "Vec<_>"
        pattern, value = text_of(field(loop, "pattern")), field(loop, "value")
        given = pushed.removeprefix(head).removesuffix(tail)
        if value is None or not pushed.endswith(tail):
            continue
        mapped = f"{_iterated(value)}.map(|{pattern}| {deeper(given)})"
        text = f"let mut {name}: {kind} = {mapped}.collect();"
        yield Edit(made.start_byte, statement.end_byte, text)
