"""Claims of papers, tried on Rust: arms that differ in one thing, several seeds, intervals."""
