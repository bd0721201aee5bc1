"""The shape of the repository: floors, docstrings, README tree, dependencies, notebooks."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml

import kernels
from nanochat_lib.config import PROJECT_ROOT

# Imports point down only: a module may import from its own folder and from lower floors.
FLOORS = (
    ("kernels",),
    ("base",),  # the modules directly in nanochat_lib, and hardware
    ("rust", "model"),
    ("data",),
    ("train", "evals"),
    ("report", "publish"),
    ("studies",),
    ("cli",),
)
FLOOR_OF = {name: level for level, names in enumerate(FLOORS) for name in names}
SOURCES = sorted(
    path for folder in ("nanochat_lib", "kernels") for path in (PROJECT_ROOT / folder).rglob("*.py")
)


def _room(module: str) -> str:
    """Return the room of a dotted module name: `nanochat_lib.rust.verify` -> `rust`."""
    parts = module.split(".")
    if parts[0] == "kernels":
        return "kernels"
    if len(parts) > 1 and parts[1] in FLOOR_OF:
        return parts[1]
    return "base"


def _imported_modules(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("nanochat_lib", "kernels")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PROJECT_ROOT)))
def test_imports_point_down(path: Path) -> None:
    relative = path.relative_to(PROJECT_ROOT).with_suffix("")
    room = _room(".".join(relative.parts))
    for module in _imported_modules(ast.parse(path.read_text())):
        other = _room(module)
        allowed = other == room or FLOOR_OF[other] < FLOOR_OF[room]
        assert allowed, f"{relative} ({room}) imports {module} ({other})"


def test_kernels_import_without_torch() -> None:
    """Only the torch operator and training do, which nothing else in `kernels` imports."""
    needs_torch = ("kernels.torch_op", "kernels.training")
    for path in (PROJECT_ROOT / "kernels").rglob("*.py"):
        if path.name == "torch_op.py" or path.parent.name == "training":
            continue
        tree = ast.parse(path.read_text())
        top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {a.name.split(".")[0] for n in top if isinstance(n, ast.Import) for a in n.names}
        names |= {(n.module or "").split(".")[0] for n in top if isinstance(n, ast.ImportFrom)}
        assert "torch" not in names, path
        for name in {getattr(n, "module", None) or "" for n in top}:
            assert not name.startswith(needs_torch), path


def test_kernels_is_our_package() -> None:
    assert Path(kernels.__file__).parent == PROJECT_ROOT / "kernels"


def _documentable(node: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield public functions and classes, but not closures, which their function explains."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            if child.name.startswith("_"):
                continue
            yield child
            if isinstance(child, ast.ClassDef):
                yield from _documentable(child)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PROJECT_ROOT)))
def test_public_functions_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "module docstring"
    for node in _documentable(tree):
        assert ast.get_docstring(node), f"{node.name} at line {node.lineno}"


def _documented_arguments(docstring: str) -> set[str]:
    """Return the names of an `Args:` section: the lines at its own indent, up to the next one."""
    lines = docstring.splitlines()
    if "Args:" not in lines:
        return set()
    section = lines[lines.index("Args:") + 1 :]
    body = [line for line in itertools.takewhile(lambda x: not x or x[0] == " ", section) if line]
    indent = min((len(line) - len(line.lstrip()) for line in body), default=0)
    heads = [line.strip() for line in body if len(line) - len(line.lstrip()) == indent]
    return {
        name.strip("`* ") for head in heads if ":" in head for name in head.split(":")[0].split(",")
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PROJECT_ROOT)))
def test_docstring_parameters_are_in_the_signature(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            found = node.args
            arguments = {a.arg for a in (*found.posonlyargs, *found.args, *found.kwonlyargs)}
            arguments |= {a.arg for a in (found.vararg, found.kwarg) if a}
            named = _documented_arguments(ast.get_docstring(node) or "")
            assert named <= arguments, f"{node.name} documents {named - arguments}"


def test_package_inits_hold_only_a_docstring() -> None:
    for path in (PROJECT_ROOT / "nanochat_lib").rglob("__init__.py"):
        assert len(ast.parse(path.read_text()).body) == 1, path


def _pyproject() -> dict:
    return tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~ \[]", requirement)[0].lower().replace("_", "-")


def test_environment_and_pyproject_keep_step() -> None:
    environment = yaml.safe_load((PROJECT_ROOT / "environment.yml").read_text())
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert "-e ." in pip
    python = {name: line for line in conda for name in [_name(line)]}
    ours = {_name(item) for item in _pyproject()["dependencies"]}
    assert not set(python) & ours
    low = re.search(r">=(3\.\d+)", python["python"]).group(1)
    assert _pyproject()["requires-python"] == f">={low}"


def test_the_fixed_packages_are_dependencies() -> None:
    fixed = "jupyterlab ipywidgets papermill torch numba polars plotly tree-sitter-rust nbval"
    assert set(fixed.split()) <= {_name(item) for item in _pyproject()["dependencies"]}


def test_every_dependency_has_a_tested_version() -> None:
    lines = (PROJECT_ROOT / "constraints.txt").read_text().splitlines()
    pinned = {_name(line) for line in lines if line and not line.startswith("#")}
    extras = [r for items in _pyproject()["optional-dependencies"].values() for r in items]
    wanted = {_name(item) for item in [*_pyproject()["dependencies"], *extras]}
    assert wanted <= pinned, wanted - pinned


def _tracked() -> list[str]:
    done = subprocess.run(
        ["git", "-C", str(PROJECT_ROOT), "ls-files"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def test_readme_tree_matches_the_repository() -> None:
    readme = (PROJECT_ROOT / "README.md").read_text()
    tree = readme.split("<!-- tree -->")[1].split("<!-- /tree -->")[0]
    listed, folders = set(), []
    for line in tree.splitlines():
        match = re.match(r"^( *)([\w.\-]+/?)(?:\s{2,}\S.*)?$", line)
        if not match:
            continue
        depth, name = len(match.group(1)) // 2, match.group(2)
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        listed.add("".join(folders[:depth]) + name)
    shown = {
        path
        for path in _tracked()
        if path.startswith(("nanochat_lib/", "kernels/", "notebooks/", "hardware_profiles/"))
        and not path.endswith("__init__.py")
        and "/assets/" not in path
    }
    files = {path for path in listed if not path.endswith("/")}
    inside = {
        p
        for p in files
        if p.split("/")[0] in ("nanochat_lib", "kernels", "notebooks", "hardware_profiles")
    }
    assert shown - files == set(), "tracked, not in the README's tree"
    assert inside - shown == set(), "in the README's tree, not tracked"


NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_control_panels(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert book.cells[0].cell_type == "markdown"
    assert "parameters" in code[0].metadata.get("tags", [])
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 20
    assert len(code) <= 25
    for cell in code:
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Try), cell.source


def test_ruff_is_clean() -> None:
    ruff = pytest.importorskip("ruff", reason="ruff is in the dev extra")
    command = [ruff.find_ruff_bin(), "check", str(PROJECT_ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    command = [ruff.find_ruff_bin(), "format", "--check", str(PROJECT_ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
