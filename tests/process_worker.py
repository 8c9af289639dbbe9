"""One of several processes in a test: `python -m tests.process_worker SCENARIO DIRECTORY`.

Prints one JSON object with what the test compares between the processes.
"""

import hashlib
import json
import os
import signal
import sys
import weakref
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from fastnca import NeuralCA, create_target_circle, get_visible_state
from fastnca.training import PoolTrainer, Processes, RunDirectory, TrainConfig
from fastnca.training.recovery import PATIENCE
from fastnca.training.sampling import IterationSampler
from tests.helpers import excite
from tests.runs import advance, tensors

OPTIONS = {"pool_size": 13, "batch_size": 3, "min_steps": 4, "max_steps": 9, "seed": 1}


def make(processes, preset="tutorial", dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = excite(NeuralCA(8, 6, backend="torch").to(dtype))
    config = TrainConfig.preset(preset, **{**OPTIONS, **options})
    return PoolTrainer(model, create_target_circle(10, dtype=dtype), config, processes)


def digest(values):
    joined = b"".join(value.detach().contiguous().numpy().tobytes() for value in values)
    return hashlib.sha256(joined).hexdigest()


def gradient_error(processes):
    """Compare the averaged gradient with that of the joined batch in one process."""
    each = make(processes, dtype=torch.float64, gradient="none", micro_batches=2)
    model = make(Processes(), dtype=torch.float64).model
    each.step()
    config, pieces = each.config, []
    for rank in range(processes.world_size):
        draw = IterationSampler(config, len(each.pool), rank, processes.world_size).next()
        for number, count in enumerate((2, 1)):  # the micro-batches
            states = each.seed_state.repeat(count, 1, 1, 1)
            pieces.append(model.run_steps(states, draw.steps, seed=draw.seed + number))
    joined = get_visible_state(torch.cat(pieces))
    F.mse_loss(joined, each.target.expand(len(joined), -1, -1, -1)).backward()
    worst = 0.0
    for ours, theirs in zip(each.model.parameters(), model.parameters(), strict=True):
        if theirs.grad is not None:
            scale = float(theirs.grad.abs().max())
            worst = max(worst, float((ours.grad - theirs.grad).abs().max()) / scale)
    return worst


def train(processes, directory):
    """Everything that needs no kill, in one launch."""
    said = {"shares": len(make(processes).pool), "gradient_error": gradient_error(processes)}
    each = make(processes)
    advance(each, 20)
    said["weights"] = digest(each.model.parameters())
    said["losses"] = each.losses
    said["pool"] = digest([each.pool.states])

    each = make(processes, seed=None)  # every process draws its own number of steps
    torch.manual_seed(100 + processes.rank)
    said["steps"] = [each.step().steps for _ in range(6)]
    said["weights of unequal steps"] = digest(each.model.parameters())

    each = make(processes, preset="persistent", pool_size=12)
    if processes.rank == 1:
        each.pool.states[:, 3] = float("nan")
    said["skipped"] = [each.step().skipped for _ in range(3)]
    said["weights of skipped"] = digest(each.model.parameters())

    each = make(processes, preset="quick", pool_size=12, batch_size=4)
    advance(each, 4)
    said["weights of balanced"] = digest(each.model.parameters())
    said["norms of balanced"] = [
        float(p.grad.norm()) for p in each.model.parameters() if p.grad is not None
    ]

    each = make(processes, repairs=2)
    with torch.no_grad():
        each.model.update_net[2].bias.fill_(-2.0)  # every state dies
    advance(each, PATIENCE + 4)
    said["repairs"], said["rate"] = each.recovery.repairs, each.step().learning_rate
    said["weights of repaired"] = digest(each.model.parameters())

    straight, first = make(processes), make(processes)
    advance(straight, 8)
    advance(first, 4)
    first.save(directory / "run")
    second = make(processes)
    second.resume(directory / "run")
    advance(second, 4)
    ours, theirs = tensors(second), tensors(straight)
    said["exact"] = all(torch.equal(value, theirs[name]) for name, value in ours.items())

    each = make(processes, iterations=10_000)

    def interrupt(result):
        if result.iteration == 5 and processes.rank == processes.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        each.fit(
            progress=False, callbacks=[interrupt], run=RunDirectory(directory / "stop", processes)
        )
    except SystemExit as error:
        said["exit"] = error.code
    said["stopped"] = each.iteration
    return said


def save_for_ever(processes, directory):
    """Train and save until killed, or until another process is."""
    each = make(processes, iterations=10**6, save_interval=1)

    def report(result):
        if result.iteration == 3:
            print("ready", flush=True)

    each.fit(progress=False, callbacks=[report], run=RunDirectory(directory, processes))


def resume(processes, directory):
    """Continue a run of another number of processes."""
    each = make(processes)
    run = RunDirectory(directory / "run", processes)
    notes = run.resume(each).notes
    pool, slots = digest([each.pool.states]), len(each.pool)
    advance(each, 3)
    return {
        "notes": notes,
        "pool": pool,
        "slots": slots,
        "iteration": each.iteration,
        "weights": digest(each.model.parameters()),
    }


def main():
    processes = Processes.init(torch.device("cpu"), timeout=60)
    scenario = {"train": train, "save": save_for_ever, "resume": resume}[sys.argv[1]]
    group = weakref.ref(dist.group.WORLD)
    said = scenario(processes, Path(sys.argv[2]))
    processes.close()
    print(json.dumps({**said, "group is gone": group() is None}), flush=True)


if __name__ == "__main__":
    main()
