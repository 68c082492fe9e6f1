"""Programs are deployed one after the other over the same database: types, flows and steps change, move and go.

Each program is a process of its own that dies as by SIGKILL. An instance goes on in the next one, or waits visibly for
one that can continue it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploys.programs import ANOTHER, Deploys, Programs


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    programs = Programs()
    yield programs
    programs.close()


@pytest.fixture
def deploys(programs: Programs, tmp_path: Path) -> Deploys:
    return Deploys(programs, tmp_path)


START = ["start", "Order('a')"]
GO = ["send", "'go'"]
RESULT = ["result"]

STEPS = """
@step(name="note")
async def note(what):
    ran("note")
@step(name="keep")
async def keep(what):
    ran("keep")
@step(name="make")
async def make(id):
    ran("make")
    return Order(id)
"""

# ---------------------------------------------------------------- types: a field more

DATACLASS = "@dataclass\nclass Order:\n    id: str\n"
KINDS = {
    "frozen dataclass": "@dataclass(frozen=True, slots=True)\nclass Order:\n    id: str\n",
    "struct": "class Order(msgspec.Struct):\n    id: str\n",
    "tagged struct": "class Order(msgspec.Struct, frozen=True, tag='order'):\n    id: str\n",
    "pydantic": "class Order(pydantic.BaseModel):\n    def __init__(self, id, **more):\n"
    "        super().__init__(id=id, **more)\n    id: str\n",
    "named tuple": "class Order(NamedTuple):\n    id: str\n",
}
NOTE = "    note: str = 'none'\n"

EVERYWHERE = """
@flow(name="order")
async def order(first):
    await note(first)
    made = await make("b")
    taken = await receive(Order)
    await keep([taken, {"made": (made, {1, 2})}])
    return [first, made, taken, await receive(str)]
"""

PLACES = {
    # where a value is recorded: what is recorded last, and the flow
    "argument": ("step note", """
@flow(name="order")
async def order(first):
    await note(first.id)
    return [first, await receive(str)]
"""),
    "argument of a step": ("step note", """
@flow(name="order")
async def order(first):
    await note(Order("b"))
    return [first, await receive(str)]
"""),
    "argument of a step by keyword, inside others": ("step note", """
@flow(name="order")
async def order(first):
    await note(what=[{"other": (Order("b"), {1, 2})}])
    return [first, await receive(str)]
"""),
    "argument beside one that is not encoded": ("step pay", """
@step(name="pay")
async def pay(client, order):
    ran("pay")
@flow(name="order")
async def order(first):
    await pay(object(), Order("b"))
    return [first, await receive(str)]
"""),
    "result of a step": ("step make", """
@flow(name="order")
async def order(first):
    return [await make("b"), await receive(str)]
"""),
    "error of a step": ("step refuse", """
class Refused(Exception):
    def __init__(self, order):
        super().__init__("refused")
        self.order = order
@step(name="refuse")
async def refuse():
    ran("refuse")
    raise Refused(Order("b"))
@flow(name="order")
async def order(first):
    try:
        await refuse()
    except Refused as error:
        return [error.order, await receive(str)]
"""),
    "progress of a step": ("progress", """
@step(name="slow")
async def slow():
    seen = current().progress(Order)
    if seen is None:
        current().heartbeat(Order("so far"))
        await asyncio.sleep(3600)
    return seen
@flow(name="order")
async def order(first):
    return [await slow(), await receive(str)]
"""),
    "messages, taken and not": ("step note", """
@flow(name="order")
async def order(first):
    taken = await receive(Order)
    await note(taken.id)
    return [taken, await receive(str), await receive(Order)]
"""),
    "stream": ("step note", """
@flow(name="order")
async def order(first):
    read = await messages(Order).take(2).list()
    await note(len(read))
    return [read, await receive(str), await messages(Order).take(2).list()]
"""),
    "child": ("wait child", """
@flow(name="child")
async def child(given):
    await note(given)
    return given
@flow(name="order")
async def order(first):
    return [await run(child, Order("b")), await receive(str)]
"""),
    "child under way": ("start child", """
@flow(name="child")
async def child(given):
    await receive(int)
    return given
@flow(name="order")
async def order(first):
    kid = await start(child, Order("b"), id="kid")
    word = await receive(str)
    await send(child, "kid", 1)
    return [word, await kid.result()]
