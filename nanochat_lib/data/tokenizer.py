"""Byte-level BPE: train, load, and encode prompts so that generation starts at a token border.

Input: an iterable of texts. Output: a `tokenizers.Tokenizer` whose JSON form is `tokenizer.json`.
The pre-tokenizer is the one that GGUF calls `llama-bpe`, so that stock runtimes cut text the same
way. Control tokens have the ids 0 to 3 and are never produced by text: a source file that contains
the characters `<|endoftext|>` is encoded as ordinary characters.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nanochat_lib.errors import WorkbenchError

END_OF_TEXT = "<|endoftext|>"
CONTROL_TOKENS = (END_OF_TEXT, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
END_OF_TEXT_ID = 0
MIN_VOCAB_SIZE = 256 + len(CONTROL_TOKENS)
# Contractions | word with one leading sign or space | 1-3 digits | punctuation with its newlines |
# newlines | spaces before a word keep one for it | spaces. Source: llama.cpp, LLAMA_VOCAB_PRE_TYPE
# llama3; there `{\n` is one piece, which makes a newline after a prompt a stable border.
LLAMA_BPE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE; the same texts in the same order give the same tokenizer.

    Args:
        texts: the training split only, never held-out text.
        vocab_size: tokens wanted, control tokens and the 256 bytes included; a small corpus may
            have fewer pairs to merge and give fewer.

    Raises:
        WorkbenchError: `vocab_size` cannot hold the bytes and the control tokens.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise WorkbenchError(
            f"model.vocab_size must be at least {MIN_VOCAB_SIZE} (256 bytes and "
            f"{len(CONTROL_TOKENS)} control tokens), found {vocab_size}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_BPE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(name, special=True) for name in CONTROL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _treat_controls_as_text(tokenizer)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a `tokenizer.json`.

    Raises:
        WorkbenchError: the file is missing, damaged, or has other control tokens than ours.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare `Exception` for every kind of damage
        raise WorkbenchError(
            f"Cannot read the tokenizer {path}: {error}. Run 01_preprocess.ipynb again."
        ) from error
    found = [tokenizer.token_to_id(name) for name in CONTROL_TOKENS]
    if found != list(range(len(CONTROL_TOKENS))):
        raise WorkbenchError(
            f"{path} must have {CONTROL_TOKENS} at the ids 0 to 3, found them at {found}."
        )
    return _treat_controls_as_text(tokenizer)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the tokens of a prompt up to and including one newline after it.

    BPE merges across the end of a prompt: `{` cut off from its newline is a token that training
    text never shows there (measured: 0 of 100 completions compiled). A newline ends a piece of the
    pre-tokenizer, so what follows is encoded as if the whole text had been given at once.

    Returns: ids; the completion is `"\\n" + tokenizer.decode(generated ids)`.
    """
    return tokenizer.encode(prompt.rstrip() + "\n").ids


def _treat_controls_as_text(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True  # not stored in tokenizer.json
    return tokenizer
