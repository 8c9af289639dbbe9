"""A run as one HTML page: what it learned, measured.

measure.py   stability over many steps, recovery from damage
texture.py   textures compared with their target, on several grids
page.py      the page, without scripts and without anything from elsewhere
"""

from fastnca.report.measure import (
    Recovery,
    Stability,
    measure_recovery,
    measure_stability,
)
from fastnca.report.page import Picture, Section, Table, write_page
from fastnca.report.texture import TextureQuality, measure_texture, untrained_loss

__all__ = [
    "Picture",
    "Recovery",
    "Section",
    "Stability",
    "Table",
    "TextureQuality",
    "measure_recovery",
    "measure_stability",
    "measure_texture",
    "untrained_loss",
    "write_page",
]
