"""What `fastnca train` says of the saved model at its end."""

from fastnca.report import measure_stability
from fastnca.training import EmaTracker, PoolTrainer, growth_loss, healing_loss
from fastnca.training.ema import GROWTH_STEPS, HEALING_STEPS

_SEEDS = 8  # rollouts, each with masks of its own
_MASK_SEED = 1000  # not the masks that the best weights were chosen with


def describe_quality(trainer: PoolTrainer, best: EmaTracker) -> str:
    """Say in plain words what the saved model does.

    Args:
        trainer: the run, whose model has the best weights.
        best: which ones those are.
    """
    model, steps = trainer.model.train(), GROWTH_STEPS[-1]
    rate = trainer.config.update_rate
    measured = trainer.seed_state, trainer.target, (steps,)
    (end,) = measure_stability(model, *measured, runs=_SEEDS, update_rate=rate)
    living = round(_SEEDS * (1 - end.dead - end.exploded))
    growth = growth_loss(model, trainer.task, _MASK_SEED)
    healing = healing_loss(model, trainer.task, _MASK_SEED)
    return (
        f"the saved model is the average of the weights up to iteration {best.iteration}\n"
        f"  mean squared error of RGBA (an empty grid has {trainer.target.square().mean():.3f}):\n"
        f"    {growth:.4f} grown from the seed, over {GROWTH_STEPS[0]} to {steps} steps\n"
        f"    {healing:.4f} healed, {HEALING_STEPS} steps after a square was cut out\n"
        f"  {living} of {_SEEDS} seeds live for {steps} steps"
    )
