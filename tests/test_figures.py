"""Figures: colours that people can tell apart, honest lines, and reasons instead of empty plots."""

from __future__ import annotations

import itertools
import random

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from run_factory import METRIC_SCHEMA, metric_rows

from nanochat_lib.records import Metric
from nanochat_lib.report.content import texts
from nanochat_lib.report.plots import bars, figures, speed, theme
from nanochat_lib.report.run_data import MAX_POINTS, downsample

# Severe colour blindness in linear RGB: Machado, Oliveira and Fernandes 2009, table 1, severity 1.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3).tolist(),
}  # fmt: skip
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip


def linear(color: str) -> np.ndarray:
    """Return linear RGB of a hex colour (IEC 61966-2-1)."""
    values = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Return CIELAB of linear RGB under D65."""
    x = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(x > 216 / 24389, np.cbrt(x), (24389 / 27 * x + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2."""
    dark, light = sorted(float(TO_XYZ[1] @ linear(color)) for color in (one, other))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("kind", BLINDNESS)
def test_series_colors_stay_apart_for_everyone(mode: int, kind: str) -> None:
    seen = [lab(np.array(BLINDNESS[kind]) @ linear(pair[mode])) for pair in theme.SERIES.values()]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(distances) > 14  # about six just noticeable differences


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colors_have_contrast_with_their_background(mode: int) -> None:
    background = theme.SURFACE["background"][mode]
    for role, pair in theme.SERIES.items():
        assert contrast(pair[mode], background) >= 3, role
    assert contrast(theme.SURFACE["text"][mode], background) >= 7


def test_a_light_color_has_one_dark_partner() -> None:
    lights = [pair[0] for pair in (*theme.SERIES.values(), *theme.SURFACE.values())]
    assert len(set(lights)) == len(lights) == len(theme.swap_table())


@pytest.fixture(scope="module")
def metrics() -> pl.DataFrame:
    noise = random.Random(1)
    rows = [
        ("made_up", *row)
        for stage in ("pretrain", "maxrl", "long_context")
        for row in metric_rows(stage, 400, noise)
    ]
    return pl.DataFrame(rows, schema=METRIC_SCHEMA, orient="row")


def named(figure: go.Figure, part: str) -> go.Scatter:
    """Return the one trace whose name contains a text."""
    found = [trace for trace in figure.data if part in (trace.name or "")]
    assert len(found) == 1, [trace.name for trace in figure.data]
    return found[0]


def test_bits_per_byte_tells_real_from_tinyrust_and_draws_compressors(
    metrics: pl.DataFrame,
) -> None:
    compression = {"xz_bits_per_byte": 1.83, "zstd_bits_per_byte": 1.98}
    figure = figures.bits_per_byte(metrics, compression, 1.6, n_loops=4)
    assert set(named(figure, "xz -9e").y) == {1.83}
    assert set(named(figure, "zstd -19").y) == {1.98}
    assert set(named(figure, "target").y) == {1.6}
    real, tiny = named(figure, "real Rust, held out"), named(figure, "TinyRust")
    assert real.line.dash != tiny.line.dash
    assert real.line.color != tiny.line.color
    assert [trace.name[-1] for trace in figure.data if "after loop" in trace.name] == list("123")


def test_targets_and_baselines_are_lines_never_bars(metrics: pl.DataFrame) -> None:
    results = pl.DataFrame([evaluation_row("builtin", "pass@1", 0.1)])
    figure = bars.evaluation_bars(results, "pass@1", 0.72)
    assert len([trace for trace in figure.data if trace.type == "bar"]) == 1
    assert [shape.x0 for shape in figure.layout.shapes] == [0.72]
    assert "HumanEval-Rust" in figure.layout.annotations[-1].text
    speed = figures.throughput(metrics, target=5000)
    assert named(speed, "target").mode == "lines"


def test_token_entropy_labels_the_band_as_the_briefs(metrics: pl.DataFrame) -> None:
    figure = figures.token_entropy(metrics, 2048)
    band = figure.layout.shapes[0]
    assert (band.y0, band.y1) == (6.0, 8.0)
    assert "brief" in figure.layout.annotations[0].text
    assert list(named(figure, "ln V").y) == pytest.approx([7.6246, 7.6246], abs=1e-4)


