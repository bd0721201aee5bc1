"""Where Rust comes from: one module per kind of source, and what rows they give."""
