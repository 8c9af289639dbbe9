"""`fastnca train --init-from`: training goes on from the weights of a saved model."""

from argparse import Namespace
from dataclasses import fields

from fastnca.module import NeuralCA
from fastnca.pictures.render import trained_size
from fastnca.rule import Rule


def load_initial(arguments: Namespace) -> NeuralCA | None:
    """Load the model that training starts from, and take its rule and its seed as options.

    Args:
        arguments: of `fastnca train`; options that the user left open become the model's.

    Returns:
        The model; None if a new one is trained.

    Raises:
        FileFormatError, FileNotFoundError: there is no such model.
        ValueError: the user asked for another rule, or other channels, than the model has.
    """
    if arguments.init_from is None:
        return None
    model = NeuralCA.load(arguments.init_from, backend=arguments.backend)
    facts = model.metadata
    has = {field.name: getattr(model.rule, field.name) for field in fields(Rule)}
    if model.rule.alive == "none":  # its threshold has no meaning
        del has["alive_threshold"]
    has |= {"channels": model.num_channels}
    for name, value in has.items():
        given = getattr(arguments, name)
        if given is not None and _plain(given) != _plain(value):
            raise ValueError(
                f"--{name.replace('_', '-')} {given} is not what {arguments.init_from} has, which "
                f"is {value}; leave it out"
            )
        setattr(arguments, name, value)
    arguments.rule = "texture" if facts.get("visible") == "texture" else "growing"
    for name in ("fill_hidden", "start", "update_rate"):
        if name in facts and getattr(arguments, name) is None:
            setattr(arguments, name, facts[name])
    if arguments.size is None:
        height, width = trained_size(model)
        arguments.size = height if height == width else (height, width)
    return model


def _plain(value: object) -> object:
    """Return a value in which lists and tuples are alike."""
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
