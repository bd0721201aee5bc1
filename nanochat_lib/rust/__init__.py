"""Verification of Rust programs by the real compiler, in a sandbox."""
