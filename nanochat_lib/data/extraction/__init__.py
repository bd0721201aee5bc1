"""Cut Rust out of what holds it: pages, comments, files."""
