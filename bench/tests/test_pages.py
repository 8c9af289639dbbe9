"""The command, and pages and pictures that follow from committed results."""

from dataclasses import replace

import pytest

from bench import pages
from bench.__main__ import COMMANDS
from bench.__main__ import main as command
from bench.results import read_csv, write_csv


def test_readme_and_pictures_follow_from_the_committed_results():
    assert pages.disagreements() == []


def test_disagreement_with_the_readme_is_found(tmp_path, monkeypatch):
    number = pages.README.read_text().split(" ms |")[0].split()[-1]
    changes = {"PERFORMANCE": ("GFLOP/s", "TFLOP/s"), "README": (number, "9,999")}
    for name, words in changes.items():
        text = getattr(pages, name).read_text()
        changed = tmp_path / getattr(pages, name).name
        assert words[0] in text
        changed.write_text(text.replace(*words, 1))
        monkeypatch.setattr(pages, name, changed)
        assert pages.disagreements() == [f"{changed.name} is not what the results give"]
        monkeypatch.undo()
    changed.write_text(pages.README.read_text().replace("A training iteration is", "It is"))
    monkeypatch.setattr(pages, "README", changed)
    (found,) = pages.disagreements()
    assert found.startswith("README.md does not open with: A training iteration is ")
    monkeypatch.undo()
    for path in pages.RESULTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copied = tmp_path / "cpu-2core.csv"
    copied.write_text(copied.read_text() + "\n")
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    monkeypatch.setattr(pages, "ROOT", tmp_path.parent)
    found = pages.disagreements()
    assert sum("was drawn from other results" in text for text in found) == 3


@pytest.mark.parametrize("commit", ["1234567+", "unknown", ""])
def test_results_of_a_modified_tree_are_not_published(commit, tmp_path, monkeypatch):
    rows = read_csv(pages.RESULTS / "cpu-2core.csv")
    pages.refuse_modified(rows)
    changed = tmp_path / "cpu-2core.csv"
    write_csv(changed, [*rows[:-1], replace(rows[-1], commit=commit)])
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="are not published: measure a clean checkout"):
        pages.disagreements()
    with pytest.raises(ValueError, match="are not published"):
        pages.main([])
    assert [path.name for path in tmp_path.iterdir()] == ["cpu-2core.csv"]  # nothing was drawn


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        command([name, "--help"])
    assert stop.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_run_is_the_command_without_a_name(capsys):
    assert command(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert command(["rules"]) == 2
    assert "unknown command 'rules'; there are run, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(["--provider", "nobody"])
    assert "python -m bench run: error: " in capsys.readouterr().err
