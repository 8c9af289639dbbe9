import os

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports a kernel


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    monkeypatch.delenv("FASTNCA_BACKEND", raising=False)
    torch.manual_seed(0)
