"""`python -m perdure.lint PATH`: see `perdure.lint.command`."""

import sys

from perdure.lint.command import main

sys.exit(main())
