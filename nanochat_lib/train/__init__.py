"""Training stages: pre-training, gate, MaxRL and long context."""
