"""The decode program: a LoopLM generates text in one jitted program over packed weights."""
