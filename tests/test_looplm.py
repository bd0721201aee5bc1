"""LoopLM: against a plain transformer written from scratch, causality, the exit distribution."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.hardware.planner import count_parameters
from nanochat_lib.model import looplm
from nanochat_lib.model.engine import Engine
from nanochat_lib.model.looplm import (
    LoopLM,
    exit_entropy_nats,
    exit_pdf,
    expected_loops,
)
from nanochat_lib.model.ternary import quantize_weight
from nanochat_lib.publish.gguf_file import check_exportable

TINY = ModelConfig(
    vocab_size=300, d_model=32, n_layers=2, n_loops=3, n_heads=4, n_kv_heads=2, d_ff=48,
    max_seq_len=24,
)  # fmt: skip


def some_tokens(n_rows=2, n_positions=12):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, TINY.vocab_size, (n_rows, n_positions), generator=generator)


def trained_like(config):
    """Return a model whose gate and norms are not at their trivial start."""
    model = LoopLM(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "exit_gate" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def plain_norm(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def plain_rounding(x):
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return torch.round(x / scale) * scale


def plain_linear(x, weight):
    codes, scale = quantize_weight(weight)
    return plain_rounding(x) @ (codes.float() * scale).T


def plain_rotation(x, position, base):
    """Rotate the pairs of one head vector by complex arithmetic, pair by pair."""
    out = x.clone()
    for i in range(len(x) // 2):
        angle = position * base ** (-2 * i / len(x))
        turned = complex(x[2 * i], x[2 * i + 1]) * complex(math.cos(angle), math.sin(angle))
        out[2 * i], out[2 * i + 1] = turned.real, turned.imag
    return out


def plain_attention(weights, prefix, x, config):
    """Attend with explicit loops over heads and positions. x: (T, D)."""
    n_positions, size = len(x), config.head_size
    q, k, v = (plain_linear(x, weights[f"{prefix}.{n}.weight"]) for n in "qkv")
    out = torch.zeros(n_positions, config.d_model)
    for head in range(config.n_heads):
        kv_head = head // (config.n_heads // config.n_kv_heads)
        mine = slice(head * size, (head + 1) * size)
        theirs = slice(kv_head * size, (kv_head + 1) * size)
        keys = [plain_rotation(k[s, theirs], s, config.rope_base) for s in range(n_positions)]
        for t in range(n_positions):
            query = plain_rotation(q[t, mine], t, config.rope_base)
            scores = torch.stack([query @ keys[s] for s in range(t + 1)]) / math.sqrt(size)
            out[t, mine] = scores.softmax(0) @ v[: t + 1, theirs]
    return plain_linear(out, weights[f"{prefix}.o.weight"])


def plain_stack(weights, x, config):
    """Run the layers once and the final norm. x: (T, D)."""
    eps = config.norm_eps
    for i in range(config.n_layers):
        name = f"layers.{i}"
        normed = plain_norm(x, weights[f"{name}.attn_norm.weight"], eps)
        x = x + plain_attention(weights, name, normed, config)
        normed = plain_norm(x, weights[f"{name}.ffn_norm.weight"], eps)
        gate = plain_linear(normed, weights[f"{name}.gate.weight"])
        inner = gate * torch.sigmoid(gate) * plain_linear(normed, weights[f"{name}.up.weight"])
        x = x + plain_linear(inner, weights[f"{name}.down.weight"])
    return plain_norm(x, weights["final_norm.weight"], eps)


@torch.no_grad()
def test_every_loop_equals_a_plain_transformer_applied_again():
    model, tokens = trained_like(TINY), some_tokens(1, 7)
    weights = model.state_dict()
    output = model(tokens)
    x = weights["embed.weight"][tokens[0]]
    for loop_idx in range(TINY.n_loops):
        x = plain_stack(weights, x, TINY)
        torch.testing.assert_close(output.hidden[loop_idx][0], x, atol=2e-4, rtol=2e-4)
        gate = torch.sigmoid(x @ weights["exit_gate.weight"][0] + weights["exit_gate.bias"])
        torch.testing.assert_close(output.exit_prob[loop_idx, 0], gate, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_fewer_loops_are_a_prefix_of_more():
    model, tokens = trained_like(TINY), some_tokens()
    few, all_loops = model(tokens, n_loops=1), model(tokens)
    assert len(few.hidden) == 1
    assert len(all_loops.hidden) == 3
    assert torch.equal(few.hidden[0], all_loops.hidden[0])


@torch.no_grad()
def test_the_future_does_not_reach_the_past():
    model, tokens = trained_like(TINY), some_tokens()
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % TINY.vocab_size
    for before, after in zip(model(tokens).hidden, model(changed).hidden, strict=True):
        assert torch.equal(before[:, :8], after[:, :8])
        assert not torch.equal(before[:, 8:], after[:, 8:])


def test_shared_weights_are_quantised_once_per_forward(monkeypatch):
    calls = []
    original = looplm.BitLinear.effective_weight
    monkeypatch.setattr(
        looplm.BitLinear, "effective_weight", lambda self: calls.append(1) or original(self)
    )
    LoopLM(TINY)(some_tokens())
    assert len(calls) == TINY.n_layers * len(looplm.BIT_LINEARS)


def test_every_parameter_gets_a_gradient():
    model = trained_like(TINY)
    output = model(some_tokens())
    (sum(model.logits(h).sum() for h in output.hidden) + output.exit_prob.sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_too_long_a_sequence_is_refused():
    with pytest.raises(WorkbenchError, match=r"25 tokens .* max_seq_len 24"):
        LoopLM(TINY)(some_tokens(1, 25))


def test_initialisation_follows_the_seed():
    a, b, c = (LoopLM(TINY, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["layers.0.q.weight"], c["layers.0.q.weight"])


def test_parameter_counts():
    count = count_parameters(TINY)
    model = LoopLM(TINY)
    assert count.stored == sum(p.numel() for p in model.parameters())
    in_layers = sum(p.numel() for p in model.layers.parameters())
    assert count.executed == count.stored + (TINY.n_loops - 1) * in_layers


def brute_force_pdf(exit_prob):
    """Enumerate all outcomes of the gates; the last loop is always left."""
    n_loops = len(exit_prob)
    pdf = [0.0] * n_loops
    for leaves in itertools.product((False, True), repeat=n_loops - 1):
        chance = math.prod(
            p if leave else 1 - p for p, leave in zip(exit_prob, leaves, strict=False)
        )
        pdf[leaves.index(True) if any(leaves) else n_loops - 1] += chance
    return pdf


@pytest.mark.parametrize("exit_prob", [[0.9], [0.3, 0.1], [0.5, 0.5, 0.9], [0.2, 0.0, 1.0, 0.4]])
def test_exit_pdf_matches_enumeration(exit_prob):
    pdf = exit_pdf(torch.tensor(exit_prob, dtype=torch.float64)[:, None])[:, 0]
    assert pdf.tolist() == pytest.approx(brute_force_pdf(exit_prob))
    assert float(pdf.sum()) == pytest.approx(1)


def test_depth_and_entropy_of_known_distributions():
    pdf = torch.tensor([[0.25, 1.0], [0.25, 0.0], [0.25, 0.0], [0.25, 0.0]])
    assert expected_loops(pdf).tolist() == [2.5, 1.0]
    assert exit_entropy_nats(pdf).tolist() == pytest.approx([math.log(4), 0.0])


VARIANTS = ("sandwich_norm", "sub_norm", "input_injection", "loop_gates")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_trains_and_is_counted(variant):
    config = TINY.model_copy(update={variant: True})
    model = LoopLM(config)
    assert count_parameters(config).stored == sum(p.numel() for p in model.parameters())
    loss = sum(h.square().mean() for h in model(some_tokens(2, 16)).hidden)
    loss.backward()
    added = model.state_dict().keys() - LoopLM(TINY).state_dict().keys()
    grads = {name: p.grad for name, p in model.named_parameters() if name in added}
    assert grads
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_neither_decodes_packed_nor_exports(variant, tmp_path):
    config = TINY.model_copy(update={variant: True})
    with pytest.raises(WorkbenchError, match=f"packed engine .* model.{variant}"):
        Engine.from_model(LoopLM(config))
    with pytest.raises(WorkbenchError, match=f"nanbeige .* model.{variant}"):
        check_exportable(config, "f32")


def test_injection_starts_as_the_plain_model():
    tokens = some_tokens(2, 16)
    plain, injected = LoopLM(TINY), LoopLM(TINY.model_copy(update={"input_injection": True}))
    torch.testing.assert_close(plain(tokens).hidden[-1], injected(tokens).hidden[-1])


def test_a_closed_loop_gate_keeps_what_entered():
    model = LoopLM(TINY.model_copy(update={"loop_gates": True}))
    with torch.no_grad():
        model.entry.gate.fill_(-1e4)
    hidden = model(some_tokens(2, 16)).hidden
    torch.testing.assert_close(hidden[0], model.final_norm(model.embed(some_tokens(2, 16))))
