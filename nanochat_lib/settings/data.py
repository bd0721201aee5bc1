"""Settings of stage 1: where Rust comes from, what may stay, how it is judged."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from nanochat_lib.settings.base import StageConfig

_ADDRESS = re.compile(r"(?:(?:tcp|tls|ws|wss|ucx)://)?[^\s/]+:\d{1,5}")  # host and port


class DataConfig(StageConfig):
    """Stage 1: where Rust comes from, how it is judged and mixed."""

    input_dir: str = Field("", description="folder of .rs files; empty: the toolchain's own docs")
    corpus_dir: str = Field(
        "", description="a corpus of `nanochat corpus` to take rows from instead"
    )
    kinds: tuple[Literal["doc_example", "function", "test", "file"], ...] = Field(
        (), description="kinds of real Rust taken; empty: all (whole files repeat themselves most)"
    )
    max_examples: int = Field(2000, ge=1, description="most real-Rust examples taken from sources")
    tinyrust_examples: int = Field(4000, ge=0, description="generated TinyRust examples")
    tinyrust_levels: tuple[int, ...] = Field((1, 2, 3), description="TinyRust levels generated")
    validation_fraction: float = Field(
        0.08, gt=0, lt=0.5, description="share of groups (packages, parameters) held out"
    )
    min_compile_rate: float = Field(
        0.85, ge=0, le=1, description="fail when the verified set compiles less often than this"
    )
    use_semantic_verification: bool = Field(
        True,
        description="also require that tests and examples run, and no lint of clippy::correctness",
    )
    easy_share: float = Field(0.3, ge=0, le=1, description="wanted share of easy examples")
    medium_share: float = Field(0.5, ge=0, le=1, description="wanted share of medium examples")
    hard_share: float = Field(0.2, ge=0, le=1, description="wanted share of hard examples")
    augment_per_example: int = Field(
        1, ge=0, description="rewritten variants tried of each training example of real Rust"
    )

    @model_validator(mode="after")
    def _mix_sums_to_one(self) -> Self:
        if self.input_dir and self.corpus_dir:
            raise ValueError("give either input_dir or corpus_dir")
        total = self.easy_share + self.medium_share + self.hard_share
        if abs(total - 1) > 1e-6:
            raise ValueError(f"easy_share + medium_share + hard_share must be 1, found {total:g}")
        return self


class CorpusConfig(StageConfig):
    """The large corpus that `nanochat corpus` builds: its sources and what may stay in it."""

    sources: tuple[Literal["toolchain", "debian", "folder", "pypi", "hub"], ...] = Field(
        ("toolchain", "debian"), description="where Rust comes from, in this order"
    )
    folder: str = Field("", description="folder of .rs files, for the source `folder`")
    debian_suite: str = Field(
        "", description="e.g. trixie; empty: the suite this machine's apt is set to"
    )
    debian_packages: int = Field(
        0, ge=0, description="packages, most depended-upon first; 0: all of them"
    )
    pypi_projects: tuple[str, ...] = Field((), description="PyPI projects with Rust in them")
    hub_datasets: tuple[str, ...] = Field(
        (), description="hub data sets by name, with :column where it is not obvious"
    )
    hub_rows: int = Field(100_000, ge=0, description="rows read of each data set; 0: all")
    licences: Literal["permissive", "any"] = Field(
        "permissive", description="licences that may stay; unknown ones only from your own folder"
    )
    downloads: str = Field(
        "", description="folder of downloads that several corpora share; empty: inside the corpus"
    )
    near_duplicate: float = Field(
        0.8, gt=0, le=1, description="drop what shares this much of its shingles with a kept row"
    )
    benchmark_files: tuple[str, ...] = Field(
        (), description="files that no row may share 30 tokens in a row with, besides our own tasks"
    )


class VerifyConfig(StageConfig):
    """Limits of the verification engine, per program unless said otherwise."""

    batch_size: int = Field(128, ge=1, description="programs compiled together as one crate")
    compile_cpu_s: float = Field(10.0, gt=0, description="CPU seconds rustc may use alone")
    run_cpu_s: float = Field(2.0, gt=0, description="CPU seconds the tests may use")
    memory_mib: int = Field(1024, ge=64, description="address space in MiB of a test program")
    max_output_kib: int = Field(256, ge=1, description="KiB of output kept and allowed")
    allow_unsandboxed: bool = Field(
        False, description="run without a sandbox when none is available; shown in every report"
    )
    cluster: str = Field(
        "", description="address of a Dask scheduler whose workers judge; empty: this machine"
    )

    @field_validator("cluster")
    @classmethod
    def _is_an_address(cls, cluster: str) -> str:
        if cluster and not _ADDRESS.fullmatch(cluster):
            raise ValueError("expected a scheduler's address such as tcp://10.0.0.5:8786")
        return cluster
