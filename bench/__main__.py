"""One command for everything that is measured.

    python -m bench [run] [--quick]    time, memory and correctness beside the tutorial's class
    python -m bench COMMAND --help     what a command does

Without a command it is `run`.
"""

import sys
from importlib import import_module

COMMANDS = {
    "run": ("bench.run", "time, memory and correctness of every provider, case by case"),
    "quality": ("bench.quality.time_to_quality", "how well a preset trains, and how long it takes"),
    "recipes": ("bench.quality.recipes", "the study behind the default preset"),
    "textures": ("bench.quality.textures", "trained textures beside their targets"),
    "kernels": ("bench.kernels.report", "what the compiler makes of the Triton kernels; no GPU"),
    "host": ("bench.kernels.host", "what the host spends on a launch; no GPU"),
    "gpu": ("bench.gpu.run", "prove and time the kernels on a CUDA GPU; as bench/gpu.sh"),
    "gpu-results": ("bench.gpu.results", "commit what `gpu` has measured"),
    "pages": ("bench.pages", "write tables and pictures of README.md and docs/performance.md"),
}
"""Module and purpose by name; each module has `main(arguments)`, which returns an exit status."""


def main(arguments: list[str]) -> int:
    """Run a command."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__.strip())
        print("\ncommands:")
        for name, (_, what) in COMMANDS.items():
            print(f"  {name:12} {what}")
        return 0
    name, rest = "run", arguments
    if arguments and not arguments[0].startswith("-"):
        name, *rest = arguments
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(
            f"python -m bench: error: unknown command {name!r}; there are {known}", file=sys.stderr
        )
        return 2
    return int(import_module(COMMANDS[name][0]).main(rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
