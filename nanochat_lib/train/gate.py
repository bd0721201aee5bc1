"""Stage II of pre-training: only the exit gate learns, from what each further loop gains.

In: a model after stage I; out: the same model with a gate that stays while the next loop lowers
the cross-entropy. The model's other weights do not change, so neither does any of its logits.

Source: Ouro (arXiv 2510.25741), section 3.4; see `objective.gate_loss` for where we differ.
"""

from __future__ import annotations

import threading

import torch

from nanochat_lib.control import must_stop
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.records import Metric
from nanochat_lib.train import execution
from nanochat_lib.train.objective import gate_loss, token_statistics
from nanochat_lib.train.parallel.step import Progress
from nanochat_lib.train.safety.spikes import SpikeLog
from nanochat_lib.train.trainer import Hooks, Job

GATE_LEARNING_RATE = 0.003


def train_gate(model: LoopLM, job: Job, hooks: Hooks, done: Progress) -> float:
    """Train the gate for `plan.gate_steps` steps on batches not yet seen; return the last loss.

    `done` is how far stage I came; metrics are logged at the steps after it. A stop leaves the gate
    as stage I made it, and resuming repeats these few steps; so there is nothing to write when a
    checkpoint is asked for.

    Raises:
        KeyboardInterrupt: a stop was asked for.
    """
    device = model.head.weight.device
    gate = model.exit_gate
    optimizer = torch.optim.AdamW(gate.parameters(), lr=GATE_LEARNING_RATE, weight_decay=0.0)
    stop = hooks.stop or threading.Event()
    loss_value, skipped = 0.0, SpikeLog(job.folder)
    with execution.signals_set(stop):
        for idx in range(job.plan.gate_steps):
            if must_stop(job.folder, stop, save=lambda: None):
                raise KeyboardInterrupt(f"stopped at gate step {idx}")
            tokens = job.tokens(skipped.batch_of(done.step + idx), device)
            loss_value = _gate_step(model, tokens.split(done.micro_batch_size), optimizer)
            hooks.log(done.step + idx + 1, {str(Metric.GATE_LOSS): loss_value})
            hooks.report(idx + 1, job.plan.gate_steps, f"exit gate, loss {loss_value:.3f}")
    return loss_value


def _gate_step(
    model: LoopLM, micro_batches: tuple[torch.Tensor, ...], optimizer: torch.optim.Optimizer
) -> float:
    """Take a step on a batch, cut as stage I cut it to fit into memory; return the loss.

    In float32 whatever stage I ran in: gains of 0.005 nats decide, and bfloat16 moves a token's
    cross-entropy by more.
    """
    optimizer.zero_grad()
    n_rows, total = sum(map(len, micro_batches)), 0.0
    for tokens in micro_batches:
        targets = tokens[:, 1:].flatten()
        with torch.no_grad():
            hidden = [h.flatten(0, 1) for h in model(tokens[:, :-1]).hidden]
            head = model.head.weight
            cross_entropy = torch.stack([token_statistics(h, head, targets)[0] for h in hidden])
        exit_prob = torch.sigmoid(torch.stack([model.exit_gate(h)[:, 0] for h in hidden]))
        loss = gate_loss(exit_prob, cross_entropy) * (len(tokens) / n_rows)
        loss.backward()
        total += float(loss.detach())
    optimizer.step()
    return total
