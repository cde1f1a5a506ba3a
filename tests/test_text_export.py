"""What leaves a text run loads in stock transformers and PEFT, and says the same."""

import subprocess
import sys

import pytest
import torch
from test_train import fresh
from text_runs import text_recipe

from studio.errors import ConfigError
from studio.export import Export, export_run
from studio.run import RunView
from studio.state import WEIGHTS
from studio.train import train

STOCK = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
form, base, folder = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base if form == "lora" else folder)
if form == "lora":
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, folder)
asked = AutoTokenizer.from_pretrained(folder)("1+1=", return_tensors="pt")
print(repr(model(asked["input_ids"]).logits[0, -1].double().tolist()))
assert "studio" not in sys.modules
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for kind in ("lora", "full"):
        recipe = text_recipe(root, f"policy.model.train={kind}", "train.learning_rate=0.02")
        train(recipe, fresh(recipe, root, kind))
    return root


@pytest.mark.parametrize(("kind", "form"), [("lora", "lora"), ("lora", "text"), ("full", "text")])
def test_a_process_without_the_studio_gets_the_trained_logits(runs, kind, form):
    view = RunView.open(runs / kind)
    facts = export_run(view, Export(format=form))
    assert facts["error"] <= 1e-5
    recipe = text_recipe(runs, f"policy.model.train={kind}")
    policy = recipe.policy.options.build(0)
    base = policy.model.lm(policy.tokenizer("1+1=", return_tensors="pt")["input_ids"]).logits[0, -1]
    policy.load(view.checkpoint() / WEIGHTS)
    expected = policy.model.lm(policy.tokenizer("1+1=", return_tensors="pt")["input_ids"]).logits[0, -1]
    assert (expected - base).abs().max() > 0.01  # something was learned
    said = subprocess.run(
        [sys.executable, "-c", STOCK, form, str(runs / "model"), facts["folder"]],
        capture_output=True,
        text=True,
        check=True,
        cwd=runs,
    )
    found = torch.tensor(eval(said.stdout.strip().splitlines()[-1]), dtype=torch.float64)  # noqa: S307 - a list of numbers of our own making
    torch.testing.assert_close(found, expected.double(), atol=1e-5, rtol=1e-5)


def test_the_card_says_what_it_is_and_holds_no_path(runs):
    view = RunView.open(runs / "lora")
    folder = view.file("export/lora")
    if not folder.is_dir():
        export_run(view, Export(format="lora"))
    card = (folder / "README.md").read_text()
    assert "library_name: peft" in card and "base_model_relation: adapter" in card and "PeftModel.from_pretrained" in card
    assert str(runs) not in card
    assert not list(folder.rglob("*.bin"))


def test_a_form_that_does_not_fit_is_refused(runs):
    with pytest.raises(ConfigError, match="expected --format text, or lora for a run that trains adapters, got 'lora' for 'full'"):
        export_run(RunView.open(runs / "full"), Export(format="lora"))
    with pytest.raises(ConfigError, match="got 'pipeline'"):
        export_run(RunView.open(runs / "full"), Export(format="pipeline"))
