"""Profiles, several machines and SLURM: the launcher's command, who is who, and real runs as far as CPUs go."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch
import yaml

from studio.config import dump
from studio.errors import ConfigError, MissingError, RunError
from studio.launch import join_run, start
from studio.nodes import Cluster, cluster, profile_file, profile_names
from studio.recipe import load_recipe
from studio.run import Run, RunView
from studio.slurm import Command, arguments, submit

ROOT = Path(__file__).parents[1]
FLUX = "policy.model={random: tiny-flux, resolution: 32, text_length: 6, lora: {rank: 2}, device: cpu}"
SMALL = ("train.groups_per_step=2", "train.group_size=4", "watch.prompts=2", "watch.every=9", "policy.sampler.steps=4")
SMALL += ("policy.sampler.eval_steps=2", "policy.sampler.window.size=2", "held_out={}", "rewards={jpeg_size: 1.0}")


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_is_one_accelerate_reads(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(profile_file(name)))
    assert config.distributed_type.value == ("FSDP" if name == "fsdp2" else "MULTI_GPU")
    assert config.mixed_precision == "no"  # the recipe decides
    if name == "fsdp2":
        assert yaml.safe_load(profile_file(name).read_text())["fsdp_config"]["fsdp_version"] == 2


def test_an_unknown_profile_is_a_config_error():
    with pytest.raises(ConfigError, match="expected one of ddp, fsdp2, multi-node .* got 'fsdp'"):
        cluster(2, profile="fsdp")


def test_the_command_on_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    alone = Cluster(8).command()
    assert alone[alone.index("--main_process_port") + 1] not in ("0", "29500")  # two runs on one machine do not meet
    assert "--multi_gpu" in alone and alone[alone.index("--num_processes") + 1] == "8" and "--num_machines" not in alone
    many = Cluster(8, 4, "fsdp2", 3, "node0", 1234).command()
    value = {flag: many[many.index(flag) + 1] for flag in many if flag.startswith("--")}
    assert value["--num_processes"] == "32" and value["--num_machines"] == "4" and value["--machine_rank"] == "3"
    assert value["--main_process_ip"] == "node0" and value["--main_process_port"] == "1234"
    assert value["--config_file"].endswith("profiles/fsdp2.yaml") and "--multi_gpu" not in many


@pytest.mark.parametrize(
    ("environ", "rank", "address", "port"),
    [
        ({"NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "77"}, 1, "a", 77),
        ({"SLURM_NODEID": "0", "MASTER_ADDR": "b"}, 0, "b", 29500),
        ({"NODE_RANK": "1", "SLURM_NODEID": "0", "MASTER_ADDR": "c"}, 1, "c", 29500),
    ],
)
def test_a_machine_finds_its_place(environ, rank, address, port):
    found = cluster(4, 2, environ=environ)
    assert (found.rank, found.address, found.port, found.total) == (rank, address, port, 8)


@pytest.mark.parametrize("environ", [{}, {"NODE_RANK": "0"}, {"NODE_RANK": "2", "MASTER_ADDR": "a"}, {"MASTER_ADDR": "a"}])
def test_a_machine_without_a_place_is_a_config_error(environ):
    with pytest.raises(ConfigError, match="--nodes 2: expected NODE_RANK from 0 to 1 and MASTER_ADDR"):
        cluster(1, 2, environ=environ)


@pytest.mark.parametrize("port", ["http", "-1", "0", "70000", "29500.0"])
def test_a_port_that_is_none_is_a_config_error(port):
    with pytest.raises(ConfigError, match=f"expected MASTER_PORT from 1 to 65535, got '{port}'"):
        cluster(1, 2, environ={"NODE_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": port})


def test_another_machine_waits_for_the_run(tmp_path):
    with pytest.raises(RunError, match="expected a run made by machine 0"):
        join_run(tmp_path, "late", patience=0.0)
    with pytest.raises(ConfigError, match="expected --name NAME"):
        join_run(tmp_path, None)
    recipe, _ = load_recipe("shapes/grpo-guard")
    Run.create(tmp_path, "late", dump(recipe), total_steps=1, command=["test"])
    run, found = join_run(tmp_path, "late")
    assert found == recipe and run.folder == tmp_path / "late"


def studio(*given, steps=1, start_new_session=False, **environ):
    return subprocess.Popen(
        [sys.executable, "-m", "studio.cli", "train", "shapes/grpo-guard", *given, FLUX, *SMALL, f"train.steps={steps}"],
        cwd=ROOT,
        start_new_session=start_new_session,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LAUNCHER = """
