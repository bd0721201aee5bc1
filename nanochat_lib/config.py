"""The configuration tree: one frozen pydantic model per stage, and `load_profile`, its only door.

Input: a profile (a TOML file in `hardware_profiles/`, holding only what differs from the defaults)
and dotted overrides such as `{"pretrain.total_steps": 20}`. Output: a `RunConfig`. The loader is
strict: an unknown section or key names the nearest valid one, so a typo never becomes a default.
The sections live in `settings/` and are imported from here.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from nanochat_lib.errors import WorkbenchError, nearest
from nanochat_lib.settings.base import StageConfig
from nanochat_lib.settings.data import CorpusConfig, DataConfig, VerifyConfig
from nanochat_lib.settings.machine import HardwareConfig, TargetsConfig
from nanochat_lib.settings.results import EvalConfig, PublishConfig
from nanochat_lib.settings.training import (
    LongContextConfig,
    MaxRLConfig,
    ModelConfig,
    PretrainConfig,
)

__all__ = (
    "PROFILE_DIR", "PROJECT_ROOT", "CorpusConfig", "DataConfig", "EvalConfig", "HardwareConfig",
    "LongContextConfig", "MaxRLConfig", "ModelConfig", "PretrainConfig", "PublishConfig",
    "RunConfig", "StageConfig", "TargetsConfig", "VerifyConfig", "load_profile", "profile_names",
)  # fmt: skip

PROJECT_ROOT = Path(__file__).resolve().parents[1]
PROFILE_DIR = PROJECT_ROOT / "hardware_profiles"


class RunConfig(StageConfig):
    """Everything a run is made of; written to the run folder before a stage starts."""

    profile: str = Field("laptop", description="name of the profile it came from")
    seed: int = Field(0, ge=0, description="seed of data order, initialisation and sampling")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    corpus: CorpusConfig = CorpusConfig()
    verify: VerifyConfig = VerifyConfig()
    pretrain: PretrainConfig = PretrainConfig()
    maxrl: MaxRLConfig = MaxRLConfig()
    long_context: LongContextConfig = LongContextConfig()
    eval: EvalConfig = EvalConfig()
    publish: PublishConfig = PublishConfig()
    hardware: HardwareConfig = HardwareConfig()
    targets: TargetsConfig = TargetsConfig()

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.pretrain.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"pretrain.seq_len {self.pretrain.seq_len} exceeds "
                f"model.max_seq_len {self.model.max_seq_len}"
            )
        return self

    @model_validator(mode="after")
    def _processes_fit(self) -> Self:
        n = max(self.hardware.train_processes, 1)
        for name in ("pretrain", "long_context"):
            batch_size = getattr(self, name).batch_size
            if batch_size % n:
                raise ValueError(
                    f"{name}.batch_size {batch_size} must be a multiple of "
                    f"hardware.train_processes {n}, which share every batch evenly"
                )
        return self

    @model_validator(mode="after")
    def _products_fit(self) -> Self:
        if self.pretrain.products == "int8" and not self.model.ternary:
            raise ValueError(
                "pretrain.products 'int8' needs model.ternary: without it weights have no codes. "
                "Take 'float' or 'auto'"
            )
        return self


def profile_names() -> list[str]:
    """Return the names of the shipped profiles."""
    return sorted(path.stem for path in PROFILE_DIR.glob("*.toml"))


def load_profile(name: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Return the configuration of a profile with dotted overrides applied.

    Args:
        name: a name from `profile_names()`, or the path of a `.toml` file.
        overrides: dotted keys, e.g. `{"pretrain.total_steps": 20, "seed": 1}`.

    Raises:
        WorkbenchError: unknown profile, section or key (with the nearest valid one), wrong type
            or value, values that contradict each other, or a file that is not TOML.
    """
    path = _profile_path(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"Profile {path} is not valid TOML: {error}.") from error
    _apply(values, overrides or {})
    values.setdefault("profile", path.stem)
    return _validated(values, path.stem)


def with_overrides(config: RunConfig, overrides: dict[str, Any]) -> RunConfig:
    """Return a configuration with dotted overrides applied, checked as `load_profile` does.

    Raises:
        WorkbenchError: as for `load_profile`.
    """
    values = config.model_dump(mode="json", exclude_unset=True)
    _apply(values, overrides)
    return _validated(values, config.profile)


def _apply(values: dict[str, Any], overrides: dict[str, Any]) -> None:
    for dotted, value in overrides.items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise WorkbenchError(f"Override {dotted!r}: {section!r} is a value, not a section.")
        place[key] = value


def _validated(values: dict[str, Any], profile: str) -> RunConfig:
    _reject_unknown_keys(values, RunConfig, "")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise WorkbenchError(_explain(error, profile)) from error


def _profile_path(name: str) -> Path:
    path = Path(name) if name.endswith(".toml") else PROFILE_DIR / f"{name}.toml"
    if not path.is_file():
        raise WorkbenchError(f"There is no profile {name!r}.{nearest(name, profile_names())}")
    return path


def _reject_unknown_keys(values: dict[str, Any], model: type[BaseModel], prefix: str) -> None:
    """Name the nearest valid key, which pydantic's own message for extra keys does not."""
    for key, value in values.items():
        if key not in model.model_fields:
            valid = {prefix + name for name in model.model_fields}
            raise WorkbenchError(f"Unknown key {prefix + key!r}.{nearest(prefix + key, valid)}")
        section = model.model_fields[key].annotation
        is_section = isinstance(section, type) and issubclass(section, BaseModel)
        if is_section and isinstance(value, dict):
            _reject_unknown_keys(value, section, f"{prefix}{key}.")


def _explain(error: ValidationError, profile: str) -> str:
    lines = [f"Profile {profile!r} with its overrides is not valid:"]
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "profile"
        lines.append(f"  {place}: {item['msg']}, found {_short(item['input'])}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = "a section" if isinstance(value, (dict, BaseModel)) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
