"""What is installed is what is needed: packages, data files, dependencies, pins, and what `make` runs."""

from __future__ import annotations

import ast
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = ("studio", "flows", "rewards", "pruning", "ui")
PINS = {
    canonicalize_name(line.partition("==")[0]): line.partition("==")[2]
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
}
BUNDLED = ("flows/shapes/pipeline", "flows/shapes/scorer", "studio/text/model", "studio/text/masked_model")
# installed with transformers, which cannot be without them
THROUGH_TRANSFORMERS = {"numpy", "huggingface-hub", "tokenizers", "packaging"}


def declared(*extras: str) -> dict[str, Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


LIST_DATA = """
import os
import sys
from setuptools import Distribution
found = Distribution({"script_name": "setup.py"})
found.parse_config_files()
build = found.get_command_obj("build_py")
build.ensure_finalized()
for package, source, _, names in build.data_files:
    for name in names:
        print(os.path.normpath(f"{source}/{name}"))
print("packages", *found.packages)
"""


@pytest.fixture(scope="module")
def wheel() -> tuple[set[str], set[str]]:
    """(data files, packages) that setuptools would put into a wheel; nothing is written."""
    done = subprocess.run([sys.executable, "-c", LIST_DATA], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *files, packages = done.stdout.strip().splitlines()
    return set(files), set(packages.split()[1:])


def test_every_package_is_installed(wheel):
    here = {".".join(path.parent.relative_to(ROOT).parts) for top in OURS for path in (ROOT / top).rglob("__init__.py")}
    assert wheel[1] == here


def test_bundled_models_and_recipes_are_installed(wheel):
    wanted = {path for path in (ROOT / "studio" / "recipes").rglob("*.yaml")}
    wanted |= {path for folder in BUNDLED for path in (ROOT / folder).rglob("*") if path.is_file()}
    wanted.add(ROOT / "flows" / "shapes" / "README.md")
    assert {str(path.relative_to(ROOT)) for path in wanted} <= wheel[0]


def test_bundled_files_are_small():
    files = [path for folder in BUNDLED for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 24e6


def third_party() -> dict[str, set[str]]:
    """Top-level modules that our packages import, with the files that do."""
    found: dict[str, set[str]] = {}
    for path in (path for top in OURS for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for top in {name.partition(".")[0] for name in names} - {*OURS, *sys.stdlib_module_names}:
                found.setdefault(top, set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_import_is_a_declared_dependency():
    known = set(declared(*PROJECT["optional-dependencies"])) | THROUGH_TRANSFORMERS
    places = packages_distributions()
    for module, files in third_party().items():
        names = {canonicalize_name(name) for name in places.get(module, [module])}
        assert names & known, f"{module} is imported by {', '.join(sorted(files))} and not in pyproject.toml"


def test_the_command_is_named():
    assert PROJECT["scripts"] == {"studio": "studio.cli:main"}
    assert PROJECT["requires-python"] == ">=3.11"


def test_every_dependency_is_pinned_within_its_bounds():
    own = canonicalize_name(PROJECT["name"])  # `dev` asks for other extras of this project
    for name, requirement in declared("dev", "ocr", "data", "slurm", "robotics", "math", "json").items():
        if name == own:
            continue
        assert name in PINS, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(PINS[name]), f"{requirement} against {PINS[name]}"


def test_constraints_are_plain_pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pin = re.compile(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*")
    assert not [line for line in lines if line and not line.startswith("#") and not pin.fullmatch(line)]
    assert not [name for name in PINS if name.startswith(("nvidia-", "cuda-"))]


def test_ci_installs_a_browser_and_runs_the_tests():
    """Whatever else it did would not be what `make test` does for everybody."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["#!/usr/bin/env bash", "set -euo pipefail"]
    assert lines[2].startswith("cd ") and lines[-1] == "make test"
    assert [line.partition(" ")[0] for line in lines[3:-1]] == ["#", "command"] and "install" in lines[4] and "chromium" in lines[4]


# --- make, with a `python3` that only writes down what it is asked ---

FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
if [ "$1" = -m ] && [ "$2" = venv ]; then
    mkdir -p "$3/bin"
    for name in python studio ruff pyright; do cp "$0" "$3/bin/$name"; done
fi
[ "$1 $2" != "${FAIL:-nothing at all}" ]
"""


@pytest.fixture
def make(tmp_path):
    """Runs a target in a copy of the build files; returns the exit code, what ran and what was said."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python, log = tmp_path / "fake-python", tmp_path / "log"
    python.write_text(FAKE)
    python.chmod(0o755)

    def run(target: str, **environment: str) -> tuple[int, list[str], str]:
        log.write_text("")
        inherited = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "VENV", "PYTEST_ARGS", "WORKERS")}
        done = subprocess.run(
            ["make", target, f"PYTHON={python}"],
            cwd=tmp_path,
            env={**inherited, "LOG": str(log), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, log.read_text().splitlines(), done.stdout + done.stderr

    return run


def test_make_demo_installs_once_and_then_only_runs(make, tmp_path):
    code, ran, said = make("demo")
    assert code == 0 and ran[-1] == "studio demo" and "about 3 minutes" in said
    assert [line for line in ran if "install" in line and line.endswith("-c constraints.txt -e .")]
    assert make("demo")[1] == ["studio demo"]
    later = (tmp_path / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert any("install" in line for line in make("demo")[1])


def test_make_test_lints_and_runs_everything(make):
    code, ran, _ = make("test")
    assert code == 0
    tools = [line for line in ran if line.split()[0] in ("ruff", "pyright") or "pytest" in line]
    assert [line.split()[0] for line in tools] == ["ruff", "pyright", "python"]
    assert tools[-1].strip() == "python -m pytest -n 2 --dist loadfile"
    assert any(line.endswith("-e .[dev]") for line in ran)
    assert make("demo")[1] == ["studio demo"]  # the development install is enough for the demo


def test_a_failed_install_is_tried_again(make):
    assert make("demo", FAIL="-m pip")[0] != 0
    code, ran, _ = make("demo")
    assert code == 0 and any("install" in line for line in ran)


def test_a_failed_linter_fails_make_test(make):
    code, ran, _ = make("test", FAIL="check .")
    assert code != 0 and not any("pytest" in line for line in ran)


def test_an_old_python_is_refused_with_advice(make):
    assert make("demo", FAIL="-c import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)")[0] != 0
    code, ran, said = make("demo", FAIL="-c import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)")
    assert code != 0 and len(ran) == 1 and "older than Python 3.11" in said
