"""The recipe on the command line: a phrase for each option, and what a short run misses."""

from dataclasses import fields

import pytest

from fastnca.commands.recipe import option_phrases, unreached
from fastnca.training import TrainConfig


def test_every_option_has_a_phrase_for_the_command_line():
    phrases = option_phrases()
    assert set(phrases) == {field.name for field in fields(TrainConfig)}
    assert all(len(phrase) > 5 for phrase in phrases.values())


@pytest.mark.parametrize(
    ("preset", "changes", "words"),
    [
        ("quick", {}, ""),
        ("quick", {"iterations": 1000}, ""),
        ("quick", {"iterations": 0}, ""),
        ("tutorial", {"iterations": 1}, ""),
        (
            "quick",
            {"iterations": 500},
            "a run of 500 iterations does not reach ramp 950 and damage_start 570 of quick; in "
            "proportion to its 1900 iterations that is --ramp 250 --damage-start 150",
        ),
        ("quick", {"iterations": 500, "ramp": 100, "damage_start": 500}, ""),
        ("quick", {"iterations": 800, "damage": 0}, "does not reach ramp 950 of quick"),
        ("growing", {"iterations": 800}, "--milestones 200"),
    ],
)
def test_a_shortened_preset_says_what_it_does_not_reach(preset, changes, words):
    found = unreached(preset, TrainConfig.preset(preset, **changes))
    assert (words in found) if words else not found
