"""`nanochat kernels`: what this machine can do."""

from __future__ import annotations

from nanochat_lib.cli.shared import JsonFlag, show


def kernels(as_json: JsonFlag = False) -> None:
    """Show the ternary kernels and which of them this machine runs."""
    import kernels as kernel_package

    show(kernel_package.describe(), as_json, title="Ternary kernels")
