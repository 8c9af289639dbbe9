"""The correctness gate: a provider that does not compute the reference's steps is not timed.

Every case is gated on its own states, with up to four steps of it, in one of three ways:

- equal masks: the provider's masks are those of `fastnca.update_mask`, as are the reference's.
- every cell updates (inference).
- a random stream of the provider's own: several steps where every cell updates, and one step from
  a state on which the mask that was drawn can be read off its result. That mask must have the
  update rate, and the reference must come to the same result with it.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.cases import Case
from bench.models import Model
from bench.providers import Tolerance
from bench.runners import Outcome, Runner, TorchRunner, gradients_of
from fastnca import reference

STEPS = 4
SEED = 5
CELLS = 1 << 18
"""Larger batches are gated on as many of their first states as have this many cells."""


def check(
    runner: Runner, case: Case, state: Tensor, model: Model, tolerance: Tolerance
) -> str | None:
    """Compare `runner` with the reference on the states and in the mode of `case`.

    Args:
        runner: the provider.
        case: the case.
        state: `[B, C, H, W]`, its states.
        model: the network and its rule.
        tolerance: how far the provider may be off.

    Returns:
        None if it is right, else what is wrong, in a sentence.
    """
    state = state[: max(1, CELLS // (case.size * case.size))]
    steps = min(case.steps, STEPS)
    module = reference.NeuralCA(model.channels, rule=model.rule).to(state.device)
    module.load_state_dict(model.weights)
    exact = TorchRunner(module, "own", "seeded", loss=model.loss)
    own = runner.masks(case.mode) == "own"
    train = case.mode != "inference" and not own
    with _float32_convolutions():
        found = runner.outcome(case.mode, state, steps, train, case.with_gradient, SEED)
        wanted = exact.outcome("rollout", state, steps, train, case.with_gradient, SEED)
        wrong = difference(found, wanted, tolerance)
        if wrong is None and own and case.mode != "inference":
            wrong = _check_own_mask(runner, case, module, model, tolerance)
    return wrong


def difference(found: Outcome, wanted: Outcome, tolerance: Tolerance) -> str | None:
    """Return in what `found` differs from `wanted` by more than `tolerance`, or None."""
    if found.state.shape != wanted.state.shape:
        return f"the state is {list(found.state.shape)}, not {list(wanted.state.shape)}"
    errors = (found.state - wanted.state).abs().amax(dim=1)
    beyond = int((~(errors <= tolerance.state)).sum())  # counts NaN
    if beyond > tolerance.cells * errors.numel():
        return (
            f"{beyond} of {errors.numel()} cells differ from the reference by more than "
            f"{tolerance.state:g}, at most by {float(errors.max()):.2g}"
        )
    for name, expected in wanted.gradients.items():
        error = float((found.gradients[name] - expected).norm() / expected.norm())
        if not error <= tolerance.gradient:
            return f"the gradient of {name} differs by {error:.2g} of its norm"
    return None


def _check_own_mask(
    runner: Runner, case: Case, module: reference.NeuralCA, model: Model, tolerance: Tolerance
) -> str | None:
    """Check one step whose mask the provider draws itself."""
    batch = max(1, min(case.batch, CELLS // case.size**2))
    shape = (batch, model.channels, case.size, case.size)
    generator = torch.Generator().manual_seed(SEED)
    state = torch.rand(shape, generator=generator).to(next(module.parameters()).device)
    state[:, 3] = 0.2 + 0.8 * state[:, 3]  # alive; a cell that is not updated stays alive
    found = runner.outcome(case.mode, state, 1, True, case.with_gradient, SEED)
    mask = (found.state != state).any(dim=1, keepdim=True)
    rate, cells = float(mask.float().mean()), mask.numel()
    if abs(rate - 0.5) > 3 / cells**0.5:  # six standard deviations
        return f"{rate:.3f} of {cells} cells were updated, not half of them"
    module.zero_grad()
    end = module._step(state, mask.float())
    gradients = {}
    if case.with_gradient:
        model.loss(end).backward()
        gradients = gradients_of(module)
    return difference(found, Outcome(end.detach(), gradients), tolerance)


@contextlib.contextmanager
def _float32_convolutions() -> Iterator[None]:
    """Switch TF32 off: the gate judges the algorithm; times are taken with torch's defaults."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
