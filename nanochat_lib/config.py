"""The configuration tree: one frozen pydantic model per stage, and `load_profile`, its only door.

Input: a profile (a TOML file in `hardware_profiles/`, holding only what differs from the defaults)
and dotted overrides such as `{"pretrain.total_steps": 20}`. Output: a `RunConfig`. The loader is
strict: an unknown section or key names the nearest valid one, so a typo never becomes a default.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nanochat_lib.errors import WorkbenchError, nearest

PROJECT_ROOT = Path(__file__).resolve().parents[1]
_ADDRESS = re.compile(r"(?:(?:tcp|tls|ws|wss|ucx)://)?[^\s/]+:\d{1,5}")  # host and port
PROFILE_DIR = PROJECT_ROOT / "hardware_profiles"


class StageConfig(BaseModel):
    """Base of every section: immutable, and no key that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(StageConfig):
    """Shape of the LoopLM: `n_layers` shared layers run `n_loops` times."""

    vocab_size: int = Field(2048, ge=300, description="tokens of the byte-level BPE vocabulary")
    d_model: int = Field(256, ge=8, description="width of the residual stream")
    n_layers: int = Field(2, ge=1, description="stored (shared) layers")
    n_loops: int = Field(2, ge=1, description="passes over the shared layers")
    n_heads: int = Field(4, ge=1, description="query heads")
    n_kv_heads: int = Field(2, ge=1, description="key/value heads (grouped-query attention)")
    d_ff: int = Field(768, ge=8, description="width of the SwiGLU block")
    max_seq_len: int = Field(256, ge=8, description="longest sequence in tokens")
    rope_base: float = Field(10_000.0, gt=0, description="base of the rotary frequencies")
    norm_eps: float = Field(1e-5, gt=0, description="epsilon inside RMSNorm")
    ternary: bool = Field(True, description="ternary weights and int8 activations in the layers")

    @property
    def head_size(self) -> int:
        """Return the width of one attention head."""
        return self.d_model // self.n_heads

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.d_model % self.n_heads or self.head_size % 2:
            raise ValueError(
                f"d_model {self.d_model} must be an even multiple of n_heads {self.n_heads}"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}"
            )
        return self


class DataConfig(StageConfig):
    """Stage 1: where Rust comes from, how it is judged and mixed."""

    input_dir: str = Field("", description="folder of .rs files; empty: the toolchain's own docs")
    corpus_dir: str = Field(
        "", description="a corpus of `nanochat corpus` to take rows from instead"
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


class PretrainConfig(StageConfig):
    """Stage 2: LoopLM pre-training with an entropy-regularised exit gate."""

    total_steps: int = Field(400, ge=1, description="optimiser steps")
    batch_size: int = Field(16, ge=1, description="sequences per optimiser step")
    micro_batch_size: int = Field(16, ge=1, description="sequences per forward pass")
    seq_len: int = Field(256, ge=8, description="tokens per sequence")
    tinyrust_share: float = Field(
        0.5, ge=0, le=1, description="share of training tokens drawn from TinyRust"
    )
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="Muon for matrices with AdamW for the rest, or AdamW alone"
    )
    muon_learning_rate: float = Field(0.008, gt=0, description="peak rate of Muon's matrices")
    learning_rate: float = Field(0.003, gt=0, description="peak rate of AdamW's parameters")
    weight_decay: float = Field(0.1, ge=0, description="decoupled decay, 0 in the second half")
    warmup_steps: int = Field(
        20, ge=0, description="steps of linear warm-up; not given: 5 % of total_steps"
    )
    decay_steps: int = Field(
        120, ge=0, description="last steps, where the rate falls to 0; not given: 30 %"
    )
    grad_clip: float = Field(1.0, gt=0, description="largest global gradient norm")
    entropy_weight: float = Field(0.05, ge=0, description="weight of the exit-entropy term")
    entropy_objective: Literal["expected", "uniform_gap"] = Field(
        "expected", description="Ouro's expected loss minus entropy, or the brief's |gap| penalty"
    )
    gate_steps: int = Field(30, ge=0, description="stage-II steps that train only the exit gate")
    eval_every: int = Field(50, ge=1, description="steps between validations")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept besides the best")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="autocast type; auto measures both on this machine"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile of the blocks; auto: when a C++ compiler is found"
    )

    @property
    def grad_accum_steps(self) -> int:
        """Return forward passes per optimiser step."""
        return self.batch_size // self.micro_batch_size

    @model_validator(mode="before")
    @classmethod
    def _schedule_follows_length(cls, values: Any) -> Any:
        """Scale what is not given with the length, so that `total_steps` alone can be changed."""
        total = values.get("total_steps", 400) if isinstance(values, dict) else 400
        if not isinstance(values, dict) or not isinstance(total, int):
            return values
        return {"warmup_steps": total // 20, "decay_steps": 3 * total // 10, **values}

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of "
                f"micro_batch_size {self.micro_batch_size}"
            )
        if self.warmup_steps + self.decay_steps > self.total_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps} exceed "
                f"total_steps {self.total_steps}"
            )
        return self


