"""The integer product on each kind of CPU: one module per family of instructions."""
