"""Every page, in dark and light, at desk and on a phone: axe-core finds nothing serious.

axe-core is a tool of the tests alone: `npm install --prefix tests/node axe-core@4`. The figures'
drawings are hidden from readers of the page; a label and a table stand in for them, and the tests
of the reports check those.
"""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import polars as pl
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from run_factory import make_run
from visits import Visit

from nanochat_lib.experiments.notes import write_notes
from nanochat_lib.experiments.sweep import _described
from nanochat_lib.experiments.sweep_spec import make_spec, sweep_points
from nanochat_lib.report.compare.page import load_runs, write_comparison
from nanochat_lib.report.compare.sweep import write_sweep_page
from nanochat_lib.report.pages.corpus import write_corpus_page
from nanochat_lib.report.pages.index import write_index
from nanochat_lib.report.pages.notebook import export_notebooks
from nanochat_lib.report.pages.run import write_run_report
from nanochat_lib.report.plots import figures
from nanochat_lib.report.run_data import load_run

pytestmark = pytest.mark.browser
AXE = Path(__file__).parent / "node" / "node_modules" / "axe-core" / "axe.min.js"
PAGES = (
    "index.html",
    "runs/whole/report.html",
    "runs/whole/outcomes.html",
    "runs/whole/notebooks/02_pretrain.html",
    "runs/partial/report.html",
    "compare/pair.html",
    "sweeps/s/compare.html",
    "corpus/report.html",
)


@pytest.fixture(scope="module")
def axe() -> str:
    """Return axe-core's source."""
    if not AXE.is_file():
        pytest.skip("no axe-core (npm install --prefix tests/node axe-core@4)")
    return AXE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reports_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a reports folder with every kind of page."""
    folder = tmp_path_factory.mktemp("reports")
    runs_dir = folder / "runs"
    whole = make_run(runs_dir, "whole", targets={"pass_at_1": 0.72, "loss": 2.5})
    write_notes(whole, hypothesis="four loops win", conclusion="they do", add_tags=["loops"])
    _executed_notebook(whole)
    early = make_run(runs_dir, "partial", stages=("preprocess", "pretrain"), steps=60, seed=1)
    for one in (whole, early):
        write_run_report(one, self_contained=False)
    runs = load_runs(["whole", "partial"], runs_dir)
    write_comparison(runs, folder / "compare" / "pair.html", self_contained=False)
    _sweep(folder)
    _corpus(folder / "corpus")
    write_index(folder)
    return folder


def _executed_notebook(run_dir: Path) -> None:
    figure = json.loads(figures.loss_curves(load_run(run_dir).metrics).to_json())
    outputs = [
        new_output("display_data", {"application/vnd.plotly.v1+json": figure}),
        new_output("stream", name="stdout", text="done"),
    ]
    cells = [new_markdown_cell("# Pre-train"), new_code_cell("x = 'text'  # why", outputs=outputs)]
    nbformat.write(new_notebook(cells=cells), run_dir / "notebooks" / "02_pretrain.ipynb")
    export_notebooks(run_dir)


def _sweep(folder: Path) -> None:
    spec = make_spec({"name": "s", "grid": {"model.n_loops": [1, 2]}, "seeds": [0, 1]})
    points = sweep_points(spec)
    for i, point in enumerate(points[:3]):
        make_run(folder / "runs", point.run_id, stages=("pretrain",), steps=60, seed=i)
    (folder / "sweeps" / "s").mkdir(parents=True)
    described = json.dumps(_described(spec, points))
    (folder / "sweeps" / "s" / "sweep.json").write_text(described)
    write_sweep_page("s", folder / "runs", self_contained=False)


def _corpus(folder: Path) -> None:
    """Write the page of a corpus from the files that a build leaves."""
    folder.mkdir()
    counts = {"n_judged": 9, "n_compiled": 6, "n_passed": 5, "n_found": 12}
    summary = {
        "funnel": [{"step": "read", "n": 9}, {"step": "verified", "n": 5}],
        "compile_rate": {"by_source": [{"source": "folder", "kind": "slice"} | counts],
                         "after": counts},
        "rows": {"verified": 5, "rejected": 1, "tasks": 2}, "rustc": "1.85.0", "n_files": 4,
        "n_bytes": 4000, "n_permitted_bytes": 3000, "units": ["a"], "problems": ["no network"],
        "error_codes": [{"code": "E0425", "n": 1}], "licences": [{"licence": "MIT", "n": 5}],
        "tasks": [{
            "kind": "documentation", "n_found": 4, "n_judged": 3, "n_passed": 2, "n_kept": 1,
            "n_train": 1, "n_held_package": 0, "dropped": {"a panic passes": 1},
        }],
        "dropped_licences": {"GPL-3.0": 2}, "skipped_files": {"not UTF-8": 1},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    rejected = {"source_id": "a.rs#1", "verdict": "COMPILE_ERROR", "codes": ["E0425"],
                "detail": "cannot find value", "program": "fn f() { x }"}  # fmt: skip
    pl.DataFrame([rejected]).write_parquet(folder / "rejected.parquet")
    write_corpus_page(folder)


@pytest.mark.parametrize("width", [390, 1300])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_no_serious_violation(
    name: str, scheme: str, width: int, browser: object, axe: str, reports_dir: Path
) -> None:
    # the page's own policy would keep a test's script out as well
    seen = Visit(browser, reports_dir / name, scheme, width, bypass_csp=True)
    try:
        seen.page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
        seen.page.add_script_tag(content=axe)
        found = seen.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    finally:
        seen.context.close()
    serious = [
        f"{one['id']}: {one['nodes'][0]['html'][:160]} ({len(one['nodes'])})"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert len(found["passes"]) > 5  # it looked
    assert serious == []


def test_a_violation_would_be_found(browser: object, axe: str, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        "<html><body><img src='data:,'><button></button></body></html>"
    )
    seen = Visit(browser, tmp_path / "bad.html", "light")
    seen.page.add_script_tag(content=axe)
    found = seen.page.evaluate("axe.run(document)")
    seen.context.close()
    assert {"image-alt", "button-name"} <= {one["id"] for one in found["violations"]}