"""),
    "message to another": ("step note", """
@flow(name="order")
async def order(first):
    await send("friend", "7", Order("b"), key="k", name="n")
    await note(1)
    return [first, await receive(str)]
"""),
    "exposed": ("step note", """
@flow(name="order")
async def order(first):
    expose("order", first)
    await note(1)
    return [exposed("order"), await receive(str)]
"""),
}  # fmt: skip


def a_field_more(deploys: Deploys, last: str, flow: str, old: str, new: str) -> None:
    """The instance goes on where the new type reads what the old one wrote, and nothing is done again."""
    says = [["send", "Order('b')"], ["send", "Order('c')"]]
    deploys.deploy(START, *says, ["recorded", last], orders=old + STEPS + flow)
    before = deploys.ran()
    result = deploys.deploy(START, GO, RESULT, orders=new + STEPS + flow)[-1]
    assert "note='none'" in result
    assert "'go'" in result
    assert deploys.ran() == before


@pytest.mark.parametrize("place", PLACES)
def test_a_new_field_with_a_default_wherever_a_value_is_recorded(deploys: Deploys, place: str) -> None:
    a_field_more(deploys, *PLACES[place], DATACLASS, DATACLASS + NOTE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_field_with_a_default_in_every_kind_of_class(deploys: Deploys, kind: str) -> None:
    a_field_more(deploys, "step keep", EVERYWHERE, KINDS[kind], KINDS[kind] + NOTE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (DATACLASS, DATACLASS + "    note: list = field(default_factory=lambda: ['none'])\n"),
        (KINDS["struct"], KINDS["struct"] + "    note: list = msgspec.field(default_factory=lambda: ['none'])\n"),
        (KINDS["pydantic"], KINDS["pydantic"] + "    note: list = pydantic.Field(default_factory=lambda: ['none'])\n"),
    ],
    ids=["dataclass", "struct", "pydantic"],
)
def test_a_new_field_with_a_default_that_is_made(deploys: Deploys, before: str, after: str) -> None:
    deploys.deploy(START, ["send", "Order('b')"], ["recorded", "step keep"], orders=before + STEPS + EVERYWHERE)
    result = deploys.deploy(GO, RESULT, orders=after + STEPS + EVERYWHERE)[-1]
    assert result.count("note=['none']") == 3


def test_a_value_under_a_new_field_is_another_argument(deploys: Deploys) -> None:
    """The default is what was recorded: a call that gives something else is another call."""
    flow = PLACES["argument of a step"][1]
    changed = flow.replace('Order("b")', 'Order("b", "given")')
    deploys.deploy(START, ["recorded", "step note"], orders=DATACLASS + STEPS + flow)
    reason = deploys.deploy(GO, ["is", "blocked"], orders=DATACLASS + NOTE + STEPS + changed)[-1]
    assert "the code asks for step note with other arguments" in reason
    assert "'go'" in deploys.deploy(RESULT, orders=DATACLASS + NOTE + STEPS + flow)[-1]


@pytest.mark.fault(45)
@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (DATACLASS, DATACLASS + "    note: str\n", "Order.note has no default"),
        (DATACLASS + NOTE, DATACLASS, "Order has no field 'note' any more"),
        (DATACLASS, DATACLASS.replace("id: str", "id: int"), "Order.id is annotated otherwise"),
        (KINDS["struct"], KINDS["struct"] + "    note: str\n", "note"),
        (KINDS["pydantic"], KINDS["pydantic"] + "    note: str\n", "Order.note has no default"),
        (KINDS["pydantic"] + NOTE, KINDS["pydantic"], "Order has no field 'note' any more"),
        (
            "Order = namedtuple('Order', 'id')\n",
            "Order = namedtuple('Order', 'id note')\n",
            "Order.note has no default",
        ),
    ],
)
def test_a_type_that_fits_no_more_waits_for_one_that_does(deploys: Deploys, before: str, after: str, why: str) -> None:
    last, flow = PLACES["result of a step"]
    deploys.deploy(START, ["recorded", last], orders=before + STEPS + flow)
    reason = deploys.deploy(GO, ["is", "blocked"], ["find", "blocked"], orders=after + STEPS + flow)
    assert reason[1].startswith("DoesNotFit: ")
    assert why in reason[1]
    assert reason[2] == ["order 1"]
    assert "'go'" in deploys.deploy(RESULT, orders=before + STEPS + flow)[-1]
    assert deploys.ran() == ["make"]


# ---------------------------------------------------------------- types: other names, other members

RENAMED = {
    "named from the beginning": (
        "@type_name('Order')\n" + DATACLASS,
        "@type_name('Order')\n" + DATACLASS.replace("Order", "Purchase") + "Order = Purchase\n",
    ),
    "named when it was renamed": (
        DATACLASS,
        "@type_name('orders:Order')\n" + DATACLASS.replace("Order", "Purchase") + "Order = Purchase\n",
    ),
    "with a field more": (
        "@type_name('Order')\n" + KINDS["struct"],
        "@type_name('Order')\n" + KINDS["struct"].replace("Order", "Purchase") + NOTE + "Order = Purchase\n",
    ),
    "dataclass above its name": (
        "@dataclass\n@type_name('Order')\nclass Order:\n    id: str\n",
        "@dataclass(slots=True)\n@type_name('Order')\nclass Purchase:\n    id: str\nOrder = Purchase\n",
    ),
    "error": (
        DATACLASS + "class Refused(Exception): pass\n",
        DATACLASS + "@type_name('orders:Refused')\nclass Declined(Exception): pass\nRefused = Declined\n",
    ),
}
RAISES = """
@step(name="refuse")
async def refuse():
    ran("refuse")
    raise Refused("no")
