"""`fastnca train`: train a model and draw what it learned."""

import math
import shlex
import sys
import time
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import torch

from fastnca import __version__
from fastnca.backends import BackendError
from fastnca.backends.choose import choose_backend
from fastnca.commands.config_file import write_config
from fastnca.commands.initial import load_initial
from fastnca.commands.recipe import unreached
from fastnca.commands.result import describe_quality, draw_result, facts, save_result
from fastnca.commands.rule import chosen_rule, rule_options
from fastnca.commands.target import make_target
from fastnca.commands.watch import (
    PoolPictures,
    TensorBoard,
    find_writer,
    remove_old_mosaics,
    warnings_above_the_bar,
)
from fastnca.distributed import open_address
from fastnca.module import NeuralCA
from fastnca.rule import Rule
from fastnca.states import make_seed_state
from fastnca.storage.atomic import write_atomically
from fastnca.storage.checkpoints import list_checkpoints
from fastnca.storage.model import describe_model
from fastnca.storage.runs import Resumed
from fastnca.textures import TEXTURES
from fastnca.training import (
    DEFAULT_PRESET,
    CollapsedError,
    DivergedError,
    EmaTracker,
    ForcedStop,
    MemoryLimitError,
    PoolTrainer,
    Processes,
    RunDirectory,
    TrainConfig,
)
from fastnca.training.ema import GROWTH_STEPS

DIVERGED = 3
OUT_OF_MEMORY = 4
COLLAPSED = 5
GROWING_DEFAULTS = {"target": "circle", "size": 64, "preset": DEFAULT_PRESET}
TEXTURE_DEFAULTS = {"target": TEXTURES[0], "size": 64, "target_size": 192, "preset": "texture"}
_OWN_FILES = ("config.json", "metrics.csv")


def train(arguments: Namespace) -> int:
    """Train, save, draw. Interrupted, diverged and collapsed runs save what they have, too.

    The model that is saved is the one that grew best (`EmaTracker`); the checkpoints that
    `--resume` continues from lie beside it.
    """
    writer = find_writer() if arguments.tensorboard else None
    initial = load_initial(arguments)
    choose_family(arguments)
    processes = Processes.init(torch.device(arguments.device), arguments.timeout)
    config = _config(arguments)
    texture = config.loss == "texture"
    where = arguments.target_padding, arguments.device
    target = make_target(arguments.target, arguments.target_size or arguments.size, *where, texture)
    out: Path = arguments.out or Path("runs") / Path(arguments.target).stem
    model = _model(arguments, config, initial)
    with processes.all_or_none():
        if processes.is_main:
            _check_free(out, arguments)
    run = RunDirectory(out, processes)
    with run.hold():
        best = EmaTracker()
        seed_state = None
        if texture:  # its grid need not have the size of its picture
            seed_state = make_seed_state(
                next(model.parameters()).detach(),
                model.num_channels,
                arguments.size,
                start=config.start,
                fill_hidden=config.fill_hidden,
                inputs=model.rule.inputs,
            )
        trainer = PoolTrainer(
            model, target, config, processes, seed_state=seed_state, callbacks=[best]
        )
        if arguments.mosaic_interval:
            trainer.add_callback(PoolPictures(out, arguments.mosaic_interval))
        if writer is not None:
            trainer.add_callback(TensorBoard(out, writer))
        model.metadata = facts(trainer, arguments)
        resumed = None
        if arguments.resume == "yes" or (arguments.resume and run.has_checkpoints()):
            resumed = run.resume(trainer)
        else:
            run.clear()
            if processes.is_main:
                remove_old_mosaics(out)
        if processes.is_main:
            write_atomically(out / "run.toml", _options(trainer, arguments).encode())
            _announce(trainer, arguments, out, resumed)
        with warnings_above_the_bar():
            return _fit(trainer, best, run, arguments, out)


def _fit(
    trainer: PoolTrainer,
    best: EmaTracker,
    run: RunDirectory,
    arguments: Namespace,
    out: Path,
) -> int:
    """Train, then save and draw in the main process."""
    first = trainer.processes.is_main
    start = time.perf_counter()
    try:
        trainer.fit(metrics=out / "metrics.csv", run=run)
        trainer.close()
    except (CollapsedError, DivergedError) as error:
        trainer.close()
        if first:
            save_result(trainer, best, arguments, out)
            print(f"fastnca: {error}\nThe model is saved in {out}", file=sys.stderr)
        return DIVERGED if isinstance(error, DivergedError) else COLLAPSED
    except ForcedStop:
        if first:
            print(f"\nstopped at once; the last checkpoint is {_last(out)}")
        raise
    except (KeyboardInterrupt, SystemExit):
        trainer.close()
        if first:
            save_result(trainer, best, arguments, out)
            again = ["--config", str(out / "run.toml"), "--out", str(out), "--resume"]
            print(
                f"\nstopped after {trainer.iteration} iterations; continue with: fastnca train "
                f"{shlex.join(again)}"
            )
        raise
    except BackendError:
        raise
    except RuntimeError as error:
        if trainer.processes.world_size == 1:
            raise
        fault = str(error).splitlines()[0]
        print(
            f"fastnca: process {trainer.processes.rank} stops because another one ended or did "
            f"not answer for {arguments.timeout:g} s ({fault}); start all of them again with "
            f"--resume.\nThe last checkpoint is {_last(out)}",
            file=sys.stderr,
        )
        return 1
    except MemoryLimitError as error:
        print(f"fastnca: {error}\nThe last checkpoint is {_last(out)}", file=sys.stderr)
        return OUT_OF_MEMORY
    if not first:
        return 0
    seconds = time.perf_counter() - start
    save_result(trainer, best, arguments, out)
    names = draw_result(trainer, out)
    print(
        f"{trainer.iteration} iterations in {seconds:.0f} s{_recent_loss(trainer)}, "
        f"{trainer.skipped} skipped"
    )
    grows = math.isfinite(best.loss)
    if grows:
        print(describe_quality(trainer, best))
    print(f"model and pictures are in {out}: {', '.join(names)}")
    if grows:
        return 0
    print(
        f"fastnca: the model does not grow: within {GROWTH_STEPS[-1]} steps from the seed its "
        "values are no longer finite; the weights of the last iteration are saved. Start again "
        "with a lower learning_rate, another seed or gradient='normalize'",
        file=sys.stderr,
    )
    return DIVERGED


