"""One sentence per figure of stage 3, computed from its numbers.

Input: `summary.json` of the stage, or its looks. Output: plain text with counts; an empty text when
nothing was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanochat_lib.records import Metric, Verdict
from nanochat_lib.report.content.readings import middle, number, trend
from nanochat_lib.report.policy.changes import WORDS, Change, Rise, changes, pass_at, rises
from nanochat_lib.report.policy.guards import guards_of
from nanochat_lib.report.policy.looks import POLICY_LINES, Look, verdict_share
from nanochat_lib.report.run_data import RunData, series

STAGE = "maxrl"
ROUNDING = 1e-9  # a KL of zero may come out as -7e-29
_MEANINGS = {
    "maxrl-entropy": "Near zero every sample of a task is the same, and nothing is learned.",
    "maxrl-kl": "Exact over the vocabulary, on programs that the policy sampled.",
    "maxrl-loops": (
        "The gate is frozen in this stage and all loops run while sampling and learning: this is "
        "how deep it would go on these programs if exits were used, not what was used."
    ),
    "maxrl-distinct": (
        "Samples of one task may agree; one program a task, the first that compiles, should not: "
        "equal bodies for different tasks are a collapse."
    ),
    "maxrl-length": "A policy that shrinks its programs gives up on the hard ones.",
}


def read_change(summary: dict[str, Any], kind: str) -> str:
    """Say how a rate moved, with counts, and for which parts the intervals are separate."""
    found = changes(summary, kind)
    if not found:
        return ""
    whole, parts = found[0], found[1:]
    text = (
        f"{WORDS[kind].capitalize()}, {whole.part}: {whole.before.text} before, {whole.after.text} "
        f"after ({whole.after.n:,} programs of {whole.after.n_tasks:,} tasks); {whole.says}."
    )
    if not parts:
        return text
    apart = [change.part for change in parts if change.is_separate]
    among = f"{len(apart)} of {len(parts)} are separate"
    among += f" ({', '.join(apart)})" if apart else ""
    return f"{text} By level and split: {among}."


def change_rows(summary: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return a table of the changes: rates with intervals, counts, and what is shown."""
    return [_change_row(change) for change in changes(summary, kind)]


def _change_row(change: Change) -> dict[str, Any]:
    before, after = change.before, change.after
    return {
        "tasks": change.part,
        "n tasks": after.n_tasks,
        "before": before.text,
        "programs before": f"{before.n_hits:,} of {before.n:,}",
        "after": after.text,
        "programs after": f"{after.n_hits:,} of {after.n:,}",
        "shown": change.says,
    }


def read_rises(summary: dict[str, Any]) -> str:
    """Say whether the paired differences of all main tasks are above zero."""
    found = [rise for rise in rises(summary) if rise.part == "all"]
    return " ".join(_rise_text(rise) for rise in found)


def _rise_text(rise: Rise) -> str:
    low, mean, high = (100 * value for value in (rise.low, rise.rise, rise.high))
    return (
        f"{WORDS[rise.kind].capitalize()}: {mean:+.1f} points [{low:+.1f} to {high:+.1f}] over "
        f"{rise.n_tasks:,} tasks; {rise.says}."
    )


def read_pass_at(summary: dict[str, Any]) -> str:
    """Say how pass@1 and the largest pass@k moved."""
    before, after = pass_at(summary, "before"), pass_at(summary, "after")
    ks = [k for k in before if k in after]
    if not ks:
        return ""
    parts = [
        f"pass@{k} {before[k].text} before, {after[k].text} after; "
        f"{Change(f'pass@{k}', before[k], after[k]).says}"
        for k in dict.fromkeys((ks[0], ks[-1]))
    ]
    fell = after[ks[-1]].value < before[ks[-1]].value
    note = " The policy solves fewer tasks at all: it narrowed." if fell and len(ks) > 1 else ""
    return ". ".join(part[0].upper() + part[1:] for part in parts) + f".{note}"


