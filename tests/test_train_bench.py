"""The benchmark of a training step: both sides are what they say they are."""

from __future__ import annotations

import torch

from nanochat_lib.hardware.planner import count_parameters
from nanochat_lib.train.bench import Plain, _configs

SHAPE = (128, 2, 3, 192, 512, 16, 2)


def test_the_plain_side_runs_as_many_weights_without_rounding():
    config, _ = _configs(SHAPE)
    plain = Plain(config)
    plain.run_layer = lambda layer, x, rope: layer(x, rope)
    n_plain = sum(p.numel() for p in plain.parameters())
    executed = count_parameters(config).executed
    gate, extra_norms = config.d_model + 1, 0
    assert n_plain == executed - gate - extra_norms
    logits = plain(torch.randint(0, 512, (2, 16)))
    assert logits.shape == (2, 16, 512)
    logits[:, 7].sum().backward()  # causal and differentiable
    assert all(p.grad is not None for p in plain.parameters())
