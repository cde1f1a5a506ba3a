"""Exports: which forms fit a run, what a card may show, and that nothing is pushed that was not confirmed as it is."""

from __future__ import annotations

import os
import sys

import pytest
from exports import CARD, add_checkpoint, make_export
from fake_hub import fake_hub
from made_runs import RECIPES, make_run
from playwright.sync_api import expect

from studio.errors import ConfigError, RunError
from studio.run_view import RunView
from ui import card, job, spawn, upload
from ui.app import build, launch
from ui.exported import check, command, exported, fitting, megabytes, options

FAKE = """
import json, pathlib, sys, time
words = sys.argv[1:]
run, form, root = words[1], words[words.index("--format") + 1], words[words.index("--runs") + 1]
print("loading the base", flush=True)
time.sleep(3)
folder = pathlib.Path(root, run, "export", form)
folder.mkdir(parents=True, exist_ok=True)
(folder / "README.md").write_text("---\\nlicense: apache-2.0\\n---\\n\\n# made by a test\\n")
(folder / "weights.safetensors").write_bytes(b"w" * 1500)
(folder / "export.json").write_text(json.dumps({"format": form, "base": "shapes", "words": words}))
print(folder, flush=True)
"""


def view_of(root, kind, name="run", steps=(), **changes) -> RunView:
    recipe = RECIPES[kind]
    RECIPES[kind] = {**recipe, **changes}
    try:
        run = make_run(root, name, kind, steps=1)
    finally:
        RECIPES[kind] = recipe
    add_checkpoint(run, *steps)
    return RunView.open(run.folder)


@pytest.mark.parametrize(
    ("kind", "changes", "forms"),
    [
        ("image", {"policy": {"name": "denoise", "model": {"id": "shapes", "train": "lora"}}}, ("lora", "pipeline")),
        ("image", {"policy": {"name": "denoise", "model": {"id": "shapes", "train": "full"}}}, ("pipeline",)),
        ("text", {"policy": {"name": "text", "model": {"id": "bundled", "train": "lora"}}}, ("lora", "text")),
        ("text", {"policy": {"name": "masked_text", "model": {"train": "full"}}}, ("text",)),
        ("control", {}, ("torchscript",)),
    ],
)
def test_the_forms_of_a_trained_run_are_those_that_its_branch_has(tmp_path, kind, changes, forms):
    fit = fitting(view_of(tmp_path, kind, steps=(10, 20), **changes))
    assert fit.forms == forms and fit.steps == (20, 10)


def test_a_run_that_has_nothing_to_export_says_what_is_missing(tmp_path):
    assert "no checkpoint yet" in fitting(view_of(tmp_path, "image", "new")).why_not
    random = view_of(tmp_path, "image", "random", (20,), policy={"name": "denoise", "model": {"random": "sdxl", "train": "lora"}})
    assert fitting(random).forms == () and "nothing to keep" in fitting(random).why_not
    assert "no pruned network yet" in fitting(view_of(tmp_path, "prune", "pruning")).why_not


@pytest.mark.parametrize(("kinds", "second"), [(["blocks"], "pruned-depth"), (["heads", "neurons"], "pruned-dense")])
def test_blocks_leave_as_a_shorter_model_and_units_as_zeros(tmp_path, kinds, second):
    view = view_of(tmp_path, "prune", sites={"kinds": kinds})
    (view.folder / "pruned").mkdir()
    (view.folder / "pruned" / "pruning.json").write_text("{}")
    assert fitting(view).forms == ("pruned-compact", second)


def test_the_command_names_what_was_chosen_and_leaves_out_what_does_not_apply(tmp_path):
    adapters = {"policy": {"name": "denoise", "model": {"id": "shapes", "train": "lora"}}}
    view = view_of(tmp_path, "image", steps=(10, 20), **adapters)
    chosen = {"weights": "live", "dtype": "float16", "keys": "kohya"}
    common = ["export", "run", "--format"]
    tail = ["--runs", str(tmp_path)]
    assert command(view, "lora", "10", chosen) == [*common, "lora", "--step", "10", "--weights", "live", "--keys", "kohya", *tail]
    assert command(view, "pipeline", "newest", chosen) == [*common, "pipeline", "--weights", "live", "--dtype", "float16", *tail]
    assert options("pruned-dense", "prune") == ("dtype",)


