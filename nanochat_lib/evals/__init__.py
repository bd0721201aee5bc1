"""Task sets, pass@k and the evaluation suite."""
