"""`fastnca train`: train a model and draw what it learned."""

import math
import time
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastnca import __version__
from fastnca.commands.output import save_figure
from fastnca.commands.show import GROW_STEPS, MASK_SEED, REGROW_STEPS, growth_gif
from fastnca.images import load_target
from fastnca.module import NeuralCA
from fastnca.pictures import plot_loss, visualize_growth, visualize_regeneration
from fastnca.storage.atomic import write_atomically
from fastnca.support import choose_backend
from fastnca.targets import TARGETS, create_target
from fastnca.training import BestWeights, DivergedError, PoolTrainer, TrainConfig

DIVERGED = 3
_OWN_FILES = ("config.json", "trainer.json", "metrics.csv")


def train(arguments: Namespace) -> int:
    """Train, save, draw. Interrupted or diverged runs save what they have, too.

    The model that is saved is the one that grew best (`BestWeights`); the run that `--resume`
    continues is saved beside it as it was at the end.
    """
    config = _config(arguments)
    target = _target(arguments)
    out: Path = arguments.out or Path("runs") / Path(arguments.target).stem
    _prepare(out, arguments)
    trainer = PoolTrainer(_model(arguments, config), target, config)
    if arguments.resume:
        trainer.resume(out)
    best = BestWeights(trainer)
    _announce(trainer, arguments, out)
    start = time.perf_counter()
    try:
        trainer.fit(metrics=out / "metrics.csv", on_step=best)
    except DivergedError as error:
        _save(trainer, best, arguments, out)
        print(f"fastnca: {error}\nThe model is saved in {out}")
        return DIVERGED
    except (KeyboardInterrupt, SystemExit):
        _save(trainer, best, arguments, out)
        print(f"\nstopped after {trainer.iteration} iterations; continue with --out {out} --resume")
        raise
    seconds = time.perf_counter() - start
    _save(trainer, best, arguments, out)
    _draw(trainer, out)
    print(
        f"{trainer.iteration} iterations in {seconds:.0f} s, loss {_recent_loss(trainer):.4f} "
        f"(mean of the last 20), {trainer.skipped} skipped\n"
        f"the model grew best after iteration {best.iteration}: loss {best.loss:.4f} from the "
        f"seed\n"
        f"model and pictures are in {out}: growth.png, growth.gif, regeneration.png, loss.png"
    )
    return 0


def _config(arguments: Namespace) -> TrainConfig:
    """Take the preset and what the user changed in it."""
    chosen = {field.name: getattr(arguments, field.name) for field in fields(TrainConfig)}
    changes = {name: value for name, value in chosen.items() if value is not None}
    return TrainConfig.preset(arguments.preset, **changes)


def _target(arguments: Namespace) -> Tensor:
    """Draw or read the target, on the training device."""
    if arguments.target in TARGETS:
        return create_target(arguments.target, arguments.size, device=arguments.device)
    path = Path(arguments.target)
    if not path.exists():
        raise ValueError(
            f"--target must be a picture file or one of {', '.join(TARGETS)}, got {path}"
        )
    return load_target(path, arguments.size, arguments.padding, device=arguments.device)


def _prepare(out: Path, arguments: Namespace) -> None:
    """Make the output directory; refuse to overwrite another run."""
    taken = [name for name in _OWN_FILES if (out / name).exists()]
    if taken and not (arguments.force or arguments.resume):
        raise FileExistsError(
            f"{out} already holds a run ({', '.join(taken)}): choose another --out, continue it "
            "with --resume, or overwrite it with --force"
        )
    out.mkdir(parents=True, exist_ok=True)


def _model(arguments: Namespace, config: TrainConfig) -> NeuralCA:
    """Make the model; the run's seed fixes its first weights too."""
    if config.seed is not None:
        torch.manual_seed(config.seed)
    model = NeuralCA(arguments.channels, arguments.hidden, backend=arguments.backend)
    return model.to(arguments.device)


def _announce(trainer: PoolTrainer, arguments: Namespace, out: Path) -> None:
    model, size = trainer.model, trainer.target.shape[-1]
    backend = choose_backend(model, model.backend, model.precision, trainer.seed_state)
    print(
        f"fastnca {__version__}: {arguments.target} on {size}x{size} cells, {model.num_channels} "
        f"channels, hidden {model.hidden_dim}, preset {arguments.preset}, "
        f"{trainer.config.iterations} iterations\nbackend {backend} on {arguments.device} "
        f"({torch.get_num_threads()} threads), writing to {out}",
        flush=True,
    )


def _recent_loss(trainer: PoolTrainer) -> float:
    recent = trainer.losses[-20:]
    return sum(recent) / len(recent) if recent else float("nan")


def _save(trainer: PoolTrainer, best: BestWeights, arguments: Namespace, out: Path) -> None:
    """Write the run so that it can be continued, then the model with the best weights."""
    trainer.save(out)
    if math.isinf(best.loss):
        best.look()
    trainer.model.load_state_dict(best.weights)
    facts: dict[str, Any] = {
        "size": trainer.target.shape[-1],
        "fill_hidden": trainer.config.fill_hidden,
        "target": arguments.target,
        "preset": arguments.preset,
        "iterations": best.iteration,
    }
    trainer.model.metadata = facts
    trainer.model.save(out)


def _draw(trainer: PoolTrainer, out: Path) -> None:
    """Draw loss, growth and regeneration."""
    model, size = trainer.model, trainer.target.shape[-1]
    save_figure(plot_loss(trainer.losses), out / "loss.png")
    figure = visualize_growth(model, size, GROW_STEPS, mask_seed=MASK_SEED)
    save_figure(figure, out / "growth.png")
    figure = visualize_regeneration(model, size, GROW_STEPS, REGROW_STEPS, mask_seed=MASK_SEED)
    save_figure(figure, out / "regeneration.png")
    write_atomically(out / "growth.gif", growth_gif(model, size, GROW_STEPS, MASK_SEED))
