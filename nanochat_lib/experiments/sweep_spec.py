"""What a sweep asks for: a YAML file of settings to vary, as a list of points.

    name: loops            # names the folder reports/sweeps/loops and begins every run's name
    profile: laptop
    stages: [preprocess, pretrain]
    base: {pretrain.total_steps: 200}
    grid: {model.n_loops: [1, 2, 4]}
    random:
      samples: 4
      parameters: {pretrain.learning_rate: {low: 1e-3, high: 1e-2, log: true}}
    seeds: [0, 1, 2]

Every combination of the grid is tried with every random sample and every seed. A point's name is a
hash of its settings, so a sweep that is made larger keeps what it has: more samples, more seeds and
more grid values only add points.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from nanochat_lib.config import RunConfig, StageConfig, load_profile
from nanochat_lib.errors import WorkbenchError, nearest
from nanochat_lib.pipeline import choose_stages
from nanochat_lib.records import Metric

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
MAX_POINTS = 2000
_LOOP_METRICS = (Metric.BITS_PER_BYTE_LOOP, Metric.EXIT_PDF)  # a loop's number follows


class Draw(StageConfig):
    """How one setting is drawn: from a range, or one of several values."""

    low: float | None = None
    high: float | None = None
    log: bool = Field(False, description="evenly over magnitudes instead of values")
    integer: bool = Field(False, description="whole numbers, both ends included")
    choices: tuple[Any, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise ValueError("give either choices, or low and high")
        if self.choices:
            return self
        if self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"low must be below high, found {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a positive low, found {self.low}")
        return self

    def draw(self, source: random.Random) -> Any:
        """Return one value; ranges give four significant digits, so that they can be read."""
        if self.choices:
            return source.choice(self.choices)
        low, high = (math.log(v) if self.log else v for v in (self.low, self.high))
        value = source.uniform(low, high + (not self.log and self.integer))
        value = math.exp(value) if self.log else value
        return min(int(value), int(self.high)) if self.integer else float(f"{value:.4g}")


class RandomSpec(StageConfig):
    """Random search: how many samples, of which settings."""

    samples: int = Field(ge=1, description="points per combination of the grid")
    seed: int = Field(0, description="of the draws; not of the runs")
    parameters: dict[str, Draw]


class SweepSpec(StageConfig):
    """A sweep as its file describes it."""

    name: str = Field(description="letters, digits, '_' and '-'; at most 40")
    profile: str = Field("laptop", description="profile every point begins with")
    stages: tuple[str, ...] = Field((), description="stages of every point; empty: see below")
    base: dict[str, Any] = Field({}, description="settings of all points, dotted")
    grid: dict[str, tuple[Any, ...]] = Field({}, description="settings and their values")
    random: RandomSpec | None = None
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="every point once per seed")
    jobs: int = Field(0, ge=0, description="points at a time; 0: as many as the machine carries")
    threads: int = Field(0, ge=0, description="CPU threads of a point; 0: the cores, divided")
    metric: str = Field("pretrain.bits_per_byte", description="stage.metric that ranks the points")
    goal: Literal["min", "max"] = Field("min", description="whether less or more of it is better")

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("expected letters, digits, '_' and '-', at most 40, a letter first")
        return name

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        stage, _, name = metric.partition(".")
        known = [str(one) for one in Metric]
        if stage not in ("pretrain", "maxrl", "long_context"):
            raise ValueError("expected stage.metric of pretrain, maxrl or long_context")
        if name not in known and not name.startswith(_LOOP_METRICS):
            raise ValueError(f"there is no metric {name!r}.{nearest(name, known)}")
        return metric

    @property
    def swept(self) -> tuple[str, ...]:
        """Return the settings that vary, without the seed."""
        drawn = self.random.parameters if self.random else {}
        return tuple(dict.fromkeys((*self.grid, *drawn)))


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its name, all its settings, and those that vary."""

    run_id: str
    overrides: dict[str, Any]  # with the seed
    swept: dict[str, Any]

    @property
    def seed(self) -> int:
        """Return the run's seed."""
        return self.overrides["seed"]


def read_sweep(path: Path) -> SweepSpec:
    """Return the sweep that a YAML file describes.

    Raises:
        WorkbenchError: no such file, not YAML, an unknown key, or a value that cannot be.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise WorkbenchError(f"The sweep {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"The sweep {path} is not YAML: {error}.") from error
    return make_spec(values, str(path))


def make_spec(values: Any, origin: str = "sweep") -> SweepSpec:
    """Return a checked sweep from plain values, e.g. a dictionary in a notebook.

    Raises:
        WorkbenchError: an unknown key, or a value that cannot be.
    """
    if not isinstance(values, dict):
        raise WorkbenchError(f"{origin}: expected keys such as name and grid, found {values!r}.")
    for key in values:
        if key not in SweepSpec.model_fields:
            raise WorkbenchError(f"{origin}: unknown key {key!r}.{nearest(str(key), _KEYS)}")
    try:
        return SweepSpec.model_validate(values)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, item['loc']))}: {item['msg']}, found {item['input']!r}"
            for item in error.errors()
        ]
        raise WorkbenchError("\n".join([f"{origin} is not a valid sweep:", *lines])) from error


def sweep_points(spec: SweepSpec) -> list[Point]:
    """Return the points of a sweep, every one checked against the configuration.

    Raises:
        WorkbenchError: a setting that does not exist or does not fit, or too many points.
    """
    n = math.prod(map(len, spec.grid.values())) * len(spec.seeds)
    n *= spec.random.samples if spec.random else 1
    if not 0 < n <= MAX_POINTS:
        raise WorkbenchError(f"Sweep {spec.name!r} has {n:,} points; expected 1 to {MAX_POINTS:,}.")
    points = {}
    for grid, drawn, seed in itertools.product(_grid(spec), _samples(spec), spec.seeds):
        swept = {**grid, **drawn}
        overrides = {**spec.base, **swept, "seed": seed}
        _check(spec, overrides)
        point = Point(f"{spec.name}.{_hash(spec.profile, overrides)}", overrides, swept)
        points.setdefault(point.run_id, point)
    return list(points.values())


def point_stages(spec: SweepSpec, config: RunConfig) -> list[str]:
    """Return a point's stages: those named, else all but publication and kernels."""
    named = [stage.name for stage in choose_stages(spec.stages, config)]
    return named if spec.stages else [n for n in named if n not in ("publish", "kernels")]


def _check(spec: SweepSpec, overrides: dict[str, Any]) -> None:
    try:
        point_stages(spec, load_profile(spec.profile, overrides))
    except WorkbenchError as error:
        raise WorkbenchError(f"Sweep {spec.name!r}, point {overrides}: {error}") from error


def _grid(spec: SweepSpec) -> list[dict[str, Any]]:
    combinations = itertools.product(*spec.grid.values())
    return [dict(zip(spec.grid, values, strict=True)) for values in combinations]


def _samples(spec: SweepSpec) -> list[dict[str, Any]]:
    """Draw sample by sample, each from a source of its own: more samples keep the first ones."""
    if spec.random is None:
        return [{}]
    sources = [random.Random(f"{spec.random.seed}/{i}") for i in range(spec.random.samples)]
    drawn = spec.random.parameters.items()
    return [{key: how.draw(source) for key, how in drawn} for source in sources]


def _hash(profile: str, overrides: dict[str, Any]) -> str:
    text = json.dumps([profile, overrides], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


_KEYS = tuple(SweepSpec.model_fields)


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number (YAML 1.1 wants 1.0e-3) and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+"),
    list("-+.0123456789"),
)
