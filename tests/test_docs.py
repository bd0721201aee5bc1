"""The documentation names only what exists: commands, options, settings, files, headings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from nanochat_lib.cli.__main__ import app
from nanochat_lib.config import PROJECT_ROOT, RunConfig, load_profile
from nanochat_lib.experiments.sweep_spec import make_spec, sweep_points
from nanochat_lib.stages import STAGES

DOCS = PROJECT_ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), PROJECT_ROOT / "README.md"]
COMMANDS = get_command(app).commands
SETTINGS = {
    f"{section}.{key}"
    for section, field in RunConfig.model_fields.items()
    if hasattr(field.annotation, "model_fields")
    for key in field.annotation.model_fields
}
page_by_page = pytest.mark.parametrize(
    "path", PAGES, ids=lambda p: str(p.relative_to(PROJECT_ROOT))
)


def written_commands(text: str) -> list[list[str]]:
    """Return every `nanochat ...` of code blocks and of text, as words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    found = [line for line in lines if line.startswith("nanochat ")]
    found += re.findall(r"`(nanochat [^`]*)`", text)
    return [shlex.split(line, comments=True)[1:] for line in found]


@page_by_page
def test_commands_and_options_exist(path: Path) -> None:
    for words in written_commands(path.read_text()):
        if words[0] in ("--help", "COMMAND"):
            continue
        assert words[0] in COMMANDS, words
        known = {o for p in COMMANDS[words[0]].params for o in (*p.opts, *p.secondary_opts)}
        options = {word.split("=")[0] for word in words[1:] if word.startswith("--")}
        assert options <= known | {"--help"}, words


@page_by_page
def test_settings_exist(path: Path) -> None:
    text = path.read_text()
    sections = "|".join(sorted({setting.split(".")[0] for setting in SETTINGS}))
    named = re.findall(rf"(?<![\w./-])((?:{sections})\.[a-z][a-z0-9_]*)\b(?![/(])", text)
    files = {"corpus.jsonl", "report.html", "pretrain.bits_per_byte"}  # no settings
    wrong = {name for name in named if name not in SETTINGS and name not in files}
    assert not {
        w for w in wrong if not w.endswith((".py", ".html", ".ipynb", ".json", ".parquet"))
    }, wrong


@page_by_page
def test_values_given_on_a_command_line_fit(path: Path) -> None:
    for words in written_commands(path.read_text()):
        overrides = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--set"]
        if overrides:
            from nanochat_lib.cli.shared import parse_settings

            load_profile("laptop", parse_settings(overrides))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@page_by_page
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.is_file(), target
        assert not anchor or anchor in anchors(page), target


@page_by_page
def test_files_named_exist(path: Path) -> None:
    places = re.findall(
        r"`((?:notebooks|nanochat_lib|hardware_profiles|docs|kernels|tests)/[\w./*]+)`",
        path.read_text(),
    )
    for place in places:
        assert list(PROJECT_ROOT.glob(place)), place


def test_every_command_is_documented_with_its_exit_codes() -> None:
    text = (DOCS / "cli.md").read_text()
    rows = r"^\| `nanochat (\w+)` \|.*\| ?([^|]*)\|$"
    told = dict(re.findall(rows, text, re.MULTILINE))
    assert set(told) == set(COMMANDS)
    for name, command in COMMANDS.items():
        mentioned = re.search(r"Exit codes: (.*?)(?:\n\n|$)", command.help or "", re.DOTALL)
        codes = set(re.findall(r"\b(\d+) ", mentioned[1] + " ")) - {"0"} if mentioned else set()
        assert codes <= set(re.findall(r"\b(\d+) ", told[name])), name


def test_every_help_text_opens() -> None:
    for name in COMMANDS:
        done = CliRunner().invoke(app, [name, "--help"])
        assert done.exit_code == 0
        assert COMMANDS[name].help


def test_every_stage_has_a_page() -> None:
    pages = " ".join(path.read_text() for path in (DOCS / "stages").glob("*.md"))
    for stage in STAGES.values():
        assert f"notebooks/{stage.notebook}" in pages


@pytest.mark.parametrize("path", sorted((DOCS / "stages").glob("*.md")), ids=lambda p: p.stem)
def test_stage_pages_say_what_why_settings_and_how_to_read(path: Path) -> None:
    text = path.read_text()
    if path.stem == "report":
        assert text.count("How to read it:") == 2
        return
    for head in ("## What", "## Why", "## Settings that matter", "## How to read its report"):
        assert head in text, head


def test_every_page_is_linked_from_the_first() -> None:
    text = (DOCS / "README.md").read_text()
    for path in DOCS.rglob("*.md"):
        if path != DOCS / "README.md":
            assert f"({path.relative_to(DOCS)})" in text, path


def test_sweeps_shown_can_be_run() -> None:
    from nanochat_lib.experiments.sweep_spec import _Loader

    blocks = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "sweeps.md").read_text(), re.M | re.S)
    counts = [len(sweep_points(make_spec(yaml.load(block, _Loader)))) for block in blocks]
    assert counts == [12, 12]


def test_profile_shown_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(
        r"^```toml\n(.*?)^```", (DOCS / "your_hardware.md").read_text(), re.M | re.S
    )
    (tmp_path / "mine.toml").write_text(block)
    assert load_profile(str(tmp_path / "mine.toml")).hardware.cpu_threads == 16


def test_advice_and_mends_point_to_headings_that_exist() -> None:
    known = anchors(DOCS / "troubleshooting.md")
    named = [
        anchor
        for path in (PROJECT_ROOT / "nanochat_lib").rglob("*.py")
        for anchor in re.findall(r"(?:GUIDE\}|troubleshooting\.md)#([\w-]+)", path.read_text())
    ]
    assert len(named) >= 10
    assert set(named) <= known
