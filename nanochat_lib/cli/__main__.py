"""The `nanochat` command: run the stages, look at runs, plan a machine, judge Rust.

Exit codes: 0 done, 1 a problem the user can mend (one paragraph on standard error), 2 wrong usage,
130 interrupted (the run can be resumed); `verify` also 3 a program did not pass, 4 one could not be
judged.
"""

from __future__ import annotations

import logging

import typer
from rich.console import Console

from nanochat_lib.cli import corpus, doctor, machine, models, run, runs, studies, verify
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.pipeline import PipelineInterrupted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (
    run.run,
    run.sweep,
    machine.plan,
    runs.runs,
    runs.note,
    runs.compare,
    runs.report,
    verify.verify,
    corpus.corpus,
    models.evaluate,
    models.generate,
    studies.study,
    models.publish,
    models.tensorboard,
    machine.parameters,
    machine.kernels,
    doctor.doctor,
):
    app.command()(command)


def main() -> None:
    """Run the command line; problems the user can mend are one paragraph, not a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        app()
    except WorkbenchError as error:
        Console(stderr=True).print(f"nanochat: {error}", style="red", markup=False, highlight=False)
        raise SystemExit(1) from None
    except PipelineInterrupted as stopped:
        Console(stderr=True).print(f"\nnanochat: {stopped}", markup=False, highlight=False)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
