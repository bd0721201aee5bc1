"""`nanochat plan`, `parameters` and `kernels`: what a profile asks for, what can be asked, and what
this machine computes with.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nanochat_lib.cli.shared import JsonFlag, Setting, console, parse_settings, show
from nanochat_lib.config import RunConfig, load_profile


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


def parameters(
    section: Annotated[str, typer.Argument(help="e.g. pretrain, or words of a meaning")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List the settings of a profile with their defaults and meanings."""
    wanted = section.lower()
    rows = [
        row
        for row in parameter_rows()
        if row["setting"].startswith(f"{wanted}.")
        or wanted in f"{row['setting']} {row['meaning']}".lower()
    ]
    show(rows, as_json, empty=f"No setting holds {section!r}.")


def parameter_rows() -> list[dict[str, str]]:
    """Return every setting: dotted name, default, what it may be, what it means."""
    rows = []
    for name, field in RunConfig.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        inner = field.annotation.model_fields if is_section else {"": field}
        for key, one in inner.items():
            rows.append(
                {
                    "setting": f"{name}.{key}".rstrip("."),
                    "default": json.dumps(one.default),
                    "allowed": _allowed(one),
                    "meaning": one.description or "",
                }
            )
    return rows


def _allowed(field: FieldInfo) -> str:
    """Return a setting's type or choices, and its bounds."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    kind = " or ".join(map(str, choices)) if choices else _type_name(field.annotation)
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    bounds = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in signs
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([kind, *bounds])


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        choices = get_args(inner) if get_origin(inner) is Literal else ()
        return f"list of {' or '.join(choices) if choices else inner.__name__}"
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return text.replace(" | None", ", or not set")


def kernels(as_json: JsonFlag = False) -> None:
    """Show the ternary kernels, which of them this machine runs, and which generate text."""
    import kernels as kernel_package
    from nanochat_lib.model.backend import choice_here

    choice = choice_here()
    rows = [
        row | {"decodes": row["backend"] == "cuda" if choice.device == "cuda" else row["chosen"]}
        for row in kernel_package.describe()
    ]
    show(rows, as_json, title="Ternary kernels")
    if not as_json:
        console.print(f"Text is generated on {choice.device}: {choice.why}.", highlight=False)
