"""More families of TinyRust by theme; each says its level."""