def test_exit_areas_add_up_to_all_tokens(metrics: pl.DataFrame) -> None:
    figure = figures.exit_distribution(metrics, 4)
    assert len(figure.data) == 4
    assert np.allclose(sum(np.asarray(trace.y) for trace in figure.data), 1.0)
    assert len({trace.fillcolor for trace in figure.data}) == 4


@pytest.mark.parametrize("n_loops", [1, 2])
def test_one_loop_has_no_exit_figure(metrics: pl.DataFrame, n_loops: int) -> None:
    figure = figures.exit_entropy(metrics, n_loops)
    assert ("missing" in (figure.layout.meta or {})) == (n_loops == 1)


def test_nothing_recorded_gives_a_reason() -> None:
    empty = pl.DataFrame(schema=METRIC_SCHEMA)
    for figure in (
        figures.loss_curves(empty),
        figures.bits_per_byte(empty),
        figures.token_entropy(empty, 2048),
        figures.calibration_gap(empty),
        figures.exit_entropy(empty, 4),
        figures.exit_distribution(empty, 4),
        figures.learning_rate(empty),
        figures.gradient_norm(empty),
        figures.ternary_codes(empty),
        figures.throughput(empty),
        bars.verification_funnel([]),
        bars.compile_rate_by_source({}),
        bars.difficulty_mix({}),
        bars.error_codes([]),
        texts.accepted_rewrites([]),
        texts.vocabularies([]),
        bars.evaluation_bars(pl.DataFrame(), "pass@1"),
        bars.loss_by_position([]),
        speed.kernel_bars([]),
        speed.memory_roofline([]),
        speed.exit_speed([]),
        speed.token_parts([]),
        bars.memory_plan([]),
    ):
        assert figure.layout.meta["missing"]
        assert figure.layout.title.text
        assert not figure.data


def test_rewrites_and_vocabularies_are_drawn_with_their_counts() -> None:
    rows = [
        {"rewrite": "rename_locals", "n_judged": 40, "n_accepted": 39},
        {"rewrite": "loop_to_while", "n_judged": 0, "n_accepted": 0},
    ]
    figure = texts.accepted_rewrites(rows)
    assert [bar.x[0] for bar in figure.data] == [0.975]
    assert "97.5% (39 of 40)" in figure.layout.annotations[0].text
    sizes = [
        {"name": "ours", "vocab_size": 512, "n_bytes": 90, "n_tokens": 40, "bytes_per_token": 2.25},
        {"name": "GPT-2: absent", "vocab_size": 0, "n_bytes": 0, "n_tokens": 0,
         "bytes_per_token": 0.0},
    ]  # fmt: skip
    (bar,) = texts.vocabularies(sizes).data
    assert bar.x[0] == 2.25
    *_, block = texts.text_blocks({"vocabularies": sizes}, "source")
    assert "GPT-2: absent." in block.reading


def test_downsampling_keeps_a_spike_of_one_step() -> None:
    values = np.sin(np.arange(100_000) / 50)
    values[70_001] = 99.0
    rows = pl.DataFrame({"step": np.arange(100_000), "value": values})
    kept = downsample(rows)
    assert kept.height <= MAX_POINTS
    assert kept["value"].max() == 99.0
    assert kept["step"].is_sorted()
    assert kept.join(rows, on=["step", "value"]).height == kept.height  # no invented points


def test_curves_skip_values_that_are_not_finite() -> None:
    rows = [("r", "pretrain", s, Metric.LOSS, v, 0.0) for s, v in enumerate((3.0, np.nan, 2.0))]
    frame = pl.DataFrame(rows, schema=METRIC_SCHEMA, orient="row")
    assert list(figures.loss_curves(frame).data[0].y) == [3.0, 2.0]


@pytest.mark.parametrize(("n_hits", "n"), [(0, 10), (3, 10), (1602, 1602), (1640, 2160)])
def test_wilson_ends_solve_the_score_equation(n_hits: int, n: int) -> None:
    rate = n_hits / n
    for end in bars.wilson_interval(n_hits, n):
        if 0 < end < 1 - 1e-12:
            assert abs(rate - end) == pytest.approx(1.96 * (end * (1 - end) / n) ** 0.5)
        else:
            assert end == pytest.approx(rate)


