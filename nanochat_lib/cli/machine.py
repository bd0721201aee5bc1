"""`nanochat plan` and `nanochat kernels`: what a profile asks for, what this machine can do."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from nanochat_lib.cli.shared import JsonFlag, Setting, console, parse_settings, show
from nanochat_lib.config import load_profile


def plan(
    profile: Annotated[str, typer.Argument(help="profile name, or a .toml file")] = "laptop",
    settings: Setting = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what a profile asks for: parameters, time, memory, and what does not add up."""
    from nanochat_lib.hardware.planner import make_plan

    made = make_plan(load_profile(profile, parse_settings(settings or [])))
    if as_json:
        typer.echo(json.dumps(made.as_dict(), indent=1))
        return
    show(made.rows(), False, title=f"Plan of profile {profile}")
    show(made.memory_rows(), False, title="Memory by part")
    for finding in made.findings:
        console.print(f"[yellow]•[/yellow] {finding.text}", highlight=False)


def kernels(as_json: JsonFlag = False) -> None:
    """Show the ternary kernels and which of them this machine runs."""
    import kernels as kernel_package

    show(kernel_package.describe(), as_json, title="Ternary kernels")
