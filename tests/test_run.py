"""The run folder survives crashes, full disks and resumes, and readers see only whole things."""

import errno
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image

from studio import run as module
from studio import run_view
from studio.errors import MissingError, RunError, ShapeError
from studio.layout import check_name, default_name
from studio.process import process_started
from studio.run import Run, RunView, list_runs, request
from studio.seeds import row_seed

RECIPE = {"algorithm": {"name": "grpo", "clip": 0.2}, "policy": {"model": "stabilityai/sd3.5 medium"}, "seed": 1}


def create(root, name="a", **changes):
    options = {"total_steps": 10, "command": ["studio", "train", "x.yaml"], **changes}
    return Run.create(root, name, RECIPE, "# mine\nseed: 1\n", **options)


@pytest.fixture
def run(tmp_path):
    return create(tmp_path)


def status_file(run):
    return json.loads((run.folder / "status.json").read_text())


def save_checkpoint(run, step, **options):
    with run.checkpoint(step, **options) as folder:
        (folder / "policy").mkdir()
        (folder / "policy" / "weights.txt").write_text(f"step {step}")


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def dead_process():
    """The number of a process that has just ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_new_folder_holds_recipe_source_environment_and_status(run):
    assert yaml.safe_load((run.folder / "recipe.yaml").read_text()) == RECIPE
    assert (run.folder / "recipe.source.yaml").read_text() == "# mine\nseed: 1\n"
    env = json.loads((run.folder / "env.json").read_text())
    assert env["command"] == ["studio", "train", "x.yaml"]
    assert env["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    status = status_file(run)
    assert (status["schema"], status["state"], status["step"], status["total_steps"]) == (1, "starting", 0, 10)
    assert (status["pid"], status["host"]) == (os.getpid(), socket.gethostname())
    assert status["pid_started"] == process_started(os.getpid()) is not None
    assert {"started", "heartbeat", "eta_s", "exit_code", "reason", "error"} <= status.keys()


def test_environment_holds_no_secret_and_no_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_variable")
    command = ["studio", "push", "hub.token=hf_value", "--token", "hf_word", "--token=hf_joined", "tokens=4"]
    folder = create(tmp_path, command=command).folder
    text = (folder / "env.json").read_text()
    assert "hf_" not in text
    assert json.loads(text)["command"][-1] == "tokens=4"


def test_facts_are_added_to_the_environment(run):
    run.environment(device="cpu", dtype="float32")
    env = RunView.open(run.folder).env
    assert (env["device"], env["command"][0]) == ("cpu", "studio")


def test_existing_folder_is_refused_with_its_state(run):
    run.status(state="finished", step=400)
    with pytest.raises(RunError) as error:
        create(run.folder.parent)
    expected = f"{run.folder} already exists (finished, step 400). Use --resume to continue or another --name."
    assert str(error.value) == expected


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a b", "ä", "a\n", "x" * 129])
def test_bad_names_are_refused(tmp_path, name):
    with pytest.raises(RunError, match="run name: expected 1 to 128 letters"):
        create(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_default_name_says_when_and_what():
    date, rest = default_name(RECIPE).split("_", 1)
    assert abs(time.mktime(time.strptime(date, "%Y%m%d-%H%M%S")) - time.time()) < 60
    assert rest[:-6] == "grpo_sd3.5-medium_"
    assert int(rest[-6:], 16) >= 0
    assert check_name(default_name({})) and default_name(RECIPE) != default_name(RECIPE)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_directory_that_cannot_be_written_is_missing_not_a_crash(tmp_path, monkeypatch, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(MissingError) as error:
        create(tmp_path)
    assert error.value.exit_code == 3
    got = os.strerror(code)
    assert str(error.value) == (f"{tmp_path}: expected a directory that can be written, got: {got}. Use another --runs DIR.")


def test_a_file_in_place_of_the_directory_is_explained(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(MissingError, match="runs: expected a directory that can be written"):
        create(tmp_path / "runs")


def test_failed_creation_leaves_no_folder_that_blocks_the_name(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RunError, match="expected free space"):
        create(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_change_of_state_is_an_event_and_unknown_states_are_refused(run):
    run.status(state="running")
    run.status(state="running", step=3)
    run.status(state="failed", error="boom", reason="crash", exit_code=1)
    states = [(e["state"], e.get("reason")) for e in RunView.open(run.folder).events() if e["kind"] == "state"]
    assert states == [("starting", None), ("running", None), ("failed", "crash")]
    assert status_file(run)["step"] == 3
    with pytest.raises(ValueError, match="expected a state of queued"):
        run.status(state="done")


def test_log_keeps_step_speed_and_remaining_time(run, monkeypatch):
    clock = SimpleNamespace(time=lambda: clock.now, now=1000.0)
    monkeypatch.setattr(module, "time", clock)
    run.status(state="running")
    for step, clock.now in [(1, 1000.0), (2, 1004.0), (3, 1008.0)]:
        run.log(step, {"reward/mean": 0.5})
    status = status_file(run)
    assert (status["step"], status["seconds_per_step"], status["eta_s"]) == (3, 4.0, 28.0)
    assert status["heartbeat"] == 1008.0
    clock.now = 1008.5
    run.log(4, {})
    assert status_file(run)["step"] == 3  # not written again within a second,
    run.status(state="stopped")
    assert status_file(run)["step"] == 4  # but not lost either


def test_silent_run_is_shown_as_such_and_lost_only_when_its_process_is_gone(run, monkeypatch):
    view = RunView.open(run.folder)
    run.status(state="running")
    assert (view.status["state"], view.status["label"]) == ("running", "running")
    later = time.time() + 61
    monkeypatch.setattr(run_view, "time", SimpleNamespace(time=lambda: later))
    assert (view.status["state"], view.status["label"]) == ("running", "no heartbeat")
    monkeypatch.undo()
    run.status(seconds_per_step=20.0)
    monkeypatch.setattr(run_view, "time", SimpleNamespace(time=lambda: later))
    assert view.status["label"] == "running"  # a step may take long
    run.status(pid=dead_process())
    assert (view.status["state"], view.status["reason"]) == ("lost", "the process is gone")
    run.status(host="elsewhere")
    assert view.status["state"] == "running"  # cannot be told from here


def test_same_pid_with_another_start_time_is_another_process(run):
    run.status(state="running", pid_started=1)
    assert RunView.open(run.folder).status["state"] == "lost"


def test_process_that_has_ended_but_is_still_listed_counts_as_gone(run):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run.status(state="running", pid=child.pid, pid_started=process_started(child.pid))
    view = RunView.open(run.folder)
    assert view.status["state"] == "running"
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet collected by its parent
    assert view.status["state"] == "lost"
    child.wait()


def test_finished_run_is_not_lost_when_its_process_ends(run):
    run.status(state="finished", pid=dead_process())
    assert RunView.open(run.folder).status["state"] == "finished"


def test_numbers_that_are_not_finite_become_null_and_an_event(run):
    run.log(1, {"loss/total": float("nan"), "kl/ref": torch.tensor(0.5), "reward/mean": float("-inf")})
    line = json.loads((run.folder / "metrics.jsonl").read_text())
    assert (line["loss/total"], line["kl/ref"], line["reward/mean"]) == (None, 0.5, None)
    event = RunView.open(run.folder).events()[-1]
    assert (event["kind"], event["step"], event["metrics"]) == ("not_finite", 1, ["loss/total", "reward/mean"])


def test_metrics_may_not_replace_the_step(run):
    with pytest.raises(ValueError, match="Rename these metrics"):
        run.log(1, {"step": 3.0})


def test_reader_takes_what_is_new_and_waits_for_the_end_of_a_line(run):
    view = RunView.open(run.folder)
    assert view.metrics().records == []
    run.log(1, {"a": 1})
    first = view.metrics()
    assert [r["step"] for r in first.records] == [1]
    path = run.folder / "metrics.jsonl"
    with open(path, "a") as handle:
        handle.write('{"step": 2, "b": 2')
    part = view.metrics(first.cursor)
    assert (part.records, part.restarted) == ([], False)
    with open(path, "a") as handle:
        handle.write(', "new": [1]}\n\n"text"\nrubbish\n')
    assert view.metrics(part.cursor).records == [{"step": 2, "b": 2, "new": [1]}]


def test_later_values_of_a_step_win(run):
    for step, values in [(1, {"a": 1}), (3, {"a": 3}), (2, {"a": 2, "b": 0}), (2, {"a": 9})]:
        run.log(step, values)
    records = RunView.open(run.folder).metrics().records
    assert [(r["step"], r["a"]) for r in records] == [(1, 1), (2, 9), (3, 3)]
    assert records[1]["b"] == 0


def test_append_after_a_cut_off_line_starts_a_new_one(run):
    (run.folder / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n{"step": 2, "a"')
    run.log(3, {"a": 3})
    assert [r["step"] for r in RunView.open(run.folder).metrics().records] == [1, 3]


def test_truncating_drops_later_steps_and_tells_readers(run):
    for step in range(1, 6):
        run.log(step, {"a": step})
    view = RunView.open(run.folder)
    cursor = view.metrics().cursor
    run.truncate_metrics(3)
    run.log(4, {"a": 40})
    run.log(5, {"a": 50})
    run.log(6, {"a": 60})  # the file is now longer than the cursor
    again = view.metrics(cursor)
    assert again.restarted
    assert [(r["step"], r["a"]) for r in again.records] == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60)]


def records_for(count, **extra):
    return [{"prompt_id": "p003", "prompt": "a red cube", "sample_id": k, "seed": k, **extra} for k in range(count)]


def test_small_images_come_back_exactly(run):
    images = torch.arange(2 * 3 * 8 * 10).reshape(2, 3, 8, 10).remainder(256).float() / 255
    run.save_samples(12, images, records_for(2, rewards={"ocr": torch.tensor(0.25), "clip": float("nan")}))
    view = RunView.open(run.folder)
    assert view.sample_steps() == [12]
    first, second = view.samples(12)
    assert second["path"] == "samples/000012/p003-s01.png"
    assert (second["step"], second["seed"], second["width"], second["height"]) == (12, 1, 10, 8)
    assert second["rewards"] == {"ocr": 0.25, "clip": None}
    with Image.open(second["file"]) as image:
        pixels = torch.tensor(list(image.convert("RGB").tobytes())).reshape(8, 10, 3).permute(2, 0, 1)
    assert torch.equal(pixels, (images[1] * 255).round().long())


def test_large_images_are_webp_and_close(run):
    ramp = torch.linspace(0, 1, 80).expand(3, 72, 80)[None]
    run.save_samples(1, ramp, records_for(1))
    (record,) = RunView.open(run.folder).samples(1)
    with Image.open(record["file"]) as image:
        assert (image.format, image.size) == ("WEBP", (80, 72))
        gray = torch.tensor(list(image.convert("L").tobytes())).reshape(72, 80) / 255
    assert (gray - ramp[0, 0]).abs().mean() < 0.02


def test_values_outside_the_range_are_clipped_not_wrapped(run):
    images = torch.tensor([-0.5, 1.5, float("nan")]).reshape(1, 3, 1, 1)
    run.save_samples(1, images, records_for(1))
    with Image.open(RunView.open(run.folder).samples(1)[0]["file"]) as image:
        assert image.getpixel((0, 0)) == (0, 255, 0)


def test_texts_are_samples_too_and_equal_ids_do_not_collide(run):
    run.save_samples(3, ["first", "zweiter ü"], [{"prompt_id": "../x", "sample_id": 0}] * 2)
    records = RunView.open(run.folder).samples(3)
    assert [r["file"].read_text() for r in records] == ["first", "zweiter ü"]
    assert [r["path"] for r in records] == ["samples/000003/-x-s00.txt", "samples/000003/-x-s00-0001.txt"]


def test_samples_saved_twice_count_once(run):
    run.save_samples(1, ["old"], records_for(1))
    run.save_samples(1, ["new"], records_for(1))
    (record,) = RunView.open(run.folder).samples(1)
    assert record["text"] == record["file"].read_text() == "new"


def test_groups_lie_beside_the_samples_and_are_forgotten_with_them(run):
    told = [{"group": g, "sample_id": f"s0{k}", "prompt_id": "a red cube", "advantage": 0.5 - k} for g in (0, 3) for k in range(2)]
    for step in (1, 2):
        run.save_groups(step, torch.zeros(4, 3, 2, 2), told)
        run.save_samples(step, torch.ones(1, 3, 2, 2), records_for(1))
    view = RunView.open(run.folder)
    assert [r["path"] for r in view.groups(2)] == [f"samples/000002/g00{g}-s0{k}.png" for g in (0, 3) for k in range(2)]
    assert [(r["step"], r["prompt_id"], r["advantage"]) for r in view.groups(2)[2:]] == [
        (2, "a red cube", 0.5),
        (2, "a red cube", -0.5),
    ]
    assert [len(view.samples(step)) for step in view.sample_steps()] == [1, 1]
    run.rewind(1)
    assert view.group_steps() == [1] and view.groups(2) == []


def test_a_film_stands_beside_its_sample(run):
    run.save_samples(
        1, torch.ones(2, 3, 2, 2), [{"prompt_id": "a", "sample_id": 0}, {"prompt_id": "b", "sample_id": 0}], {"b": b"GIF"}
    )
    still, moving = RunView.open(run.folder).samples(1)
    assert "film" not in still and moving["film"] == "samples/000001/b-s00.gif"
    assert RunView.open(run.folder).file(moving["film"]).read_bytes() == b"GIF"


def test_step_counts_as_sampled_only_once_its_records_are_there(run):
    (run.folder / "samples" / "000002").mkdir()
    assert RunView.open(run.folder).sample_steps() == []


def test_wrong_shapes_of_samples_are_refused(run):
    with pytest.raises(ShapeError, match=r"shape \[1, 4, 8, 8\], expected \[N, 3, H, W\]"):
        run.save_samples(1, torch.zeros(1, 4, 8, 8), records_for(1))
    with pytest.raises(ShapeError, match="got 2 samples but 1 records"):
        run.save_samples(1, ["a", "b"], records_for(1))


def test_checkpoint_appears_whole_and_old_ones_go(run):
    for step in (2, 4, 6, 8):
        save_checkpoint(run, step, keep=2)
    view = RunView.open(run.folder)
    assert view.checkpoints() == [6, 8]
    assert (run.folder / "checkpoints" / "latest").read_text() == "000008\n"
    assert run.latest_checkpoint() == view.checkpoint() == run.folder / "checkpoints" / "000008"
    assert (view.checkpoint(6) / "policy" / "weights.txt").read_text() == "step 6"
    assert sorted(p.name for p in (run.folder / "checkpoints").iterdir()) == ["000006", "000008", "latest"]


def test_every_file_is_on_the_disk_before_the_checkpoint_gets_its_name(run, monkeypatch):
    synced, before = set(), []
    fsync, rename = os.fsync, os.replace

    def note_fsync(handle):
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def note_rename(source, target):
        if str(source).endswith("000002.tmp"):
            before.extend(p for p in [source, *source.rglob("*")] if p.stat().st_ino not in synced)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_rename)
    save_checkpoint(run, 2)
    assert (len(synced) >= 5, before) == (True, [])


def test_folder_without_complete_is_ignored(run):
    save_checkpoint(run, 2)
    (run.folder / "checkpoints" / "000004").mkdir()
    assert run.latest_checkpoint().name == "000002"
    with pytest.raises(RunError, match="expected a checkpoint at step 4, got none. Complete ones: 2"):
        RunView.open(run.folder).checkpoint(4)


def test_no_checkpoint_yet(run):
    assert run.latest_checkpoint() is None
    with pytest.raises(RunError, match="Complete ones: none"):
        RunView.open(run.folder).checkpoint()


def test_error_inside_keeps_the_earlier_checkpoint(run):
    save_checkpoint(run, 2)
    with pytest.raises(KeyError), run.checkpoint(4) as folder:
        (folder / "half").write_text("x")
        raise KeyError("boom")
    assert [p.name for p in (run.folder / "checkpoints").glob("0*")] == ["000002"]


def test_the_same_step_can_be_saved_again(run):
    save_checkpoint(run, 2)
    with run.checkpoint(2) as folder:
        (folder / "new").write_text("x")
    assert sorted(p.name for p in run.latest_checkpoint().iterdir()) == ["COMPLETE", "new"]


def test_kill_between_write_and_rename_leaves_the_previous_checkpoint(tmp_path):
    script = """
