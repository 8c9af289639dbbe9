"""`python -m fastnca` is the same as the console script `fastnca`."""

import sys

from fastnca.commands.parser import main

if __name__ == "__main__":
    sys.exit(main())
