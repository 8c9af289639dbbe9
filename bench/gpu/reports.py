"""A pytest plugin that writes down each test as it ends, whatever becomes of the run.

    pytest -p bench.gpu.reports --reports FILE

With several workers the process that distributes the tests writes.
"""

import json
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--reports", type=Path, help="file to append a line of JSON per test to")


def pytest_configure(config: pytest.Config) -> None:
    """Write in the main process only."""
    path = config.getoption("--reports")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Writer(path), "bench.gpu.reports.writer")


class _Writer:
    """Appends to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Write down a test that was called, or whose set-up or tear-down was not passed."""
        if report.when != "call" and report.passed:
            return
        line = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
        if report.failed:
            line["reason"] = str(report.longrepr)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
