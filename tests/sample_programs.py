"""Short functions with tests, a third of them broken, made from templates."""

from __future__ import annotations

import random

from nanochat_lib.records import Program

_TEMPLATES = (
    ("pub fn f(xs: &[i64]) -> i64 {{\n"
     "    xs.iter().filter(|x| **x % {a} == 0).map(|x| x * {b}).sum()\n}}",
     "f(&[{a}, 1, 2 * {a}])", "{a} * {b} * 3 + if 1 % {a} == 0 {{ {b} }} else {{ 0 }}"),
    ("pub fn f(s: &str) -> String {{ s.chars().rev().chain(\"{a}\".chars()).collect() }}",
     "f(\"ab\")", "\"ba{a}\".to_string()"),
    ("use std::collections::HashMap;\n\npub fn f(words: &[&str]) -> usize {{\n"
     "    let mut seen = HashMap::new();\n    for word in words {{\n"
     "        *seen.entry(word.len()).or_insert({a}) += {b};\n    }}\n    seen.len()\n}}",
     "f(&[\"a\", \"bb\", \"c\"])", "2"),
    ("#[derive(Debug, Clone, PartialEq)]\npub struct Point {{ x: i64, y: i64 }}\n"
     "impl Point {{\n    pub fn shifted(&self, d: i64) -> Point {{\n"
     "        Point {{ x: self.x + d, y: self.y * {b} }}\n    }}\n}}\n"
     "pub fn f(d: i64) -> Point {{ Point {{ x: {a}, y: 1 }}.shifted(d) }}",
     "f(2)", "Point {{ x: {a} + 2, y: {b} }}"),
    ("pub fn f(n: u64) -> Option<u64> {{\n    match n {{\n        0 => None,\n"
     "        n if n % 2 == 0 => Some(n / 2 + {a}),\n        n => n.checked_mul({b}),\n    }}\n}}",
     "f(3)", "Some(3 * {b})"),
)  # fmt: skip
_BREAKS = (
    ("pub fn f(", "pub fn f(("),
    ("pub fn f(", "pub fn g() -> i64 {{ missing }} pub fn f("),
    ("pub fn f(", 'pub fn g() -> i64 {{ "text" }} pub fn f('),
    ("pub fn f(", "pub fn g(s: String) -> String {{ drop(s); s }} pub fn f("),
)


def sample_programs(n: int, seed: int = 0) -> list[Program]:
    """Return distinct programs, a third of which do not compile and some of which fail."""
    chance = random.Random(seed)
    programs = []
    for number in range(n):
        body, call, result = chance.choice(_TEMPLATES)
        if chance.random() < 1 / 3:
            body = body.replace(*chance.choice(_BREAKS), 1)
        if chance.random() < 0.1:
            call = call.replace("2", "7")
        text = (
            f"// {number}\n{body}\n\n#[cfg(test)]\nmod tests {{{{\n    use super::*;\n"
            f"    #[test]\n    fn works() {{{{ assert_eq!({call}, {result}); }}}}\n}}}}\n"
        )
        source = text.format(a=chance.randint(2, 99), b=chance.randint(2, 99))
        programs.append(Program(str(number), source))
    return programs
