"""Recurrences, lists, trees, machines with a state or a stack, and long compositions."""

from __future__ import annotations

from random import Random

from nanochat_lib.data.tinyrust import grammar
from nanochat_lib.data.tinyrust.family import INTEGERS, Family, Rust, Sketch, Some
from nanochat_lib.data.tinyrust.levels.level3 import char_test, text_inputs


def recurrence(rng: Random) -> Sketch:
    """A recurrence of two terms modulo a number: recursion, loop or fold."""
    kind, (a, b, m) = rng.choice(("u32", "u64", "i64")), (rng.randint(1, 9), rng.randint(1, 9), 0)
    m, first, second = rng.randint(11, 99), rng.randint(0, 9), rng.randint(0, 9)
    name = "term"

    def reference(n: int) -> int:
        x, y = first, second
        for _ in range(n):
            x, y = y, (a * y + b * x) % m
        return x

    return Sketch(
        name=name,
        doc=f"Returns term `n` of a sequence that starts with {first} and {second};\n"
        f"each further term is {a} times the last one plus {b} times the one before, modulo {m}.",
        arguments=(("n", kind),),
        result=kind,
        bodies=(
            f"match n {{\n    0 => {first},\n    1 => {second},\n"
            f"    _ => ({a} * {name}(n - 1) + {b} * {name}(n - 2)) % {m},\n}}",
            f"let (mut x, mut y) = ({first}, {second});\nfor _ in 0..n {{\n"
            f"    (x, y) = (y, ({a} * y + {b} * x) % {m});\n}}\nx",
            f"(0..n).fold(({first}, {second}), |(x, y), _| (y, ({a} * y + {b} * x) % {m})).0",
        ),
        inputs=lambda rng: [(n,) for n in (0, 1, 2, 3, 4, 7, 11, 12)],
        reference=reference,
        parameters=(kind, a, b, m, first, second),
    )


def linked_list(rng: Random) -> Sketch:
    """Walk a linked list by recursion or by a loop."""
    kind, test, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    name = f"list_{test.key}_{op.key}"
    key, words, join = rng.choice(
        (("sum", "adds them up", "{y} + {rest}"), ("largest", "returns the largest, at least 0",
         "({y}).max({rest})"))
    )  # fmt: skip
    joined = join.format(y=op.of("x"), rest=f"{name}(rest)")
    step = f"total += {op.of('x')};" if key == "sum" else f"total = total.max({op.of('x')});"

    def reference(values: list[int]) -> int:
        kept = [op.apply(x) for x in values if test.holds(x)]
        return sum(kept) if key == "sum" else max([0, *kept])

    def draw(rng: Random) -> list[tuple]:
        rows = []
        for (values,) in grammar.slice_inputs((*test.constants, *op.constants))(rng):
            text = "List::End"
            for x in reversed(values):
                text = f"List::Node({x}, Box::new({text}))"
            rows.append((Rust(f"&{text}", values),))
        return rows

    return Sketch(
        name=name,
        items=f"enum List {{\n    Node({kind}, Box<List>),\n    End,\n}}",
        doc=f"Keeps the values of the list that are {test.phrase},\n"
        f"{op.done_to('each')} and {words}.",
        arguments=(("list", "&List"),),
        result=kind,
        bodies=(
            f"match list {{\n    List::End => 0,\n    List::Node(x, rest) => {{\n"
            f"        let x = *x;\n        if {test.rust('x')} {{\n            {joined}\n"
            f"        }} else {{\n            {name}(rest)\n        }}\n    }}\n}}",
            "let mut total = 0;\nlet mut at = list;\nwhile let List::Node(x, rest) = at {\n"
            f"    let x = *x;\n    if {test.rust('x')} {{\n        {step}\n    }}\n"
            "    at = rest;\n}\ntotal",
        ),
        test_types=("", kind),
        inputs=draw,
        reference=reference,
        composition=(key, test.key, op.key),
        parameters=(kind, *test.constants, *op.constants),
    )


_Tree = tuple[int, "_Tree | None", "_Tree | None"]


def _tree(rng: Random, depth: int) -> _Tree | None:
    if depth == 0 or rng.random() < 0.15:
        return None
    return (rng.randint(-20, 30), _tree(rng, depth - 1), _tree(rng, depth - 1))


