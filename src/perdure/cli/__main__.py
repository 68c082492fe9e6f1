"""`python -m perdure.cli`: the command `perdure`."""

from perdure.cli import main

main()
