"""Models as files for other programs.

distill.py   the 8-bit JSON of "Growing Neural Cellular Automata" (Distill 2020)
onnx.py      one step as an ONNX graph
"""
