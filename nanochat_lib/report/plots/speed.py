"""What the kernels and the decode engine cost, as figures: rows of their benchmarks in.

Input: rows of `kernels.bench` (sections "warm" and "working_set") and of the decode benchmark
(sections "exit" and "part"), as notebook 07 writes them to bench.json.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from nanochat_lib.report.plots import theme
from nanochat_lib.report.plots.bars import Row, plain
from nanochat_lib.report.plots.figures import base_figure, missing_figure


def kernel_bars(rows: Sequence[Row]) -> go.Figure:
    """Draw how many times as fast as NumPy float32 each kernel is, per shape and batch.

    Args:
        rows: of `kernels.bench.run_bench`; peers that are not ternary are hatched.
    """
    title = "Ternary kernels against NumPy float32"
    rows = [row for row in rows if row.get("ratio_to_numpy_f32") and row["backend"] != "numpy"]
    if not rows:
        return missing_figure(title, "no kernel was timed.")
    figure = base_figure(title, "", "times as fast as NumPy float32", height=440)
    for i, (kernel, backend) in enumerate(dict.fromkeys((r["kernel"], r["backend"]) for r in rows)):
        part = [row for row in rows if (row["kernel"], row["backend"]) == (kernel, backend)]
        name = plain(f"{kernel.replace('_', ' ')}, {backend}")
        is_peer = kernel != "ternary"
        figure.add_bar(
            x=[f"{row['n']} x {row['k']}<br>batch {row['batch']}" for row in part],
            y=[row["ratio_to_numpy_f32"] for row in part],
            name=name,
            marker={
                "color": theme.color("muted") if is_peer else theme.series_color(i),
                "pattern": {"shape": "/x.-"[i % 4] if is_peer else ""},
            },
            customdata=[[row["us_median"], row["n_repeats"]] for row in part],
            hovertemplate="%{x}: %{y:.2f} times, %{customdata[0]:.1f} us (median of "
            "%{customdata[1]})<extra>" + name + "</extra>",
        )
    figure.add_hline(y=1, line={"color": theme.color("text"), "dash": "dot", "width": 1.5})
    return figure


def memory_roofline(rows: Sequence[Row]) -> go.Figure:
    """Draw the rate at which one token's product reads its weights, over how much there is to read.

    Reading alone, the better of two patterns, is the roof: its steps are the caches.
    """
    title = "One token under the memory's roof"
    rows = [row for row in rows if row.get("section") == "working_set"]
    if not rows:
        return missing_figure(title, "no kernel was timed beside the reading of memory.")
    figure = base_figure(title, "MB of weights gone through in turn", "GB of weights per second")
    for i, packing in enumerate(("2bit", "base3")):
        part = [r for r in rows if r["kernel"] == "ternary" and r["packing"] == packing]
        name = {"2bit": "2 bits a weight", "base3": "1.6 bits a weight"}[packing]
        figure.add_scatter(
            x=[row["set_mb"] for row in part],
            y=[row["gb_per_s"] for row in part],
            name=name,
            mode="lines+markers",
            line={"color": theme.series_color(i), "width": 2},
            marker={"size": 7, "symbol": i},
            customdata=[[row["us_median"], f"{row['n']} x {row['k']}"] for row in part],
            hovertemplate="%{x:.2f} MB: %{y:.1f} GB/s, %{customdata[0]:.1f} us for "
            "%{customdata[1]}<extra>" + name + "</extra>",
        )
    roof = read_roof(rows)
    figure.add_scatter(
        x=list(roof),
        y=list(roof.values()),
        name="reading alone",
        mode="lines",
        line={"color": theme.color("text"), "dash": "dot", "width": 1.5},
    )
    figure.update_xaxes(type="log")
    figure.update_yaxes(rangemode="tozero")
    return figure


def read_roof(rows: Sequence[Row]) -> dict[float, float]:
    """Return the better pattern's GB/s by working set in MB."""
    roof: dict[float, float] = {}
    for row in rows:
        if row["kernel"] == "read" and row.get("set_mb"):
            roof[row["set_mb"]] = max(roof.get(row["set_mb"], 0.0), row["gb_per_s"])
    return roof


def exit_speed(rows: Sequence[Row]) -> go.Figure:
    """Draw tokens per second over the exit threshold, and the mean depth that each led to."""
    title = "Leaving the loops early"
    rows = [row for row in rows if row.get("section") == "exit"]
    if not rows:
        return missing_figure(title, "the engine was not timed.")
    figure = base_figure(title, "exit threshold", "tokens per second, one thread")
    figure.add_scatter(
        x=[row["exit_threshold"] for row in rows],
        y=[row["tokens_per_s"] for row in rows],
        mode="lines+markers+text",
        text=[f"{row['mean_loops']:.1f} loops" for row in rows],
        textposition="top center",
        line={"color": theme.series_color(0), "width": 2},
        customdata=[[row["speedup"], row["n_tokens"], row["n_repeats"]] for row in rows],
        hovertemplate="threshold %{x}: %{y:.0f} tokens/s, %{customdata[0]:.2f} times full depth "
        "(%{customdata[1]} tokens, median of %{customdata[2]})<extra></extra>",
        showlegend=False,
    )
    figure.update_yaxes(rangemode="tozero")
    return figure


def token_parts(rows: Sequence[Row]) -> go.Figure:
    """Draw where the time of one decoded token goes."""
    title = "Where a token's time goes"
    parts = [row for row in rows if row.get("section") == "part" and row["what"] != "token"]
    if not parts:
        return missing_figure(title, "the engine was not timed.")
    figure = base_figure(title, "microseconds of one token", "", height=240)
    for i, row in enumerate(parts):
        figure.add_bar(
            x=[row["us"]],
            y=["a token"],
            orientation="h",
            name=row["what"],
            marker={"color": theme.series_color(i)},
            hovertemplate="%{x:.1f} us<extra>" + plain(row["what"]) + "</extra>",
        )
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    return figure
