"""`python -m inbounds`: the command line."""

import sys

from inbounds._cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
