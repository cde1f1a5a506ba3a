"""What no line of the packages does: run code that came with a model, or open a pickle from outside a run folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPENS_PICKLES = {"studio/state.py"}  # its own checkpoints, weights_only=True


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
        allowed = ["torch.load(weights_only=True)"] if name in OPENS_PICKLES else []
        assert [danger for danger in dangers(file.read_text()) if danger not in allowed] == [], name


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