def test_compile_rate_counts_stand_beside_the_bars() -> None:
    rates = {
        "before": {"n_compiled": 3, "n_judged": 4},
        "by_source": [{"source": "docs", "kind": "f", "n_compiled": 0, "n_judged": 0}],
    }
    figure = bars.compile_rate_by_source(rates, 0.85)
    texts = [note.text for note in figure.layout.annotations]
    assert any("75.0% (3 of 4)" in text for text in texts)
    assert len(figure.data) == 1  # a source of which nothing was judged has no rate


def test_parts_of_a_set_are_not_drawn_beside_whole_sets() -> None:
    names = ("tinyrust", "builtin", "tinyrust/level1")
    results = pl.DataFrame([evaluation_row(name, "pass@1", 0.5) for name in names])
    whole = bars.evaluation_bars(results, "pass@1")
    labels = [note.text.split("  ")[0] for note in whole.layout.annotations]
    assert labels == ["tinyrust · maxrl", "builtin · maxrl"]
    parts = bars.evaluation_bars(results, "pass@1", parts_of="tinyrust")
    assert [note.text.split("  ")[0] for note in parts.layout.annotations] == ["level1 · maxrl"]


def test_text_from_outside_is_escaped_in_labels() -> None:
    rows = [{"code": "<b>E1</b>", "n": 2, "message": "<a href='https://example.com'>x</a>"}]
    figure = bars.error_codes(rows)
    text = figure.layout.annotations[0].text + figure.data[0].hovertemplate
    assert "<b>E1" not in text
    assert "<a " not in text
    assert "&lt;a href" in text


def test_memory_plan_adds_up_and_shows_what_there_is() -> None:
    rows = [{"part": "weights", "gb": 1.5}, {"part": "optimizer", "gb": 3.0}]
    figure = bars.memory_plan(rows, 8.0)
    assert [trace.x[0] for trace in figure.data] == [1.5, 3.0, 4.5]
    assert figure.layout.shapes[0].x0 == 8.0


def test_the_memorys_roof_is_the_better_way_of_reading() -> None:
    common = {
        "section": "working_set", "n": 4, "k": 4, "us_median": 1.0, "n_repeats": 3, "packing": "",
    }  # fmt: skip
    rows = [
        common
        | {"kernel": kernel, "backend": backend, "packing": packing, "set_mb": mb, "gb_per_s": rate}
        for kernel, backend, packing, mb, rate in (
            ("read", "one stream", "", 1.0, 90.0), ("read", "four streams", "", 1.0, 80.0),
            ("read", "one stream", "", 600.0, 14.0), ("read", "four streams", "", 600.0, 18.0),
            ("ternary", "amx", "2bit", 1.0, 50.0), ("ternary", "amx", "2bit", 600.0, 17.0),
            ("ternary", "amx", "base3", 1.0, 20.0), ("ternary", "amx", "base3", 590.0, 16.0),
        )
    ]  # fmt: skip
    two_bits, base3, roof = speed.memory_roofline(rows).data
    assert (list(two_bits.x), list(two_bits.y)) == ([1.0, 600.0], [50.0, 17.0])
    assert list(base3.y) == [20.0, 16.0]
    assert (list(roof.x), list(roof.y)) == ([1.0, 600.0], [90.0, 18.0])


def test_parts_of_a_token_add_up_to_it() -> None:
    parts = {"products": 130.0, "head": 50.0, "rest": 20.0, "token": 200.0}
    rows = [{"section": "part", "what": name, "us": us} for name, us in parts.items()]
    figure = speed.token_parts(rows)
    assert sum(trace.x[0] for trace in figure.data) == 200.0
    assert "token" not in [trace.name for trace in figure.data]


def evaluation_row(task_set: str, metric: str, rate: float) -> dict[str, object]:
    """Return one EvalResult row."""
    return {
        "checkpoint": "maxrl", "task_set": task_set, "metric": metric, "rate": rate,
        "low": rate - 0.1, "high": rate + 0.1, "n_correct": 5, "n_samples": 10,
        "n_problems": 5, "n_unjudged": 0,
    }  # fmt: skip
