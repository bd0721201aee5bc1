"""`nanochat doctor`: what this machine has, what is missing, and the mend for each.

Every check looks at the thing itself: rustc judges two programs in the sandbox, the notebook kernel
is looked up where Jupyter looks, packages are held against what the project asks for. A check that
goes wrong is a row of the table, never a traceback.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.table import Table
from rich.text import Text

from nanochat_lib.cli.shared import WIDE, Console, JsonFlag, console
from nanochat_lib.config import PROJECT_ROOT, VerifyConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.hardware.detect import detect_machine
from nanochat_lib.records import Level, Program, Verdict
from nanochat_lib.runs import MIN_FREE_BYTES, REPORTS_DIR

OK, OPTIONAL, MISSING = "ok", "optional", "missing"
GUIDE = "docs/troubleshooting.md"
DEMO_GB, MEMORY_GB = 6.0, 4.0  # what `make demo` may need
DISTRIBUTION = "nanochat-rs-ternary"
_COLORS = {OK: "green", OPTIONAL: "yellow", MISSING: "red"}
_PASSES = "pub fn one() -> i32 { 1 }\n#[cfg(test)] mod t { #[test] fn is_one() " \
          "{ assert_eq!(super::one(), 1); } }"  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its state, what was found, and what to do about it."""

    name: str
    state: str
    found: str
    mend: str = ""


def doctor(as_json: JsonFlag = False) -> None:
    """Check rustc, sandbox, processor, GPU, disk, memory, packages and JupyterLab.

    Exit codes: 0 everything needed is there, 1 something needed is missing.
    """
    checks = list(run_checks())
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        table = Table("", "what", "found", "what to do")
        for check in checks:
            state = Text(check.state, style=_COLORS[check.state])
            table.add_row(state, check.name, Text(check.found), Text(check.mend))
        (console if console.is_terminal else Console(width=WIDE)).print(table)
        console.print(f"More help: {GUIDE}", highlight=False)
    if any(check.state == MISSING for check in checks):
        raise typer.Exit(1)


def run_checks(names: Sequence[str] = ()) -> Iterator[Check]:
    """Yield the checks named, or all; what raises is missing, with the error's own text."""
    for name in names or _CHECKS:
        try:
            yield Check(name, *_CHECKS[name]())
        except (WorkbenchError, OSError, metadata.PackageNotFoundError) as error:
            yield Check(name, MISSING, str(error), f"see {GUIDE}")


Found = tuple[str, ...]  # state, found, and where something is to do: the mend


def _python() -> Found:
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = SpecifierSet(metadata.metadata(DISTRIBUTION)["Requires-Python"])
    found = f"{version} at {sys.prefix}"
    return (OK, found) if version in wanted else (MISSING, found, f"install Python {wanted}")


def _packages() -> Found:
    wrong = _unmet(metadata.requires(DISTRIBUTION) or [], extra="")
    if wrong:
        return MISSING, ", ".join(wrong), "pip install -c constraints.txt -e . in the project"
    return OK, f"all of {DISTRIBUTION} {metadata.version(DISTRIBUTION)}"


def _kernels_package() -> Found:
    import kernels

    if Path(kernels.__file__).parent != PROJECT_ROOT / "kernels":
        mend = "pip uninstall kernels (a hub loader of the same name), then pip install -e ."
        return MISSING, f"another package: {kernels.__file__}", mend
    chosen = next(row for row in kernels.describe() if row["chosen"])
    features = " ".join(detect_machine().cpu_features) or "no vector features known"
    found = f"{chosen['backend']} ({features})"
    if chosen["backend"] in ("generic", "reference"):
        return OPTIONAL, found, f"slow but right on this processor; see {GUIDE}#slow-cpu-training"
    return OK, found


def _rustc() -> Found:
    from nanochat_lib.rust.toolchain import find_toolchain

    found = find_toolchain()
    return OK, f"{found.version} at {found.rustc}"


def _rust_docs() -> Found:
    from nanochat_lib.rust.toolchain import find_toolchain

    docs = find_toolchain().docs
    if docs is None:
        mend = "rustup component add rust-docs; or give sources of your own by data.input_dir"
        return OPTIONAL, "not installed: the demo takes its examples from it", mend
    return OK, str(docs)


def _sandbox() -> Found:
    from nanochat_lib.rust.sandbox import sandbox_level

    level = sandbox_level()
    if level == "none":
        mend = (
            f"install bubblewrap, or use Linux 5.13 or newer with Landlock; see {GUIDE}#no-sandbox"
        )
        return MISSING, "none: generated programs would run unprotected, so nothing is judged", mend
    return OK, level


def _verdicts() -> Found:
    """Judge one program that passes and one that cannot compile, as the stages do."""
    from nanochat_lib.rust.verify import verify

    programs = [Program("passes", _PASSES), Program("fails", _PASSES.replace("1 }", '"" }', 1))]
    found = verify(programs, Level.TEST, config=VerifyConfig(), cache_dir=None, workers=1)
    verdicts = [one.verdict for one in found]
    if verdicts != [Verdict.PASSED, Verdict.COMPILE_ERROR]:
        text = ", ".join(f"{one.verdict} {one.detail}".strip() for one in found)
        mend = f"compile a program with a test by rustc --test; see {GUIDE}#verification-fails"
        return MISSING, f"expected PASSED and COMPILE_ERROR, found {text}", mend
    return OK, "a right program passes, a wrong one does not"


