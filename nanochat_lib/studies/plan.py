"""What each study compares: arms of dotted settings over one small base, and what is asked.

In: nothing; out: `STUDIES` and, for an arm and a seed, a `RunConfig`. Arms of different studies
with equal settings are the same point and are trained once. All arms of a study see the same
batches of the same tokens; where they see more or fewer, their name says so.

Sources of the claims: loops, gate and KV sharing from Ouro (arXiv 2510.25741), ternary weights from
BitNet b1.58 (arXiv 2402.17764), Muon from K. Jordan 2024, the |gap| penalty from the project brief.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_lib.config import RunConfig, load_profile

BASE_PROFILE = Path(__file__).with_name("base.toml")
STEPS = 1000  # of the base
D_MODEL = 128  # of the base


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a name and the settings in which it differs from the base."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A question, the claim it tries, and the arms that answer it; the first is the reference."""

    question: str
    claim: str
    arms: tuple[Arm, ...]


def shape(
    n_layers: int, n_loops: int, d_model: int = D_MODEL, *, steps: int = STEPS, **more: Any
) -> Arm:
    """Return an arm of `n_layers` stored layers run `n_loops` times."""
    name = f"{n_layers} layers x {n_loops} loops" if n_loops > 1 else f"{n_layers} layers"
    name += "" if d_model == D_MODEL else f", d = {d_model}"
    name += "" if steps == STEPS else f", {steps / STEPS:g} x tokens"
    settings = {
        "model.n_layers": n_layers,
        "model.n_loops": n_loops,
        "model.d_model": d_model,
        "model.d_ff": 3 * d_model,
        "pretrain.total_steps": steps,
    }
    return Arm(name, settings | more)


def _even(arm: Arm) -> Arm:
    """Return an arm whose exits are trained nearly alike: the default leans to the first loops."""
    return Arm(f"{arm.name}, exits alike", arm.settings | {"pretrain.entropy_weight": 1.0})


LOOPED = {"model.n_loops": 4}
ADAMW = {"pretrain.optimizer": "adamw"}
STUDIES: dict[str, Study] = {
    "loops": Study(
        "Do loops buy quality, at equal stored parameters and at equal computation?",
        "4 loops of shared layers beat 1 at equal computation (Ouro), and manipulate better",
        (
            shape(2, 1),
            shape(2, 2),
            shape(2, 4),
            shape(2, 6),
            shape(8, 1),  # as much computation a token as 2 x 4, four times the parameters
            shape(2, 1, steps=4 * STEPS),  # as much computation in all as 2 x 4
        ),
    ),
    "sizes": Study(
        "From which size and token count on do loops pay?",
        "the gain of loops holds at every size (Ouro)",
        (
            shape(2, 1, 64),
            shape(2, 4, 64),
            shape(2, 1),
            shape(2, 4),
            shape(2, 1, 256),
            shape(2, 4, 256),
            _even(shape(2, 4)),
            shape(2, 1, steps=4 * STEPS),
            _even(shape(2, 4, steps=4 * STEPS)),
        ),
    ),
    "ternary": Study(
        "What do ternary weights cost at equal tokens?",
        "1.58 bits match full precision at equal tokens, from 3 B parameters on (BitNet b1.58)",
        (
            Arm("ternary", {}),
            Arm("not quantised", {"model.ternary": False}),
            Arm("ternary, 4 loops", LOOPED),
            Arm("not quantised, 4 loops", LOOPED | {"model.ternary": False}),
        ),
    ),
    "objective": Study(
        "Which entropy term keeps all depths in use without costing loss?",
        "entropy of each token's exits (Ouro) against the |gap| of the mean (the brief)",
        (
            Arm("expected, 0.05", LOOPED),
            Arm("expected, 0.2", LOOPED | {"pretrain.entropy_weight": 0.2}),
            Arm("expected, 1", LOOPED | {"pretrain.entropy_weight": 1.0}),
            Arm("expected, 0", LOOPED | {"pretrain.entropy_weight": 0.0}),
            Arm("last exit alone", LOOPED | {"pretrain.trained_exits": "last"}),
            Arm("uniform_gap, 0.05", LOOPED | {"pretrain.entropy_objective": "uniform_gap"}),
            Arm(
                "uniform_gap, 0.5",
                LOOPED
                | {"pretrain.entropy_objective": "uniform_gap", "pretrain.entropy_weight": 0.5},
            ),
        ),
    ),
    "optimizer": Study(
        "Does Muon learn faster than AdamW, each at its best rate?",
        "orthogonalised updates need fewer tokens (Muon)",
        (
            Arm("Muon 0.008", {}),
            Arm("Muon 0.004", {"pretrain.muon_learning_rate": 0.004}),
            Arm("Muon 0.016", {"pretrain.muon_learning_rate": 0.016}),
            *(
                Arm(
                    f"AdamW {rate}", {"pretrain.optimizer": "adamw", "pretrain.learning_rate": rate}
                )
                for rate in (0.0015, 0.003, 0.006, 0.012)
            ),
        ),
    ),
    "exits": Study(
        "Does a trained gate spend its loops better than a fixed depth or a threshold on change?",
        "the gate saves loops at equal loss (Ouro); the free baseline is the change of h",
        (Arm("4 loops", LOOPED),),
    ),
    "kv_sharing": Study(
        "Which loop's keys and values may stand for all loops while decoding?",
        "the last loop's cost at most 0.1 points, the first loop's destroy the model (Ouro)",
        (Arm("2 loops", {}), Arm("4 loops", LOOPED)),
    ),
}


def arm_config(arm: Arm, seed: int, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Return the configuration of an arm and seed; `overrides` win over both."""
    settings = arm.settings | {"seed": seed} | (overrides or {})
    return load_profile(str(BASE_PROFILE), settings)
