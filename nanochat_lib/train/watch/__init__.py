"""What a training run watches while it learns, and what it says about it."""
