"""The families of TinyRust by level: integers, slices, texts, types, recursion."""
