"""Settings of the model and of the stages that train it: pre-training, MaxRL, long context."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.settings.base import StageConfig


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
    sandwich_norm: bool = Field(False, description="variant: a norm after each half layer (Ouro)")
    sub_norm: bool = Field(False, description="variant: a norm before o and down (BitNet's SubLN)")
    input_injection: bool = Field(False, description="variant: add the embedding before each loop")
    loop_gates: bool = Field(
        False, description="variant: a learned share of each loop's change, for each channel"
    )

    @property
    def head_size(self) -> int:
        """Return the width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def variants(self) -> tuple[str, ...]:
        """Return the variants in use, which neither the packed engine nor stock GGUF knows."""
        names = ("sandwich_norm", "sub_norm", "input_injection", "loop_gates")
        return tuple(name for name in names if getattr(self, name))

    def require_stock(self, what: str) -> None:
        """Refuse a model with variants.

        Args:
            what: beginning of the sentence, e.g. "The packed engine".

        Raises:
            WorkbenchError: the model has variants.
        """
        if self.variants:
            raise WorkbenchError(
                f"{what} runs the stock block only, and this model was trained with "
                f"{', '.join('model.' + name for name in self.variants)}. Such variants can be "
                "trained and compared by their loss; train without them to decode or export."
            )

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


class PretrainConfig(StageConfig):
    """Stage 2: LoopLM pre-training with an entropy-regularised exit gate."""

    total_steps: int = Field(400, ge=1, description="optimiser steps")
    batch_size: int = Field(16, ge=1, description="sequences per optimiser step")
    micro_batch_size: int = Field(16, ge=1, description="sequences per forward pass")
    seq_len: int = Field(256, ge=8, description="tokens per sequence")
    tinyrust_share: float = Field(
        0.5, ge=0, le=1, description="share of training tokens drawn from TinyRust"
    )
    optimizer: Literal["muon", "adamw", "adamw_8bit"] = Field(
        "muon", description="Muon for matrices with AdamW for the rest, AdamW, or 8-bit AdamW"
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
    trained_exits: Literal["all", "last"] = Field(
        "all", description="exits whose loss is trained: all, by the gate's distribution; the last"
    )
    exit_gradients: Literal["auto", "kept", "remade"] = Field(
        "auto",
        description="gradients of all exits kept, or remade backward, which costs a fourth product "
        "of the head; auto: remade where activations are recomputed",
    )
    gate_steps: int = Field(30, ge=0, description="stage-II steps that train only the exit gate")
    eval_every: int = Field(50, ge=1, description="steps between validations")
    held_out_kib: int = Field(
        1000, ge=1, description="KiB of held-out real Rust that the last validation reads"
    )
    free_text_tokens: int = Field(
        48, ge=0, description="tokens of each text written freely at a validation; 0: none"
    )
    task_eval_every: int = Field(
        0, ge=0, description="steps between evaluations on tasks, judged by rustc; 0: none"
    )
    task_eval_tasks: int = Field(16, ge=1, description="tasks of each of those evaluations")
    early_stopping_metric: str = Field(
        "", description="a metric of the validations; end when it stops improving; empty: never"
    )
    early_stopping_patience: int = Field(
        5, ge=1, description="validations without improvement that early stopping waits for"
    )
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept besides the best")
    on_spike: Literal["stop", "rollback"] = Field(
        "stop",
        description="a loss that is not finite or jumps: stop, or go back to the last checkpoint "
        "and skip the batches since",
    )
    max_rollbacks: int = Field(3, ge=1, description="roll back at most this often, then stop")
    activation_checkpointing: Literal["none", "layer", "loop"] = Field(
        "none",
        description="recompute activations backward: of each layer, or nested, of each loop too",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="autocast type; auto measures both on this machine"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile of the blocks; auto: when a C++ compiler is found"
    )
    products: Literal["auto", "float", "int8"] = Field(
        "auto",
        description="products of the ternary layers: of rounded floats, or of int8 codes, exact "
        "forward and 1 % off backward; auto: int8 on a GPU where it is measured to be faster",
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
    prompts_per_part: int = Field(
        4, ge=1, description="tasks judged together while the next are sampled"
    )
    max_new_tokens: int = Field(120, ge=8, description="longest completion in tokens")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    learning_rate: float = Field(
        0.0003, gt=0, description="AdamW rate of what is not ternary; falls in the second half"
    )
    matrix_learning_rate: float = Field(
        0.00003, ge=0, description="AdamW rate of the ternary matrices, whose codes flip by noise"
    )
    gain_learning_rate: float = Field(
        0.01, ge=0, description="rate of the head's scale, which makes all choices surer; 0: none"
    )
    advantage: Literal["maxrl", "grpo", "rloo", "reinforce"] = Field(
        "maxrl", description="how rewards of one prompt become advantages"
    )
    inner_steps: int = Field(
        1, ge=1, description="optimiser steps per batch of rollouts; from the second on clipped"
    )
    clip_low: float = Field(
        0.2, gt=0, lt=1, description="how far below 1 a token's ratio counts in further steps"
    )
    clip_high: float = Field(
        0.28, gt=0, description="how far above 1 a token's ratio counts in further steps"
    )
    kl_weight: float = Field(
        0.0, ge=0, description="weight of the KL divergence from the base model, per token"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="autocast type of updates; auto measures both on this machine"
    )
    warm_start_tasks: int = Field(
        0, ge=0, description="tasks whose passing programs are learned as text first; 0: none"
    )
    warm_start_epochs: int = Field(2, ge=1, description="passes over the warm start's programs")
    reward: Literal["tests", "shaped"] = Field(
        "tests", description="binary: tests pass; or the brief's shaped formula (can be gamed)"
    )
    reward_threshold: float = Field(
        0.9, ge=0, le=1, description="reward from which a program counts as a success"
    )
    adjust_reward_threshold: bool = Field(
        False, description="raise the threshold while less compiles than targets.compile_rate"
    )
    levels: tuple[int, ...] = Field((1, 2, 3), description="TinyRust levels of the prompts")
    new_tasks: int = Field(
        0, ge=0, description="TinyRust tasks made anew that stage 2 never read; 0: those it read"
    )
    task_files: tuple[str, ...] = Field(
        (), description="further prompts with tests, e.g. the tasks.jsonl of a corpus"
    )
    eval_every: int = Field(6, ge=1, description="updates between held-out evaluations")
    eval_tasks: int = Field(24, ge=1, description="held-out tasks per evaluation")
    final_eval_tasks: int = Field(
        48, ge=1, description="held-out tasks before and after; a third of each other split"
    )
    eval_samples: int = Field(8, ge=1, description="programs per held-out task")
    checkpoint_every: int = Field(6, ge=1, description="updates between checkpoints")

    @model_validator(mode="after")
    def _curve_is_part_of_the_whole(self) -> Self:
        if self.eval_tasks > self.final_eval_tasks:
            raise ValueError(
                f"eval_tasks {self.eval_tasks} exceed final_eval_tasks {self.final_eval_tasks}: "
                "evaluations in between read a part of the tasks of the last one"
            )
        return self


class LongContextConfig(StageConfig):
    """Stage 4: longer sequences from a checkpoint, with a raised RoPE base."""

    seq_len: int = Field(1024, ge=16, description="tokens per sequence after extension")
    rope_base: float = Field(40_000.0, gt=0, description="raised base of the rotary frequencies")
    total_steps: int = Field(12, ge=1, description="optimiser steps")
    batch_size: int = Field(4, ge=1, description="sequences per optimiser step")
    learning_rate: float = Field(0.0005, gt=0, description="peak rate")
