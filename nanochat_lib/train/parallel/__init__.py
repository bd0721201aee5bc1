"""Training by several processes, one for each GPU: what each does, and how rank 0 leads them."""
