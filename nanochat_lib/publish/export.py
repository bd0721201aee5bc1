"""Stage 6: write everything a reader needs to run, check and cite the model, in one folder.

In: a run folder. Out: `safetensors/` (weights, configuration, tokenizer), two GGUF files, the
model card as `README.md`, `config.json` of the run, `manifest.json` with checksums and the brief's
publication checklist. Nothing is uploaded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl

from nanochat_lib.config import PROJECT_ROOT, RunConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import load_checkpoint
from nanochat_lib.publish.card import model_card, pass_rates
from nanochat_lib.publish.equality import held_out_losses
from nanochat_lib.publish.gguf_file import BLOCK, write_gguf
from nanochat_lib.runs import Run, read_run_json, write_atomic
from nanochat_lib.stages import finished_checkpoints, latest_checkpoint


def publish(run_dir: Path, config: RunConfig, folder: Path) -> dict[str, Any]:
    """Export the run's model and write card, manifest and checklist.

    Returns:
        The manifest: `files` (name, bytes, sha256), `checklist` (item, done, where) and `losses`
            (held-out bits per byte of the model by every way back).

    Raises:
        WorkbenchError: no finished model, or a damaged one.
    """
    stage, source = _chosen_checkpoint(run_dir, config)
    checkpoint = load_checkpoint(source)
    exported = config.model_copy(update={"model": checkpoint.config})
    shutil.copytree(source, folder / "safetensors", dirs_exist_ok=True)
    for old in folder.glob("*.gguf"):
        old.unlink()
    name = config.publish.model_name
    for precision in ("f32", "tq2_0"):
        if precision == "f32" or _is_ternary_exportable(exported):
            write_gguf(checkpoint, folder / f"{name}-{precision}.gguf", precision, name)
    card = model_card(
        exported, read_run_json(run_dir), stage, _results(run_dir), _data_summary(run_dir)
    )
    write_atomic(folder / "README.md", card)
    write_atomic(folder / "config.json", exported.model_dump_json(indent=1))
    manifest = {"stage": stage, "files": _files(folder), "checklist": checklist(folder, run_dir)}
    manifest["losses"] = held_out_losses(checkpoint, folder, run_dir / "artifacts/preprocess")
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1))
    write_atomic(folder / "summary.json", json.dumps(manifest, indent=1))
    return manifest


def checklist(folder: Path, run_dir: Path) -> list[dict[str, Any]]:
    """Return the brief's publication checklist; an item is done when its files are there."""
    card = folder / "README.md"
    has_benchmarks = card.is_file() and "| Task set |" in card.read_text(encoding="utf-8")
    notebooks = PROJECT_ROOT / "notebooks"
    items = (
        ("Model files (GGUF format)", any(folder.glob("*.gguf")), "*.gguf"),
        ("Training code and configs", (folder / "config.json").is_file()
         and (notebooks / "02_pretrain.ipynb").is_file(),
         "config.json, notebooks/02_pretrain.ipynb"),
        ("Evaluation scripts", (notebooks / "05_evaluate.ipynb").is_file()
         and (run_dir / "artifacts/evaluate/results.parquet").is_file(),
         "notebooks/05_evaluate.ipynb, artifacts/evaluate/results.parquet"),
        ("Model card with benchmarks", has_benchmarks, "README.md"),
        ("Demo notebook", (notebooks / "00_tour.ipynb").is_file(), "notebooks/00_tour.ipynb"),
        ("Documentation", (PROJECT_ROOT / "README.md").is_file(), "README.md of the project"),
    )  # fmt: skip
    return [{"item": item, "done": bool(done), "where": where} for item, done, where in items]


def _chosen_checkpoint(run_dir: Path, config: RunConfig) -> tuple[str, Path]:
    wanted = config.publish.checkpoint
    if wanted == "auto":
        run = Run(run_dir.name, run_dir, config)
        stages, rates = list(finished_checkpoints(run)), pass_rates(_results(run_dir))
        if not rates or set(stages) != set(
            rates
        ):  # no evaluation, or one of an older state of the run
            return latest_checkpoint(run)
        wanted = max(stages, key=lambda stage: (rates[stage], stages.index(stage)))
    folder = run_dir / "artifacts" / wanted / "final"
    if not folder.is_dir():
        raise WorkbenchError(
            f"publish.checkpoint asks for the model of stage {wanted}, and run {run_dir.name} has "
            "none. Run that stage, or set publish.checkpoint to auto."
        )
    return wanted, folder


def _is_ternary_exportable(config: RunConfig) -> bool:
    model = config.model
    return model.ternary and not model.d_model % BLOCK and not model.d_ff % BLOCK


def _results(run_dir: Path) -> pl.DataFrame:
    path = run_dir / "artifacts/evaluate/results.parquet"
    return pl.read_parquet(path) if path.is_file() else pl.DataFrame()


def _data_summary(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "artifacts/preprocess/summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _files(folder: Path) -> list[dict[str, Any]]:
    ours = ("manifest.json", "summary.json")
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ours)
    return [
        {
            "name": str(path.relative_to(folder)),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    ]