@flow(name="order")
async def order(first):
    try:
        await refuse()
    except Refused as error:
        return [repr(error), await receive(str)]
"""


GIVEN = """
@flow(name="order")
async def order(first):
    made = await make("b")
    read = await messages(Order).take(1).list()
    await keep([first, {"made": (made, {1, 2})}, read])
    return [first, made, read, await receive(str)]
"""


@pytest.mark.parametrize("how", RENAMED)
def test_a_class_is_renamed(deploys: Deploys, how: str) -> None:
    before, after = RENAMED[how]
    flow, last = (RAISES, "step refuse") if how == "error" else (GIVEN, "step keep")
    deploys.deploy(START, ["send", "Order('b')"], ["recorded", last], orders=before + STEPS + flow)
    done = deploys.ran()
    result = deploys.deploy(START, GO, RESULT, orders=after + STEPS + flow)[-1]
    assert ("Declined('no')" if how == "error" else "[Purchase(id='a'") in result
    assert deploys.ran() == done


RECEIVED = """
@flow(name="order")
async def order(first):
    got = await receive(FORM)
    await note(1)
    return [got, await receive(str)]
"""


@pytest.mark.parametrize("form", ["Order", "Order | int", "list[Order]"])
@pytest.mark.parametrize("how", ["renamed", "moved"])
def test_a_class_that_was_received_is_renamed_or_moves(deploys: Deploys, how: str, form: str) -> None:
    named, flow = "@type_name('Order')\n" + DATACLASS, STEPS + RECEIVED.replace("FORM", form)
    message = "[Order('b')]" if form.startswith("list") else "Order('b')"
    deploys.deploy(START, ["send", message], ["recorded", "step note"], orders=named + flow)
    if how == "moved":
        result = deploys.deploy(GO, RESULT, models=named, orders="from models import Order\n" + flow)[-1]
        assert result.replace("[Order(id='b')]", "Order(id='b')") == "[Order(id='b'), 'go']"
    else:
        renamed = named.replace("class Order", "class Purchase") + "Order = Purchase\n"
        result = deploys.deploy(GO, RESULT, orders=renamed + flow)[-1]
        assert result.replace("[Purchase(id='b')]", "Purchase(id='b')") == "[Purchase(id='b'), 'go']"


@pytest.mark.parametrize("where", ["types", "orders"])
def test_a_class_moves_to_another_module(deploys: Deploys, where: str) -> None:
    """Named, it is found wherever it is; not named, its module is part of its name."""
    named = "@type_name('Order')\n" if where == "types" else ""
    flow = STEPS + PLACES["result of a step"][1]
    deploys.deploy(START, ["recorded", "step make"], orders=named + DATACLASS + flow)
    moved = {"models": named + DATACLASS, "orders": "from models import Order\n" + flow}
    if named:
        assert deploys.deploy(GO, RESULT, modules=moved)[-1] == "[Order(id='b'), 'go']"
        return
    reason = deploys.deploy(GO, ["is", "blocked"], modules=moved)[-1]
    assert "type 'orders:Order' is not loaded here" in reason
    moved["models"] = "@type_name('orders:Order')\n" + DATACLASS
    assert deploys.deploy(RESULT, modules=moved)[-1] == "[Order(id='b'), 'go']"


ENUMS = {
    "member added": (
        "class Colour(Enum):\n    RED = 1\n    BLUE = 2\n",
        "class Colour(Enum):\n    GREEN = 0\n    RED = 1\n    BLUE = 2\n",
    ),
    "member renumbered": (
        "class Colour(Enum):\n    RED = 1\n    BLUE = 2\n",
        "class Colour(Enum):\n    BLUE = 1\n    RED = 2\n",
    ),
    "strings": (
        "class Colour(StrEnum):\n    RED = 'red'\n",
        "class Colour(StrEnum):\n    BLUE = 'blue'\n    RED = 'rouge'\n",
    ),
    "numbers": (
        "class Colour(IntEnum):\n    RED = 1\n",
        "class Colour(IntEnum):\n    ANY = 0\n    RED = 1\n",
    ),
    "flags": (
        "class Colour(Flag):\n    RED = 1\n    BLUE = 2\n",
        "class Colour(Flag):\n    GREEN = 1\n    RED = 2\n    BLUE = 4\n",
    ),
    "old name as an alias": (
        "class Colour(Enum):\n    RED = 1\n",
        "class Colour(Enum):\n    CRIMSON = 1\n    RED = 1\n",
    ),
}
COLOURS = """
@step(name="paint")
async def paint(colour):
    ran("paint")
    return colour