def _tree_text(tree: _Tree | None) -> str:
    if tree is None:
        return "None"
    value, left, right = tree
    inside = f"value: {value}, left: {_tree_text(left)}, right: {_tree_text(right)}"
    return f"Some(Box::new(Node {{ {inside} }}))"


def binary_tree(rng: Random) -> Sketch:
    """Reduce a binary tree by recursion (held out)."""
    kind, test, op = rng.choice(INTEGERS), grammar.predicate(rng), grammar.int_map(rng)
    name = f"tree_{test.key}_{op.key}"

    def reference(tree: _Tree | None) -> int:
        if tree is None:
            return 0
        value, left, right = tree
        own = op.apply(value) if test.holds(value) else 0
        return own + reference(left) + reference(right)

    def draw(rng: Random) -> list[tuple]:
        near = [c + d for c in test.constants for d in (-1, 0, 1)]
        trees = [None, *((x, None, None) for x in near), *(_tree(rng, d) for d in (1, 2, 2, 3, 3))]
        return [(Rust(f"&{_tree_text(tree)}", tree),) for tree in trees]

    return Sketch(
        name=name,
        items=f"struct Node {{\n    value: {kind},\n    left: Option<Box<Node>>,\n"
        "    right: Option<Box<Node>>,\n}",
        doc=f"Takes the values in the tree that are {test.phrase},\n"
        f"{op.done_to('each')} and returns their sum.",
        arguments=(("tree", "&Option<Box<Node>>"),),
        result=kind,
        bodies=(
            "match tree {\n    None => 0,\n    Some(node) => {\n        let x = node.value;\n"
            f"        let own = if {test.rust('x')} {{ {op.of('x')} }} else {{ 0 }};\n"
            f"        own + {name}(&node.left) + {name}(&node.right)\n    }}\n}}",
            "let Some(node) = tree else {\n    return 0;\n};\n"
            f"let rest = {name}(&node.left) + {name}(&node.right);\nlet x = node.value;\n"
            f"if {test.rust('x')} {{\n    {op.of('x')} + rest\n}} else {{\n    rest\n}}",
        ),
        test_types=("", kind),
        inputs=draw,
        reference=reference,
        composition=(test.key, op.key),
        parameters=(kind, *test.constants, *op.constants),
    )


def state_machine(rng: Random) -> Sketch:
    """Run a machine of two states over a text and return a number."""
    on, off = rng.choice((("Inside", "Outside"), ("On", "Off"), ("Open", "Closed")))
    begin, finish = char_test(rng), char_test(rng)
    gain, loss = rng.randint(1, 9), rng.randint(1, 9)
    opening, closing = begin.rust, finish.rust

    def reference(text: str) -> int:
        is_on, total = False, 0
        for c in text:
            if not is_on and begin.holds(c):
                is_on = True
                total += gain
            elif is_on and finish.holds(c):
                is_on = False
                total -= loss
        return total

    return Sketch(
        name=f"run_{begin.key}_{finish.key}",
        items=f"enum State {{\n    {on},\n    {off},\n}}",
        doc=f"Starts `{off}` with 0. A character that is {_single(begin.phrase)} turns `{off}`\n"
        f"into `{on}` and adds {gain}; one that is {_single(finish.phrase)} turns `{on}`\n"
        f"into `{off}` and subtracts {loss}. Returns the number at the end.",
        arguments=(("text", "&str"),),
        result="i32",
        bodies=(
            f"let mut state = State::{off};\nlet mut total = 0;\nfor c in text.chars() {{\n"
            f"    state = match state {{\n        State::{off} if {opening} => {{\n"
            f"            total += {gain};\n            State::{on}\n        }}\n"
            f"        State::{on} if {closing} => {{\n            total -= {loss};\n"
            f"            State::{off}\n        }}\n        same => same,\n    }};\n}}\ntotal",
            f"let start = (State::{off}, 0);\nlet (_, total) = text.chars().fold(start, "
            f"|(state, total), c| match state {{\n    State::{off} if {opening} => "
            f"(State::{on}, total + {gain}),\n    State::{on} if {closing} => "
            f"(State::{off}, total - {loss}),\n    same => (same, total),\n}});\ntotal",
        ),
        inputs=text_inputs((*begin.constants, *finish.constants)),
        reference=reference,
        composition=(begin.key, finish.key),
        parameters=(on, gain, loss, *begin.constants, *finish.constants),
    )