import os, signal, sys
from studio.run import Run
run = Run.create(sys.argv[1], "a", {}, total_steps=9, command=[])
run.status(state="running")
for step in (2, 4):
    run.log(step, {"a": step})
    if step == 4:
        os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
    with run.checkpoint(step) as folder:
        (folder / "weights").write_text(str(step))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    view = RunView.open(tmp_path / "a")
    assert (view.folder / "checkpoints" / "000004.tmp" / "COMPLETE").exists()  # killed where it was meant to be
    assert (view.status["state"], view.checkpoints()) == ("lost", [2])
    run = Run.resume(tmp_path / "a")
    assert (run.latest_checkpoint() / "weights").read_text() == "2"
    assert not list((tmp_path / "a" / "checkpoints").glob("*.tmp"))
    run.rewind(2)
    assert [r["step"] for r in view.metrics().records] == [2]


def test_full_disk_leaves_the_previous_status(run, monkeypatch):
    before = status_file(run)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RunError) as error:
        run.status(state="running", step=5)
    message = str(error.value)
    assert message.startswith(f"{run.folder / 'status.json'}: expected free space on this disk, got: [Errno 28]")
    assert "Free some, then continue with --resume" in message
    assert status_file(run) == before
    assert run.state == "starting"
    assert not list(run.folder.glob("*.tmp"))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_read_only_disk_is_said_and_leaves_the_previous_status(run, monkeypatch, code):
    before = status_file(run)

    def refuse(*given, **others):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(pathlib.Path, "unlink", refuse)  # cleaning up fails as well, and must not hide the reason
    with pytest.raises(MissingError, match=f"status.json: expected a directory that can be written, got: {os.strerror(code)}"):
        run.status(state="running", step=5)
    assert status_file(run) == before