def _clippy() -> Found:
    from nanochat_lib.rust.toolchain import find_toolchain

    found = find_toolchain().clippy
    if found is None:
        return (
            OPTIONAL,
            "not installed: semantic checks say 'not available'",
            ("rustup component add clippy"),
        )
    return OK, str(found)


def _cxx() -> Found:
    found = next((p for p in map(shutil.which, ("g++", "clang++", "c++")) if p), "")
    if not found:
        mend = "install g++ or clang++: torch.compile about doubles the training speed"
        return OPTIONAL, "no C++ compiler: training runs eagerly", mend
    return OK, found


def _cores_and_memory() -> Found:
    machine = detect_machine()
    found = (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_available_gb:.1f} of "
        f"{machine.memory_gb:.1f} GB free"
    )
    if machine.memory_available_gb < MEMORY_GB:
        return OPTIONAL, found, f"the demo wants about {MEMORY_GB:g} GB: close other programs"
    return OK, found


def _gpu() -> Found:
    gpus = detect_machine().gpus
    if not gpus:
        return OPTIONAL, "none: training and decoding use the processor", ""
    import torch

    found = ", ".join(f"{gpu.name} ({gpu.memory_gb:.0f} GB)" for gpu in gpus)
    if not torch.cuda.is_available():
        mend = f"install a CUDA build of torch that fits the driver; see {GUIDE}#gpu-not-used"
        return OPTIONAL, f"{found}, but torch {torch.__version__} cannot use it", mend
    from kernels.training.operators import has_triton

    if not has_triton():
        mend = "install triton, which CUDA builds of torch for Linux bring: int8 products need it"
        return OPTIONAL, f"{found}; no triton: training multiplies in bfloat16", mend
    return OK, f"{found}, torch {torch.__version__}"


def _decoding() -> Found:
    """Say what generates text where `hardware.decode_device` is auto; a GPU has to show it."""
    from nanochat_lib.model.backend import checked_here

    choice = checked_here()
    found = f"{choice.device}: {choice.why}"
    if choice.device == "cpu" and detect_machine().gpus:
        return OPTIONAL, found, f"mend that to generate text on the GPU; see {GUIDE}#gpu-not-used"
    return OK, found


def _disk() -> Found:
    REPORTS_DIR.mkdir(exist_ok=True)
    free = shutil.disk_usage(REPORTS_DIR).free
    found = f"{free / 1e9:.1f} GB free at {REPORTS_DIR}"
    if free < MIN_FREE_BYTES:
        return MISSING, found, f"free {MIN_FREE_BYTES / 1e9:.1f} GB, or run with another --runs-dir"
    if free < DEMO_GB * 1e9:
        return OPTIONAL, found, f"the demo wants about {DEMO_GB:g} GB"
    return OK, found


def _jupyter() -> Found:
    from jupyter_client.kernelspec import KernelSpecManager

    version = f"JupyterLab {metadata.version('jupyterlab')}"
    manager = KernelSpecManager()
    if "python3" not in manager.find_kernel_specs():
        return MISSING, f"{version}, no kernel python3", "pip install ipykernel"
    program = manager.get_kernel_spec("python3").argv[0]
    if Path(program).is_absolute() and Path(program).parent != Path(sys.executable).parent:
        mend = "python -m ipykernel install --sys-prefix, with the Python of this environment"
        return MISSING, f"{version}, but kernel python3 is another Python: {program}", mend
    return OK, f"{version}, kernel python3 of this environment"


def _browser() -> Found:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        return OPTIONAL, "no chromium: tests marked browser are skipped", "install chromium"
    return OK, browser


def _extras() -> Found:
    """Say which extras are installed, by what each of them asks for."""
    asked = metadata.requires(DISTRIBUTION) or []
    names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    here = [name for name in names if not _unmet(asked, extra=name)]
    absent = [name for name in names if name not in here]
    found = f"installed: {', '.join(here) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    return (OPTIONAL, found, "pip install '.[NAME]' for one you want") if absent else (OK, found)


def _unmet(requirements: list[str], *, extra: str) -> list[str]:
    """Return what is asked for, by the project or one of its extras, and not here so."""
    wrong = []
    for requirement in map(Requirement, requirements):
        is_of_extra = bool(re.search(r"extra\s*==", str(requirement.marker or "")))
        if is_of_extra != bool(extra):
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found = ""
        if not found or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name}{requirement.specifier} (found {found or 'none'})")
    return wrong


_CHECKS: dict[str, Callable[[], Found]] = {
    "Python": _python,
    "packages": _packages,
    "ternary kernels": _kernels_package,
    "rustc": _rustc,
    "sandbox": _sandbox,
    "verdicts": _verdicts,
    "Rust documentation": _rust_docs,
    "clippy": _clippy,
    "C++ compiler": _cxx,
    "cores and memory": _cores_and_memory,
    "GPU": _gpu,
    "decoding": _decoding,
    "disk": _disk,
    "JupyterLab": _jupyter,
    "browser": _browser,
    "extras": _extras,
}
