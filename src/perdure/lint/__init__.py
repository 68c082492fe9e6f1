"""The lint: what is wrong inside a flow, found in the source. Nothing of the linted files is imported or run.

It knows no engine; of Perdure it imports the errors alone.
"""

from perdure.lint.check import Report, check
from perdure.lint.findings import RULES, Finding

__all__ = ["RULES", "Finding", "Report", "check"]
