"""Ternary arithmetic on the CPU: packing, matrix products, and the choice of a backend."""

from kernels.packing import MAX_K, pack, packed_shape, unpack

__all__ = ["MAX_K", "pack", "packed_shape", "unpack"]
