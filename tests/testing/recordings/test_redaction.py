"""A redacted recording tells nothing of what was dropped, and still replays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pydantic
import pytest

from perdure import (
    FlowFailed,
    NonDeterminismError,
    Retry,
    State,
    capture,
    flow,
    receive,
    run,
    send,
    step,
    type_name,
)
from perdure.testing.record_redaction import Where, drop
from perdure.testing.recording import Recording, record
from perdure.testing.replaying import OtherEnd, replay
from tests.support.world import World, eventually
from tests.testing.recordings.conftest import Keep
from tests.testing.recordings.test_recording import Zlib

CARD, EMAIL = "4111-1111", "ann@example.org"


@type_name("test.Colour")
class Colour(Enum):
    RED = 1


@type_name("test.Person")
@dataclass
class Person:
    email: str
    card: str
    name: str
    colour: Colour


@type_name("test.Model")
class Model(pydantic.BaseModel):
    email: str
    born: date


@step
async def charge(card: str, amount: int, *, email: str) -> dict[str, Any]:
    return {"card": card, "amount": amount, "note": f"sent to {email}"}


@step
async def declined(email: str) -> None:
    raise ValueError(f"{email} is no address")


async def note(card: str) -> str:
    return card


@flow(name="mail")
async def mail(to: Any) -> Any:
    return to


@flow(name="order")
async def order(person: Person, amount: int) -> Any:
    receipt = await charge(person.card, amount, email=person.email)
    try:
        await declined(person.email)
    except ValueError as error:
        receipt["error"] = str(error)
    await capture(note, person.card, id=f"mail {person.email}")
    await run(mail, {"email": person.email}, id=person.email)
    await send(mail, person.email, person.email)
    answer = await receive(Model)
    if amount > 100:
        await charge("", 0, email="")
    return [receipt, answer.email, await receive(str)]


async def recorded(world: World) -> Recording:
    engine = await world.engine(order, mail)
    ann = Person(EMAIL, CARD, "Ann", Colour.RED)
    handle = await engine.start(order, ann, 200, id=EMAIL)
    await handle.send(Model(email=EMAIL, born=date(1990, 5, 17)))
    await eventually(lambda: world.journal(handle), lambda journal: len(journal) == 9)
    await handle.send(5, key=f"from {EMAIL}")
    await eventually(lambda: world.inbox(handle))
    return await record(engine, order, EMAIL)


def text_of(recording: Recording, folder: Path) -> str:
    recording.save(folder / "it.json")
    assert Recording.load(folder / "it.json").loaded == recording.loaded
    return (folder / "it.json").read_text()


async def test_what_is_dropped_is_gone_everywhere_and_it_replays(world: World, tmp_path: Path) -> None:
    before = await recorded(world)
    assert EMAIL in text_of(before, tmp_path)
    after = before.redact(drop("card", "email", "born"))
    text = text_of(after, tmp_path)
    for gone in (EMAIL, "ann@", CARD, "1990", "Traceback", '"digest"'):
        assert gone not in text, gone
    assert Recording.load(tmp_path / "it.json").redacted
    assert not before.redacted
    assert (await replay(before, order)).asks_for == (await replay(after, order)).asks_for == ("receive str (7)",)


async def test_types_and_what_was_not_named_stay(world: World) -> None:
    after = (await recorded(world)).redact(drop("card", "email"))
    (person, amount) = json.loads(after.loaded.instance.arguments)
    assert person == {
        "$": "test.Person", "email": "redacted-1", "card": "redacted-2", "name": "Ann",
        "colour": {"$": "test.Colour", "name": "RED"},
    }  # fmt: skip
    assert amount == 200
    names = [entry.key for entry in after.loaded.entries]
    assert "=mail redacted-1" in names
    assert (after.id, after.loaded.inbox[0].key) == ("redacted-1", "from redacted-1")


async def test_names_and_kinds_are_still_compared(world: World) -> None:
    @flow(name="order")
    async def changed(person: Person, amount: int) -> None:
        await capture(note, person.card, name="another")

    with pytest.raises(NonDeterminismError, match=r"the journal holds step charge .* asks for step another"):
        await replay((await recorded(world)).redact(drop("email")), changed)


async def test_arguments_are_not_compared_any_more(world: World) -> None:
    @flow(name="order")
    async def changed(person: Person, amount: int) -> None:
        await charge(person.card, amount + 1, email=person.email)

    recording = await recorded(world)
    recording.loaded.entries[2:] = []
    with pytest.raises(NonDeterminismError, match="with other arguments"):
        await replay(recording, changed)
    await replay(recording.redact(drop("email")), changed)


async def test_what_decides_must_stay(world: World) -> None:
    def no_numbers(value: Any, where: Where) -> Any:
        return 0 if type(value) is int else value

    with pytest.raises(NonDeterminismError):
        await replay((await recorded(world)).redact(no_numbers), order)


async def test_a_function_is_told_where_a_value_stands(world: World) -> None:
    seen: dict[tuple[Any, ...], Any] = {}

    def look(value: Any, where: Where) -> Any:
        seen[where.part, where.kind, where.name, where.path] = value
        return value

    before = await recorded(world)
    after = before.redact(look)
    assert after.redacted
    assert seen["arguments", "flow", "order", (0, "email")] == EMAIL
    assert seen["arguments", "step", "charge", (1, "email")] == ""  # of the last call
    assert seen["outcome", "step", "charge", ("amount",)] == 0
    assert seen["error", "step", "declined", ("args", 0)] == f"{EMAIL} is no address"
    assert seen["message", "receive", "test.Model", ("v", "email")] == EMAIL
    assert seen["message", "send", "mail", ()] == EMAIL
    assert seen["outcome", "wait", "mail", ("email",)] == EMAIL
    assert seen["message", "message", "int", ()] == 5
    assert seen["id", "flow", "order", ()] == EMAIL
    assert seen["id", "wait", "mail", ()] == EMAIL
    assert seen["id", "step", "note", ()] == f"mail {EMAIL}"
    assert seen["id", "message", "int", ()] == f"from {EMAIL}"
    await replay(after, order)


async def test_what_is_replaced_as_a_whole_is_not_looked_into(world: World) -> None:
    paths: list[Any] = []

    def whole(value: Any, where: Where) -> Any:
        paths.append((where.kind, where.path))
        person = isinstance(value, dict) and value.get("$") == "test.Person"
        return {**value, "email": "x", "card": "y"} if person else value

    after = (await recorded(world)).redact(whole)
    assert ("flow", (0, "email")) not in paths
    assert json.loads(after.loaded.instance.arguments)[0]["card"] == "y"


async def test_an_id_stays_a_text(world: World) -> None:
    with pytest.raises(TypeError, match="must stay a text"):
        (await recorded(world)).redact(lambda value, where: None if where.part == "id" else value)


async def test_every_type_stays_what_it_is(world: World, keep: Keep) -> None:
    values: dict[str, Any] = {
        "int": 7, "big": 1 << 80, "float": 1.5, "nan": float("inf"), "bool": True, "none": None, "text": "secret",
        "bytes": b"secret", "uuid": UUID(int=7), "date": date(1990, 1, 1), "decimal": Decimal("1.50"),
        "aware": datetime(1990, 1, 1, tzinfo=UTC), "naive": datetime.fromisoformat("1990-01-01"), "time": time(5, 6),
        "delta": timedelta(days=3), "tuple": (1, "secret"), "set": {1, 2}, "frozen": frozenset({"secret"}),
        "pairs": {1: "secret"}, "list": ["secret", 1], "dict": {"deep": {"deeper": "secret"}}, "path": Path("secret"),
        "colour": Colour.RED, "person": Person("secret", "secret", "secret", Colour.RED), "complex": 1j,
        "error": KeyError("secret"),
    }  # fmt: skip

    @flow(name="order")
    async def order(given: dict[str, Any]) -> dict[str, str]:
        return {name: type(value).__name__ + str(getattr(value, "tzinfo", "")) for name, value in given.items()}

    engine = await world.engine(order)
    await engine.run(order, values, id="1")
    after = (await keep(engine, order, "1")).redact(drop(*values))
    assert b"secret" not in after.loaded.instance.arguments
    assert b"1990" not in after.loaded.instance.arguments
    found = await replay(after, order)
    assert found.result == {n: type(v).__name__ + str(getattr(v, "tzinfo", "")) for n, v in values.items()}


async def test_the_end_of_a_redacted_one_is_compared_by_its_kind(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order(email: dict[str, str]) -> str:
        return email["email"]

    @flow(name="order")
    async def changed(email: dict[str, str]) -> str:
        raise ValueError(email)

    engine = await world.engine(order)
    await engine.run(order, {"email": EMAIL}, id="1")
    after = (await keep(engine, order, "1")).redact(lambda value, where: value if where.part == "id" else
                                                    "x" if type(value) is str else value)  # fmt: skip
    assert (await replay(after, order)).result == "x"
    with pytest.raises(OtherEnd):
        await replay(after, changed)


async def test_pending_steps_and_failures(world: World, keep: Keep) -> None:
    @step(name="shaky", retry=Retry(attempts=5, initial=60))
    async def shaky(email: str) -> None:
        raise OSError(f"{email} is away")

    @flow(name="order")
    async def order(person: dict[str, str]) -> None:
        await capture(shaky, person["email"], id=f"mail {person['email']}")

    engine = await world.engine(order)
    handle = await engine.start(order, {"email": EMAIL}, id="1")
    await eventually(lambda: world.pending(handle))
    after = (await keep(engine, order, "1")).redact(drop("email"))
    assert EMAIL.encode() not in repr(after.loaded).encode()
    assert (await replay(after, order)).asks_for == ("step shaky (=mail redacted-1)",)


async def test_one_that_failed_and_one_that_is_blocked(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order(person: dict[str, str]) -> None:
        raise ValueError(person["email"])

    engine = await world.engine(order)
    with pytest.raises(FlowFailed):
        await engine.run(order, {"email": EMAIL}, id="1")
    after = (await keep(engine, order, "1")).redact(drop("email"))
    assert (after.state, after.loaded.instance.reason) == (State.FAILED, None)
    assert EMAIL not in repr(after.loaded)
    assert repr((await replay(after, order)).error) == "ValueError('redacted-1')"


async def test_sealed_payloads_cannot_be_redacted(world: World) -> None:
    engine = await world.engine(mail, codec=Zlib())
    await engine.run(mail, "x", id="1")
    sealed = await record(f"sqlite:///{world.path}", mail, "1")
    with pytest.raises(ValueError, match="sealed it; record by its engine"):
        sealed.redact(drop("email"))
    assert (await record(engine, mail, "1")).redact(drop("email")).redacted