@flow(name="order")
async def order(first):
    colour = await paint(first)
    assert colour is first is Colour.RED
    return [{colour: await receive(list)}, await receive(Colour)]
"""


@pytest.mark.parametrize("how", ENUMS)
def test_an_enum_has_more_members(deploys: Deploys, how: str) -> None:
    """Members are kept by name: numbers and order may change."""
    before, after = ENUMS[how]
    red = ["start", "Colour.RED"]
    deploys.deploy(red, ["send", "Colour.RED"], ["recorded", "step paint"], orders=before + COLOURS)
    assert "['go']" in deploys.deploy(red, ["send", "['go']"], RESULT, orders=after + COLOURS)[-1]
    assert deploys.ran() == ["paint"]


def test_an_enum_s_member_that_is_gone_is_waited_for(deploys: Deploys) -> None:
    before = "class Colour(Enum):\n    RED = 1\n    BLUE = 2\n"
    deploys.deploy(["start", "Colour.RED"], ["recorded", "step paint"], orders=before + COLOURS)
    gone = before.replace("RED", "PINK")
    changed = gone + COLOURS.replace("is Colour.RED", "is not None")
    reason = deploys.deploy(["send", "['go']"], ["is", "blocked"], orders=changed)[-1]
    assert reason == "DoesNotFit: Colour has no member 'RED'"
    result = deploys.deploy(["send", "Colour.BLUE"], RESULT, orders=before + COLOURS)[-1]
    assert result == "[{<Colour.RED: 1>: ['go']}, <Colour.BLUE: 2>]"


# ---------------------------------------------------------------- types that are not loaded


@pytest.mark.parametrize("version", [ANOTHER, None], ids=["versions", "code"])
def test_a_result_whose_type_is_not_loaded_is_waited_for(deploys: Deploys, version: str | None) -> None:
    """With a version for each program, or with the code's own identity."""
    make = "@step(name='make')\nasync def make(id):\n    ran('make')\n    import models\n    return models.Order(id)\n"
    flow = make + "@flow(name='order')\nasync def order():\n    return [await make('b'), await receive(str)]\n"
    deploys.deploy(["start"], ["recorded", "step make"], version=version, models=DATACLASS, orders=flow)
    without = deploys.deploy(GO, ["is", "blocked"], ["find", "blocked"], version=version, orders=flow)
    assert without[1].startswith("UnknownType: type 'models:Order' is not loaded here")
    assert without[2] == ["order 1"]
    assert deploys.deploy(RESULT, version=version, models=DATACLASS, orders=flow) == ["[Order(id='b'), 'go']"]
    assert deploys.ran() == ["make"]


