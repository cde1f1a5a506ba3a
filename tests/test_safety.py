"""What no line of the packages does: run foreign code outside of the sandbox, or open a pickle from outside a run folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from test_imports import imports, modules, path_of

ROOT = Path(__file__).parents[1]
SANDBOX = "rewards/text/inside.py"
ALLOWED = {
    "studio/state.py": ["torch.load(weights_only=True)"],  # its own checkpoints
    SANDBOX: ["exec", "eval"],  # what the reward `code` judges, in a process that has fenced itself in
}


def dangers(source: str) -> list[str]:
    """Calls that could run foreign code, wherever they stand."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            found += [f"import {name}" for name in names if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib")]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            told = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if told.get("trust_remote_code", "False") != "False":
                found.append(f"{name}(trust_remote_code={told['trust_remote_code']})")
            if name in ("torch.load", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system"):
                found.append(f"{name}(weights_only=True)" if told.get("weights_only") == "True" else name)
    return found


@pytest.mark.parametrize("package", ["studio", "flows", "rewards", "pruning", "ui", "experiments", "benchmarks"])
def test_no_foreign_code_is_run(package):
    for file in sorted((ROOT / package).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        assert [danger for danger in dangers(file.read_text()) if danger not in ALLOWED.get(name, [])] == [], name


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f(x):\n    import torch\n    return torch.load(x)",
        "import yaml\nyaml.load(text, Loader=L)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=flag)",
        "eval(text)",
    ],
)
def test_the_danger_is_found(source):
    assert dangers(source)


def test_the_sandbox_runs_code_behind_all_its_fences_only():
    functions = {node.name: node for node in ast.parse((ROOT / SANDBOX).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert [name for name, node in functions.items() if dangers(ast.unparse(node))] == ["main"]
    lines = {ast.unparse(node.func): node.lineno for node in ast.walk(functions["main"]) if isinstance(node, ast.Call)}
    fences = [lines[name] for name in ("fence_files", "fence_calls", "limit", "refuse")]
    assert max(fences) < min(lines["exec"], lines["eval"])


def test_the_sandbox_is_a_program_that_no_module_imports():
    module = SANDBOX.removesuffix(".py").replace("/", ".")
    assert not [name for name in modules() if name != module and module in imports(name, path_of(name).read_text())]
