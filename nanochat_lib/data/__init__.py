"""From raw Rust to verified rows, tokens and batches."""
