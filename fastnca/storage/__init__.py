"""Files: atomic writes, checksummed bundles of tensors, and models.

atomic.py   replace one file so that a crash leaves the old one or the new one
bundle.py   a JSON file and a safetensors file that vouch for each other
model.py    NeuralCA.save and NeuralCA.load
"""

from fastnca.storage.bundle import FileFormatError

__all__ = ["FileFormatError"]
