"""`python -m inbounds`: the command line."""

import sys

from inbounds_launcher import main

if __name__ == "__main__":
    sys.exit(main())
