"""The queue: order, GPUs, two interfaces over one folder, and what is still there after a restart."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from made_runs import DEAD, make_run

from studio.errors import RunError, StudioError
from studio.process import this_process
from ui import waiting
from ui.desk import Desk
from ui.entry import Entry, ready, shared
from ui.queue import Queue, said
from ui.site import Site


class Processes:
    """Stands for `studio`: processes that do nothing until they are ended."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.children: list[subprocess.Popen] = []

    def start(self, words: Sequence[str], log: Path, environment: dict[str, str]) -> int:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as handle:
            handle.write("begun\n")
        self.started.append(list(words))
        self.environments.append(environment)
        self.children.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        return self.children[-1].pid

    def end(self, which: int = -1) -> None:
        self.children[which].kill()
        self.children[which].wait()


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    for child in made.children:
        child.kill()
        child.wait()


@pytest.fixture
def queue(tmp_path, processes) -> Queue:
    return Queue(tmp_path / "runs", processes.start)


def entry(name: str, gpus: str = "") -> Entry:
    return Entry(name, "train", "control/multigoal-ppo", ("train.steps=3",), gpus=gpus)


def states(queue: Queue) -> dict[str, str]:
    return {e.name: e.state for e in queue.entries()}


def names(queue: Queue, state: str) -> list[str]:
    return [e.name for e in queue.entries() if e.state == state]


def of(queue: Queue, name: str) -> Entry:
    return next(e for e in queue.entries() if e.name == name)


def began(queue: Queue, name: str, state: str = "running", **status) -> None:
    """The run folder that a started command would have made."""
    make_run(queue.root, name, "control", steps=2, state=state).status(started=time.time(), **status)


def refused(call: Callable, *given) -> str:
    with pytest.raises(RunError) as error:
        call(*given)
    return str(error.value)


def test_entries_of_one_gpu_run_one_after_the_other_and_others_beside_them(queue, processes):
    for name, gpus in {"a": "0", "b": "0", "c": "1", "d": "1,2", "e": "3"}.items():
        queue.add(entry(name, gpus))
    queue.tick()
    assert states(queue) == {"a": "started", "b": "waiting", "c": "started", "d": "waiting", "e": "started"}
    assert [e["CUDA_VISIBLE_DEVICES"] for e in processes.environments] == ["0", "1", "3"]
    began(queue, "a", "finished", **DEAD)
    queue.tick()
    assert states(queue)["b"] == "waiting"  # the run has finished, its process writes the report
    processes.end(0)
    queue.tick()
    assert states(queue) == {"a": "done", "b": "started", "c": "started", "d": "waiting", "e": "started"}


def test_ready_keeps_the_order_of_entries_that_share_a_gpu():
    def waits(name: str, gpus: str, state: str = "waiting") -> Entry:
        return Entry(name, "train", "r", gpus=gpus, state=state)

    row = [waits("a", "0,1"), waits("b", "1"), waits("c", "2"), waits("d", "1,2"), waits("e", "")]
    assert [e.name for e in ready(row)] == ["a", "c"]
    assert [e.name for e in ready([waits("x", "", "started"), *row])] == []
    assert [e.name for e in ready([*row[1:], waits("y", "2", "started")])] == ["b"]
    assert [e.name for e in ready([waits("e", ""), waits("f", "7")])] == ["e"]
    assert shared("", "3") and shared("1,2", "2,3") and not shared("1", "11")


def test_the_command_is_the_one_that_a_person_would_type(queue, processes):
    several = Entry("a", "train", ".launch/a.yaml", ("train.steps=3", "env={name: gym}"), processes=2, gpus="0,1")
    queue.add(several, now=True)
    words = ["train", str(queue.root / ".launch/a.yaml"), "train.steps=3", "env={name: gym}", "--gpus", "2", "--name", "a"]
    assert processes.started == [[*words, "--runs", str(queue.root), "--progress", "plain"]]


def test_what_waits_is_started_after_a_restart_and_what_runs_is_watched_on(queue, processes):
    queue.add(entry("first"))
    queue.add(entry("second"))
    queue.tick()
    again = Queue(queue.root, processes.start)
    again.tick()
    assert states(again) == {"first": "started", "second": "waiting"} and len(processes.started) == 1
    began(again, "first", "stopped", **DEAD)
    processes.end()
    again.tick()
    assert states(again) == {"first": "done", "second": "started"} and len(processes.started) == 2