@pytest.mark.parametrize(
    ("form", "step", "chosen", "told"),
    [
        ("text", None, {}, "lora, pipeline"),
        ("../lora", None, {}, "lora, pipeline"),
        ("lora", "15", {}, "20, 10"),
        ("lora", "--out", {}, "20, 10"),
        ("lora", None, {"weights": "--out=/tmp"}, "ema, live"),
    ],
)
def test_a_choice_that_the_run_does_not_have_is_no_command(tmp_path, form, step, chosen, told):
    view = view_of(tmp_path, "image", steps=(10, 20), policy={"name": "denoise", "model": {"id": "shapes", "train": "lora"}})
    with pytest.raises(ConfigError, match=told):
        command(view, form, step, chosen)


def test_a_license_is_compared_with_that_of_the_base():
    found = check(CARD.replace("{license}", "apache-2.0"), "shapes")
    assert found == [(True, "The card states apache-2.0."), (True, "It is that of shapes.")]
    assert check(CARD.replace("{license}", "mit"), "shapes")[1] == (
        False,
        "shapes states apache-2.0: the card says something else. Export again, or correct it.",
    )
    assert [good for good, _ in check(CARD.replace("{license}", "unknown"), "shapes")] == [False]
    terms = "other\nlicense_name: flux-1-dev-non-commercial-license\nlicense_link: https://example.org/terms"
    found = check(CARD.replace("{license}", terms), "black-forest-labs/FLUX.1-dev")
    assert [good for good, _ in found] == [True, True, False, False]
    assert "https://example.org/terms" in found[2][1] and "commercial" in found[3][1]
    silent = check(CARD.replace("{license}", "mit") + "\n| ocr | trained, weight 1 | tesseract | not stated |\n", "somebody/base")
    assert silent[-1] == (False, "The license of the reward model is not stated for ocr: find out.")


def test_sizes_in_words():
    assert [megabytes(n) for n in (12, 3400, 5_600_000, 7_800_000_000)] == ["12 bytes", "3.4 kB", "5.6 MB", "7.8 GB"]


def test_no_tag_of_a_card_survives_and_its_own_forms_do():
    bad = '<script>x()</script> <img src=x onerror=alert(1)> [a](javascript:x) ![p](http://elsewhere/p.png) "quoted"'
    html = card.render(f"# {bad}\n\n{bad}\n\n| {bad} |\n|---|\n| {bad} |\n\n```\n{bad}\n```\n- {bad}\n", lambda place: None)
    assert "<script" not in html and "<img" not in html and "<a " not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") == 6
    html = card.render(
        "two **bold** `a|**b**` [there](https://example.org)\n\n| a | b |\n|---|---|\n| x \\| y | z |", lambda place: None
    )
    assert "<b>bold</b> <code>a|**b**</code>" in html and '<a href="https://example.org"' in html
    assert "<td>x | y</td><td>z</td>" in html
    assert card.snippet(CARD) == 'pipe.load_lora_weights("THIS-REPOSITORY")'
    assert card.split(CARD)[0].startswith("license:") and card.split("no head")[0] == ""


def test_what_a_command_said_is_its_lines_with_only_the_newest_state_of_a_bar(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"first\nweights:   0%|\rweights:  40%|\rweights:  75%|####\r\n\nlast 12%\rlast 30%")
    assert job.said(log) == ("first", "weights:  75%|####", "last 30%")
    assert job.Job({}, 0.0, True, job.said(log)).percent == 30
    assert job.said(tmp_path / "none") == ()


