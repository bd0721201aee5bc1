"""The `nanochat` command: one module for each group of its commands."""
