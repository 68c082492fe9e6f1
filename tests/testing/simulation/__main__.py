"""`python -m tests.testing.simulation`: see `many`, which worker processes can import, as they cannot this."""

import sys

from tests.testing.simulation.many import main

if __name__ == "__main__":
    sys.exit(main())
