"""TinyRust: a graded world of small, documented, tested Rust functions (entry: `generate`)."""