def test_an_argument_whose_type_is_not_loaded_is_waited_for(deploys: Deploys) -> None:
    flow = "@flow(name='order')\nasync def order(first):\n    return [first, await receive(str)]\n"
    deploys.deploy(START, ["is", "suspended"], models=DATACLASS, orders=flow)
    without = deploys.deploy(GO, ["is", "blocked"], orders=flow)
    assert without[1].startswith("UnknownType: type 'models:Order' is not loaded here")
    assert deploys.deploy(RESULT, models=DATACLASS, orders=flow) == ["[Order(id='a'), 'go']"]


@pytest.mark.fault(38, 45)
@pytest.mark.peer(29)
def test_a_message_whose_type_is_not_loaded_stays_in_the_inbox(deploys: Deploys) -> None:
    flow = "@flow(name='order')\nasync def order():\n    return [await receive(str), await receive(object)]\n"
    deploys.deploy(["start"], ["is", "suspended"], ["send", "Order('b')"], models=DATACLASS, orders=flow)
    deploys.deploy(GO, ["recorded", "receive str"], ["is", "suspended"], orders=flow)
    assert deploys.deploy(RESULT, models=DATACLASS, orders=flow) == ["['go', Order(id='b')]"]


def test_an_error_whose_type_is_not_loaded_is_waited_for(deploys: Deploys) -> None:
    refused = "class Refused(Exception): pass\n"
    refuse = "@step(name='refuse')\nasync def refuse():\n    import models\n    raise models.Refused('no')\n"
    flow = (
        refuse + "@flow(name='order')\nasync def order():\n    try:\n        await refuse()\n"
        "    except Exception as error:\n        return [repr(error), await receive(str)]\n"
    )
    deploys.deploy(["start"], ["recorded", "step refuse"], models=refused, orders=flow)
    without = deploys.deploy(GO, ["is", "blocked"], orders=flow)
    assert without[1].startswith("UnknownType: type 'models:Refused' is not loaded here")
    assert deploys.deploy(RESULT, models=refused, orders=flow) == ["[\"Refused('no')\", 'go']"]


# ---------------------------------------------------------------- flows and steps: other names, other places

PAY = "@step\nasync def pay(amount):\n    ran(f'pay {amount}')\n    return f'paid {amount}'\n"
ORDER = "@flow\nasync def order(amount):\n    return [await pay(amount), await receive(str)]\n"
MOVED = {
    "step renamed": {"orders": PAY.replace("@step", "@step(name='pay')").replace("def pay", "def charge")
                     + ORDER.replace("await pay", "await charge")},
    "flow renamed": {"orders": PAY + ORDER.replace("@flow", "@flow(name='order')").replace("def order", "def sale")},
    "step in another module": {"payments": PAY, "orders": "from payments import pay\n" + ORDER},
    "flow in another module": {"payments": PAY, "sales": "from payments import pay\n" + ORDER},
    "step with a policy": {"orders": PAY.replace("@step", "@step(retry=Retry(attempts=3), timeout=9)") + ORDER},
    "step that is sync": {"orders": PAY.replace("async def", "def") + ORDER},
    "step captured": {"orders": PAY.replace("@step\n", "") + ORDER.replace("pay(amount)", "capture(pay, amount)")},
    "argument renamed": {"orders": PAY.replace("amount", "sum") + ORDER.replace("amount", "total")},
    "argument by keyword": {"orders": PAY + ORDER.replace("pay(amount)", "pay(amount=amount)")},
    "method": {"orders": PAY.replace("@step", "class Bank:\n  @step(name='pay')").replace("async def pay(", "  async def pay(self, ")
               .replace("    ran", "      ran").replace("    return f'p", "      return f'p") + ORDER.replace("pay(", "Bank().pay(")},
}  # fmt: skip


