"""Losses over exits: against formulas written out with torch's own functions, and in memory."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nanochat_lib.config import ModelConfig
from nanochat_lib.model.looplm import LoopLM, LoopOutput
from nanochat_lib.train import objective
from nanochat_lib.train.bench import loss_memory
from nanochat_lib.train.objective import (
    Objective,
    entropy_penalty,
    gate_loss,
    stage_one_loss,
    token_statistics,
)
from nanochat_lib.train.safety.memory import LiveBytes, recomputed

TINY = ModelConfig(
    vocab_size=500, d_model=32, n_layers=1, n_loops=2, n_heads=4, n_kv_heads=2, d_ff=48,
    max_seq_len=16,
)  # fmt: skip
N_LOOPS, BATCH, POSITIONS, WIDTH, VOCAB = 3, 2, 5, 8, 11


class Head(torch.nn.Module):
    def __init__(self, width=WIDTH, vocab_size=VOCAB):
        super().__init__()
        self.head = torch.nn.Linear(width, vocab_size, bias=False)


@pytest.fixture
def case():
    torch.manual_seed(0)
    hidden = [torch.randn(BATCH, POSITIONS, WIDTH, requires_grad=True) for _ in range(N_LOOPS)]
    gates = torch.randn(N_LOOPS, BATCH, POSITIONS, requires_grad=True)
    targets = torch.randint(0, VOCAB, (BATCH, POSITIONS))
    return Head(), hidden, gates, targets


def written_out(model, hidden, gates, targets, weight, objective_name):
    """Return the stage-I loss with naive logits and the distribution term by term."""
    lam = torch.sigmoid(gates)
    pdf = torch.stack([lam[0], (1 - lam[0]) * lam[1], (1 - lam[0]) * (1 - lam[1])])
    ce = torch.stack(
        [
            F.cross_entropy(model.head(h).flatten(0, 1), targets.flatten(), reduction="none")
            for h in hidden
        ]
    ).view_as(pdf)
    if objective_name == "expected":
        return (pdf * ce).sum(0).mean() + weight * (pdf * pdf.log()).sum(0).mean()
    mean = pdf.mean((1, 2))
    return (pdf * ce).sum(0).mean() + weight * abs(math.log(3) + (mean * mean.log()).sum())


@pytest.mark.parametrize("remakes", [False, True])
@pytest.mark.parametrize("name", ["expected", "uniform_gap"])
def test_stage_one_loss_and_all_its_gradients(case, name, remakes, monkeypatch):
    monkeypatch.setattr(objective, "CHUNK_POSITIONS", 4)  # several chunks, the last one short
    model, hidden, gates, targets = case
    wanted = [*hidden, gates, model.head.weight]
    expected = written_out(model, hidden, gates, targets, 0.3, name)
    expected_grads = torch.autograd.grad(expected, wanted)
    output = LoopOutput(hidden, torch.sigmoid(gates))
    loss = stage_one_loss(model, output, targets, Objective(0.3, name, remakes_gradients=remakes))
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.total.detach(), loss.task + loss.entropy_term.detach())
    for grad, wanted_grad in zip(
        torch.autograd.grad(loss.total, wanted), expected_grads, strict=True
    ):
        torch.testing.assert_close(grad, wanted_grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("remakes", [False, True])
def test_the_last_exit_alone_is_the_cross_entropy_of_one(case, remakes):
    model, hidden, gates, targets = case
    objective_of = Objective(0.3, trained_exits="last", remakes_gradients=remakes)
    output = LoopOutput(hidden, torch.sigmoid(gates))
    expected = F.cross_entropy(model.head(hidden[-1]).flatten(0, 1), targets.flatten())
    wanted = [hidden[-1], model.head.weight]
    expected_grads = torch.autograd.grad(expected, wanted)
    loss = stage_one_loss(model, output, targets, objective_of)
    torch.testing.assert_close(loss.total, expected)
    found = torch.autograd.grad(loss.total, [*wanted, hidden[0], gates], allow_unused=True)
    for grad, wanted_grad in zip(found[:2], expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted_grad, atol=1e-6, rtol=1e-4)
    assert found[2:] == (None, None)


@pytest.mark.parametrize("mode", ["none", "layer", "loop"])
@pytest.mark.parametrize("compiled", [False, True])
def test_remade_gradients_are_the_kept_ones_in_a_model(mode, compiled):
    """Over two micro-batches, with activations recomputed or not, in float64 bit for bit nearly."""
    torch.manual_seed(0)
    model, tokens = LoopLM(TINY).double(), torch.randint(0, 500, (4, 17))
    grads = []
    for remakes in (False, True):
        for part in tokens.split(2):
            with recomputed(model, mode):
                output = model(part[:, :-1])
                wanted = Objective(0.1, remakes_gradients=remakes)
                loss = stage_one_loss(model, output, part[:, 1:], wanted, is_compiled=compiled)
            (loss.total * 0.5).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-9, rtol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["expected", "uniform_gap"])
def test_the_entropy_term_alone_moves_the_gate_towards_all_depths(name):
    gates = torch.full((3, 10), 3.0, requires_grad=True)  # leaves nearly always at once
    pdf = objective.exit_pdf(torch.sigmoid(gates))
    entropy_penalty(pdf, name).backward()
    assert (gates.grad[0] > 0).all()  # descending lowers the first exit probability


def test_both_entropy_terms_are_in_nats():
    pdf = torch.tensor([[1.0], [0.0]])  # no entropy at all; uniform would have ln 2
    assert float(entropy_penalty(pdf, "expected")) == pytest.approx(0.0, abs=1e-6)
    assert float(entropy_penalty(pdf, "uniform_gap")) == pytest.approx(math.log(2))
    uniform = torch.full((2, 1), 0.5)
    assert float(entropy_penalty(uniform, "expected")) == pytest.approx(-math.log(2))
    assert float(entropy_penalty(uniform, "uniform_gap")) == pytest.approx(0.0, abs=1e-6)


def test_the_brief_penalty_lets_tokens_differ():
    pdf = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # each token certain, both depths used
    assert float(entropy_penalty(pdf, "uniform_gap")) == pytest.approx(0.0, abs=1e-6)
    assert float(entropy_penalty(pdf, "expected")) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("look_ahead", [True, False])
def test_gate_loss_by_hand(look_ahead):
    exit_prob = torch.tensor([[0.3], [0.6], [0.8]])
    cross_entropy = torch.tensor([[2.0], [1.99], [2.5]])
    keep = [1 / (1 + math.exp(-50 * (gain - 0.005))) for gain in (0.01, 0.0)]
    stay = [0.7, 0.4] if look_ahead else [0.4, 0.2]
    terms = [
        -(k * math.log(s) + (1 - k) * math.log(1 - s)) for k, s in zip(keep, stay, strict=True)
    ]
    loss = gate_loss(exit_prob, cross_entropy, look_ahead=look_ahead)
    assert float(loss) == pytest.approx(sum(terms) / 3, rel=1e-4)


def test_gate_loss_of_one_loop_is_zero_and_differentiable():
    exit_prob = torch.tensor([[0.3]], requires_grad=True)
    gate_loss(exit_prob, torch.tensor([[2.0]])).backward()
    assert exit_prob.grad.item() == 0


def test_the_gate_learns_to_leave_where_a_loop_gains_nothing():
    gates = torch.zeros(2, 2, requires_grad=True)
    cross_entropy = torch.tensor([[2.0, 2.0], [1.0, 2.0]])  # the second token gains nothing
    gate_loss(torch.sigmoid(gates), cross_entropy).backward()
    assert gates.grad[0, 0] > 0  # lower the chance to leave: stay
    assert gates.grad[0, 1] < 0


def test_token_statistics_against_torch(case):
    model, hidden, _, targets = case
    flat = hidden[0].flatten(0, 1)
    cross_entropy, entropy = token_statistics(flat, model.head.weight, targets.flatten())
    logits = model.head(flat)
    expected = F.cross_entropy(logits, targets.flatten(), reduction="none")
    torch.testing.assert_close(cross_entropy, expected.detach())
    torch.testing.assert_close(
        entropy, torch.distributions.Categorical(logits=logits).entropy().detach()
    )


def peak_of_loss(n_loops, naive=False):
    model = Head(width=32, vocab_size=2048)
    hidden = [torch.randn(4, 256, 32, requires_grad=True) for _ in range(n_loops)]
    targets = torch.randint(0, 2048, (4, 256))
    exit_prob = torch.full((n_loops, 4, 256), 0.3)
    with LiveBytes() as memory:
        if naive:
            loss = sum(
                F.cross_entropy(model.head(h).flatten(0, 1), targets.flatten()) for h in hidden
            )
        else:
            output = LoopOutput(hidden, exit_prob)
            loss = stage_one_loss(model, output, targets, Objective(0.1)).total
        loss.backward()
    return memory.peak


def test_four_exits_need_little_more_memory_than_one():
    assert peak_of_loss(4) <= 1.3 * peak_of_loss(1)
    assert peak_of_loss(4) < peak_of_loss(4, naive=True) / 3


def test_remade_gradients_keep_that_where_hidden_states_are_wide():
    shape = (256, 2, 2, 256, 512, 128, 16)  # the hidden states weigh more than a chunk of logits
    assert loss_memory(shape, 4, "kept") > 1.5
    assert loss_memory(shape, 4, "remade") <= 1.3


def test_the_loss_of_an_untrained_model_is_the_log_of_its_vocabulary():
    model, tokens = LoopLM(TINY), torch.randint(0, 500, (8, 17))
    loss = stage_one_loss(model, model(tokens[:, :-1]), tokens[:, 1:], Objective(0.0))
    assert float(loss.task) == pytest.approx(math.log(500), abs=0.1)
