"""Byte-level BPE: train, load, compare, encode prompts so that a completion starts at a border.

Input: an iterable of texts. Output: a `tokenizers.Tokenizer` whose JSON form is `tokenizer.json`.
The pre-tokenizer is the one that GGUF calls `llama-bpe`, so that stock runtimes cut text the same
way. Control tokens have the ids 0 to 3 and are never produced by text: a source file that contains
the characters `<|endoftext|>` is encoded as ordinary characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nanochat_lib.errors import WorkbenchError

END_OF_TEXT = "<|endoftext|>"
CONTROL_TOKENS = (END_OF_TEXT, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
END_OF_TEXT_ID = 0
STOP_IDS = frozenset({END_OF_TEXT_ID})  # what ends a text that a model writes
MIN_VOCAB_SIZE = 256 + len(CONTROL_TOKENS)
_COMPARED_BYTES = 8_000_000  # of text for vocabularies of other sizes: a few seconds for each
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


@dataclass(frozen=True)
class Compared:
    """How many bytes a token of one vocabulary holds on the same held-out text."""

    name: str  # "ours", or whose it is
    vocab_size: int  # 0: not on this machine
    n_bytes: int
    n_tokens: int

    @property
    def bytes_per_token(self) -> float:
        """Return UTF-8 bytes per token; 0 where there is nothing to measure."""
        return self.n_bytes / self.n_tokens if self.n_tokens else 0.0


def compare_vocabularies(
    ours: Tokenizer, train: Sequence[str], held_out: Sequence[str], sizes: Sequence[int]
) -> list[Compared]:
    """Measure our vocabulary on held-out text against other sizes and against GPT-2's.

    Args:
        train: texts that the other sizes are trained on, as ours was; a sample of
            `_COMPARED_BYTES` is taken from both sets, spread evenly.
        sizes: other vocabulary sizes; those that the text is too short for come out smaller.

    GPT-2's vocabulary is measured when it lies in the hub's cache; nothing is downloaded.
    """
    train, held_out = _spread(train), _spread(held_out)
    others = [train_tokenizer(train, size) for size in sizes if size >= MIN_VOCAB_SIZE]
    rows = [_compared("ours", ours, held_out)]
    rows += [_compared("BPE on the same text", other, held_out) for other in others]
    gpt2 = _gpt2_path()
    if gpt2 is None:
        return [*rows, Compared("GPT-2: not in the hub's cache of this machine", 0, 0, 0)]
    return [*rows, _compared("GPT-2", Tokenizer.from_file(gpt2), held_out)]


def _compared(name: str, tokenizer: Tokenizer, texts: Sequence[str]) -> Compared:
    n_bytes = sum(len(text.encode()) for text in texts)
    n_tokens = sum(len(one.ids) for one in tokenizer.encode_batch_fast(list(texts)))
    return Compared(name, tokenizer.get_vocab_size(), n_bytes, n_tokens)


def _spread(texts: Sequence[str]) -> list[str]:
    """Return every n-th text, so that about `_COMPARED_BYTES` are left."""
    n_bytes = sum(len(text.encode()) for text in texts)
    return list(texts[:: max(1, -(-n_bytes // _COMPARED_BYTES))])


def _gpt2_path() -> str | None:
    """Return GPT-2's tokenizer file in the hub's cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache  # comes with tokenizers; slow to import

    for name in ("openai-community/gpt2", "gpt2"):
        found = try_to_load_from_cache(name, "tokenizer.json")
        if isinstance(found, str):
            return found
    return None


def _treat_controls_as_text(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True  # not stored in tokenizer.json
    return tokenizer
