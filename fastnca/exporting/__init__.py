"""Models for other programs.

page.py      one HTML page in which the model grows, with the scripts and the style beside it
distill.py   the 8-bit JSON of "Growing Neural Cellular Automata" (Distill 2020)
onnx.py      one step as an ONNX graph
"""

from fastnca.exporting.page import export_html

__all__ = ["export_html"]
