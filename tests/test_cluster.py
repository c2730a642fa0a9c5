"""A sweep on Ray: an address that is none, and what a killed worker, machine or sweep leaves and loses."""

import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from forked import forked, outcome
from test_sweep import SMALL

from agents.common import cluster, worker
from agents.common.cluster import check_address
from skipnet_rl.checkpoint import load_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "address", ["somewhere", "", ":6379", "host:", "host:port", "host:65536", "ray://", "local"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="expected auto, HOST:PORT or ray://HOST:PORT"):
        check_address(address)


def test_where_no_machine_answers_there_is_no_cluster(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_address(f"127.0.0.1:{port}")
        check_address(f"ray://127.0.0.1:{port}")
        monkeypatch.setattr(cluster, "CLIENT_PORT", port)
        check_address("ray://127.0.0.1")
    for address in (f"127.0.0.1:{port}", "ray://127.0.0.1"):
        with pytest.raises(ConnectionError, match=f"no Ray cluster answers at {address} "):
            check_address(address)
    check_address("auto")  # Ray finds it, or says that there is none


VARIABLES = """
import os
raise SystemExit([os.environ[name] for name in ("SKIPNET_DATA", "OMP_NUM_THREADS")] != ["data", "3"])
"""


def test_a_run_reads_the_variables_of_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIPNET_DATA", "data")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (tmp_path / "reads.py").write_text(VARIABLES)
    variables = worker.own_variables()
    assert variables["SKIPNET_DATA"] == "data" and "OMP_NUM_THREADS" not in variables
    monkeypatch.delenv("SKIPNET_DATA")

    def leave(given):
        os._exit(worker.play(["reads"], f"{tmp_path}/log", str(tmp_path), 3, True, given))

    assert forked(leave, variables) == 0
    assert forked(leave, {}) == 1 and "KeyError: 'SKIPNET_DATA'" in (tmp_path / "log").read_text()


def test_a_run_ends_with_its_machines_ray(tmp_path):
    """Without that process nobody would end it."""
    (tmp_path / "sleeps.py").write_text("import pathlib, time; pathlib.Path('begun').touch(); time.sleep(20)")
    read, write = os.pipe()

    if (parent := os.fork()) == 0:  # not `forked`, which waits for the run, too
        try:
            if os.fork() == 0:
                worker.play(["sleeps"], f"{tmp_path}/log", str(tmp_path), 1, True, {})
            signal.alarm(60)  # ends this process if the run never begins
            while not (tmp_path / "begun").exists():
                time.sleep(0.01)
        finally:
            os._exit(0)
    os.waitpid(parent, 0)
    os.close(write)  # the run has the other copy
    assert select.select([read], [], [], 10)[0] and os.read(read, 1) == b""


def sweep(out, *flags):
    """A sweep over two seeds, tiny but long enough to be killed in the middle."""
    words = ["--grid", "seed=0,1", "--out", str(out), *flags, "--", *SMALL, "--precision", "fp32"]
    words += shlex.split("--sp-iterations 2 --iterations 120 --tune-iterations 3 --batch-size 8 --routes 2")
    words += ["--test-images", "100", "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-m", "agents.sweep", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "2"},  # not for the runs: each has one
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of runs that nothing interrupted, one at a time and without Ray."""
    out = tmp_path_factory.mktemp("whole")
    process = sweep(out, "--workers", "1")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return out


def workers(folder):
    """Ray's processes whose run is in a folder."""
    psutil = pytest.importorskip("psutil")
    found = []
    for process in psutil.process_iter():
        try:
            if f"ray::{folder}/" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it has just ended
            pass
    return found


def until_both_have_a_checkpoint(out, process):
    """Wait; returns the process of each run, by its name."""
    for seed in ("seed=0", "seed=1"):
        while not (out / seed / "checkpoint" / "state.json").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
    time.sleep(0.3)
    found = {each.cmdline()[0].rpartition("/")[2]: each for each in workers(out)}
    assert sorted(found) == ["seed=0", "seed=1"]
    assert not any((out / seed / "result.json").exists() for seed in found)
    return found


def check_nothing_is_lost(out, whole, killed, process):
    """A run was killed once, went on from its checkpoint, and all ends as without that."""
    step = load_checkpoint(out / killed / "checkpoint")["step"]
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    lost = rf"{out / killed}: its process was lost \((WorkerCrashed|NodeDied)Error\); trying once more"
    assert len(re.findall(lost, said)) == said.count("trying once more") == 1, said
    attempts = (out / f"{killed}.log").read_text().split("dataset: ")[1:]
    assert len(attempts) == 2 and step > 0 and f"{step}/125 [00:00<?" in attempts[1]  # not from the start
    for seed in ("seed=0", "seed=1"):
        assert outcome(out / seed) == outcome(whole / seed)
        result = json.loads((out / seed / "result.json").read_text())
        assert result["machine"].startswith("1 thread of")
    assert (out / "comparison" / "comparison.json").exists()


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(tmp_path, whole):
    """Two Ray workers, one killed after a checkpoint, against runs one at a time that nothing interrupts."""
    pytest.importorskip("ray")
    process = sweep(tmp_path, "--workers", "2")
    until_both_have_a_checkpoint(tmp_path, process)["seed=0"].kill()
    check_nothing_is_lost(tmp_path, whole, "seed=0", process)
    before = (tmp_path / "seed=0" / "result.json").stat().st_mtime_ns
    again = sweep(tmp_path)
    assert again.wait(120) == 0 and (tmp_path / "seed=0" / "result.json").stat().st_mtime_ns == before


CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster

size = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
machines = [cluster.head_node, cluster.add_node(**size)]
raylets = [machine.all_processes["raylet"][0].process.pid for machine in machines]
print(json.dumps([cluster.address, raylets]), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextmanager
def two_machines():
    """A Ray cluster of two machines with one core each, both this one; its address and their processes.

    Fails if a process of it is left behind.
    """
    psutil = pytest.importorskip("psutil")
    with tempfile.TemporaryDirectory() as folder:  # its name is short, as Ray's sockets need
        owner = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            env=os.environ | {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield json.loads(owner.stdout.readline())
        finally:
            started = psutil.Process(owner.pid).children(recursive=True)
            owner.communicate(timeout=60)
            _, left = psutil.wait_procs(started, timeout=20)
            for process in left:
                process.kill()
    assert not left


@pytest.mark.slow
def test_a_lost_machine_loses_nothing(tmp_path, whole):
    """A cluster's second machine is killed, and Ctrl-C ends another sweep but not the cluster."""
    pytest.importorskip("ray")
    with two_machines() as (address, raylets):
        process = sweep(tmp_path / "left", "--address", address)
        until_both_have_a_checkpoint(tmp_path / "left", process)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130 and said.endswith("interrupted\n")
        assert not workers(tmp_path / "left")

        process = sweep(tmp_path / "lost", "--address", address)
        runs = until_both_have_a_checkpoint(tmp_path / "lost", process)
        on = {run.ppid(): name for name, run in runs.items()}
        assert sorted(on) == sorted(raylets)  # one on each machine
        os.kill(raylets[1], signal.SIGKILL)
        runs[on[raylets[1]]].wait(10)
        check_nothing_is_lost(tmp_path / "lost", whole, on[raylets[1]], process)
