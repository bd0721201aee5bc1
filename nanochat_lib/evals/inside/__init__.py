"""Looking inside a model: one text, one generation, its weights."""
