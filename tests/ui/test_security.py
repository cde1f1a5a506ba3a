"""What a browser, a page of another site, a script without a login, and the text of a run folder must not be able to do."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest
from hostile import EVIL, NAMES, SECRET, SIGN, make_hostile

from benchmarks import gradio_http as raw
from studio.cli import main
from ui import spawn
from ui.app import build, launch
from ui.guard import Guard

ROOT = Path(__file__).parents[2]
LEADS_OUT = ("../outside", "image-run/../../outside", "linked", EVIL)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of hostile runs."""
    return make_hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def there(root):
    """(folder of runs, address of the interface over it)"""
    app = build(root)
    yield root, launch(app).rstrip("/")
    app.close()


@pytest.fixture(scope="module")
def locked(root):
    """The same behind a login."""
    app = build(root)
    yield root, launch(app, auth="ann:pass:word").rstrip("/")
    app.close()


PAGES = {  # address -> whether it shows the text of the run
    "": True,
    "run?run=image-run": True,
    "run?run=text-run&others=image-run,prune-run": True,
    "samples?run=image-run": True,
    "samples?run=text-run": True,
    "compare?run=image-run&other=exported": True,
    "launch?from=image-run": False,
    "rewards": False,
    "prune?run=prune-run": True,
    "export?run=exported": True,
}


@pytest.mark.parametrize("address", PAGES)
def test_text_of_a_run_never_becomes_an_element(there, page, address):
    page.goto(f"{there[1]}/{address}")
    if PAGES[address]:
        shown = "sign => document.querySelector('.gradio-container')?.textContent.includes(sign)"
        page.wait_for_function(shown, arg=SIGN)
    page.wait_for_timeout(700)
    assert page.evaluate("document.querySelectorAll('.evil, img[src=x], script.evil').length") == 0
    assert page.evaluate("window.evil === undefined")


def test_a_folder_with_an_odd_name_or_a_link_out_is_not_listed(there, page):
    page.goto(there[1])
    page.get_by_role("link", name="image-run", exact=True).wait_for()
    names = page.locator("tbody th a").all_text_contents()
    assert sorted(names) == sorted([*NAMES, "exported"])


def test_no_event_reads_or_writes_outside_the_runs_whatever_it_is_sent(there, monkeypatch):
    """Every event of every page, with names that lead out in every input, in the page's address and in the event's own data."""
    root, address = there
    started = []
    monkeypatch.setattr(spawn, "start", lambda words, *rest: started.append(list(words)) or 1)
    monkeypatch.setattr(spawn, "answer", lambda words, **rest: started.append(list(words)) or (2, "", "refused by the test"))
    before = {path: path.read_bytes() for path in (root.parent / "outside").iterdir()}
    known = raw.events(address)
    assert len(known) > 20
    for bad in LEADS_OUT:
        query = "&".join(
            f"{key}={raw.quote(bad, safe='')}" for key in ("run", "other", "others", "from", "recipe", "step", "prompt")
        )
        data = {key: bad for key in ("run", "name", "id", "act", "recipe", "text", "file", "key")} | {"names": [bad]}
        events = [(each.number, [bad] * len(each.inputs), data) for each in known]
        for part in range(0, len(events), 40):  # the queue holds 64
            told = str(raw.send(address, events[part : part + 40], query))
            assert SECRET not in told and str(root.parent / "outside") not in told
    assert {path: path.read_bytes() for path in (root.parent / "outside").iterdir()} == before
    assert sorted(path.name for path in root.parent.iterdir()) == ["outside", "runs"]
    assert not [words for words in started if any("outside" in word or word.startswith("/etc") for word in words)]


def test_of_a_run_only_pictures_of_its_samples_are_served(there, page):
    root, address = there
    page.goto(f"{address}/samples?run=exported")
    page.locator("img[src*='file=']").first.wait_for(state="attached")  # from here on gradio serves the folder
    picture = next((root / "exported" / "samples" / "000000").glob("p*.png"))
    assert raw.file(address, picture) == 200
    inside = root / "exported"
    withheld = [
        picture.with_name("page.html"),
        picture.with_name("samples.jsonl"),
        picture.with_name("out.png"),
        inside / "recipe.yaml",
        inside / "logs" / "launcher.log",
        inside / "checkpoints" / "000020" / "weights.safetensors",
        inside / "checkpoints" / "000020" / "secret.png",
        inside / "export" / "pipeline" / "pytorch_lora_weights.safetensors",
        root / "linked" / "picture.png",
        root.parent / "outside" / "picture.png",
        "/etc/passwd",
    ]
    for path in withheld:
        assert raw.file(address, path) in (403, 404), path
    for way in (
        "../recipe.yaml",
        "%2e%2e/recipe.yaml",
        "..%2frecipe.yaml",
        "%252e%252e/recipe.yaml",
        "../../checkpoints/000020/secret.png",
    ):
        assert raw.file(address, f"{picture.parent}/{way}") in (400, 403, 404), way
    for path in (
        f"{raw.API}/file/{inside}/recipe.yaml",
        "/static/../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2fetc/passwd",
    ):
        code, told, _ = raw.ask(f"{address}{path}")
        assert code in (403, 404) and b"root:" not in told, path
    assert raw.file(address, "http://127.0.0.1:1/x") == 403 and raw.file(address, "file:///etc/passwd") == 403