@pytest.mark.parametrize("how", MOVED)
def test_code_moves_and_its_names_stay(deploys: Deploys, how: str) -> None:
    deploys.deploy(["start", "7"], ["recorded", "step pay"], orders=PAY + ORDER)
    assert deploys.deploy(GO, RESULT, modules=MOVED[how])[-1] == "['paid 7', 'go']"
    assert deploys.ran() == ["pay 7"]


@pytest.mark.parametrize(
    ("what", "modules"),
    [
        ("the journal holds step pay (entry 1), and the code asks for step charge at ",
         {"orders": PAY.replace("def pay", "def charge") + ORDER.replace("await pay", "await charge")}),
        ("the journal holds step pay (entry 1), and the code asks for step pay with other arguments at ",
         {"orders": PAY.replace("(amount)", "(amount, currency)") + ORDER.replace("pay(amount)", "pay(amount, 'DKK')")}),
    ],
    ids=["step renamed", "argument added"],
)  # fmt: skip
def test_what_is_renamed_without_its_name_waits_for_the_old_code(
    deploys: Deploys, what: str, modules: dict[str, str]
) -> None:
    deploys.deploy(["start", "7"], ["recorded", "step pay"], orders=PAY + ORDER)
    reason = deploys.deploy(GO, ["is", "blocked"], modules=modules)[-1]
    assert what in reason
    assert deploys.deploy(RESULT, orders=PAY + ORDER) == ["['paid 7', 'go']"]
    assert deploys.ran() == ["pay 7"]


# ---------------------------------------------------------------- a flow that nobody has

OTHER = "@flow\nasync def other():\n    pass\n"


def test_a_flow_that_no_replica_has_is_waited_for(deploys: Deploys) -> None:
    """Started by a client, it stands there, scheduled, until somebody comes who has it."""
    deploys.deploy(["start", "7"], execute=False, orders=PAY + ORDER)
    seen = deploys.deploy(["find", "scheduled"], GO, ["find", "scheduled"], others=OTHER)
    assert [seen[0], seen[2]] == [["order 1"], ["order 1"]]
    assert deploys.ran() == []
    assert deploys.deploy(RESULT, orders=PAY + ORDER) == ["['paid 7', 'go']"]


@pytest.mark.parametrize("state", ["scheduled", "suspended"])
def test_a_flow_that_was_taken_out_stays_as_it_is(deploys: Deploys, state: str) -> None:
    """One that was begun stands where it stood, and goes on when the flow is back."""
    if state == "scheduled":
        hangs = PAY.replace("    return", "    await asyncio.sleep(3600)\n    return")
        deploys.deploy(["start", "7"], ["ran", "pay 7"], orders=hangs + ORDER)
    else:
        deploys.deploy(["start", "7"], ["recorded", "step pay"], ["is", "suspended"], orders=PAY + ORDER)
    seen = deploys.deploy(["is", state], ["find", "blocked"], GO, ["find", state], others=OTHER)
    assert seen[1:] == [[], None, ["order 1"]]
    assert deploys.deploy(GO, RESULT, orders=PAY + ORDER)[-1] == "['paid 7', 'go']"
    assert deploys.ran() == ["pay 7"] * (2 if state == "scheduled" else 1)


@pytest.mark.parametrize("begun", [False, True])
def test_a_flow_that_nobody_has_can_be_cancelled(deploys: Deploys, begun: bool) -> None:
    if begun:
        deploys.deploy(["start", "7"], ["recorded", "step pay"], ["is", "suspended"], orders=PAY + ORDER)
    else:
        deploys.deploy(["start", "7"], execute=False, orders=PAY + ORDER)
    assert deploys.deploy(["cancel"], RESULT, others=OTHER)[-1].startswith("FlowCancelled")


def test_a_child_whose_flow_nobody_has_is_waited_for(deploys: Deploys) -> None:
    child = "@flow(name='child')\nasync def child(n):\n    return await pay(n)\n"
    parent = "@flow\nasync def order(amount):\n    return [await run('child', amount), await receive(str)]\n"
    deploys.deploy(["start", "7"], ["recorded", "start child"], ["is", "suspended"], orders=parent)
    seen = deploys.deploy(GO, ["find", "scheduled"], ["find", "blocked"], orders=parent)
    assert seen[1][0].startswith("child ")
    assert seen[2] == []
    assert deploys.deploy(RESULT, orders=PAY + child + parent) == ["['paid 7', 'go']"]
