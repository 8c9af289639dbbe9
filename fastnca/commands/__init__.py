"""The command line: `fastnca train / grow / regenerate / report / life / info`.

parser.py   arguments, and errors as one sentence with an exit code
train.py    fastnca train
show.py     fastnca grow, regenerate, life: pictures without training
report.py   fastnca report
info.py     fastnca info
config_file.py   options as TOML
target.py   the target by its name
watch.py    pictures of the pool and TensorBoard while a run trains
output.py   where pictures go
"""
