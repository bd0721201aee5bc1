"""Explore generation: where each token left the loops, what else was likely, does rustc accept it?

In: something that explains generations (`evals.inside.explain.Explainer`) and tasks with prompts.
Out: a widget. "Compile it" cuts the text where the function ends and judges it in the sandbox, with
the task's hidden tests as long as the prompt is the task's own.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Protocol

import ipywidgets as widgets
import polars as pl

from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Level, Program, Task
from nanochat_lib.report.widgets.listing import (
    Token,
    code_html,
    depth_legend,
    tokens_html,
    verdict_html,
)
from nanochat_lib.report.widgets.look import framed, row
from nanochat_lib.rust.programs import assemble, truncate_completion
from nanochat_lib.rust.verify import verify


class Explains(Protocol):
    """What is used of `evals.inside.explain.Explainer`."""

    n_loops: int

    def explain(self, prompt: str, **settings: Any) -> list[Token]:
        """Return the tokens of a continuation."""
        ...

    def text(self, steps: list[Token]) -> str:
        """Return the text of a continuation."""
        ...


class GenerationExplorer:
    """Prompt and settings on top, coloured tokens below, the verdict at the end."""

    def __init__(
        self, model: Explains, tasks: Sequence[Task], config: VerifyConfig | None = None
    ) -> None:
        self.model, self.tasks, self.config = model, list(tasks), config
        self.steps: list[Token] = []
        self._make()
        self.generate()

    def _make(self) -> None:
        style, wide = {"description_width": "110px"}, {"width": "330px"}
        names = [(f"{task.task_set}: {task.task_id}", i) for i, task in enumerate(self.tasks)]
        self.task = widgets.Dropdown(options=names, description="task", layout={"width": "480px"})
        self.prompt = widgets.Textarea(
            value=self.tasks[0].prompt, description="prompt",
            layout={"width": "100%", "height": "84px"},
        )  # fmt: skip
        self.threshold = widgets.FloatSlider(
            0.8, min=0.05, max=1.0, step=0.05, description="exit threshold",
            continuous_update=False, layout=wide, style=style,
        )  # fmt: skip
        self.temperature = widgets.FloatSlider(
            0.8, min=0.0, max=1.5, step=0.1, description="temperature",
            continuous_update=False, layout=wide, style=style,
        )  # fmt: skip
        self.length = widgets.IntSlider(
            80, min=8, max=200, description="most tokens", continuous_update=False,
            layout=wide, style=style,
        )  # fmt: skip
        self.seed = widgets.IntText(0, description="seed", layout=wide, style=style)
        self.again = widgets.Button(description="Generate", icon="refresh", button_style="primary")
        self.compile = widgets.Button(description="Compile it", icon="gavel")
        self.legend, self.shown, self.verdict = (widgets.HTML() for _ in range(3))
        self.widget = framed(
            self.task, self.prompt, row(self.threshold, self.temperature),
            row(self.length, self.seed), row(self.again, self.compile), self.legend, self.shown,
            self.verdict, on_theme=lambda is_dark: None,
        )  # fmt: skip
        self.task.observe(self._take_task, "value")
        for setting in (self.threshold, self.temperature, self.length, self.seed):
            setting.observe(lambda _: self.generate(), "value")
        self.again.on_click(lambda _: self.generate())
        self.compile.on_click(lambda _: self.judge())

    def _take_task(self, change: dict[str, Any]) -> None:
        self.prompt.value = self.tasks[change["new"]].prompt
        self.generate()

    def generate(self) -> None:
        """Continue the prompt with the settings as they are, and show every token."""
        self.verdict.value = ""
        try:
            self.steps = self.model.explain(
                self.prompt.value,
                exit_threshold=self.threshold.value,
                temperature=self.temperature.value,
                max_new_tokens=self.length.value,
                seed=self.seed.value,
            )
        except WorkbenchError as error:
            self.shown.value = f'<div class="nano-error">{html.escape(str(error))}</div>'
            return
        self.legend.value = depth_legend(self.steps, self.model.n_loops)
        prompt = self.prompt.value.rstrip() + "\n"
        self.shown.value = tokens_html(prompt, self.steps, self.model.n_loops)

    def judge(self) -> None:
        """Let rustc judge what is on the screen, and show its diagnostics where they belong."""
        task = self.tasks[self.task.value]
        is_task = self.prompt.value.rstrip() == task.prompt.rstrip()
        completion = truncate_completion(self.model.text(self.steps))
        own = self.prompt.value.rstrip() + completion
        if is_task:
            program, level = assemble(task, completion), Level.TEST
        else:
            program, level = Program("explored", own + "\n"), Level.BUILD
        self.compile.disabled = True
        try:
            (judged,) = verify([program], level, config=self.config)
        except WorkbenchError as error:
            self.verdict.value = f'<div class="nano-error">{html.escape(str(error))}</div>'
            return
        finally:
            self.compile.disabled = False
        source = program.source if is_task else own
        self.verdict.value = verdict_html(judged) + code_html(source, judged.diagnostics)


def depth_table(model: Explains, prompt: str, thresholds: Sequence[float]) -> pl.DataFrame:
    """Return, for falling thresholds, mean depth and how many tokens stay those of the first.

    Greedy, so that nothing but the threshold differs.
    """
    rows, first = [], None
    for threshold in thresholds:
        steps = model.explain(prompt, exit_threshold=threshold, temperature=0.0)
        ids = [step.token_id for step in steps]
        first = ids if first is None else first
        n_same = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, first, strict=False))
        )
        depth = sum(step.loop for step in steps) / max(len(steps), 1)
        rows.append(
            {
                "exit threshold": threshold,
                "mean loops": depth,
                "loops saved": f"{1 - depth / model.n_loops:.0%}",
                "first tokens equal": f"{n_same} of {len(first)}",
            }
        )
    return pl.DataFrame(rows)
