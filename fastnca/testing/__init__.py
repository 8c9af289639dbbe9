"""What to compare a model with: the tutorial's own code, and masks that two models share.

`fastnca.testing.tutorial` is the tutorial's code to the letter; import it by that name, because it
imports matplotlib. The reference of other rules is `fastnca.reference`.

    from fastnca.testing import injected_masks, tutorial

    with injected_masks(update_masks(seed, 0, steps, state.shape, 0.5)):
        for _ in range(steps):
            state = theirs(state)

which is `ours.run_steps(state, steps, seed=seed)` but for rounding.
"""

from fastnca.testing.masks import injected_masks

__all__ = ["injected_masks"]
