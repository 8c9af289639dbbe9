"""Several processes that train one model, on a CPU, as torchrun starts them."""

import base64
import itertools
import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from fastnca.commands.parser import main
from fastnca.distributed import local_device, open_address, shard_bounds
from fastnca.pictures import encode_mosaic
from fastnca.training import PoolTrainer, Processes, RunDirectory, TrainConfig
from tests.process_worker import digest, make
from tests.runs import advance

QUICK = [
    *("--size", "12", "--hidden", "6", "--pool-size", "8", "--batch-size", "4"),
    *("--min-steps", "3", "--max-steps", "5"),
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(size, *arguments):
    """Start the processes of one scenario."""
    port = free_port()
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["OMP_NUM_THREADS"] = "1"  # as torchrun sets it
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.process_worker", *map(str, arguments)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def run(size, *arguments):
    """Run a scenario to its end; return what each process said."""
    said = []
    for process in start(size, *arguments):
        out, complained = process.communicate(timeout=240)
        assert process.returncode == 0, complained
        said.append(json.loads(out.splitlines()[-1]))
    return said


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.long)])
def group(request, tmp_path_factory):
    """What 2 and 3 processes said, and where they saved."""
    path = tmp_path_factory.mktemp("processes")
    return run(request.param, "train", path), path


def same(said, name):
    return len({json.dumps(each[name]) for each in said}) == 1


def test_parameters_are_equal_bit_for_bit(group):
    said, _ = group
    assert same(said, "weights")
    assert same(said, "losses")
    assert len({each["pool"] for each in said}) == len(said)


def test_the_pool_is_shared_out(group):
    said, _ = group
    assert sum(each["shares"] for each in said) == 13
    assert max(each["shares"] for each in said) - min(each["shares"] for each in said) <= 1


def test_the_gradient_is_that_of_the_joined_batch(group):
    said, _ = group
    for each in said:
        assert each["gradient_error"] <= 1e-6


def test_unequal_numbers_of_steps_do_not_hang(group):
    said, _ = group
    assert not same(said, "steps")
    assert same(said, "weights of unequal steps")


def test_bad_numbers_in_one_process_void_the_iteration_in_all(group):
    said, _ = group
    assert [each["skipped"] for each in said] == [[True] * 3] * len(said)
    assert same(said, "weights of skipped")


def test_balanced_gradients_are_those_of_all_processes(group):
    said, _ = group
    assert same(said, "weights of balanced")
    assert said[0]["norms of balanced"] == pytest.approx([1.0] * 4, rel=1e-3)


def test_a_repair_is_made_in_all_alike(group):
    said, _ = group
    assert [each["repairs"] for each in said] == [1] * len(said)
    assert {each["rate"] for each in said} == {1e-3}
    assert same(said, "weights of repaired")


def test_nothing_keeps_the_group_that_was_left(group):
    said, _ = group
    assert [each["group is gone"] for each in said] == [True] * len(said)


def test_resume_with_as_many_processes_is_exact(group):
    said, path = group
    assert all(each["exact"] for each in said)
    files = sorted(file.name for file in (path / "run" / "ckpt-00000004").glob("pool-*"))
    assert files == [f"pool-{n:05d}-of-{len(said):05d}.safetensors" for n in range(len(said))]


def test_a_request_to_one_process_stops_all_after_the_same_iteration(group):
    said, path = group
    assert [each["stopped"] for each in said] == [6] * len(said)
    assert [each["exit"] for each in said] == [143] * len(said)
    assert (path / "stop" / "latest").read_text() == "ckpt-00000006\n"


def test_resume_with_fewer_processes_shares_the_pool_out_anew(group):
    said, path = group
    each = make(Processes())
    resumed = RunDirectory(path / "run").resume(each)
    assert each.iteration == 4
    assert "no longer bit for bit" in resumed.notes[0]
    assert f"by {len(said)} processes and goes on with 1" in resumed.notes[0]
    assert len(each.pool) == 13
    assert (each.pool.states != each.seed_state).any()
    advance(each, 2)
    assert each.skipped == 0


