"""What the CUDA kernels cost on this machine's GPU, beside cuBLAS and the best ternary peer."""
