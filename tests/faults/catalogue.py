"""Which tests show which fault: `python -m tests.faults.catalogue` writes it into docs/faults.md.

A test says so itself, by the markers `fault` and `peer`. Those of the stores' conformance suite are shipped to users,
who have no such markers, and are named here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
MARKERS = ("fault", "peer")

CONFORMANCE: dict[str, dict[str, tuple[int, ...]]] = {
    "test_a_batch_under_way_is_done_when_the_epoch_is_raised_or_can_never_be": {"fault": (14,)},
    "test_a_batch_under_way_is_done_when_its_replica_is_taken_over_or_can_never_be": {"fault": (3,), "peer": (5, 27)},
    "test_a_forked_child_is_refused_at_once": {"fault": (7,)},
    "test_a_lease_is_renewed_from_a_thread_while_the_loop_stands_still": {"fault": (5,), "peer": (31, 44)},
    "test_a_message_for_an_ended_instance_is_kept_and_a_cancel_request_dropped": {"fault": (37,)},
    "test_a_message_for_an_unknown_id_waits_for_its_creation": {"fault": (37,)},
    "test_a_message_with_a_key_seen_before_is_dropped_even_when_taken": {"fault": (36,)},
    "test_a_replica_that_renews_is_left_alone": {"peer": (1,)},
    "test_a_replica_that_was_taken_over_joins_under_a_new_id": {"peer": (2,)},
    "test_a_takeover_that_was_cut_off_is_finished_by_another": {"fault": (2,), "peer": (4,)},
    "test_a_thorough_claim_finds_messages_without_a_wakeup_row": {"fault": (12,), "peer": (39, 41)},
    "test_a_watch_is_answered_once_when_the_end_comes_at_the_same_instant": {"fault": (41,), "peer": (24,)},
    "test_all_fields_come_back_as_they_were_written": {"fault": (44,)},
    "test_an_answer_for_another_run_is_dropped": {"fault": (55,), "peer": (37,)},
    "test_an_instance_is_claimed_by_one": {"fault": (53,), "peer": (6,)},
    "test_an_instance_that_waits_for_itself_is_told_nothing_when_it_is_edited_away": {"peer": (24,)},
    "test_batches_that_touch_the_same_instances_in_another_order_are_all_written": {"fault": (18,), "peer": (36,)},
    "test_ids_are_compared_byte_for_byte": {"fault": (44,), "peer": (30,)},
    "test_of_two_edits_one_is_made": {"fault": (52,), "peer": (9,)},
    "test_of_two_messages_with_one_key_one_is_kept": {"fault": (36,)},
    "test_of_two_who_create_one_id_one_does": {"fault": (54,)},
    "test_the_clock_is_the_systems": {"fault": (21,), "peer": (40,)},
    "test_two_who_claim_get_different_instances": {"fault": (53,), "peer": (6, 8)},
    "test_values_as_large_as_an_engine_lets_through_are_kept_whole": {"fault": (42,)},
    "test_what_is_left_to_others_takes_no_place_in_a_claim": {"peer": (4,)},
    "test_what_was_sent_before_the_deletion_does_not_reach_the_new_life": {"fault": (37, 55)},
    "test_who_has_only_just_joined_takes_nobody_over_by_lease": {"peer": (1, 31)},
    "test_who_was_stopped_too_takes_nobody_over_before_a_full_lease": {"fault": (2,), "peer": (31,)},
}  # fmt: skip

BUGS: dict[int, str] = {
    1: "who lives is rescued because time has passed",
    2: "a name is used again, and what its last bearer left is never rescued",
    3: "who rescues and who runs compute another time limit",
    4: "what cannot be taken fills the batch, and the rest starves",
    5: "a late word of an old term counts in the next one",
    6: "a second one recovers by a list that is out of date",
    7: "who starts up takes over what it has just begun itself",
    8: "of two who recover one gets the message, the other nothing",
    9: "what was cancelled has succeeded after all; a result is written over",
    10: "a running task is taken by the garbage collector",
    11: "cancelled while it starts a child, and the child has no id",
    12: "a wait that is cut off stays registered",
    13: "an error that a step gives is taken for one of the connection, and tried for ever",
    14: "a time without a zone is read as local",
    15: "one that fails again and again keeps all others from being recovered",
    16: "the database is closed before those who use it have ended",
    17: "what is unloaded cleans up in the context of another",
    18: "a cancellation is lost while a child starts",
    19: "a cancellation that was caught counts on",
    20: "a wait that was cancelled leaves its timer",
    21: "a task that is dropped leaves a schedule standing for ever",
    22: "what was acknowledged goes backwards",
    23: "an answer is given before the commit, and the message is lost with the leader",
    24: "it waits for what only it can bring about",
    25: "it is alive and does nothing",
    26: "what was once seen to be under way is never looked at again",
    27: "two who think that they own it write over each other",
    28: "messages go out before the state that sent them is kept",
    29: "one message that cannot be read holds up others",
    30: "ids that differ in case alone are one",
    31: "a late renewal, or one that fails, decides about what has ended or runs on",
    32: "a place is taken by who died, and never given back",
    33: "a cron time in the hour that comes twice, or not at all, loops",
    34: "a wait longer than the lease is begun again and again",
    35: "a burst takes all connections, and each waits for another one",
    36: "two take the same rows in another order",
    37: "a late word of an old attempt is written over the end",
    38: "a wait hangs after being unloaded and loaded",
    39: "a message between looking and waiting wakes nobody",
    40: "a wait goes by the clock of the worker",
    41: "without notifications a cancellation is not heard",
    42: "a call that is cancelled leaves its transaction or its connection open",
    43: "a stop during the start is lost, or hangs",
    44: "a driver holds the interpreter, and no lease is renewed",
}
"""What other engines had once: the numbers of the marker `peer`."""

_BEGIN, _END = "<!-- tests -->\n", "<!-- end of tests -->\n"


def shown() -> dict[str, dict[int, list[str]]]:
    """By marker and number: the tests that show it, as `folder/file.py::test`."""
    found: dict[str, dict[int, list[str]]] = {marker: {} for marker in MARKERS}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, marker, number in _marked(path):
            found[marker].setdefault(number, []).append(f"{path.relative_to(ROOT / 'tests')}::{name}")
    there = {name for path in _suite() for name in _names(path)}
    for name, marks in CONFORMANCE.items():
        if name not in there:
            raise LookupError(f"the conformance suite has no test {name}")
        for marker, numbers in marks.items():
            for number in numbers:
                found[marker].setdefault(number, []).append(f"conformance::{name}")
    return found


def _suite() -> list[Path]:
    return sorted((ROOT / "src/perdure/testing/conformance").glob("test_*.py"))


def _tests(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


def _names(path: Path) -> list[str]:
    return [node.name for node in _tests(path)]


def _marked(path: Path) -> Iterator[tuple[str, str, int]]:
    for node in _tests(path):
        for each in node.decorator_list:
            if isinstance(each, ast.Call) and (word := ast.unparse(each.func)).startswith("pytest.mark."):
                marker = word.removeprefix("pytest.mark.")
                if marker in MARKERS:
                    for number in each.args:
                        yield node.name, marker, ast.literal_eval(number)


_ROW = re.compile(r"^\| (\d+) \| (.*) \| ([^|]*) \|$", re.MULTILINE)


def rows() -> dict[int, str]:
    """The last column of the page's table, by number."""
    return {int(found[1]): found[3] for found in _ROW.finditer(PAGE.read_text(encoding="utf-8"))}


