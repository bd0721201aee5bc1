"""Dataset cards: what is in a corpus or in token shards, where it comes from, under which licences.

Input: the summary of a build, or of stage 1. Output: Markdown with the front matter that dataset
hubs read. Every number is one of the summary, every hash that of the file as it lies there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nanochat_lib.data.sources.units import file_sha256

_HEAD = """\
---
language: [en]
tags: [rust, code, compiler-verified]
license: other
---

# Rust, verified by the compiler

Rows of `verified.parquet` were built by rustc {rustc}; rows that can run were run in a sandbox,
with their tests. `program` is what was judged (an example with its hidden lines, a slice with what
it needs); `text` is what a model sees. Rows that failed are in `rejected.parquet` with their
diagnostics. `tasks.jsonl` holds prompts with hidden tests: documentation and signature of a
function, and its unit tests or the examples of its documentation, which then are not in the prompt.

Each row has its licence (SPDX) and its origin; a notice that a licence asks for is in the package
the row names. {filter}
"""
_FILTERS = {
    "permissive": "Only files under permissive licences were read; files without a known licence "
    "only where the person who built this gave them as their own folder.",
    "any": "**No licence filter was applied**: rows may be under copyleft or unknown licences.",
}


def card_text(summary: dict[str, Any]) -> str:
    """Return the card of a corpus as Markdown."""
    licence_filter = _FILTERS[summary["settings"]["licences"]]
    parts = [
        _HEAD.format(rustc=summary["rustc"], filter=licence_filter),
        _section("Rows", _table(("step", "rows"), _pairs(summary["funnel"], "step", "n"))),
        _section("By source and kind", _by_source(summary["compile_rate"])),
        _section("Tasks with hidden tests", _tasks(summary["tasks"])),
        _section("Licences of the rows", _licences(summary["licences"])),
        _section("Files dropped for their licence", _named(summary["dropped_licences"])),
        _section("Files passed over", _named(summary["skipped_files"])),
        _section("Sources", _sources(summary)),
        _section("Files", _table(("file", "SHA-256"), summary["files_sha256"].items())),
    ]
    if summary["problems"]:
        parts.append(_section("What could not be had", _list(summary["problems"])))
    return "\n".join(parts)


_SHARDS_HEAD = """\
---
language: [en]
tags: [rust, code, compiler-verified, tokenized]
license: other
---

# Token shards of verified Rust

Real Rust that {rustc} built, and ran where it can run, and TinyRust, which this project generates
(MIT) and whose tests were run. The two are never mixed in one shard. `index.json` has the sizes,
`../tokenizer.json` the vocabulary of {vocab_size} tokens, `../verified.parquet` the rows with
licence and origin.
"""


def shards_card(summary: dict[str, Any], folder: Path) -> str:
    """Return the card of a stage-1 folder's shards as Markdown.

    Args:
        summary: of the stage.
        folder: of the stage, whose files are hashed.
    """
    head = _SHARDS_HEAD.format(
        rustc=f"rustc {summary['rustc']}", vocab_size=summary["tokenizer"]["vocab_size"]
    )
    names = ("source", "kind", "n_judged", "n_compiled")
    files = [*sorted((folder / "shards").glob("*.bin")), folder / "tokenizer.json"]
    names_of_rest = ("verified.parquet", "tasks.jsonl", "corpus_tasks.jsonl")
    files += [folder / name for name in names_of_rest if (folder / name).is_file()]
    hashes = [(path.relative_to(folder).as_posix(), file_sha256(path)) for path in files]
    rates = _pairs(summary["compile_rate"]["by_source"], *names)
    return "\n".join(
        [
            head,
            _section("Tokens", _table(("shard", "tokens"), summary["tokens"].items())),
            _section("Real Rust", _table(("step", "rows"), _pairs(summary["funnel"], "step", "n"))),
            _section("By source and kind", _table(("source", "kind", "judged", "compiled"), rates)),
            _section("Licences of the real rows", _licences(summary["licences"])),
            _section("Files passed over", _named(summary["skipped_files"])),
            _section("Files", _table(("file", "SHA-256"), hashes)),
        ]
    )


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(_cell(value) for value in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _pairs(rows: Iterable[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


def _named(counts: dict[str, int]) -> str:
    return _table(("what", "files"), counts.items()) if counts else "None."


def _licences(rows: list[dict[str, Any]]) -> str:
    return _table(("licence", "rows"), _pairs(rows, "licence", "n"))


def _by_source(rates: dict[str, Any]) -> str:
    names = ("source", "kind", "n_found", "n_judged", "n_compiled", "n_passed")
    head = ("source", "kind", "found", "judged", "compiled", "passed", "compiled of judged")
    rows = [
        (*(row[name] for name in names), f"{row['n_compiled'] / max(row['n_judged'], 1):.1%}")
        for row in rates["by_source"]
    ]
    after = rates["after"]
    note = (
        f"Of the finished set, {after['n_compiled']} of {after['n_judged']} sampled rows compiled "
        "once more."
    )
    return f"{_table(head, rows)}\n\n{note}"


def _tasks(rows: list[dict[str, Any]]) -> str:
    names = ("kind", "n_found", "n_judged", "n_passed", "n_kept", "n_train", "n_held_package")
    head = ("kind", "found", "judged", "passed", "kept", "to train on", "packages held out")
    dropped = [
        f"{row['kind']}: {n:,} dropped, {reason}"
        for row in rows
        for reason, n in row["dropped"].items()
        if n
    ]
    note = (
        "A task is kept when its own body passes its tests, and neither the same body behind a "
        "panic nor a default value does."
    )
    table = _table(head, _pairs(rows, *names))
    return "\n\n".join([table, note, *([_list(dropped)] if dropped else [])])


def _sources(summary: dict[str, Any]) -> str:
    n_units = Counter(unit["source"] for unit in summary["units"])
    rows = _table(("source", "packages"), sorted(n_units.items()))
    return (
        f"{rows}\n\nNames, versions and SHA-256 of all packages are in `summary.json`; the SHA-256 "
        f"of that list is `{summary['units_sha256']}`."
    )


def _list(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)
