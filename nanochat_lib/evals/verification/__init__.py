"""Measuring the verification engine: a mixed corpus, independent judges, differences and cost."""
