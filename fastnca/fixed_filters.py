"""Whether a model's fixed filters are those of its rule: compared in every call, cheaply."""

from functools import lru_cache
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from fastnca._torch_internals import assume_constant_result, count_dispatch_modes, disable_modes
from fastnca.reference import make_filters
from fastnca.rule import Rule


def has_filters(filters: Tensor, channels: int, rule: Rule) -> bool:
    """Tell whether `filters` are the fixed ones of a rule, `[K*C, 1, 3, 3]`.

    For filters on a GPU, and where torch looks at operators: elsewhere they are just compared.
    """
    if torch.compiler.is_compiling() or count_dispatch_modes() or filters.is_inference():
        return _equals_filters(filters, channels, rule)
    written = (filters._version, filters.data_ptr(), channels, rule.filters)
    known = _compared.get(id(filters))
    if known is None or known[0]() is not filters or known[1] != written:
        if len(_compared) >= 64:
            _compared.clear()
        equal = _equals_filters(filters, channels, rule)
        known = _compared[id(filters)] = (ref(filters), written, equal)
    return known[2]


@assume_constant_result  # torch.compile takes the filters as it finds them while it traces
def _equals_filters(filters: Tensor, channels: int, rule: Rule) -> bool:
    if not count_dispatch_modes():
        return torch.equal(filters, expected_filters(channels, rule, filters.dtype, filters.device))
    with disable_modes():  # a mode would see the comparison, or make fake filters
        return torch.equal(filters, expected_filters(channels, rule, filters.dtype, filters.device))


_compared: dict[int, tuple["ref[Tensor]", tuple[Any, ...], bool]] = {}
"""Filters on a GPU, where a comparison waits for the device, by id: compared once per change that
torch counts; it does not count writes through `.data`."""


@lru_cache(maxsize=16)
def expected_filters(channels: int, rule: Rule, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the filters of a rule, kept for the next call."""
    return make_filters(channels, rule).to(device, dtype)
