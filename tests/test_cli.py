"""The command line: every README command works, mistakes are one paragraph, exit codes hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nanochat_lib.cli.__main__ import app
from nanochat_lib.cli.shared import progress_bar, visible
from nanochat_lib.config import PROJECT_ROOT, RunConfig, load_profile
from nanochat_lib.data.tokenizer import train_tokenizer
from nanochat_lib.model.checkpoint import save_checkpoint
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.runs import create_run

TINY = str(Path(__file__).parent / "fixtures" / "tiny.toml")


def _nanochat(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nanochat_lib.cli", *arguments]
    environment = {**os.environ, **changes}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--profile", "labtop"], "Did you mean 'laptop'?"),
        (["run", "--profile", TINY, "--set", "pretrain.totl_steps=1"], "pretrain.total_steps"),
        (["run", "--profile", TINY, "--set", "pretrain.total_steps"], "expects key=value"),
        (["run", "--profile", TINY, "--stages", "pretrian"], "Did you mean 'pretrain'?"),
        (["run", "--profile", TINY, "--resume"], "no run of profile 'tiny' to resume"),
        (["verify", "absent.rs"], "There is no file or folder absent.rs"),
        (["verify", TINY, "--level", "tset"], "Did you mean 'test'?"),
        (["verify", TINY, "--json", "/absent/out.jsonl"], "/absent/out.jsonl cannot be written"),
        (["verify", TINY, "--cluster", "my cluster"], "such as tcp://10.0.0.5:8786"),
        (["corpus", "--out", "c", "--set", "corpus.sourcs=[]"], "Did you mean 'corpus.sources'?"),
        (["corpus", "--out", "c", "--set", 'corpus.sources=["dbian"]'], "'debian'"),
        (["evaluate", "--cluster", "nowhere"], "such as tcp://10.0.0.5:8786"),
    ],
)
def test_mistakes_are_one_paragraph_without_a_traceback(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    extra = ["--runs-dir", str(tmp_path / "runs")] if arguments[0] == "run" else []
    done = _nanochat(*arguments, *extra)
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_missing_rustc_is_said_before_a_run_is_made(tmp_path: Path) -> None:
    runs_dir = tmp_path / "runs"
    done = _nanochat(
        "run", "--profile", TINY, "--runs-dir", str(runs_dir), PATH="/nonexistent", HOME="/x"
    )
    assert done.returncode == 1
    assert "rustc" in done.stderr
    assert "Traceback" not in done.stderr
    assert not runs_dir.exists()


def test_make_without_rustc_is_one_line_at_once(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "env", "python3"):
        (tools / name).symlink_to(shutil.which(name))
    make = shutil.which("make")
    done = subprocess.run(
        [make, "-C", str(PROJECT_ROOT), "check-tools"], capture_output=True, text=True,
        env={"PATH": str(tools)}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert lines[0].startswith("rustc is not on PATH: install Rust")


def test_evaluate_canonical_solutions_without_a_model(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = _nanochat("evaluate", "--tasks", "builtin", "--completions", "canonical",
                     "--json", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    rates = {row["metric"]: row["rate"] for row in json.loads(out.read_text())["rates"]}
    assert rates["compile_rate"] == rates["pass@1"] == 1.0


def test_runs_and_kernels_print_tables_and_json(tmp_path: Path) -> None:
    create_run(load_profile(TINY), "one", tmp_path)
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["runs", "--runs-dir", str(tmp_path), "--json"]).output)
    assert [row["run_id"] for row in listed] == ["one"]
    assert "one" in runner.invoke(app, ["runs", "--runs-dir", str(tmp_path)]).output
    levels = json.loads(runner.invoke(app, ["kernels", "--json"]).output)
    assert any(row["usable"] and row["chosen"] for row in levels)
    assert sum(row["decodes"] for row in levels) == 1
    assert "Text is generated on c" in runner.invoke(app, ["kernels"]).output


def test_every_command_in_the_readme_exists() -> None:
    readme = (PROJECT_ROOT / "README.md").read_text()
    used = set(re.findall(r"^nanochat (\w+)", readme, re.MULTILINE))
    known = {c.name or c.callback.__name__ for c in app.registered_commands}
    assert used <= known
    targets = set(re.findall(r"^make (\w+)", readme, re.MULTILINE))
    makefile = (PROJECT_ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_generate_and_publish_answer_scripts(tmp_path: Path) -> None:
    config = load_profile(TINY)
    run = create_run(config, "made", tmp_path / "runs")
    tokenizer = tmp_path / "tokenizer.json"
    train_tokenizer(["fn add(a: i32) -> i32 {\n    a\n}\n"] * 20, config.model.vocab_size).save(
        str(tokenizer)
    )
    final = run.artifacts("pretrain") / "final"
    model = LoopLM(config.model, seed=0)
    save_checkpoint(final, model, step=1, tokens_seen=1, stage="pretrain", tokenizer_json=tokenizer)
    runner = CliRunner()
    asked = ["generate", str(final), "--prompt", "fn f() {", "--max-new-tokens", "8", "--json"]
    told = json.loads(runner.invoke(app, asked).output)
    assert told["prompt"] == "fn f() {"
    assert isinstance(told["completion"], str)
    out = tmp_path / "export"
    exported = ["publish", "made", "--out", str(out), "--runs-dir", str(run.dir.parent), "--json"]
    manifest = json.loads(runner.invoke(app, exported).output)
    assert manifest["stage"] == "pretrain"
    for file in manifest["files"]:
        assert (out / file["name"]).stat().st_size == file["bytes"]


def test_what_a_model_writes_cannot_command_a_terminal() -> None:
    assert visible("a\x1b[2J\tb\n\u202e") == "a\\u{1b}[2J\tb\n\\u{202e}"


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    told = Console(width=40)
    with progress_bar("judged", 2, told) as advance:
        advance()
        advance("a line that is longer than forty columns and stays in one piece")
    assert capsys.readouterr().out.splitlines() == [
        "judged 1 of 2",
        "a line that is longer than forty columns and stays in one piece",
    ]


def test_progress_on_a_terminal_is_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("judged", 2, Console(force_terminal=True, width=80)) as advance:
        advance()
        advance("done")
    out = capsys.readouterr().out
    assert "━" in out
    assert "done" in out


def test_settings_are_found_by_section_and_by_meaning() -> None:
    def found(*words: str) -> set[str]:
        output = CliRunner().invoke(app, ["parameters", *words, "--json"]).output
        return {row["setting"] for row in json.loads(output)}

    assert found("publish") >= {"publish.model_name", "publish.checkpoint"}
    assert "pretrain.micro_batch_size" in found("forward pass")
    everything = RunConfig().model_dump()
    sections = {k: v for k, v in everything.items() if isinstance(v, dict)}
    wanted = {f"{name}.{key}" for name, values in sections.items() for key in values}
    assert found() == wanted | {"profile", "seed"}


def test_wrong_usage_ends_with_two() -> None:
    assert CliRunner().invoke(app, ["runs", "--no-such-option"]).exit_code == 2
    assert CliRunner().invoke(app, ["no-such-command"]).exit_code == 2
