"""Fast Neural Cellular Automata: the tutorial's names, faster, and a pool trainer.

`from fastnca import *` takes the place of the tutorial's definitions.
"""

from fastnca import reference, training
from fastnca.backends import BackendError, use_backend
from fastnca.images import load_target
from fastnca.importing import import_model
from fastnca.life import game_of_life_step
from fastnca.masks import update_mask
from fastnca.module import NeuralCA
from fastnca.pictures import test_regeneration, visualize_growth, visualize_regeneration
from fastnca.reference import PerceptionModule
from fastnca.rule import RULES, Rule
from fastnca.states import NUM_CHANNELS, create_seed, get_visible_state
from fastnca.storage import FileFormatError
from fastnca.targets import create_target, create_target_circle
from fastnca.training import train_nca
from fastnca.version import __version__ as __version__

__all__ = [
    "NUM_CHANNELS",
    "RULES",
    "BackendError",
    "FileFormatError",
    "NeuralCA",
    "PerceptionModule",
    "Rule",
    "create_seed",
    "create_target",
    "create_target_circle",
    "game_of_life_step",
    "get_visible_state",
    "import_model",
    "load_target",
    "reference",
    "test_regeneration",
    "train_nca",
    "training",
    "update_mask",
    "use_backend",
    "visualize_growth",
    "visualize_regeneration",
]
