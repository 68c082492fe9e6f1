"""docs/faults.md says which tests show what, and says it of every fault."""

from tests.faults import catalogue

FAULTS = range(1, 57)


def test_the_page_says_what_the_markers_say() -> None:
    assert catalogue.PAGE.read_text(encoding="utf-8") == catalogue.written(), "run python -m tests.faults.catalogue"


def test_every_fault_has_a_test_or_a_reason() -> None:
    rows, shown = catalogue.rows(), catalogue.shown()["fault"]
    assert list(rows) == list(FAULTS)
    assert set(shown) <= set(FAULTS)
    without = {number: why for number, why in rows.items() if number not in shown}
    assert all(len(why) > 20 for why in without.values()), without
