"""The tokenizer: exact round trips, control tokens, and a stable border after a prompt."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.data import tokenizer as module
from nanochat_lib.data.tokenizer import (
    CONTROL_TOKENS,
    compare_vocabularies,
    encode_prompt,
    load_tokenizer,
    train_tokenizer,
)
from nanochat_lib.errors import WorkbenchError

NAMES = ("count", "total", "first_even", "merge", "max_gap", "words", "is_sorted")
TYPES = ("i32", "u64", "&str", "&[i64]", "Vec<String>", "Option<usize>", "&mut Vec<u8>")
BODIES = (
    "\n    values.iter().sum()\n}",
    "\n    let mut best = 0;\n    for x in xs {\n        if *x > best {\n            best = *x;\n"
    "        }\n    }\n    best\n}",
    "\n    match n {\n        0 => None,\n        _ => Some(n - 1),\n    }\n}",
    "\n\tlet t = text.trim();\n\tt.len()\n}",
    "\n}",
)


def prompts(n: int) -> list[tuple[str, str]]:
    """Return (prompt, rest of the function) pairs in many shapes."""
    rng = random.Random(7)
    found = []
    for _ in range(n):
        name, kind, result = rng.choice(NAMES), rng.choice(TYPES), rng.choice(TYPES)
        doc = (
            f"/// Return {rng.choice(NAMES)} of {rng.randrange(10 ** rng.randrange(1, 6))} values."
        )
        brace = rng.choice([" {", "{", "\n{", " where T: Ord {"])
        end = f"fn {name}<T>(x: {kind}) -> {result}{brace}" if rng.random() < 0.8 else f"// {name}"
        found.append((f"{doc}\n{end}", rng.choice(BODIES)))
    return found


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([p + b for p, b in prompts(400)], 420)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_decoding_returns_any_unicode_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    "text", ["a<|endoftext|>b", "\x00\r\n\t \u2028", "\u200d🦀\ufeff", " \n \n", "'re {\r\n\r\n"]
)
def test_awkward_texts_round_trip_and_never_give_control_tokens(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert min(ids) >= len(CONTROL_TOKENS)


def test_prompt_tokens_are_a_prefix_of_the_whole_programs_tokens(tokenizer):
    for prompt, body in prompts(500):
        ids = encode_prompt(tokenizer, prompt)
        whole = tokenizer.encode(prompt + body).ids
        assert whole[: len(ids)] == ids, (prompt, body)
        assert tokenizer.decode(whole[len(ids) :]) == body[1:]


@pytest.mark.parametrize("ending", ["\n", "\n    ", "\n\n\t", " ", "\r\n", "\n\n\n        "])
def test_trailing_white_space_of_a_prompt_changes_nothing(tokenizer, ending):
    """Benchmarks' prompts end in a newline or an indent: the model must not see which."""
    for prompt, body in prompts(100):
        ids = encode_prompt(tokenizer, prompt)
        assert encode_prompt(tokenizer, prompt + ending) == ids
        assert tokenizer.encode(prompt + body).ids[: len(ids)] == ids


def test_without_the_newline_a_prompt_is_not_a_prefix(tokenizer):
    """The trap that `encode_prompt` avoids is real for this tokenizer."""
    prompt, body = "fn count(x: i32) -> i32 {", BODIES[0]
    ids, whole = tokenizer.encode(prompt).ids, tokenizer.encode(prompt + body).ids
    assert whole[: len(ids)] != ids


def test_control_tokens_have_the_first_ids_and_vocabulary_has_all_bytes(tokenizer):
    assert [tokenizer.token_to_id(name) for name in CONTROL_TOKENS] == [0, 1, 2, 3]
    assert tokenizer.get_vocab_size() == 420
    every_byte = bytes(range(256)).decode("latin-1")
    assert tokenizer.decode(tokenizer.encode(every_byte).ids) == every_byte


def test_training_twice_gives_the_same_file():
    texts = [p + b for p, b in prompts(200)]
    assert train_tokenizer(texts, 400).to_str() == train_tokenizer(iter(texts), 400).to_str()


def test_a_loaded_tokenizer_encodes_as_the_trained_one(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    for prompt, body in prompts(50):
        assert loaded.encode(prompt + body).ids == tokenizer.encode(prompt + body).ids
    text = "<|endoftext|>"
    assert loaded.decode(loaded.encode(text).ids) == text


def test_pieces_are_cut_as_the_llama_bpe_rule_says(tokenizer):
    """Worked by hand from the rule: a newline belongs to the punctuation in front of it."""
    pieces = [p for p, _ in tokenizer.pre_tokenizer.pre_tokenize_str("fn f(x1234) {\n    let y")]
    shown = [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece in pieces]
    assert shown == ["fn", " f", "(x", "123", "4", ")", " {\n", "   ", " let", " y"]


def test_larger_vocabularies_hold_more_bytes_in_a_token(tokenizer):
    texts = [p + b for p, b in prompts(600)]
    train, held_out = texts[:400], texts[400:]
    ours, small, large, gpt2 = compare_vocabularies(tokenizer, train, held_out, (300, 480))
    n_bytes = sum(len(text.encode()) for text in held_out)
    assert {row.n_bytes for row in (ours, small, large)} == {n_bytes}
    assert ours.n_tokens == sum(len(tokenizer.encode(text).ids) for text in held_out)
    assert [row.vocab_size for row in (ours, small, large)] == [420, 300, 480]
    assert small.bytes_per_token < ours.bytes_per_token < large.bytes_per_token
    assert gpt2.n_tokens or (gpt2.bytes_per_token == 0 and "not in" in gpt2.name)


def test_gpt2_is_measured_where_its_file_is(tokenizer, tmp_path, monkeypatch):
    """A byte-level BPE of another size stands in for it; the search is the only thing replaced."""
    train_tokenizer([p + b for p, b in prompts(100)], 350).save(str(tmp_path / "gpt2.json"))
    monkeypatch.setattr(module, "_gpt2_path", lambda: str(tmp_path / "gpt2.json"))
    *_, gpt2 = compare_vocabularies(tokenizer, ["fn main() {}"], ["fn a() {}"], ())
    assert (gpt2.name, gpt2.vocab_size) == ("GPT-2", 350)
    assert gpt2.bytes_per_token > 1


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(WorkbenchError, match="at least 260"):
        train_tokenizer(["fn main() {}"], 200)


def test_damaged_and_foreign_files_are_refused(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(WorkbenchError, match="Cannot read the tokenizer"):
        load_tokenizer(path)
    path.write_text(tokenizer.to_str()[:500])
    with pytest.raises(WorkbenchError, match="Cannot read the tokenizer"):
        load_tokenizer(path)
    foreign = json.loads(tokenizer.to_str())
    foreign["added_tokens"] = []
    foreign["model"]["vocab"].pop("<|endoftext|>")
    path.write_text(json.dumps(foreign))
    with pytest.raises(WorkbenchError, match="ids 0 to 3"):
        load_tokenizer(path)