def choose_family(arguments: Namespace) -> None:
    """Fill in what the user left open: a texture's recipe, or that of a pattern that grows."""
    said = arguments.loss or arguments.preset or arguments.rule
    texture = said == "texture" or (said is None and arguments.target in TEXTURES)
    if texture:
        arguments.rule = arguments.rule or "texture"
    defaults = TEXTURE_DEFAULTS if texture else GROWING_DEFAULTS
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.target_size is not None and not texture:
        raise ValueError("--target-size is for textures; a pattern has the size of its grid")


def _config(arguments: Namespace) -> TrainConfig:
    """Take the preset and what the user changed in it."""
    chosen = {field.name: getattr(arguments, field.name) for field in fields(TrainConfig)}
    changes = {name: value for name, value in chosen.items() if value is not None}
    return TrainConfig.preset(arguments.preset, **changes)


def _options(trainer: PoolTrainer, arguments: Namespace) -> str:
    """Return every option of the run, those that its preset chose included, as TOML."""
    model = trainer.model
    values = {**vars(arguments), **trainer.config.to_dict(), **rule_options(model.rule)}
    values |= {"rule": None, "channels": model.num_channels}  # the fields say it all
    if trainer.processes.world_size > 1:
        values["device"] = torch.device(arguments.device).type  # each process has its own
    return write_config(values)


def _check_free(out: Path, arguments: Namespace) -> None:
    """Refuse to overwrite another run, and to continue none."""
    if arguments.resume == "yes" and not list_checkpoints(out):
        raise FileNotFoundError(f"{out}: no saved run (ckpt-...) here")
    taken = [name for name in _OWN_FILES if (out / name).exists()]
    taken += [path.name for path in list_checkpoints(out)]
    if taken and not (arguments.force or arguments.resume):
        raise FileExistsError(
            f"{out} already holds a run ({', '.join(taken)}): choose another --out, continue it "
            "with --resume, or overwrite it with --force"
        )


def _model(arguments: Namespace, config: TrainConfig, initial: NeuralCA | None) -> NeuralCA:
    """Return the model that a run begins with; its seed fixes the first weights of a new one."""
    if config.seed is not None:
        torch.manual_seed(config.seed)
    model = initial
    if model is None:
        channels, rule = chosen_rule(arguments)
        model = NeuralCA(channels, rule=rule, backend=arguments.backend)
    describe_model(model)  # refuses what could not be saved, before anything is overwritten
    return model.to(arguments.device)


def _announce(
    trainer: PoolTrainer, arguments: Namespace, out: Path, resumed: Resumed | None
) -> None:
    model, (height, width) = trainer.model, trainer.seed_state.shape[2:]
    backend = choose_backend(model, model.backend, model.precision, trainer.seed_state)
    print(
        f"fastnca {__version__}: {arguments.target} on {height}x{width} cells, "
        f"{model.num_channels} channels, hidden {_widths(model.rule)}, preset {arguments.preset}, "
        f"{trainer.config.iterations} iterations{_other_rule(model.rule)}\n"
        f"backend {backend} on {arguments.device} "
        f"({torch.get_num_threads()} threads), writing to {out}\n"
        f"memory: {trainer.memory}",
        flush=True,
    )
    if note := unreached(arguments.preset, trainer.config):
        print(f"note: {note}")
    if trainer.processes.world_size > 1:
        print(f"{trainer.processes.world_size} processes, each with {len(trainer.pool)} states")
    if address := open_address():
        print(
            f"the processes meet at {address}, which other machines can reach: torch.distributed "
            "neither encrypts nor checks who connects, so use a closed network"
        )
    if resumed is not None:
        print("\n".join([f"continuing from {resumed.path}", *resumed.notes]), flush=True)


def _widths(rule: Rule) -> str:
    return ", ".join(map(str, rule.hidden)) or "none"


def _other_rule(rule: Rule) -> str:
    return "" if rule.changed in ((), ("hidden",)) else f"\n{rule}"


def _recent_loss(trainer: PoolTrainer) -> str:
    recent = trainer.losses[-20:]
    return f", loss {sum(recent) / len(recent):.4f} (mean of the last 20)" if recent else ""


def _last(out: Path) -> str:
    """Name the newest checkpoint."""
    checkpoints = list_checkpoints(out)
    return str(checkpoints[0]) if checkpoints else "none: the run was not saved yet"