import os, signal, sys, time
from pathlib import Path

heard, folder = [], Path(sys.argv[-1])
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: heard.append(number))
(folder / "group").write_text(str(os.getpgid(0) == os.getpid()))
until = time.monotonic() + 20
while time.monotonic() < until and not heard and not (patient and (folder / "control" / "stop").exists()):
    time.sleep(0.01)
time.sleep(0.2)  # whatever comes late
(folder / "heard").write_text(" ".join(map(str, heard)))
if patient:
    sys.path.insert(0, ROOT)
    from studio.run import Run
    Run.attach(folder).status("stopped", exit_code=0)
sys.exit(3)
"""


class StandIn(Cluster):
    """A launcher that says what it heard; a patient one ends when its run is asked to stop."""

    def command(self):
        return [sys.executable, self.address]


def stopped(tmp_path, *signals, patient=True):
    """Start a run of two processes, send these signals to it -> exit code and run folder."""
    (tmp_path / "launcher.py").write_text(f"patient, ROOT = {patient}, {str(ROOT)!r}\n{LAUNCHER}")
    recipe, _ = load_recipe("shapes/grpo-guard")
    run = Run.create(tmp_path, "run", dump(recipe), total_steps=9, command=["test"])

    def send():
        while not (run.folder / "group").exists():
            time.sleep(0.01)
        for number in signals:
            time.sleep(0.1)
            os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    before = [signal.getsignal(number) for number in signals]
    code = start(run, recipe, where=StandIn(processes=2, address=str(tmp_path / "launcher.py")))
    sender.join()
    assert [signal.getsignal(number) for number in signals] == before
    return code, run.folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=["SIGTERM", "Ctrl-C", "a closed terminal"])
def test_a_signal_asks_the_workers_to_stop_once(tmp_path, number):
    """Through the run's folder: torch's launcher kills workers 30 s after a signal, and a step may take longer."""
    code, folder = stopped(tmp_path, number)
    assert code == 0 and (folder / "control" / "stop").exists()
    assert (folder / "group").read_text() == "True", "what a terminal sends to its group does not reach the workers"
    assert (folder / "heard").read_text() == ""


def test_a_second_signal_goes_to_the_launcher(tmp_path):
    code, folder = stopped(tmp_path, signal.SIGINT, signal.SIGINT, patient=False)
    assert code == 1 and (folder / "heard").read_text() == str(int(signal.SIGINT))
    assert RunView.open(folder).status["state"] == "lost"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_a_run_of_two_processes_stops_with_a_checkpoint(tmp_path, how):
    given = ("--gpus", "2", "--runs", str(tmp_path), "--name", "long")
    child = studio(*given, "train.checkpointing_steps=1000", steps=1000, start_new_session=True)
    metrics = tmp_path / "long" / "metrics.jsonl"
    for _ in range(900):
        if child.poll() is not None or (metrics.is_file() and '"step": 1' in metrics.read_text()):
            break
        time.sleep(0.1)
    child.terminate() if how == "SIGTERM" else os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    _, problem = child.communicate(timeout=100)
    assert child.returncode == 0, problem[-3000:]
    view = RunView.open(tmp_path / "long")
    assert (view.status["state"], view.status["exit_code"]) == ("stopped", 0)
    assert view.checkpoints() == [view.status["step"]] and view.status["step"] < 1000


@pytest.mark.slow
def test_a_run_with_the_fsdp2_profile(tmp_path):
    child = studio("--gpus", "2", "--profile", "fsdp2", "--runs", str(tmp_path), "--name", "sharded")
    _, problem = child.communicate(timeout=200)
    assert child.returncode == 0, problem[-3000:]
    view = RunView.open(tmp_path / "sharded")
    assert view.status["state"] == "finished"
    assert len(list((view.checkpoint(1) / "shards").glob("*.distcp"))) == 2


@pytest.mark.slow
def test_two_machines_make_one_run(tmp_path):
    """Two launchers that find each other as on two machines, one process each."""
    from studio.nodes import _free_port

    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    given = ("--nodes", "2", "--runs", str(tmp_path), "--name", "both")
    children = [studio(*given, NODE_RANK=str(rank), **place) for rank in (0, 1)]
    for child in children:
        _, problem = child.communicate(timeout=200)
        assert child.returncode == 0, problem[-3000:]
    view = RunView.open(tmp_path / "both")
    assert view.status["state"] == "finished" and len(view.metrics().records) == 2


def test_without_submitit_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingError, match=r"pip install 'alignment-studio\[slurm\]'"):
        submit(["train"], logs=tmp_path, nodes=1, gpus=1, minutes=5, options={})


def test_a_job_gets_the_whole_command(monkeypatch, tmp_path):
    class Executor:
        def __init__(self, folder, cluster):
            asked["folder"] = folder

        def update_parameters(self, **parameters):
            asked.update(parameters)

        def submit(self, command):
            asked["command"] = command
            return types.SimpleNamespace(job_id=7)

    asked: dict = {}
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=Executor))
    given = arguments("a/b", ["x=1"], runs=tmp_path, name="n", resume=True, gpus=8, nodes=2, profile="fsdp2")
    assert submit(given, logs=tmp_path, nodes=2, gpus=8, minutes=60, options={"slurm_partition": "gpu"}) == "7"
    assert asked["nodes"] == 2 and asked["tasks_per_node"] == 1 and asked["gpus_per_node"] == 8 and asked["timeout_min"] == 60
    assert asked["slurm_partition"] == "gpu"
    told = " ".join(asked["command"].arguments)
    assert told == f"train a/b x=1 --runs {tmp_path} --gpus 8 --nodes 2 --progress plain --name n --profile fsdp2 --resume"
    with pytest.raises(ConfigError, match="expected --name NAME"):
        arguments("a/b", [], runs=tmp_path, name=None, resume=False, gpus=8, nodes=2, profile=None)


def test_a_job_has_the_exit_code_of_its_command():
    assert Command(("--help",))() == 0
    with pytest.raises(SystemExit) as left:
        Command(("train", "no/such-recipe"))()
    assert left.value.code == 2


@pytest.mark.parametrize("options", [{"slurm_queue": "gpu"}, {"nodes": 3}], ids=["unknown", "given twice"])
def test_an_option_that_submitit_refuses_is_a_config_error(tmp_path, options):
    with pytest.raises(ConfigError, match=rf"--slurm-option: expected options of submitit .*got {next(iter(options))}"):
        submit(["train"], logs=tmp_path, nodes=1, gpus=0, minutes=5, options=options, where="local")


def test_the_warning_before_a_jobs_time_is_up_becomes_a_stop_with_a_checkpoint(tmp_path, monkeypatch):
    """SLURM sends SIGUSR2 to every process of the job; by default that ends a process, and submitit's handler kills its child."""
    recipe, _ = load_recipe("shapes/grpo-guard")
    stop = Run.create(tmp_path, "long", dump(recipe), total_steps=9, command=["test"]).folder / "control" / "stop"
    child = tmp_path / "child"
    child.write_text(
        f"#!/bin/sh\nsleep 0.3\nkill -USR2 $$\nkill -USR2 $PPID\n"
        f"for i in $(seq 100); do test -e {stop} && exit 0; sleep 0.05; done\nexit 7\n"
    )
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    before = signal.getsignal(signal.SIGUSR2)
    given = arguments("shapes/grpo-guard", [], runs=tmp_path, name="long", resume=True, gpus=1, nodes=1, profile=None)
    assert Command(tuple(given))() == 0
    assert signal.getsignal(signal.SIGUSR2) == before


def test_a_job_without_a_name_gets_one(tmp_path):
    """By it the run is found when the job's time is up."""
    given = arguments("shapes/ddpo", [], runs=tmp_path, name=None, resume=False, gpus=1, nodes=1, profile=None)
    assert re.fullmatch(r"\d{8}-\d{6}_slurm_ddpo_[0-9a-f]{6}", given[given.index("--name") + 1])


@pytest.mark.slow
def test_a_real_job_on_this_machine(tmp_path):
    import submitit

    job = submit(["list", "recipes"], logs=tmp_path, nodes=1, gpus=0, minutes=5, options={}, where="local")
    assert submitit.LocalJob(tmp_path / job, job).result() == 0