def test_a_folder_of_samples_that_is_a_link_serves_nothing_of_where_it_leads(tmp_path):
    guard = Guard(None, tmp_path, alone=True)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "x.png").touch()
    os.symlink(run / "checkpoints", run / "samples")
    assert guard.withheld(str(run / "samples" / "x.png"))
    assert not guard.withheld("/tmp/gradio/some-upload.png")  # gradio's own rule decides
    for address in ("http://example.org/x.png", "https://example.org/x.png", "//example.org/x.png"):
        assert "another server" in guard.withheld(address)  # gradio would fetch it


def test_an_upload_above_the_limit_is_refused(there):
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="big.png"\r\n\r\n' + bytes(21_000_000) + b"\r\n--b--\r\n"
    code, told, _ = raw.ask(f"{there[1]}{raw.API}/upload", data=body, Content_Type="multipart/form-data; boundary=b")
    assert code == 413 and b"maximum" in told


def test_a_page_of_another_site_is_not_answered(there, locked):
    root, address = there
    page, port = f"{address}/run", address.rpartition(":")[2]
    assert raw.ask(page, Host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert raw.ask(page, Host=host)[0] in (400, 403), host  # a name of theirs that leads to this machine
    join = f"{address}{raw.API}/queue/join"
    for origin in ("http://evil.example", "null", "http://localhost.evil.example"):
        assert raw.ask(join, data=b"{}", Content_Type="application/json", Origin=origin)[0] == 403, origin
    assert raw.ask(join, data=b"{}", Content_Type="application/json", Origin=address)[0] == 422
    own = {"Host": "studio.example", "Origin": "https://studio.example"}
    assert raw.ask(f"{locked[1]}{raw.API}/queue/join", data=b"{}", Content_Type="application/json", **own)[0] == 401
    own["Origin"] = "https://evil.example"
    assert raw.ask(f"{locked[1]}{raw.API}/queue/join", data=b"{}", Content_Type="application/json", **own)[0] == 403


def test_answers_forbid_other_servers_handlers_in_markup_and_frames(there):
    root, address = there
    policy = raw.ask(f"{address}/run")[2]["content-security-policy"]
    assert "default-src 'self'" in policy and "script-src-attr 'none'" in policy and "frame-ancestors 'self'" in policy
    assert "http" not in policy and "*" not in policy
    picture = next((root / "exported" / "samples" / "000000").glob("p*.png"))
    alone = raw.ask(f"{address}{raw.API}/file={picture}")[2]
    assert (
        alone["content-security-policy"].startswith("sandbox; default-src 'none'") and alone["x-content-type-options"] == "nosniff"
    )


def test_without_a_login_nothing_of_a_run_is_told(locked):
    root, address = locked
    picture = next((root / "exported" / "samples" / "000000").glob("p*.png"))
    private = [
        "/config",
        f"{raw.API}/info",
        f"{raw.API}/file={picture}",
        f"{raw.API}/queue/data?session_hash=x",
        f"{raw.API}/call/x/y",
    ]
    for path in private:
        assert raw.ask(f"{address}{path}")[0] == 401, path
    for path in ("/queue/join", "/upload", "/call/x", "/run/x", "/api/x"):
        body = b'{"fn_index": 0, "data": [], "session_hash": "x"}'
        assert raw.ask(f"{address}{raw.API}{path}", data=body, Content_Type="application/json")[0] == 401, path
    for page in ("", "run?run=image-run", "samples?run=image-run", "prune", "export", "launch", "compare", "rewards"):
        code, text, _ = raw.ask(f"{address}/{page}")
        assert b"image-run" not in text and b"queue" not in text.partition(b"gradio_config")[2].partition(b"</script>")[0].replace(
            b"enable_queue", b""
        )
    for path in (f"{raw.API}/openapi.json", "/docs", "/monitoring", f"{raw.API}/vibe-code", f"{raw.API}/startup-events"):
        code, text, _ = raw.ask(f"{address}{path}")
        assert code in (401, 403, 404) or text in (b"true", b"false"), path


def test_a_login_opens_it_and_a_wrong_password_does_not(locked):
    root, address = locked
    form = "application/x-www-form-urlencoded"
    assert raw.ask(f"{address}/login", data=b"username=ann&password=pass", Content_Type=form)[0] == 400
    code, _, told = raw.ask(f"{address}/login", data=b"username=ann&password=pass%3Aword", Content_Type=form)
    assert code == 200
    cookie = told["set-cookie"].partition(";")[0]
    assert raw.ask(f"{address}/config", Cookie=cookie)[0] == 200


def test_a_public_address_without_a_login_is_refused_before_anything_is_served(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gradio.Blocks.launch", lambda *given, **more: pytest.fail("it was served"))
    monkeypatch.delenv("STUDIO_UI_AUTH", raising=False)
    for wrong in (["--host", "0.0.0.0"], ["--auth", "only-a-name"], ["--host", "::", "--auth", "name:"]):
        monkeypatch.setattr(sys, "argv", ["studio", "ui", "--runs", str(tmp_path), *wrong])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 2 and "--auth" in said.err and "USER:PASSWORD" in said.err and said.out == "", wrong


def test_messages_are_escaped_where_they_are_told():
    """A browser reads the text of gr.Error and its like as HTML: each is a sentence of ours, or goes through escape."""
    wrong = []
    for path in sorted((ROOT / "ui").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            if node.func.attr in ("Error", "Info", "Warning", "Success") and getattr(node.func.value, "id", "") == "gr":
                told = node.args[0]
                safe = isinstance(told, ast.Constant) or (isinstance(told, ast.Call) and getattr(told.func, "id", "") == "escape")
                wrong += [] if safe else [f"{path.relative_to(ROOT)}:{node.lineno}"]
    assert not wrong, f"escape what is told at {', '.join(wrong)}"
