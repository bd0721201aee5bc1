"""Semantic augmentation: the same meaning written otherwise, judged again (entry: `variants`)."""
