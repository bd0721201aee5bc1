"""Settings of evaluation and publication."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nanochat_lib.settings.base import StageConfig


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
        "auto",
        description="stage whose model is exported; auto: the one that passed most of the "
        "evaluation, the latest where there was none",
    )