def test_two_interfaces_over_one_folder_start_every_entry_once(queue, processes):
    for number in range(12):
        queue.add(entry(f"run-{number}", str(number)))
    both = [queue, Queue(queue.root, processes.start)]
    gate, wrong = threading.Barrier(2), []

    def look(which: Queue) -> None:
        gate.wait()
        try:
            for _ in range(5):
                which.tick()
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=look, args=[which]) for which in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started = [words[words.index("--name") + 1] for words in processes.started]
    assert not wrong and sorted(started) == sorted(f"run-{n}" for n in range(12))
    assert set(states(queue).values()) == {"started"}


def test_a_start_that_fails_shows_its_message_and_frees_the_name_and_the_gpu(queue, processes):
    made = queue.add(entry("a"), now=True)
    queue.add(entry("b"))
    assert queue.standing(made).state == "starting"
    queue.log(made).write_text("loading\nConfigError: recipe.prompts: expected a file, got 'x'.\nGive one.\n")
    processes.end()
    queue.tick()
    assert states(queue) == {"a": "failed", "b": "started"}
    assert queue.standing(of(queue, "a")).reason == "ConfigError: recipe.prompts: expected a file, got 'x'.\nGive one."
    assert "expected a file, got &#x27;x&#x27;" in waiting.table(queue)
    again = queue.add(entry("a", "7"), now=True)
    assert queue.log(again).read_text() == "begun\n"  # not what the earlier start said


def test_a_run_that_fails_later_says_why_and_one_killed_from_outside_is_lost(queue, processes):
    queue.add(entry("a", "0"), now=True)
    queue.add(entry("b", "1"), now=True)
    began(queue, "a", "failed", reason="OutOfMemoryError: too much", **DEAD)
    began(queue, "b", "running", **DEAD)
    processes.end(0)
    processes.end(1)
    queue.tick()
    assert queue.standing(of(queue, "a")) == ("failed", "OutOfMemoryError: too much")
    assert queue.standing(of(queue, "b")) == ("failed", "the process is gone")


def test_the_output_moves_into_the_run_folder_once_there_is_one(queue):
    made = queue.add(entry("a"), now=True)
    queue.tick()
    assert queue.log(made).exists()
    began(queue, "a", **this_process())
    queue.tick()
    assert (queue.root / "a" / "logs" / "launcher.log").read_text() == "begun\n" and not queue.log(made).exists()
    assert queue.standing(of(queue, "a")).state == "running"


def test_an_older_run_of_that_name_is_not_taken_for_the_entrys_own(queue, processes):
    made = queue.add(entry("a"), now=True)
    make_run(queue.root, "a", "control", steps=2).status(started=made.began - 60)
    processes.end()
    queue.tick()
    assert states(queue) == {"a": "failed"}


def test_an_interface_that_dies_while_it_starts_an_entry_leaves_a_failed_one(queue):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    queue.add(entry("a"))
    with pytest.raises(Killed):
        Queue(queue.root, killed).tick()
    queue.tick()
    assert states(queue) == {"a": "started"}  # that interface is this process, which lives: it may be about to start
    path = next(queue.folder.iterdir())
    path.write_text(path.read_text().replace(str(this_process()["pid"]), str(DEAD["pid"])))
    queue.tick()
    assert states(queue) == {"a": "failed"} and "Start it again" in queue.standing(of(queue, "a")).reason


def test_an_entry_that_was_only_renamed_is_given_a_moment(queue, monkeypatch):
    queue.add(entry("a"))
    path = next(queue.folder.iterdir())
    path.rename(path.with_name(path.name.replace("waiting", "started")))
    queue.tick()
    assert states(queue) == {"a": "started"} and queue.standing(of(queue, "a")).state == "starting"
    monkeypatch.setattr("ui.queue.GRACE_S", 0.0)
    queue.tick()
    assert states(queue) == {"a": "failed"}