def _single(phrase: str) -> str:
    """Return "a digit" for "digits"; adjectives and comparisons stay."""
    return f"a {phrase[:-1]}" if phrase in ("digits", "letters") else phrase


_POSTFIX = """\
let mut stack: Vec<KIND> = Vec::new();
for token in tokens {
    let value = match token {
        Token::Push(x) => {
            if stack.len() >= LIMIT {
                return None;
            }
            *x
        }
        Token::WORD => {
            let x = stack.pop()?;
            CHANGED
        }
        Token::Add => stack.pop()? + stack.pop()?,
        Token::Sub => {
            let b = stack.pop()?;
            stack.pop()? - b
        }
    };
    stack.push(value);
}
stack.pop()"""


def postfix(rng: Random) -> Sketch:
    """Evaluate postfix tokens on a stack; an operation of its own among them."""
    kind, op = rng.choice(INTEGERS), grammar.int_map(rng)
    word, limit = rng.choice(("Tweak", "Apply", "Change")), rng.randint(2, 6)
    body = _POSTFIX.replace("KIND", kind).replace("LIMIT", str(limit)).replace("WORD", word)
    return Sketch(
        name=f"evaluate_{op.key}",
        items=f"enum Token {{\n    Push({kind}),\n    {word},\n    Add,\n    Sub,\n}}",
        doc=f"Runs the tokens on a stack of at most {limit} numbers: `Push` puts its number\n"
        f"on top, `{word}` takes the top and {op.done_to('it')},\n"
        "`Add` and `Sub` join the two on top. Returns the top at the end;\n"
        "None if a number is missing or the stack is full.",
        arguments=(("tokens", "&[Token]"),),
        result=f"Option<{kind}>",
        bodies=(body.replace("CHANGED", op.of("x")),),
        test_types=("", f"Option<{kind}>"),
        inputs=lambda rng: _postfix_programs(rng, word, limit),
        reference=lambda program: _run_postfix(program, op, limit),
        composition=(word, op.key),
        parameters=(kind, limit, *op.constants),
    )


def _run_postfix(program: list[tuple[str, int]], op: grammar.Map, limit: int) -> Some | None:
    stack: list[int] = []
    for name, x in program:
        if name == "Push":
            if len(stack) >= limit:
                return None
            stack.append(x)
        elif name not in ("Add", "Sub") and stack:
            stack.append(op.apply(stack.pop()))
        elif name in ("Add", "Sub") and len(stack) > 1:
            b, a = stack.pop(), stack.pop()
            stack.append(a + b if name == "Add" else a - b)
        else:
            return None
    return Some(stack.pop()) if stack else None


def _postfix_programs(rng: Random, word: str, limit: int) -> list[tuple]:
    push = "Push"
    programs = [[], [word], [push] * limit, [push] * (limit + 1), [push, "Add"], [push, word],
                [push, push, "Sub"], [push, push, "Add", word]]  # fmt: skip
    programs += [[push, push, *rng.choices(("Add", "Sub", push, word), k=3)] for _ in range(2)]
    rows = []
    for program in programs:
        made = [(name, rng.randint(-20, 30)) for name in program]
        texts = [f"Token::Push({x})" if name == push else f"Token::{name}" for name, x in made]
        rows.append((Rust("&[" + ", ".join(texts) + "]", made),))
    return rows


