"""What is known of the programs' meaning: rustc's errors by class, and what the gates said.

Input: the `error_classes` and `semantics` rows of an evaluation, and the `gates` of stage 1.
Output: pairs of name and text, each with its denominator; a gate that was not there says so.
"""

from __future__ import annotations

from typing import Any

from nanochat_lib.report.content.readings import share

Facts = list[tuple[str, str]]


def gate_facts(rows: list[dict[str, Any]]) -> Facts:
    """Say for each checkpoint and task set what became of the programs that passed their tests."""
    facts = []
    for row in rows:
        name = f"Semantic correctness, {row['checkpoint']} on {row['task_set']}"
        facts.append((name, _gates_text(row)))
    n_repeated = sum(row["n_repeated"] for row in rows)
    if n_repeated:
        text = f"{share(sum(row['n_flaky'] for row in rows), n_repeated)} of what ran, judged twice"
        facts.append(("Another verdict the second time", text))
    return facts


def class_facts(rows: list[dict[str, Any]]) -> Facts:
    """Say for each checkpoint and task set how many programs have errors of which class."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["checkpoint"], row["task_set"]), []).append(row)
    return [
        (
            f"rustc's errors by class, {checkpoint} on {task_set}",
            ", ".join(f"{row['class']} {row['n']:,}" for row in members)
            + f" of {members[0]['n_judged']:,} judged programs (a program may have several)",
        )
        for (checkpoint, task_set), members in groups.items()
    ]


def _gates_text(row: dict[str, Any]) -> str:
    n = row["n_passed"]
    if not n:
        return "no program passed its tests, so no gate was asked"
    parts = [f"{share(row['n_ok'], n)} of the programs that pass are semantically correct"]
    parts += [f"{row['n_lints']:,} with a lint of clippy::correctness"]
    parts += [f"{row['n_unsafe']:,} with unsafe code"]
    if row["n_unknown"]:
        parts.append(f"{row['n_unknown']:,} not known: a gate was missing or could not look")
    return "; ".join(parts)


def corpus_gate_facts(gates: dict[str, Any]) -> Facts:
    """Say what the clippy gate took out of the verified corpus."""
    if not gates:
        return []
    if gates["clippy"] == "not available":
        text = "not asked: clippy-driver is not installed, no row is called clean"
        return [("Lints of clippy::correctness", text)]
    lints = ", ".join(f"{row['lint']} ({row['n']:,})" for row in gates["lints"][:4])
    text = f"{share(gates['n_linted'], gates['n_asked'])} of the programs that pass, left out"
    text += f": {lints}" if lints else ""
    unsafe = f"{share(gates['n_unsafe'], gates['n_asked'])}, kept: Miri is not asked in this stage"
    not_judged = f"{gates['n_unjudged']:,} that clippy could not read, kept"
    return [
        ("Lints of clippy::correctness", f"{text}; {not_judged}"),
        ("Programs with unsafe code", unsafe),
    ]