def test_a_second_command_of_a_kind_waits_for_the_first(tmp_path, monkeypatch):
    view = view_of(tmp_path, "image")
    monkeypatch.setattr(spawn, "command", lambda *words: [sys.executable, "-c", "import time; time.sleep(30)"])
    job.begin(view, "export", ["export"], {"form": "lora"})
    child = spawn._children[-1]
    with pytest.raises(RunError, match="Wait until it has ended"):
        job.begin(view, "export", ["export"], {"form": "lora"})
    child.kill()
    child.wait()
    assert job.look(view, "export").working is False


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A question that was answered with yes, and the uploads that were started."""
    run = make_run(tmp_path, "run", "image", steps=1)
    make_export(run)
    started = []
    monkeypatch.setattr(job, "begin", lambda view, kind, words, about, **environment: started.append(words))
    view = RunView.open(run.folder)
    return view, upload.upload(view, "lora", "me/mine", "private")[0], started


def test_what_was_confirmed_is_what_is_pushed(asked):
    view, question, started = asked
    upload.send(view, question, "lora", "me/mine", "private")
    assert started == [["push", str(view.folder / "export" / "lora"), "me/mine", "--private", "--yes"]]


@pytest.mark.parametrize(("repo", "visibility"), [("me/other", "private"), ("me/mine", "public")])
def test_another_repository_or_visibility_than_the_confirmed_one_is_not_pushed(asked, repo, visibility):
    view, question, started = asked
    for confirmed in (question, None):
        with pytest.raises(ConfigError, match="read the question"):
            upload.send(view, confirmed, "lora", repo, visibility)
    assert started == []


def test_files_that_changed_after_the_question_are_not_pushed(asked):
    view, question, started = asked
    (view.folder / "export" / "lora" / "more.txt").write_text("more")
    with pytest.raises(ConfigError, match="read the question"):
        upload.send(view, question, "lora", "me/mine", "private")
    assert started == []


@pytest.mark.parametrize(("repo", "visibility"), [("mine", "private"), ("me/mi ne", "private"), ("--yes", "private"), ("me/x", "")])
def test_what_the_hub_would_not_take_is_refused_before_the_question(asked, repo, visibility):
    with pytest.raises(ConfigError, match="push: expected"):
        upload.upload(asked[0], "lora", repo, visibility)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """(folder of runs, address of the interface over it)"""
    root = tmp_path_factory.mktemp("exports") / "runs"
    adapters = {"policy": {"name": "denoise", "model": {"id": "shapes", "train": "lora"}}}
    view_of(root, "image", "trained", (20,), **adapters)
    view_of(root, "image", "ready", (20,), **adapters)
    from studio.run import Run

    make_export(Run.attach(root / "ready"))
    Run.attach(root / "ready").status("finished")
    app = build(root)
    yield root, launch(app).rstrip("/")
    app.close()


def test_an_export_is_seen_at_work_and_then_with_its_files_and_card(there, page, monkeypatch):
    root, address = there
    monkeypatch.setattr(spawn, "command", lambda *words: [sys.executable, "-c", FAKE, *words])
    page.goto(f"{address}/export?run=trained")
    expect(page.get_by_text("Nothing was exported as lora yet.")).to_be_visible()
    page.get_by_role("button", name="Export", exact=True).click()
    expect(page.get_by_text("at work")).to_be_visible()
    expect(page.get_by_text("loading the base")).to_be_visible()
    expect(page.get_by_role("heading", name="made by a test")).to_be_visible()
    expect(page.get_by_text("weights.safetensors")).to_be_visible()
    expect(page.get_by_text("1.5 kB", exact=True)).to_be_visible()
    assert exported(RunView.find(root, "trained"), "lora").facts["words"][:4] == ["export", "trained", "--format", "lora"]


def test_nothing_is_pushed_before_the_dialog_is_confirmed_and_then_exactly_that(there, page, monkeypatch, tmp_path):
    _, address = there
    with fake_hub() as hub:
        for name, value in hub.environment(str(tmp_path)).items():
            monkeypatch.setitem(os.environ, name, value)
        page.goto(f"{address}/export?run=ready")
        expect(page.get_by_alt_text("before")).to_be_visible()
        assert page.get_by_alt_text("before").evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
        page.get_by_label("Repository").fill("me/shapes-lora")
        page.get_by_role("button", name="Push …").click()
        dialog = page.get_by_role("alertdialog")
        expect(dialog).to_contain_text("me/shapes-lora")
        expect(dialog.locator(".visibility")).to_have_text("private")
        page.get_by_role("button", name="Cancel").click()
        expect(dialog).to_have_count(0)
        assert hub.requests == []
        page.get_by_label("public").check()
        page.get_by_role("button", name="Push …").click()
        expect(dialog.locator(".visibility")).to_have_text("public")
        page.get_by_role("button", name="Push to me/shapes-lora as public").click()
        expect(page.get_by_role("link", name=f"{hub.url}/me/shapes-lora")).to_be_visible(timeout=40_000)
        repo = hub.repos["me/shapes-lora"]
        assert not repo.private and repo.files["pytorch_lora_weights.safetensors"] == b"w" * 2000
        assert "hf_x" not in page.content()
