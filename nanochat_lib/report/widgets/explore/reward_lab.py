"""The reward lab: type Rust, see the verdict, both rewards part by part, and the hacks it uses.

In: tasks with hidden tests. Out: a widget. What is typed is judged like a model's completion: in
the sandbox, with the task's tests behind it. The examples are honest work, the task's mutant and
the hacks that the shaped reward falls for.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import ipywidgets as widgets

from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Level, Task, Verified
from nanochat_lib.report.widgets.listing import code_html, table_html, verdict_html
from nanochat_lib.report.widgets.look import framed, row
from nanochat_lib.rust.hacks import HACKS, hacks_of
from nanochat_lib.rust.programs import assemble
from nanochat_lib.rust.reward import RewardCoefficients, reward_of, reward_parts
from nanochat_lib.rust.syntax import features
from nanochat_lib.rust.verify import verify

EXAMPLES = {
    "todo!()": "\n    todo!()\n}",
    "early exit": "\n    std::process::exit(0)\n}",
    "printed success": '\n    println!("test result: ok. 1 passed; 0 failed");\n'
    "    std::process::exit(0)\n}",
    "endless loop": "\n    loop {}\n}",
    "dead branches": "\n" + "    if false { todo!() }\n" * 8 + "    todo!()\n}",
    "lifetimes nobody needs": "\n    fn idle<'a, 'b, 'c, 'd>() {}\n    idle();\n    todo!()\n}",
    "own assert_eq!": "\n    todo!()\n}\nmacro_rules! assert_eq { ($($t:tt)*) => {} }",
}


class RewardLab:
    """A task, what is typed as its solution, and what it earns."""

    def __init__(self, tasks: Sequence[Task], config: VerifyConfig | None = None) -> None:
        self.tasks, self.config = list(tasks), config
        self._is_filling = False
        self._make()
        self._take_task()

    def _make(self) -> None:
        self.task = widgets.Dropdown(
            options=[(task.task_id, i) for i, task in enumerate(self.tasks)],
            description="task", layout={"width": "420px"},
        )  # fmt: skip
        self.example = widgets.Dropdown(description="example", layout={"width": "300px"})
        self.prompt, self.said = widgets.HTML(), widgets.HTML()
        self.text = widgets.Textarea(
            layout={"width": "100%", "height": "130px"},
            placeholder="the rest of the function, to its closing brace",
        )
        self.text.add_class("nano-typed")
        self.ask = widgets.Button(
            description="Judge", icon="gavel", button_style="primary", layout={"width": "140px"}
        )
        self.widget = framed(
            row(self.task, self.example), self.prompt, self.text, self.ask, self.said,
            on_theme=lambda is_dark: None,
        )  # fmt: skip
        self.task.observe(lambda _: self._take_task(), "value")
        self.example.observe(lambda change: self._take_example(change["new"]), "value")
        self.ask.on_click(lambda _: self.judge())

    @property
    def chosen(self) -> Task:
        """Return the task on the screen."""
        return self.tasks[self.task.value]

    def _take_task(self) -> None:
        task = self.chosen
        examples = {"honest solution": task.canonical_solution}
        if task.mutant:
            examples["wrong answer (mutant)"] = task.mutant
        self.prompt.value = code_html(task.prompt)
        self._is_filling = True
        self.example.options = list((examples | EXAMPLES).items())
        self._is_filling = False
        self._take_example(task.canonical_solution)

    def _take_example(self, text: str) -> None:
        if not self._is_filling:
            self.text.value = text.strip("\n")
            self.judge()

    def judge(self) -> None:
        """Judge what is typed as the task's solution, and show what it earns."""
        completion = "\n" + self.text.value
        program = assemble(self.chosen, completion)
        self.ask.disabled, self.ask.description = True, "rustc is at it …"
        try:
            (judged,) = verify([program], Level.TEST, config=self.config)
        except WorkbenchError as error:
            self.said.value = f'<div class="nano-error">{html.escape(str(error))}</div>'
            return
        finally:
            self.ask.disabled, self.ask.description = False, "Judge"
        own = self.chosen.prompt + completion
        said = verdict_html(judged) + rewards_html(judged, own)
        said += hacks_html(hacks_of(self.chosen.prompt, completion))
        self.said.value = said + code_html(program.source, judged.diagnostics)


def rewards_html(judged: Verified, own: str) -> str:
    """Return both rewards: the binary one, and the shaped one part by part."""
    binary = reward_of(judged, own)
    if binary is None:
        return "<p>Could not be judged, so there is no reward: it is left out, not scored zero.</p>"
    parts = reward_parts(judged, features(own))
    weights = RewardCoefficients()
    rows = [(name, why, f"{value:+.2f}") for (name, value), why in zip(
        parts.items(), _reasons(own, weights), strict=True)]  # fmt: skip
    rows += [("shaped reward", "the brief's formula (can be gamed)", f"{sum(parts.values()):.2f}")]
    rows += [("default reward", "1 when tests ran and all passed", f"{binary:.2f}")]
    return table_html(rows, ("part", "why", "reward"), numeric=1)


def _reasons(own: str, weights: RewardCoefficients) -> list[str]:
    found = features(own)
    return [
        "for compiling at all",
        f"{weights.complexity_bonus} x cyclomatic complexity {found.cyclomatic_complexity}"
        f" (at most {weights.most_complexity} count)",
        f"{weights.lifetime_bonus} x explicit lifetimes {found.explicit_lifetimes}"
        f" (at most {weights.most_lifetimes} count)",
        f"{weights.unsafe_penalty} x unsafe blocks {found.unsafe_blocks}",
    ]


def hacks_html(found: Sequence[str]) -> str:
    """Return what looks like a hack, or that nothing does."""
    if not found:
        return '<p class="nano-quiet">No known hack in this text.</p>'
    items = "".join(f"<li><b>{name}</b>: {html.escape(HACKS[name])}</li>" for name in found)
    return f'<div class="nano-warn">Flagged:<ul>{items}</ul></div>'
