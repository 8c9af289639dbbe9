"""A run as one HTML page: what it learned, measured.

measure.py   stability over many steps, recovery from damage
page.py      the page, without scripts and without anything from elsewhere
"""

from fastnca.report.measure import (
    Recovery,
    Stability,
    measure_recovery,
    measure_stability,
)
from fastnca.report.page import Picture, Section, Table, write_page

__all__ = [
    "Picture",
    "Recovery",
    "Section",
    "Stability",
    "Table",
    "measure_recovery",
    "measure_stability",
    "write_page",
]
