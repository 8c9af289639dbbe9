"""Files: atomic writes, checksummed bundles of tensors, models, and checkpoints.

atomic.py        replace one file so that a crash leaves the old one or the new one
bundle.py        a JSON file and a safetensors file that vouch for each other
model.py         NeuralCA.save and NeuralCA.load
state_dict.py    the model's tensors in a torch.save or safetensors file
tensors.py       large tensors in safetensors files, piece by piece
checkpoints.py   directories that are complete and intact, or do not count
lock.py          one process at a time in a directory
"""

from fastnca.storage.bundle import FileFormatError

__all__ = ["FileFormatError"]