def test_full_disk_while_logging(run, monkeypatch):
    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(RunError, match=r"metrics.jsonl: expected free space on this disk"):
        run.log(1, {"a": 1})


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["disk", "quota", "torch", "safetensors"],
)
def test_full_disk_while_saving_leaves_the_previous_checkpoint(run, error):
    save_checkpoint(run, 2)
    with pytest.raises(RunError, match=r"000004.tmp: expected free space.*--resume"), run.checkpoint(4) as folder:
        (folder / "half").write_text("x")
        raise error
    assert RunView.open(run.folder).checkpoints() == [2]
    assert (run.folder / "checkpoints" / "latest").read_text() == "000002\n"


def test_other_errors_keep_their_type(run):
    with pytest.raises(IsADirectoryError), run.checkpoint(4) as folder:
        folder.write_text("x")


def test_finished_run_is_not_resumed(run):
    run.status(state="finished", step=10)
    with pytest.raises(RunError, match=r"is finished \(step 10\)"):
        Run.resume(run.folder)


def test_living_run_is_not_resumed(run):
    run.status(state="running", step=3)
    with pytest.raises(RunError) as error:
        Run.resume(run.folder)
    assert f"a is running as process {os.getpid()} on {socket.gethostname()} (step 3)" in str(error.value)
    assert str(error.value).endswith("Stop it first: studio stop a.")


