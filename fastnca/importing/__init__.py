"""Weights out of the files of other programs.

onnx.py    the tensors of an ONNX graph
keras.py   the variables of a Keras model, HDF5 or `.keras`
"""
