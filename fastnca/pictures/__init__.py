"""Pictures: states as pixels, figures, animations. matplotlib is imported when one is made.

render.py      states and grids as RGB pixels
figures.py     growth, regeneration, loss and Game of Life as matplotlib figures
animation.py   GIF files
mosaic.py      many states in one PNG
"""

from fastnca.pictures.animation import encode_gif
from fastnca.pictures.figures import (
    plot_life,
    plot_loss,
    test_regeneration,
    visualize_growth,
    visualize_regeneration,
)
from fastnca.pictures.mosaic import choose_rows, encode_mosaic
from fastnca.pictures.render import rollout_states, to_pixels

__all__ = [
    "choose_rows",
    "encode_gif",
    "encode_mosaic",
    "plot_life",
    "plot_loss",
    "rollout_states",
    "test_regeneration",
    "to_pixels",
    "visualize_growth",
    "visualize_regeneration",
]
