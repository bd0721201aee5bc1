"""`nanochat doctor`: what is missing is found, said with its mend, and ends the command with 1."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanochat_lib.cli import doctor
from nanochat_lib.cli.__main__ import app
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.hardware.detect import Gpu, detect_machine


def check(name: str) -> doctor.Check:
    """Return one check."""
    return next(doctor.run_checks([name]))


def with_machine(monkeypatch: pytest.MonkeyPatch, **changes) -> None:
    """Let the doctor see another machine."""
    machine = replace(detect_machine(), **changes)
    monkeypatch.setattr(doctor, "detect_machine", lambda: machine)


def test_every_row_is_whole_and_what_is_not_ok_has_a_mend() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    rows = json.loads(done.output)
    assert len(rows) == len(doctor._CHECKS)
    for row in rows:
        assert row["state"] in (doctor.OK, doctor.OPTIONAL, doctor.MISSING)
        assert row["found"]
        assert row["mend"] or row["state"] == doctor.OK or row["name"] == "GPU"
    expected = 1 if any(row["state"] == doctor.MISSING for row in rows) else 0
    assert done.exit_code == expected


def test_without_rustc_it_ends_with_one_and_says_how_to_get_it(monkeypatch) -> None:
    def absent():
        raise WorkbenchError("No Rust compiler: expected 'rustc' 1.75 or newer on the PATH.")

    monkeypatch.setattr("nanochat_lib.rust.toolchain.find_toolchain", absent)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "No Rust compiler" in done.output
    assert "Traceback" not in done.output


def test_without_a_sandbox_it_ends_with_one(monkeypatch) -> None:
    monkeypatch.setattr("nanochat_lib.rust.sandbox.sandbox_level", lambda: "none")
    found = check("sandbox")
    assert found.state == doctor.MISSING
    assert "bubblewrap" in found.mend


def test_verdicts_that_are_wrong_are_noticed(monkeypatch) -> None:
    from nanochat_lib.records import Level, Verdict, Verified

    def all_pass(programs, level, **_):
        return [Verified(p.program_id, Verdict.PASSED, Level(level)) for p in programs]

    assert check("verdicts").state == doctor.OK
    monkeypatch.setattr("nanochat_lib.rust.verify.verify", all_pass)
    found = check("verdicts")
    assert found.state == doctor.MISSING
    assert "found PASSED, PASSED" in found.found


def test_a_gpu_that_torch_cannot_use_is_said(monkeypatch) -> None:
    with_machine(monkeypatch, gpus=())
    assert check("GPU").state == doctor.OPTIONAL
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with_machine(monkeypatch, gpus=(Gpu("Made-up GPU", 24.0),))
    found = check("GPU")
    assert found.state == doctor.OPTIONAL
    assert "cannot use it" in found.found
    assert "CUDA build of torch" in found.mend


def test_a_gpu_without_triton_is_said(monkeypatch) -> None:
    with_machine(monkeypatch, gpus=(Gpu("Made-up GPU", 24.0),))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("kernels.training.operators.has_triton", lambda: False)
    found = check("GPU")
    assert found.state == doctor.OPTIONAL
    assert "training multiplies in bfloat16" in found.found
    assert "triton" in found.mend


def test_what_generates_text_is_said_and_a_gpu_that_cannot_has_a_mend(monkeypatch) -> None:
    reasons = ["no CUDA compiler"]
    monkeypatch.setattr("nanochat_lib.model.backend.why_unavailable", lambda: reasons[0])
    with_machine(monkeypatch, gpus=())
    assert check("decoding") == doctor.Check("decoding", doctor.OK, "cpu: no CUDA compiler")
    with_machine(monkeypatch, gpus=(Gpu("Made-up GPU", 24.0),))
    assert check("decoding").state == doctor.OPTIONAL
    assert "gpu-not-used" in check("decoding").mend
    reasons[0] = ""

    def fails(*_):
        raise RuntimeError("CUDA driver: an illegal instruction (715)\nand more")

    monkeypatch.setattr("nanochat_lib.model.backend._open_on_gpu", fails)
    found = check("decoding")
    assert found.state == doctor.OPTIONAL
    assert found.found == "cpu: CUDA driver: an illegal instruction (715)"


def test_little_memory_and_a_full_disk_are_said(monkeypatch) -> None:
    with_machine(monkeypatch, memory_available_gb=1.0)
    assert "close other programs" in check("cores and memory").mend
    usage = type("Usage", (), {"free": 10**6})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert check("disk").state == doctor.MISSING


def test_no_compiler_and_no_documentation_are_optional(monkeypatch) -> None:
    from nanochat_lib.rust.toolchain import find_toolchain

    bare = replace(find_toolchain(), docs=None, sysroot=Path("/nowhere"))
    monkeypatch.setattr("nanochat_lib.rust.toolchain.find_toolchain", lambda: bare)
    monkeypatch.setattr("shutil.which", lambda _: None)
    for name in ("Rust documentation", "clippy", "C++ compiler", "browser"):
        assert check(name).state == doctor.OPTIONAL, name


def test_packages_that_do_not_fit_are_named() -> None:
    asked = ["numpy>=999", "no-such-package>=1", "polars>=1", 'x>=1; extra == "dev"']
    wrong = doctor._unmet(asked, extra="")
    found = metadata.version("numpy")
    assert wrong == [f"numpy>=999 (found {found})", "no-such-package>=1 (found none)"]
    assert doctor._unmet(asked, extra="dev") == ["x>=1 (found none)"]
    assert doctor._unmet(['polars>=1; python_version < "3"'], extra="") == []


def test_a_kernel_of_another_python_is_noticed(monkeypatch) -> None:
    from jupyter_client.kernelspec import KernelSpecManager

    assert check("JupyterLab").state == doctor.OK
    spec = type("Spec", (), {"argv": ["/elsewhere/bin/python", "-m", "ipykernel"]})
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: spec)
    found = check("JupyterLab")
    assert found.state == doctor.MISSING
    assert "/elsewhere/bin/python" in found.found
    monkeypatch.setattr(KernelSpecManager, "find_kernel_specs", lambda self: {})
    assert "no kernel python3" in check("JupyterLab").found


def test_the_table_can_be_read_without_a_terminal() -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert ".".join(map(str, sys.version_info[:3])) in done.output
    assert "docs/troubleshooting.md" in done.output