def pass_at_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a table of pass@k before and after."""
    before, after = pass_at(summary, "before"), pass_at(summary, "after")
    return [
        {"k": k, "n tasks": after[k].n_tasks, "before": before[k].text, "after": after[k].text,
         "shown": Change("", before[k], after[k]).says}
        for k in before
        if k in after
    ]  # fmt: skip


def read_progress(run: RunData) -> str:
    """Say how the held-out pass rate moved, or the training pass rate when that is all there is."""
    for metric, label in (
        (Metric.HELD_OUT_PASS_RATE, "The pass rate on held-out tasks"),
        (Metric.PASS_RATE, "The pass rate on training tasks"),
    ):
        if text := trend(run.metrics, STAGE, metric, label, unit="%", step="update"):
            return text + _mixed_text(run)
    return ""


def _mixed_text(run: RunData) -> str:
    mixed = series(run.metrics, STAGE, Metric.MIXED_GROUPS)["value"]
    if mixed.is_empty():
        return ""
    return (
        f" In a median update {mixed.median():.0%} of the prompts had programs that differ in "
        "reward; of the others maxrl, grpo and rloo learn nothing."
    )


def read_outcomes(looks: Sequence[Look]) -> str:
    """Say what kept most programs from passing at the first and at the last look."""
    looks = [look for look in looks if "mistakes" in look]
    if not looks:
        return ""
    verdicts = [v for v in Verdict if v not in (Verdict.PASSED, Verdict.UNJUDGED)]
    parts = []
    for look in (looks[0], looks[-1]):
        top = max(verdicts, key=lambda verdict, look=look: verdict_share(look, verdict))
        found = look["mistakes"]
        name = str(top).replace("_", " ").lower()
        parts.append(
            f"at update {look['step']:,} {verdict_share(look, Verdict.PASSED):.1%} pass, most "
            f"others end as {name} ({found['verdicts'].get(str(top), 0):,} of "
            f"{found['n_judged']:,})"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def read_mistakes(looks: list[Look], group: str) -> str:
    """Name the most frequent class or code of errors at the first and at the last look.

    Args:
        looks: of the summary.
        group: "classes" or "codes" of a look's mistakes.
    """
    parts = []
    for look in [look for look in looks if look.get("mistakes", {}).get(group)][
        :: max(1, len(looks) - 1)
    ]:
        found = look["mistakes"]
        name, n = max(found[group].items(), key=lambda item: item[1])
        name = name if n else "none at all,"
        parts.append(f"{name} {n / max(found['n_judged'], 1):.1%} (update {look['step']:,})")
    text = f"Most frequent of rustc's {group}: {', then '.join(parts)}." if parts else ""
    if group == "codes" and text:
        text += " A look keeps its eight most frequent codes; others count as none."
    return text


def read_line(looks: Sequence[Look], anchor: str) -> str:
    """Say how a quantity of `POLICY_LINES` moved between the first and the last look."""
    _, unit, style, lines = POLICY_LINES[anchor]
    name, read = next(iter(lines.items()))
    values = [(look["step"], read(look)) for look in looks if read(look) is not None]
    values = [(step, value if abs(value) > ROUNDING else 0.0) for step, value in values]
    if not values:
        return ""
    old, new = (f"{v:.1%}" if "%" in style else number(v) for v in (values[0][1], values[-1][1]))
    unit = "" if "%" in style else f" {unit.split(',')[-1].strip()}"
    moved = f"stayed at {old}" if old == new else f"went from {old} to {new}"
    return (
        f"{name[0].upper()}{name[1:]}: {moved}{unit} by update {values[-1][0]:,} "
        f"({len(values):,} looks). {_MEANINGS[anchor]}"
    )


def read_reward(looks: Sequence[Look], kind: str) -> str:
    """Say what the shaped formula would pay for the programs, and which reward was used."""
    found = [look for look in looks if look.get("reward_parts")]
    if not found:
        return ""
    old, new = (sum(look["reward_parts"].values()) for look in (found[0], found[-1]))
    which = "it is the reward of this run" if kind == "shaped" else "it is only shown, not used"
    return (
        f"The brief's shaped formula would pay {old:.2f} a program at first and {new:.2f} at the "
        f"end ({found[-1]['n_judged']:,} programs a look); {which}. Where it rises and the tests "
        "passed do not, it is being gamed."
    )


def read_guards(summary: dict[str, Any]) -> str:
    """Say which guards raise an alarm at the end."""
    guards = guards_of(summary)
    if not guards:
        return ""
    alarms = [f"{guard.label} ({guard.value})" for guard in guards if guard.is_alarm]
    if not alarms:
        return f"No alarm: all {len(guards)} guards are within their bands at the end."
    return f"Alarm of {len(alarms)} of {len(guards)} guards: {'; '.join(alarms)}."


def read_curriculum(summary: dict[str, Any]) -> str:
    """Say how many families are tried, and where most draws go."""
    rows = summary.get("curriculum", [])
    tried = [row for row in rows if row["n_tried"]]
    if not rows:
        return ""
    mixed = [row for row in tried if 0.1 <= (row["pass_rate_recent"] or 0) <= 0.9]
    drawn = sum(row["weight"] for row in mixed)
    return (
        f"{len(tried):,} of {len(rows):,} families were tried; {drawn:.0%} of the next draws go to "
        f"the {len(mixed):,} of them that pass between 10% and 90% of the time, where programs of "
        "one task differ and something can be learned. None is ever left out."
    )


def read_seconds(run: RunData) -> str:
    """Say what a median policy update costs and where its time goes."""
    has_wait = not series(run.metrics, STAGE, Metric.WAIT_S).is_empty()
    judged = {"waiting for the judge": Metric.WAIT_S} if has_wait else {"judging": Metric.VERIFY_S}
    parts = {"sampling": Metric.GENERATE_S, **judged, "learning": Metric.UPDATE_S}
    found = {name: series(run.metrics, STAGE, metric)["value"] for name, metric in parts.items()}
    found = {name: values.median() for name, values in found.items() if len(values)}
    if not found:
        return ""
    text = ", ".join(f"{value:.1f} s {name}" for name, value in found.items())
    beside = f" {middle(run.metrics, STAGE, Metric.VERIFY_S, 'Judging, beside other work', 's')}"
    whole = f"A median update takes about {sum(found.values()):.1f} s: {text}."
    return whole + (beside if has_wait else "")
