"""What to compare a model with: the tutorial's own code, and masks that two models share.

`fastnca.testing.tutorial` is the tutorial's code to the letter; import it by that name, because it
imports matplotlib. The reference of other rules is `fastnca.reference`.

    from fastnca.masks import update_masks
    from fastnca.testing import injected_masks, tutorial

    state = start
    with injected_masks(update_masks(seed, 0, steps, state.shape, 0.5)):
        for _ in range(steps):
            state = theirs(state)
    torch.testing.assert_close(state, ours.run_steps(start, steps, seed=seed))
"""

from fastnca.testing.masks import injected_masks

__all__ = ["injected_masks"]
