"""Export of a checkpoint: safetensors, GGUF, model card."""
