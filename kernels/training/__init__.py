"""Training's ternary products in int8: Triton kernels on a GPU, the same arithmetic in torch."""
