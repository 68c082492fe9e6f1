"""The command `perdure`. What it is made of (click, rich) is loaded when it is called, and may be missing."""

from __future__ import annotations

import sys
from typing import Final

MISSING: Final = (
    "perdure: the command needs click and rich, and {} is not installed: pip install 'perdure[cli]' "
    "(`python -m perdure.lint` works without)"
)


def main() -> None:
    """The process has done what its arguments say, and exits."""
    try:
        from perdure.cli.commands import perdure
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(MISSING.format(error.name))
    perdure(prog_name="perdure")