def test_run_on_another_host_is_resumed_only_when_silent(run, monkeypatch):
    run.status(state="running", host="elsewhere")
    with pytest.raises(RunError, match="on elsewhere"):
        Run.resume(run.folder)
    later = time.time() + 100
    monkeypatch.setattr(run_view, "time", SimpleNamespace(time=lambda: later))
    assert Run.resume(run.folder).state == "starting"


def test_resumed_run_forgets_the_old_process_and_its_requests(run):
    run.status(state="failed", error="boom", reason="crash", exit_code=1, pid=dead_process())
    request(run.folder, "stop")
    again = Run.resume(run.folder)
    status = status_file(run)
    assert (status["state"], status["pid"]) == ("starting", os.getpid())
    assert [status[key] for key in ("error", "reason", "exit_code")] == [None] * 3
    assert again.poll_control() == set()
    assert "resumed" in [event["kind"] for event in RunView.open(run.folder).events()]


def test_worker_attaches_to_the_folder_of_the_command_that_started_it(run):
    run.status(pid=os.getppid(), pid_started=process_started(os.getppid()))
    worker = Run.attach(run.folder)
    assert (worker.state, status_file(run)["pid"]) == ("starting", os.getpid())


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def train(run, steps, stop_after=None):
        for step in steps:
            run.log(step, {"reward/mean": step / 10})
            run.save_samples(step, [f"text {step}"], records_for(1))
            if step % 2 == 0:
                save_checkpoint(run, step, keep=None)
            if step == stop_after:
                return

    whole, broken = create(tmp_path, "whole"), create(tmp_path, "broken")
    train(whole, range(1, 7))
    train(broken, range(1, 7), stop_after=5)
    broken.status(state="failed")
    again = Run.resume(broken.folder)
    again.rewind(2)  # not even the newest checkpoint
    assert again.latest_checkpoint().name == "000002"
    assert (again.folder / "checkpoints" / "latest").read_text() == "000002\n"
    assert RunView.open(again.folder).sample_steps() == [1, 2]
    train(again, range(3, 7))

    def seen(run):
        view = RunView.open(run.folder)
        metrics = [(r["step"], r["reward/mean"]) for r in view.metrics().records]
        lines = len((run.folder / "metrics.jsonl").read_text().splitlines())
        return metrics, lines, [view.samples(s)[0]["text"] for s in view.sample_steps()], view.checkpoints()

    assert seen(again) == seen(whole)


