"""A form for a stage's settings, made from its pydantic models, checked as one types.

In: a profile, overrides, and the config sections of a stage. Out: dotted overrides that
`load_profile` accepts, or the sentences why it does not. Every check is `load_profile`'s own, so
the form knows no rule by itself; it only shows each complaint beside the field it is about.
"""

from __future__ import annotations

import html
import tomllib
from collections.abc import Callable, Iterable
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import ipywidgets as widgets
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nanochat_lib.config import RunConfig, load_profile
from nanochat_lib.errors import WorkbenchError

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


class SettingsForm:
    """One row per setting, and a box for any other setting by its dotted name."""

    def __init__(
        self,
        profile: str,
        overrides: dict[str, Any],
        sections: Iterable[str],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.profile, self.on_change = profile, on_change
        self.base = load_profile(profile, overrides)
        self._given = dict(overrides)
        self.error = ""
        self._fields = {key: _Field(key, info) for key, info in _settings(sections)}
        self._touched: set[str] = set()
        self._is_filling = False
        self._more = widgets.Textarea(
            placeholder="other settings, one a line, e.g.  verify.run_cpu_s = 4",
            layout={"width": "100%", "height": "58px"},
        )
        self._said = widgets.HTML()
        self.widget = self._build()
        self._fill(self.base)
        for key, field in self._fields.items():
            field.input.observe(lambda change, key=key: self._edited(key), "value")
        self._more.observe(lambda change: self._check(), "value")

    @property
    def overrides(self) -> dict[str, Any]:
        """Return the overrides as typed, whether or not they are valid."""
        typed = {key: self._fields[key].value for key in sorted(self._touched)}
        try:
            return {**self._given, **typed, **parse_lines(self._more.value)}
        except WorkbenchError:
            return {**self._given, **typed}

    @property
    def is_valid(self) -> bool:
        """Return whether a stage could start with what is typed."""
        return not self.error

    def set(self, key: str, text: str) -> None:
        """Type into a field, as a person would."""
        self._fields[key].input.value = text

    def reset(self) -> None:
        """Go back to the profile's values."""
        self._touched.clear()
        self._more.value = ""
        self._check()

    def _build(self) -> widgets.VBox:
        groups: dict[str, list[widgets.Widget]] = {}
        for key, field in self._fields.items():
            groups.setdefault(key.rpartition(".")[0] or "run", []).append(field.row)
        tabs = widgets.Tab([*(widgets.VBox(rows) for rows in groups.values()), self._more])
        tabs.titles = (*groups, "more settings")
        button = widgets.Button(
            description="Back to the profile", icon="undo", layout={"width": "190px"}
        )
        button.on_click(lambda _: self.reset())
        return widgets.VBox([tabs, widgets.HBox([button]), self._said])

    def _edited(self, key: str) -> None:
        if self._is_filling:
            return
        self._touched.add(key)
        self._check()

    def _check(self) -> None:
        """Ask `load_profile`, show its complaints, and let what was not typed follow."""
        complaints: dict[str, str] = {}
        try:
            parse_lines(self._more.value)
            config = load_profile(self.profile, self.overrides)
        except WorkbenchError as error:
            complaints = complaints_of(error)
        else:
            self._touched = {key for key in self._touched if self._matters(key, config)}
            self._fill(config)
        for key, field in self._fields.items():
            field.say(complaints.pop(key, ""), is_changed=key in self._touched)
        rest = "\n".join(f"{key}: {text}" if key else text for key, text in complaints.items())
        self._said.value = f'<div class="nano-error" role="alert">{html.escape(rest)}</div>'
        self.error = "; ".join(f.complaint for f in self._fields.values() if f.complaint) or rest
        self.on_change()

    def _matters(self, key: str, config: RunConfig) -> bool:
        """Return whether a typed setting is another than it would be without typing it."""
        rest = {name: value for name, value in self.overrides.items() if name != key}
        given = {key: self._given[key]} if key in self._given else {}
        try:
            without = load_profile(self.profile, rest | given)
        except WorkbenchError:
            return True
        return value_of(config, key) != value_of(without, key)

    def _fill(self, config: RunConfig) -> None:
        """Show the resolved value of every setting that was not typed."""
        self._is_filling = True
        for key, field in self._fields.items():
            if key not in self._touched:
                field.show(value_of(config, key))
        self._is_filling = False


class _Field:
    """The row of one setting: name, input, and what is asked for or wrong."""

    def __init__(self, key: str, info: FieldInfo) -> None:
        self.key, self.complaint = key, ""
        self._is_text = info.annotation is str
        self._hint = _hint(info)
        look = {
            "description": key.rpartition(".")[2],
            "layout": {"width": "350px", "min_width": "350px"},
            "style": {"description_width": "200px"},
        }
        choices: Any = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
        if info.annotation is bool:
            choices = (("true", True), ("false", False))
        self.input: Any = (
            widgets.Dropdown(options=choices, **look) if choices else widgets.Text(**look)
        )
        self._note = widgets.HTML(layout={"flex": "1 1 auto"})
        self.row = widgets.HBox([self.input, self._note], layout={"align_items": "center"})
        self.row.add_class("nano-setting")
        self.say("", is_changed=False)

    @property
    def value(self) -> Any:
        """Return the input as a Python value; text that is no number stays text."""
        typed = self.input.value
        if self._is_text or not isinstance(typed, str):
            return typed
        try:
            return tomllib.loads(f"value = {typed}")["value"]
        except tomllib.TOMLDecodeError:
            return typed

    def show(self, value: Any) -> None:
        if isinstance(self.input, widgets.Text):
            value = value if self._is_text else _as_toml(value)
        self.input.value = value

    def say(self, complaint: str, *, is_changed: bool) -> None:
        self.complaint = complaint
        (self.row.add_class if is_changed else self.row.remove_class)("nano-changed")
        kind = "nano-error" if complaint else "nano-hint"
        self._note.value = f'<span class="{kind}">{html.escape(complaint or self._hint)}</span>'


def value_of(config: BaseModel, key: str) -> Any:
    """Return a setting by its dotted name."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def parse_lines(text: str) -> dict[str, Any]:
    """Return dotted settings from lines of TOML such as `model.n_loops = 4`.

    Raises:
        WorkbenchError: a line is not `key = value`.
    """
    try:
        return dict(_flatten(tomllib.loads(text)))
    except tomllib.TOMLDecodeError as error:
        raise WorkbenchError(
            f"More settings: expected lines of key = value, e.g. eval.task_files = "
            f'["tasks.jsonl"] (texts in quotes); {error}.'
        ) from error


def complaints_of(error: WorkbenchError) -> dict[str, str]:
    """Return what `load_profile` complained about, by dotted setting; "" for the rest."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return {"": str(error)}
    found: dict[str, str] = {}
    for item in cause.errors():
        key = ".".join(part for part in item["loc"] if isinstance(part, str))
        text = item["msg"].removeprefix("Value error, ")
        typed = item["input"]
        if not isinstance(typed, dict | BaseModel):
            text += f", found {typed!r}"
        found[key] = f"{found[key]}; {text}" if key in found else text
    return found


def _settings(sections: Iterable[str]) -> Iterable[tuple[str, FieldInfo]]:
    """Yield (dotted key, field) of sections such as `pretrain`, or single settings."""
    for section in sections:
        fields, prefix = RunConfig.model_fields, ""
        *parents, last = section.split(".")
        for part in parents:
            fields, prefix = fields[part].annotation.model_fields, f"{prefix}{part}."
        info = fields[last]
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            for name, inner in info.annotation.model_fields.items():
                yield f"{prefix}{last}.{name}", inner
        else:
            yield f"{prefix}{last}", info


def _hint(info: FieldInfo) -> str:
    """Return description and bounds of a setting."""
    bounds = [
        f"{sign} {getattr(rule, name):g}"
        for rule in info.metadata
        for name, sign in _SIGNS.items()
        if getattr(rule, name, None) is not None
    ]
    return " · ".join([info.description or "", *([", ".join(bounds)] if bounds else [])])


def _as_toml(value: Any) -> str:
    if isinstance(value, NoneType):
        return ""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_as_toml(one) for one in value) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
