"""The families of TinyRust, one module for each level, and more by theme."""
