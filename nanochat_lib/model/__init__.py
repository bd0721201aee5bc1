"""Ternary LoopLM: layers, model, checkpoints and the packed decode engine."""
