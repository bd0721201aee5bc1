"""Does stage 3 raise what it should, and which estimator does it best? Points, rates, curves.

In: a run with finished stages 1 and 2; out: a folder per estimator and seed with the stage's own
artifacts, `metrics.jsonl` and `result.json`. All points start from the same base model and sample
equally many programs; a seed decides tasks, samples and which tasks are held out. One thread for
each process, so that points that share a machine do not change each other's numbers.

Sources: MaxRL (arXiv 2602.02710), GRPO (arXiv 2402.03300).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from nanochat_lib.config import RunConfig, with_overrides
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.evals.tasks import policy_tasks
from nanochat_lib.runs import read_run_json, write_atomic
from nanochat_lib.studies.plan import Arm
from nanochat_lib.studies.points import RESULT, Point, begun
from nanochat_lib.studies.tables import interval_text, mean_interval

ARMS = (
    Arm("MaxRL", {"maxrl.advantage": "maxrl"}),
    Arm("GRPO", {"maxrl.advantage": "grpo"}),
    Arm("REINFORCE", {"maxrl.advantage": "reinforce"}),
)
RATES = {  # column -> what it is called
    "pass_before": "passed before",
    "pass_after": "passed after",
    "pass_rise": "rise",
    "compile_before": "compiled before",
    "compile_after": "compiled after",
    "compile_rise": "rise of compiled",
    "pass_at_8_before": "pass@8 before",
    "pass_at_8_after": "pass@8 after",
    "distinct_first": "distinct bodies over tasks",
    "entropy_after": "token entropy after, nats",
}


def policy_points(
    run_dir: Path,
    folder: Path,
    *,
    seeds: Sequence[int],
    arms: Sequence[Arm] = ARMS,
    overrides: dict[str, Any] | None = None,
) -> list[Point]:
    """Return a point per estimator and seed.

    Args:
        run_dir: folder of a run with finished stages 1 and 2; its configuration is the base's.
        folder: where points lie.
        overrides: dotted settings of every point, e.g. the number of updates.

    Raises:
        WorkbenchError: a stage is not there, or a setting is wrong.
    """
    weights = run_dir / "artifacts" / "pretrain" / "final" / "model.safetensors"
    tasks = run_dir / "artifacts" / "preprocess" / "tasks.jsonl"
    for path, notebook in ((tasks, "01_preprocess"), (weights, "02_pretrain")):
        if not path.is_file():
            raise WorkbenchError(
                f"Policies begin with a trained model and its tasks, and {path} is not there: run "
                f"{notebook}.ipynb first, and give the run's folder."
            )
    config = RunConfig.model_validate(read_run_json(run_dir)["config"])
    base = hashlib.sha256(weights.read_bytes()).hexdigest()
    points = []
    for arm in arms:
        for seed in seeds:
            settings = arm.settings | {"seed": seed, "hardware.cpu_threads": 1}
            changed = with_overrides(config, settings | (overrides or {}))
            points.append(Point(arm.name, seed, changed, folder / _name(changed, base)))
    return points


def _name(config: RunConfig, base: str) -> str:
    """Return a hash of what decides a point; defaults are left out, as for other studies."""
    plan = config.model_dump(mode="json", exclude_defaults=True).get("maxrl")
    text = json.dumps([config.seed, plan, base], sort_keys=True)
    return "policy-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def run_policy(point: Point, data: Path) -> None:
    """Run stage 3 for one point (or go on with it), and write `result.json`.

    Args:
        data: `artifacts/preprocess` of the run; its model lies beside it.
    """
    from nanochat_lib.train.maxrl import maxrl

    began = time.process_time()
    with begun(point) as log:
        summary = maxrl(
            point.config,
            data.parent / "pretrain" / "final",
            policy_tasks(point.config.maxrl, data),
            point.folder,
            log=log,
        )
    kept = ("before", "after", "gains", "looks", "guards", "seconds", "n_rollouts", "n_unjudged")
    result = {key: summary[key] for key in kept} | {"cpu_s": round(time.process_time() - began, 1)}
    write_atomic(point.folder / RESULT, json.dumps(result, indent=1) + "\n")


def rate_rows(points: Sequence[Point], *, level: str = "", split: str = "") -> pl.DataFrame:
    """Return a row per point: rates before and after, and their paired rises.

    Args:
        level: only held-out tasks of this level, e.g. "3".
        split: of another split than the main one, e.g. "held_family"; it has no rises.
    """
    rows = []
    for point in points:
        result = point.result()
        before, after = (_part(result[when], level, split) for when in ("before", "after"))
        row = {"arm": result["arm"], "seed": result["seed"], "n": after["n_judged"],
               "tasks": after["n_tasks"], "programs sampled": result["n_rollouts"]}  # fmt: skip
        for name, key in (("pass", "pass_rate"), ("compile", "compile_rate")):
            row |= {f"{name}_before": before[key], f"{name}_after": after[key]}
            row[f"{name}_rise"] = after[key] - before[key]
        for when, look in (("before", result["before"]), ("after", result["after"])):
            at_8 = look["pass_at"].get("8", {}) if not (level or split) else {}
            row[f"pass_at_8_{when}"] = at_8.get("rate")
        row["distinct_first"] = after["distinct_first_rate"]
        row["entropy_after"] = after["token_entropy_nats"]
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def _part(look: dict[str, Any], level: str, split: str) -> dict[str, Any]:
    if level:
        return look["by_level"][level]
    return look["by_split"][split] if split else look


def rate_table(rows: pl.DataFrame) -> pl.DataFrame:
    """Return a row per estimator: the mean over seeds of each rate with its 95 % half interval."""
    out = []
    for (arm,), group in rows.group_by("arm", maintain_order=True):
        row: dict[str, Any] = {"estimator": arm, "seeds": len(group)}
        row |= {"programs judged": int(group["n"].sum()), "tasks": int(group["tasks"].sum())}
        for column, name in RATES.items():
            values = group[column].drop_nulls().to_list()
            row[name] = interval_text(*mean_interval(values), signed="rise" in column)
        out.append(row)
    return pl.DataFrame(out)


def pooled(points: Sequence[Point], key: str) -> pl.DataFrame:
    """Return, per estimator and seed, a rate before and after with intervals over held-out tasks.

    Args:
        key: "pass_rate" or "compile_rate".

    `is_separate` says that the intervals of before and after do not overlap, and the rate rose.
    """
    rows = []
    for point in points:
        result = point.result()
        before, after = (
            (look[key], look[f"{key}_low"], look[f"{key}_high"])
            for look in (result["before"], result["after"])
        )
        rows.append({
            "estimator": result["arm"], "seed": result["seed"],
            "before": _span(*before), "after": _span(*after),
            "paired rise": _span(*(result["gains"][key][k] for k in ("rise", "low", "high"))),
            "is_separate": after[1] > before[2],
            "n": result["after"]["n_judged"], "tasks": result["after"]["n_tasks"],
        })  # fmt: skip
    return pl.DataFrame(rows)


def curve_rows(points: Sequence[Point]) -> pl.DataFrame:
    """Return a row per look of every point: programs sampled so far, rates, entropy, KL."""
    rows = []
    for point in points:
        plan, result = point.config.maxrl, point.result()
        per_step = plan.prompts_per_step * plan.rollouts_per_prompt
        names = (
            "pass_rate",
            "compile_rate",
            "token_entropy_nats",
            "kl_nats",
            "distinct_first_rate",
        )
        for look in result["looks"]:
            row = {"arm": result["arm"], "seed": result["seed"], "step": look["step"]}
            rows.append(row | {"programs": look["step"] * per_step} | {k: look[k] for k in names})
    return pl.DataFrame(rows, infer_schema_length=None)


def _span(value: float, low: float, high: float) -> str:
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"
