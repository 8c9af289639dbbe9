"""One thread of torch, for work too small for two, which would wait for one another."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Hold in every test of a module that imports this."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
