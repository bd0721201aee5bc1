"""Runs side by side: what was different, what came out, curves on one axis."""
