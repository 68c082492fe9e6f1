"""`python -m tests.soak`: see `soaking`."""

import sys

from tests.soak.soaking import main

if __name__ == "__main__":
    sys.exit(main())