class MaxRLConfig(StageConfig):
    """Stage 3: reinforcement learning with rustc's verdict as the reward."""

    total_steps: int = Field(12, ge=1, description="policy updates")
    prompts_per_step: int = Field(8, ge=1, description="tasks per update")
    rollouts_per_prompt: int = Field(8, ge=2, description="programs sampled per task")
    max_new_tokens: int = Field(120, ge=8, description="longest completion in tokens")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    learning_rate: float = Field(0.0003, gt=0, description="AdamW rate of the policy")
    advantage: Literal["maxrl", "grpo", "rloo", "reinforce"] = Field(
        "maxrl", description="how rewards of one prompt become advantages"
    )
    reward: Literal["tests", "shaped"] = Field(
        "tests", description="binary: tests pass; or the brief's shaped formula (can be gamed)"
    )
    reward_threshold: float = Field(
        0.9, ge=0, le=1, description="reward from which a program counts as a success"
    )
    levels: tuple[int, ...] = Field((1, 2, 3), description="TinyRust levels of the prompts")
    eval_every: int = Field(6, ge=1, description="updates between held-out evaluations")
    eval_tasks: int = Field(24, ge=1, description="held-out tasks per evaluation")
    checkpoint_every: int = Field(6, ge=1, description="updates between checkpoints")


class LongContextConfig(StageConfig):
    """Stage 4: longer sequences from a checkpoint, with a raised RoPE base."""

    seq_len: int = Field(1024, ge=16, description="tokens per sequence after extension")
    rope_base: float = Field(40_000.0, gt=0, description="raised base of the rotary frequencies")
    total_steps: int = Field(12, ge=1, description="optimiser steps")
    batch_size: int = Field(4, ge=1, description="sequences per optimiser step")
    learning_rate: float = Field(0.0005, gt=0, description="peak rate")


class EvalConfig(StageConfig):
    """Evaluation: task sets, samples and limits."""

    task_files: tuple[str, ...] = Field(
        (), description="HumanEval-X Rust or MultiPL-E files judged besides the shipped set"
    )
    max_tasks: int = Field(48, ge=1, description="most tasks taken from each set")
    n_samples: int = Field(4, ge=1, description="programs sampled per task")
    k: tuple[int, ...] = Field((1, 4), description="values of k in pass@k; at most n_samples")
    temperature: float = Field(0.8, ge=0, description="sampling temperature; 0 is greedy")
    max_new_tokens: int = Field(160, ge=8, description="longest completion in tokens")
    exit_threshold: float = Field(
        1.0, ge=0, le=1, description="leave the loops when the exit cdf reaches this; 1: never"
    )

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if not self.k or max(self.k) > self.n_samples or min(self.k) < 1:
            raise ValueError(f"every k of {self.k} must lie between 1 and n_samples")
        return self


class PublishConfig(StageConfig):
    """Publication: which checkpoint, and under which name."""

    model_name: str = Field("nanochat-rs-ternary", description="name on the model card")
    checkpoint: Literal["auto", "pretrain", "maxrl", "long_context"] = Field(
        "auto", description="stage whose model is exported; auto: the latest of the run"
    )


class HardwareConfig(StageConfig):
    """The machine a profile is written for: preferences; what runs is decided by detection."""

    cpu_model: str = Field("", description="processor name, for the planner's feature check")
    cpu_threads: int = Field(2, ge=1, description="CPU threads used by kernels and workers")
    cpu_memory_gb: float = Field(8.0, gt=0, description="main memory in GB")
    numa_aware: bool = Field(False, description="place weights on the node that reads them")
    numa_nodes: int = Field(1, ge=1, description="NUMA nodes expected")
    use_openmp: bool = Field(True, description="OpenMP threading layer for CPU kernels")
    openmp_threads: int = Field(0, ge=0, description="OpenMP threads; 0: cpu_threads")
    preferred_kernel: Literal["auto", "generic", "AVX2", "AVX512", "CUDA"] = Field(
        "auto", description="ternary kernel asked for"
    )
    gpu_model: str = Field("", description="GPU name; empty: none")
    n_gpus: int = Field(0, ge=0, description="number of GPUs")
    gpu_memory_gb: float = Field(0.0, ge=0, description="memory of one GPU in GB")
    tensor_parallel: bool = Field(False, description="split each layer over the GPUs")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share a layer")
    cuda_math_mode: Literal["default", "fast"] = Field(
        "default", description="fast allows TF32 and reduced-precision accumulation"
    )
    loader_workers: int = Field(
        0, ge=0, description="processes that prepare training batches; 0: the trainer itself"
    )
    prefetch_factor: int = Field(2, ge=1, description="batches prepared ahead per loader worker")
    pin_memory: bool = Field(False, description="page-locked host batches (GPU only)")


class TargetsConfig(StageConfig):
    """The brief's targets for this machine: drawn as targets, never as results. None: not set."""

    parameters_b: float | None = Field(None, gt=0, description="model size in 1e9 parameters")
    compile_rate: float | None = Field(None, ge=0, le=1, description="compile rate above this")
    semantic_score: float | None = Field(None, ge=0, le=1, description="semantic score above this")
    pass_at_1: float | None = Field(None, ge=0, le=1, description="HumanEval-Rust pass@1 above")
    loss: float | None = Field(None, gt=0, description="final loss in nats below this")
    tokens_per_s: float | None = Field(None, gt=0, description="training tokens per second")
    training_days: float | None = Field(None, gt=0, description="days of pre-training")
    context_length: int | None = Field(None, gt=0, description="longest context in tokens")
    gpu_memory_gb: float | None = Field(None, gt=0, description="memory used on each GPU in GB")
    cpu_memory_gb: float | None = Field(None, gt=0, description="main memory used in GB")
    bits_per_byte: float | None = Field(None, gt=0, description="held-out bits per byte below")


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
    for dotted, value in (overrides or {}).items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise WorkbenchError(f"Override {dotted!r}: {section!r} is a value, not a section.")
        place[key] = value
    values.setdefault("profile", path.stem)
    _reject_unknown_keys(values, RunConfig, "")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise WorkbenchError(_explain(error, path.stem)) from error


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