def test_requests_are_answered_once(run):
    request(run.folder, "stop")
    request(run.folder, "save")
    assert run.poll_control() == {"stop", "save"}
    assert run.poll_control() == set()


def test_unknown_requests_and_folders_that_are_no_runs_are_refused(run, tmp_path):
    with pytest.raises(RunError, match="expected one of stop, save, sample, got '../x'"):
        request(run.folder, "../x")
    with pytest.raises(RunError, match="expected a run folder with status.json"):
        request(tmp_path, "stop")


def test_view_gives_recipe_and_summary(run):
    view = RunView.open(run.folder)
    assert view.recipe == RECIPE
    assert view.summary is None
    run.summary({"prompts": 2, "before": {"scene": float("nan")}})
    assert view.summary == {"prompts": 2, "before": {"scene": None}}


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "samples/../../secret"])
def test_paths_that_leave_the_folder_are_refused(run, path):
    with pytest.raises(RunError, match="expected a path inside it"):
        RunView.open(run.folder).file(path)


def test_links_that_leave_the_folder_are_refused(run):
    outside = run.folder.parent / "outside"
    outside.mkdir()
    (outside / "samples.jsonl").write_text('{"path": "x"}\n')
    (run.folder / "samples" / "000001").symlink_to(outside)
    view = RunView.open(run.folder)
    assert view.sample_steps() == []
    with pytest.raises(RunError, match="Links and '..' may not lead out"):
        view.samples(1)