def test_waiting_entries_move_up_and_down_and_out(queue):
    for name in "abc":
        queue.add(entry(name))
    queue.move(of(queue, "c").id, -1)
    assert names(queue, "waiting") == ["a", "c", "b"]
    queue.move(of(queue, "a").id, 1)
    assert names(queue, "waiting") == ["c", "a", "b"]
    assert queue.move(of(queue, "c").id, -1) == "c is number 1 of 3."
    assert queue.move(of(queue, "b").id, 1) == "b is number 3 of 3."
    assert names(queue, "waiting") == ["c", "a", "b"]
    queue.add(entry("d"))
    queue.cancel(of(queue, "a").id)
    assert names(queue, "waiting") == ["c", "b", "d"]


def test_an_entry_that_was_started_meanwhile_is_neither_cancelled_nor_moved(queue):
    made = queue.add(entry("a"))
    queue.tick()
    assert "not any more" in refused(queue.cancel, made.id)
    assert "not any more" in refused(queue.move, made.id, 1)
    assert "not any more" in refused(queue.forget, made.id)
    assert "not any more" in refused(queue.cancel, "../../etc")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("taken", "exists"),
        ("queued", "in the queue"),
        ("../out", "letters, digits"),
        (".hidden", "begins with"),
        ("-x", "begins with"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_the_remedy(queue, name, says):
    make_run(queue.root, "taken", "control", steps=1)
    queue.add(entry("queued"))
    message = refused(queue.add, entry(name))
    assert says in message and ("Choose another" in message or "another --name" in message)
    assert names(queue, "waiting") == ["queued"]


def test_an_entry_that_has_ended_is_cleared_with_what_it_left(queue, processes):
    made = queue.add(entry("a"), now=True)
    (queue.root / ".launch" / "a.yaml").write_text("policy: gaussian\n")
    processes.end()
    queue.tick()
    assert waiting.table(queue).count("data-act") == 1
    queue.forget(made.id)
    assert not list(queue.folder.iterdir()) and not list((queue.root / ".launch").iterdir()) and waiting.table(queue) == ""


def test_files_that_are_no_entries_are_passed_over(queue):
    queue.add(entry("a"))
    for name in ("note.txt", f"{1:020d}-0123abcd.waiting.json", f"{2:020d}-0123abce.odd.json"):
        (queue.folder / name).write_text("{")
    (queue.folder / f"{3:020d}-0123abcf.waiting.json").write_text('{"name": "x", "overrides": [], "strange": 1}')
    assert names(queue, "waiting") == ["a"]


def test_the_thread_starts_what_waits_and_goes_on_after_trouble(queue, processes, monkeypatch):
    monkeypatch.setattr("ui.queue.EVERY_S", 0.01)
    real, stop = queue.tick, threading.Event()
    looks = iter([OSError("no space left")])

    def troubled() -> None:
        for error in looks:
            raise error
        real()

    monkeypatch.setattr(queue, "tick", troubled)
    queue.add(entry("a"))
    thread = queue.keep(stop)
    for _ in range(300):
        if processes.started:
            break
        time.sleep(0.01)
    stop.set()
    thread.join(5)
    assert len(processes.started) == 1 and not thread.is_alive() and queue.trouble == ""


def test_the_buttons_of_the_queue_do_what_they_say(queue, processes):
    desk = Desk(Site(queue.root))
    desk.queue = queue  # its own goes on looking at the same folder, as a second interface would
    made = queue.add(entry("a"), now=True)
    began(queue, "a", **this_process())
    desk._act("stop", made.id)
    assert (queue.root / "a" / "control" / "stop").exists()
    waits, later = queue.add(entry("b")), queue.add(entry("c"))
    assert desk._act("up", later.id) == "c is number 1 of 2." and desk._act("down", later.id) == "c is number 2 of 2."
    assert desk._act("cancel", waits.id) == "b was taken out of the queue."
    with pytest.raises(StudioError, match="Look again"):
        desk._act("forget", made.id)
    with pytest.raises(StudioError):
        desk._act("stop", "../..")


def test_a_log_is_told_by_its_last_error_or_its_last_lines(tmp_path):
    log = tmp_path / "log"
    log.write_text("ValueError: early\nstep 1\nRuntimeError: late\n  because\n")
    assert said(log) == "RuntimeError: late\n  because"
    log.write_text("\n".join(str(k) for k in range(9)))
    assert said(log) == "4\n5\n6\n7\n8" and said(tmp_path / "none") == ""
