"""What the kernels cost on this machine, beside what the memory allows and what others need."""
