"""The suite's own fixture, where pytest runs the tests in place: no plugin's and no conftest's of the same name counts."""

from perdure.testing.conformance.plugin import kit as kit
