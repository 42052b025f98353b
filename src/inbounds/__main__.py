"""`python -m inbounds`: the command line, on the backend that Keras is configured for."""

import sys

from inbounds._cli import main

if __name__ == "__main__":
    sys.exit(main())