def test_record_of_a_sample_that_names_a_file_outside_is_refused(run):
    run.save_samples(1, ["a"], records_for(1))
    path = run.folder / "samples" / "000001" / "samples.jsonl"
    path.write_text('{"path": "../../secret"}\n{"path": "../../../../etc/passwd"}\n')
    with pytest.raises(RunError, match="expected a path inside it"):
        RunView.open(run.folder).samples(1)


def test_runs_are_found_by_name_only(run, tmp_path):
    assert RunView.find(tmp_path, "a").name == "a"
    for name in ("..", "../a", "a/samples"):
        with pytest.raises(RunError, match="run name"):
            RunView.find(tmp_path / "x", name)


def test_list_of_runs_is_newest_first_without_strangers(tmp_path):
    root = tmp_path / "runs"
    for name, started in [("old", 1.0), ("new", 3.0), ("middle", 2.0)]:
        create(root, name).status(started=started)
    (root / "notes").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "status.json").write_text("{")
    create(tmp_path, "elsewhere")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    assert [view.name for view in list_runs(root)] == ["new", "middle", "old"]
    assert list_runs(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("prompt_id", "k", "expected"),
    [("p000", 0, 1173218329361090495), ("p000", 1, 4422592714890743317), ("p001", 0, 8948046566966714535)],
)
def test_seed_of_a_row_follows_the_published_rule(prompt_id, k, expected):
    assert row_seed(42, prompt_id, k) == expected
