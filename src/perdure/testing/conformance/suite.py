"""All tests of the suite with their fixture, in the order in which a new store passes them.

For a test module of one's own: `from perdure.testing.conformance.suite import *`, and a fixture `make_store`. The tests
are the importing module's then, and its `make_store` is the one that counts.
"""

import importlib

import pytest

from perdure.testing.conformance.plugin import kit as kit

ORDER = (
    "commit", "keeping", "paging", "messages", "owning", "membership", "versions", "lanes", "handover", "lives", "edit", "races",
    "transact", "agreement", "engine",
)  # fmt: skip
MODULES = [f"perdure.testing.conformance.test_{name}" for name in ORDER]

__all__ = ["kit"]

pytest.register_assert_rewrite(*MODULES)
for module in MODULES:
    tests = {name: value for name, value in vars(importlib.import_module(module)).items() if name.startswith("test_")}
    globals().update(tests)
    __all__ += list(tests)  # pyright: ignore[reportUnsupportedDunderAll]
