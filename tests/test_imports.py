"""Who may import whom: house style, section 6, read from the syntax trees; and that every module imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("studio", "flows", "rewards", "pruning", "ui")

BASE = ("studio.types", "studio.protocols", "studio.errors", "studio.shapes", "studio.names", "studio.seeds", "studio.post")
COMPONENT = (*BASE, "studio.core", "studio.algorithms", "studio.frozen")
SPINE = (*BASE, "studio.registry", "studio.annotation", "studio.wording", "studio.schema", "studio.config", "studio.recipe")
SPINE += ("studio.files", "studio.process")
SPINE += ("studio.run", "studio.dist", "studio.optim", "studio.prompts", "studio.scoring", "studio.watch")
SPINE += ("studio.settings", "studio.replay")
SPINE += ("studio.state", "studio.stepwise", "studio.progress", "studio.layout", "studio.samples", "studio.run_view")
SPINE += (
    "studio.shards",
    "studio.parts",
    "studio.rollout",
    "studio.update",
    "studio.signals",
    "studio.behavior",
    "studio.pathwise",
    "studio.kept",
    "studio.first_estimates",
)

PARTS = ("recipe", "build", "learn", "measure", "memory", "network")  # of a prune run, that stand on recipes and the loop
RUNS = ("studio.train", "studio.launch", "studio.report")  # what starts a run and ends it

# the longest prefix that matches a module says what it may import, besides its own prefix
RULES: dict[str, tuple[str, ...]] = {
    **{module: BASE for module in BASE},
    "studio": (*SPINE, "studio.core", "studio.train"),  # modules of the spine name no backbone, reward or algorithm
    "studio.core": BASE,
    "studio.algorithms": (*BASE, "studio.core"),
    "studio.algorithms.actor_critic": (*BASE, "studio.core", "studio.algorithms", "studio.annotation"),  # it holds another one
    "studio.prompts": COMPONENT,
    # sources around another source
    **{f"studio.prompts.{n}": (*COMPONENT, "studio.prompts", "studio.annotation") for n in ("priority", "windows", "budgets")},
    "studio.text": COMPONENT,
    "studio.text.tasks": BASE,  # the bundled problems and their exact verifiers: pure Python that prompts and rewards share
    "studio.prompts.tasks": (*COMPONENT, "studio.prompts", "studio.text.tasks", "studio.text.world"),
    "studio.frozen": BASE,
    "studio.registry": BASE,
    "studio.annotation": BASE,
    "studio.wording": (*BASE, "studio.registry", "studio.annotation"),
    "studio.schema": (*BASE, "studio.registry", "studio.annotation", "studio.wording"),
    "studio.config": (*BASE, "studio.registry", "studio.annotation", "studio.wording", "studio.schema"),
    "studio.recipe": (*BASE, "studio.registry", "studio.config", "studio.core", "studio.settings"),
    "studio.settings": BASE,
    "studio.replay": (*BASE, "studio.recipe"),
    "studio.scoring": (*BASE, "studio.config", "rewards"),  # the one bridge from the loop to the zoo
    "studio.score_folder": (*BASE, "rewards.pictures"),
    "studio.score_texts": (*BASE, "studio.prompts"),
    "studio.chart": BASE,
    "studio.report": (*BASE, *(f"studio.{name}" for name in ("files", "run", "chart", "config", "page", "removed"))),
    "studio.page": (*BASE, "studio.files"),
    "studio.removed": (*BASE, "studio.page", "studio.chart", "studio.stages"),
    "studio.stages": BASE,
    "studio.files": BASE,
    "studio.process": BASE,
    "studio.layout": BASE,
    "studio.samples": BASE,
    "studio.run_view": (*BASE, "studio.config", "studio.files", "studio.process", "studio.layout"),
    "studio.run": (*BASE, *(f"studio.{name}" for name in ("config", "files", "process", "layout", "samples", "run_view"))),
    **{
        f"studio.{name}": (*OURS,)
        for name in (
            "cli",
            "commands",
            "doctor",
            "demo",
            "launch",
            "worker",
            "compare",
            "draw",
            "export",
            "export_pruned",
            "export_text",
            "push",
            "slurm",
        )
    },
    "studio.card": (*BASE, *(f"studio.{name}" for name in ("recipe", "run", "layout", "license", "results"))),
    "studio.pruned_card": (*BASE, *(f"studio.{name}" for name in ("card", "run", "license"))),
    "studio.license": BASE,
    "studio.results": (*BASE, "studio.run"),
    "flows": COMPONENT,
    "flows.load": (*COMPONENT, "flows", "pruning.compact"),  # a pruned network is loaded by what wrote it
    # where actions are taken: it reads the recipe's settings and hands evaluations to the loop
    "flows.control": (*COMPONENT, "flows", "studio.settings", "studio.watch"),
    "rewards": COMPONENT,
    "rewards.image.scene": (*COMPONENT, "rewards", "flows.shapes.world"),  # the world whose scenes it judges
    **{f"rewards.text.{name}": (*COMPONENT, "rewards", "studio.text.tasks") for name in ("task", "process")},
    "pruning": (*COMPONENT, "flows"),
    # the parts of a prune run that stand on the loop: its recipe, its iteration, its tables and its command
    **{f"pruning.{name}": (*SPINE, "studio.core", "flows", "pruning") for name in PARTS},
    **{f"pruning.{name}": (*SPINE, *RUNS, "studio.core", "flows", "pruning") for name in ("run", "launch", "heal")},
    # reads run folders and draws; what trains is a command in a process of its own
    "ui": (
        *("studio.run", "studio.run_view", "studio.layout", "studio.files", "studio.process", "studio.config", "studio.recipe"),
        *("studio.errors", "studio.names", "studio.chart", "studio.page", "studio.removed", "studio.stages", "studio.report"),
        *("studio.registry", "studio.license"),
    ),
}

LIGHT = (
    "studio",
    "studio.run",
    "studio.config",
    "studio.registry",
    "studio.recipe",
    "studio.types",
    "studio.protocols",
)
LIGHT += ("studio.cli", "studio.commands.shared", "studio.algorithms", "studio.prompts", "rewards", "flows", "ui", "ui.app")
OPTIONAL = (
    "xformers",
    "open_clip",
    "rapidocr",
    "onnxruntime",
    "rapidfuzz",
    "gymnasium_robotics",
    "mujoco",
    "math_verify",
    "jsonschema",
    "wandb",
    "submitit",
)


def path_of(module: str) -> Path:
    place = ROOT.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def modules() -> list[str]:
    found = []
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def imports(module: str, source: str) -> list[str]:
    """Our modules that a source names, wherever the statement stands."""
    package = module if path_of(module).name == "__init__.py" else module.rpartition(".")[0]
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            start = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            # `from studio import run` names the module studio.run, `from studio.run import Run` the module studio.run
            names += [f"{base}.{a.name}" if path_of(f"{base}.{a.name}").exists() else base for a in node.names]
    return [name for name in dict.fromkeys(names) if name.partition(".")[0] in OURS]


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def allowed(module: str, name: str) -> bool:
    rule = max((prefix for prefix in RULES if within(module, prefix)), key=len)
    if rule == "studio":  # one module of the spine does not carry the whole package
        return name == "studio" or within(name, module) or any(within(name, p) for p in RULES[rule])
    return name == "studio" or any(within(name, prefix) for prefix in (rule, *RULES[rule]))


@pytest.mark.parametrize("module", modules())
def test_imports_follow_the_table(module):
    wrong = [name for name in imports(module, path_of(module).read_text()) if not allowed(module, name)]
    assert not wrong, f"{module} must not import {', '.join(wrong)} (house style, section 6)"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rewards.image.clip", "from flows.shapes import world"),
        ("rewards.image.scene", "from flows import denoise"),
        ("flows.policy", "def f():\n    import rewards.combine"),
        ("studio.core.loss", "from studio.algorithms.grpo import GRPO"),
        ("studio.core.loss", "from ..run import Run"),
        ("studio.train", "from flows.guard import GRPOGuard"),
        ("studio.train", "from studio import algorithms"),
        ("studio.run", "from studio.core import Objective"),
        ("ui.app", "from studio.train import train"),
        ("ui.app", "import studio.core"),
        ("pruning.ecodiff", "import rewards"),
        ("pruning.ecodiff", "from studio.train import train"),
        ("pruning.learn", "from rewards.image.clip import Clip"),
        ("pruning.learn", "from studio.train import train"),
        ("pruning.run", "import rewards"),
        ("flows.policy", "from pruning.gating import gated"),
    ],
)
def test_a_forbidden_import_is_seen(module, source):
    assert [name for name in imports(module, source) if not allowed(module, name)]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rewards.image.scene", "from flows.shapes.world import parse\nfrom flows.shapes import world"),
        ("flows.guard", "from studio.core import Objective\nfrom flows.policy import DenoisePolicy"),
        ("studio.train", "from studio.core import policy_loss\nfrom studio import recipe"),
        ("pruning.policy", "from flows.policy import DenoisePolicy\nfrom pruning.gates import HardConcrete"),
        ("pruning.run", "from studio.train import train"),
        ("ui.runs", "from studio.run import RunView\nfrom ui import parts"),
        ("studio.cli", "def train():\n    from studio.train import train"),
    ],
)
def test_an_allowed_import_passes(module, source):
    assert not [name for name in imports(module, source) if not allowed(module, name)]


BLOCKED = """
import importlib, sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked by the test", name=name)

sys.meta_path.insert(0, Blocked())
failed = []
for name in {names!r}:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed.append(f"{{name}}: {{type(error).__name__}}: {{error}}")
print("\\n".join(failed))
"""


def import_without(blocked: tuple[str, ...], names: list[str]) -> str:
    """What went wrong when a fresh interpreter imported these modules with some packages out of reach."""
    code = BLOCKED.format(blocked=blocked, names=names)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_light_modules_do_not_load_torch():
    names = [name for name in LIGHT if path_of(name).exists()]
    assert import_without(("torch", "diffusers", "transformers"), names) == ""
    assert "torch is blocked" in import_without(("torch",), ["studio.core"])


def test_every_module_imports_without_optional_packages():
    names = [name for name in modules() if not name.endswith("__main__")]
    assert import_without(OPTIONAL, names) == ""


def test_names_of_the_package_load_on_use():
    import studio

    assert studio.Rollout.__module__ == "studio.types"
    assert all(getattr(studio, name) is not None for name in studio.__all__)
    assert set(studio.__all__) <= set(dir(studio))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = studio.Nothing