def stores(names: list[str]) -> str:
    """What these tests run on, in words."""
    kinds = {kind for name in names for kind in _kinds(name)}
    return ", ".join(kind for kind in ("any store", "SQLite", "PostgreSQL", "MySQL") if kind in kinds)


def _kinds(name: str) -> tuple[str, ...]:
    if "mysql" in name or "mariadb" in name:
        return ("MySQL",)
    if name.startswith("servers/"):
        return ("PostgreSQL",)
    if name.startswith(("races/", "conformance::")):
        return ("SQLite", "PostgreSQL")
    if name.startswith(("faults/", "crash/", "unit/test_sqlite")):
        return ("SQLite",)
    return ("any store",)


OF_BUGS = """## Bugs that other engines had

Each was found in an engine that people trust, and is tested here too.
"""


def tests_by_number() -> str:
    """The part of the page that is made of the markers."""
    lines: list[str] = []
    for marker in MARKERS:
        for number, names in sorted(shown()[marker].items()):
            lines.append(f"**Fault {number}**\n" if marker == "fault" else f"*{BUGS[number]}*\n")
            by_file: dict[str, list[str]] = {}
            for name in names:
                file, _, test = name.partition("::")
                by_file.setdefault(file, []).append(test.removeprefix("test_").replace("_", " "))
            lines += [f"- `{file}`: {'; '.join(tests)}" for file, tests in by_file.items()]
            lines.append("")
        if marker == "fault":
            lines.append(OF_BUGS)
    return "\n".join(lines)


def written() -> str:
    """The page as it must be: what the rows are shown on, and the lists of tests."""
    found = shown()["fault"]

    def row(match: re.Match[str]) -> str:
        number = int(match[1])
        return f"| {number} | {match[2]} | {stores(found[number]) if number in found else match[3]} |"

    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    return f"{_ROW.sub(row, before)}{_BEGIN}\n{tests_by_number()}\n{_END}{rest.partition(_END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
