"""Ternary kernels for NVIDIA GPUs: sources, their compiler and driver, launches."""
