"""What is recorded, what the file shows, and which files are refused."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import DoesNotFit, InstanceNotFound, NotOurs, NotSupported, StoreUnavailable, flow, receive, step
from perdure.stores.memory import MemoryStore
from perdure.testing.record_file import NotARecording
from perdure.testing.recording import Recording, record
from perdure.testing.replaying import replay
from tests.support.world import World
from tests.testing.recordings.conftest import Keep


class Zlib:
    """A codec whose bytes are no JSON."""

    def encode(self, data: bytes) -> bytes:
        return zlib.compress(data)

    def decode(self, data: bytes) -> bytes:
        return zlib.decompress(data)


@step
async def work(what: str, *, tag: Any = None) -> dict[str, Any]:
    return {"z": what, "a": [1.0, 1e300, None], "é": tag}


@flow(name="order")
async def order(what: str) -> Any:
    found = await work(what, tag=(1, 2))
    return [found, await receive(int)]


async def parked(world: World, **options: Any) -> Any:
    """An engine on which `order` waits."""
    engine = await world.engine(order, **options)
    await world.parked(await engine.start(order, "a", id="1"))
    return engine


# ---------------------------------------------------------------- recording


async def test_a_url_is_only_read_beside_the_engine(world: World) -> None:
    engine = await parked(world)
    assert await record(f"sqlite:///{world.path}", "order", "1") == await record(engine, order, "1")


async def test_an_open_store_and_one_in_memory(tmp_path: Path) -> None:
    world = World("memory", tmp_path)
    engine = await parked(world)
    found = await record(engine, order, "1")
    assert found == await record(world.store(), order, "1")
    assert (await replay(found, order)).entries == 2
    await world.end()


async def test_what_is_not_there(world: World, tmp_path: Path) -> None:
    engine = await parked(world)
    with pytest.raises(InstanceNotFound):
        await record(engine, order, "2")
    with pytest.raises(StoreUnavailable, match="there is no database file"):
        await record(f"sqlite:///{tmp_path / 'none.db'}", order, "1")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(NotSupported, match="memory store"):
        await record("memory://", order, "1")


async def test_a_foreign_database_and_an_empty_file_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with sqlite3.connect(tmp_path / "foreign.db") as db:
        db.execute("create table other(a)")
    db.close()
    before = (tmp_path / "foreign.db").read_bytes()
    for name, text in (("empty", "holds no Perdure store"), ("foreign", "holds another program's database")):
        with pytest.raises(NotOurs, match=text):
            await record(f"sqlite:///{tmp_path / name}.db", order, "1")
    assert (tmp_path / "empty.db").read_bytes() == b""
    assert (tmp_path / "foreign.db").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.db", "foreign.db"]


async def test_reading_leaves_no_file(world: World, tmp_path: Path) -> None:
    await world.close(await parked(world))
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    await record(f"sqlite:///{world.path}", order, "1")
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


async def test_an_engine_opens_what_its_codec_has_sealed(world: World, keep: Keep, tmp_path: Path) -> None:
    engine = await parked(world, codec=Zlib())
    await keep(engine, order, "1")
    text = (tmp_path / "recording.json").read_text()
    assert '"z": "a"' in text
    assert "base64" not in text
    assert (await replay(await keep(engine, order, "1"), order)).asks_for == ("receive int (1)",)


async def test_sealed_payloads_stay_sealed_without_the_engine(world: World, tmp_path: Path) -> None:
    await parked(world, codec=Zlib())
    found = await record(f"sqlite:///{world.path}", order, "1")
    found.save(tmp_path / "sealed.json")
    assert '"outcome_base64"' in (tmp_path / "sealed.json").read_text()
    assert Recording.load(tmp_path / "sealed.json") == found
    with pytest.raises(DoesNotFit):
        await replay(found, order)


async def test_an_engine_with_another_codec_says_so(world: World) -> None:
    await world.close(await parked(world))
    with pytest.raises(DoesNotFit, match=r"codec= cannot read .*arguments"):
        await record(await world.engine(execute=False, codec=Zlib()), order, "1")


# ---------------------------------------------------------------- the file


async def test_payloads_are_shown_as_they_are(world: World, keep: Keep, tmp_path: Path) -> None:
    await keep(await parked(world), order, "1")
    shown = json.loads((tmp_path / "recording.json").read_text())
    assert list(shown) == ["perdure_recording", "redacted", "instance", "parent", "entries", "pending", "inbox"]
    assert shown["instance"]["arguments"] == ["a"]
    (done,) = [entry for entry in shown["entries"] if entry["kind"] == "step"]
    assert done["arguments"] == [["a"], {"tag": {"$": "tuple", "v": [1, 2]}}]
    assert list(done["outcome"]) == ["z", "a", "é"]
    assert "é" in (tmp_path / "recording.json").read_text()


async def test_the_same_recording_is_the_same_text(world: World, tmp_path: Path) -> None:
    engine = await parked(world)
    for name in ("one", "two"):
        (await record(engine, order, "1")).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


async def test_a_file_that_was_laid_out_anew_is_the_same(world: World, tmp_path: Path) -> None:
    found = await record(await parked(world), order, "1")
    found.save(tmp_path / "it.json")
    (tmp_path / "it.json").write_text(json.dumps(json.loads((tmp_path / "it.json").read_text())))
    assert Recording.load(tmp_path / "it.json") == found


Edit = Callable[[dict[str, Any]], object]
DAMAGES: dict[str, tuple[Edit, str]] = {
    "field missing": (lambda doc: doc.pop("inbox"), "missing required field `inbox`"),
    "field too many": (lambda doc: doc.update(more=1), "unknown field `more`"),
    "wrong type": (lambda doc: doc["entries"][1].update(seq="1"), r"Expected `int`, got `str`.*entries\[1\].seq"),
    "wrong state": (lambda doc: doc["instance"].update(state="lost"), "Invalid enum value 'lost'"),
    "no hex": (lambda doc: doc["instance"].update(uid="xy"), "hexadecimal"),
    "short uid": (lambda doc: doc["instance"].update(uid="00"), "16 bytes"),
    "no base64": (lambda doc: doc["entries"][1].update(outcome_base64="%"), "base64"),
    "no arguments": (lambda doc: doc["instance"].pop("arguments"), "no arguments"),
    "twice": (lambda doc: doc["entries"][1].update(outcome_base64="AA=="), "given twice"),
    "order": (lambda doc: doc["entries"].reverse(), "entry 0 stands after entry 1"),
    "no beginning": (lambda doc: doc["entries"].pop(0), "a journal begins with `begun`"),
    "no message": (lambda doc: doc["entries"][1].update(kind="arrival"), "arrival of no message"),
    "pending": (lambda doc: doc["pending"].append({"key": "0", "kind": "receive", "name": "x"}), "only steps"),
    "inbox": (
        lambda doc: doc["inbox"].append({"mid": "00", "kind": "evict", "type": "x", "sent_at": 1.0}), "'evict'",
    ),
    "no entries": (lambda doc: doc.update(entries={}), "Expected `array`, got `object`"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_file_is_refused(world: World, keep: Keep, tmp_path: Path, damage: str) -> None:
    await keep(await parked(world), order, "1")
    path = tmp_path / "recording.json"
    doc = json.loads(path.read_text())
    edit, told = DAMAGES[damage]
    edit(doc)
    path.write_text(json.dumps(doc))
    with pytest.raises(NotARecording, match=rf"recording\.json is damaged: .*{told}.*; restore the file, or record"):
        Recording.load(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b'{"perdure_recording": 1,', "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "is JSON, but no recording"),
        (b'{"name": "a package"}', "is JSON, but no recording"),
        (b'{"perdure_recording": 2}', "of format 2, and this Perdure reads 1: upgrade Perdure, or record"),
        (b'{"perdure_recording": "1"}', "of format '1'"),
        (b'{"perdure_recording": 1}', "is damaged"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, text: bytes, told: str) -> None:
    (tmp_path / "it.json").write_bytes(text)
    with pytest.raises(NotARecording, match=told):
        Recording.load(tmp_path / "it.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Recording.load(tmp_path / "it.json")


async def test_nothing_that_a_file_names_is_imported(world: World, keep: Keep, tmp_path: Path) -> None:
    await keep(await parked(world), order, "1")
    path = tmp_path / "recording.json"
    doc = json.loads(path.read_text())
    doc["instance"]["arguments"] = [{"$": "antigravity:geohash", "v": 1}]
    doc["entries"][1]["outcome"] = {"$": "this:s"}
    path.write_text(json.dumps(doc))
    code = f"""
import asyncio, sys
from perdure import flow
from perdure.testing.recording import Recording
from perdure.testing.replaying import replay
@flow(name="order")
async def order(what): ...
try:
    asyncio.run(replay(Recording.load({str(path)!r}), order))
except Exception as error:
    print(type(error).__name__)
print({{"this", "antigravity"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "UnknownType\nset()\n", done.stderr


async def test_a_memory_store_that_is_open_can_be_recorded() -> None:
    with pytest.raises(InstanceNotFound):
        await record(MemoryStore(), order, "1")