def ledger(rng: Random) -> Sketch:
    """A struct with a method that may refuse; a function that counts and sums."""
    kind, (name, field) = rng.choice(INTEGERS), rng.choice(
        (("Account", "balance"), ("Tank", "level"), ("Stock", "units"), ("Battery", "charge"))
    )  # fmt: skip
    low, high = rng.randint(0, 9), rng.randint(30, 90)
    op = grammar.int_map(rng)
    changed = op.of("x")
    items = (
        f"struct {name} {{\n    {field}: {kind},\n}}\n\nimpl {name} {{\n"
        f"    fn change(&mut self, by: {kind}) -> bool {{\n"
        f"        let after = self.{field} + by;\n"
        f"        if after < {low} || after > {high} {{\n            return false;\n        }}\n"
        f"        self.{field} = after;\n        true\n    }}\n}}"
    )

    def reference(start: int, values: list[int]) -> tuple[int, int]:
        at, refused = start, 0
        for x in values:
            if low <= at + op.apply(x) <= high:
                at += op.apply(x)
            else:
                refused += 1
        return at, refused

    def draw(rng: Random) -> list[tuple]:
        near = [high - 10, high - 9, low - 10, low - 11]
        edges = [(10, [x]) for x in near]
        return [(10, []), *edges, *((rng.randint(low, high), grammar.numbers_near(
            rng, op.constants, n)) for n in (2, 3, 4, 6))]  # fmt: skip

    return Sketch(
        name=f"{name.lower()}_{op.key}",
        items=items,
        doc=f"Starts with `start`, {op.done_to('each value')} and changes the {field} by it.\n"
        f"Returns the {field} at the end and how many changes were refused.",
        arguments=(("start", kind), ("values", f"&[{kind}]")),
        result=f"({kind}, usize)",
        bodies=(
            f"let mut thing = {name} {{ {field}: start }};\nlet mut refused = 0;\n"
            f"for &x in values {{\n    if !thing.change({changed}) {{\n        refused += 1;\n"
            f"    }}\n}}\n(thing.{field}, refused)",
            f"let mut thing = {name} {{ {field}: start }};\n"
            f"let refused = values.iter().filter(|&&x| !thing.change({changed})).count();\n"
            f"(thing.{field}, refused)",
        ),
        inputs=draw,
        reference=reference,
        composition=(name, op.key),
        parameters=(kind, low, high, *op.constants),
    )


def staged(rng: Random) -> Sketch:
    """Five operations one after the other: the longest compositions."""
    kind = rng.choice(INTEGERS)
    keep, branch = grammar.predicate(rng), grammar.predicate(rng)
    yes, no, last = grammar.int_map(rng), grammar.int_map(rng), grammar.int_map(rng)
    end = grammar.reduction(rng, counting=False)
    changed = f"if {branch.rust('x')} {{ {yes.of('x')} }} else {{ {no.of('x')} }}"

    def step(x: int) -> int:
        return last.apply(yes.apply(x) if branch.holds(x) else no.apply(x))

    bodies = [
        f"values\n    .iter()\n    .copied()\n    .filter(|&x| {keep.rust('x')})\n"
        f"    .map(|x| {changed})\n    .map(|x| {last.of('x')})\n    .{end.method}"
    ]
    if end.step:
        bodies.append(
            f"let mut total = 0;\nfor &x in values {{\n    if !({keep.rust('x')}) {{\n"
            f"        continue;\n    }}\n    let y = {changed};\n"
            f"    {end.step.replace('{y}', last.of('y'))}\n}}\ntotal"
        )
    return Sketch(
        name=f"staged_{keep.key}_{branch.key}_{end.key}",
        doc=f"Keeps the values that are {keep.phrase}. Of those, if one is {branch.phrase},\n"
        f"{yes.done_to('it')}, otherwise {no.done_to('it')}. Then\n"
        f"{last.done_to('each result')} and {end.phrase}.",
        arguments=(("values", f"&[{kind}]"),),
        result=kind,
        bodies=tuple(bodies),
        inputs=grammar.slice_inputs((*keep.constants, *branch.constants)),
        reference=lambda values: end.apply([step(x) for x in values if keep.holds(x)]),
        composition=(keep.key, branch.key, yes.key, no.key, last.key, end.key),
        parameters=(
            kind, *keep.constants, *branch.constants, *yes.constants, *no.constants,
            *last.constants,
        ),
    )  # fmt: skip


FAMILIES = (
    Family("recurrence", 5, recurrence),
    Family("linked_list", 5, linked_list),
    Family("binary_tree", 5, binary_tree, held=True),
    Family("state_machine", 5, state_machine),
    Family("postfix", 5, postfix),
    Family("ledger", 5, ledger),
    Family("staged", 5, staged),
)
