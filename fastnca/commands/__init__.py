"""The command line: `fastnca train / grow / regenerate / life / info`.

parser.py   arguments, and errors as one sentence with an exit code
train.py    fastnca train
show.py     fastnca grow, regenerate, life: pictures without training
info.py     fastnca info
output.py   where pictures go
"""