@pytest.mark.long
def test_resume_with_more_processes_shares_the_pool_out_anew(tmp_path):
    one = make(Processes())
    advance(one, 4)
    one.save(tmp_path / "run")
    said = run(2, "resume", tmp_path)
    assert [each["slots"] for each in said] == [6, 7]
    for rank, each in enumerate(said):
        first, last = shard_bounds(13, rank, 2)
        assert each["pool"] == digest([one.pool.states[first:last]])
        assert "no longer bit for bit" in each["notes"][0]
    assert same(said, "weights")
    assert said[0]["iteration"] == 7


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="processes are killed as on POSIX")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_loses_no_checkpoint(memory_path, victim):
    processes = start(2, "save", memory_path)
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    saved = int((memory_path / "latest").read_text().strip()[5:])
    processes[victim].kill()
    processes[victim].communicate(timeout=240)
    _, complained = processes[1 - victim].communicate(timeout=240)
    assert processes[1 - victim].returncode != 0
    assert complained
    each = make(Processes())
    RunDirectory(memory_path).resume(each)
    assert each.iteration >= saved


@pytest.mark.long
def test_the_command_line_under_torchrun(tmp_path):
    out = tmp_path / "run"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "fastnca", "train", *QUICK, "--out", str(out)]
    done = subprocess.run(
        [sys.executable, *command, "--iterations", "3"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("3 iterations in") == 1
    assert "2 processes, each with 4 states" in done.stdout
    assert (out / "growth.png").is_file()
    assert len((out / "metrics.csv").read_text().splitlines()) == 4
    assert main(["report", str(out), "--steps", "2", "--runs", "1"]) == 0
    files = sorted((out / "ckpt-00000003").glob("pool-*"))
    pool = torch.cat([load_file(file)["pool"] for file in files])
    picture = base64.b64encode(encode_mosaic(pool)).decode()
    assert picture in (out / "report.html").read_text()

    assert main(["train", *QUICK, "--iterations", "5", "--resume", "--out", str(out)]) == 0
    assert len((out / "metrics.csv").read_text().splitlines()) == 6


def test_parts_are_nearly_equal_and_cover_everything():
    for total in (1, 7, 64):
        for size in (1, 2, 3, 5):
            parts = [shard_bounds(total, rank, size) for rank in range(size)]
            assert parts[0][0] == 0
            assert parts[-1][1] == total
            assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
            assert max(b - a for a, b in parts) - min(b - a for a, b in parts) <= 1


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Processes.init(torch.device("cpu"), 1)
    assert (alone.rank, alone.world_size, alone.is_main) == (0, 1, True)
    assert not torch.distributed.is_initialized()
    alone.close()
    assert open_address() is None


def test_environment_of_torchrun(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda") == "cuda:3"
    assert local_device("cuda:1") == "cuda:1"
    assert local_device("cpu") == "cpu"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    assert open_address() == "10.0.0.7"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number of processes, got 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a number of processes, got '0'"),
        ({"WORLD_SIZE": "2"}, "did not find the other 1 .*RANK.*; start all of them"),
        (
            {"WORLD_SIZE": "3", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            "did not find the other 2 .*; start all of them together, with torchrun",
        ),
    ],
    ids=["text", "none", "no rank", "nobody there"],
)
def test_processes_that_do_not_meet(monkeypatch, variables, words):
    monkeypatch.delenv("RANK", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ConnectionError, ValueError), match=words):
        Processes.init(torch.device("cpu"), 1)


def test_too_many_processes_for_the_pool_are_refused():
    from fastnca import NeuralCA, create_target_circle

    config = TrainConfig(pool_size=3, batch_size=2, replacement=False)
    with pytest.raises(ValueError, match="3 states shared out among 2 processes leaves 1"):
        PoolTrainer(NeuralCA(), create_target_circle(8), config, Processes(0, 2))
