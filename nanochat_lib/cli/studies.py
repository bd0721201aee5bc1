"""`nanochat study`: the claims of papers, tried on Rust."""

from __future__ import annotations

from typing import Annotated

import typer

from nanochat_lib.cli.shared import Setting, console, parse_settings


def study(
    name: Annotated[str, typer.Argument(help="loops, ternary, objective, exits, maxrl, ...")],
    data_run: Annotated[
        str, typer.Option(help="a run with a finished stage 1 (maxrl: 2): its name, or its folder")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="seeds of each arm")] = 3,
    workers: Annotated[int, typer.Option(min=0, help="points at a time; 0: one a core")] = 0,
    set_: Setting = None,
) -> None:
    """Train the arms of a study, compare them with intervals, and write its page.

    What is done is kept: the same command continues after an interruption.
    """
    from nanochat_lib.studies.notebook import run_notebook

    parameters = {
        "data_run": data_run,
        "seeds": list(range(seeds)),
        "workers": workers,
        "overrides": parse_settings(set_ or []),
    }
    console.print(f"page  {run_notebook(name, parameters)}", soft_wrap=True)
