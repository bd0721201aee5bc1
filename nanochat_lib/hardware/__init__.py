"""The real machine and the plan of a profile on it."""
