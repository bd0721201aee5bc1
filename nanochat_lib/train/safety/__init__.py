"""What keeps a training run safe: checks before it, checkpoints, memory, bad batches."""
