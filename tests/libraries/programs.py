"""Flows that use whole asyncio libraries as they are: what they do to the world is in steps, and noted in a ledger."""

from __future__ import annotations

import asyncio
import operator
import os
import random
from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from perdure import current, flow, receive, step

LEDGER = "PERDURE_TEST_LEDGER"
_chance = random.Random(os.getpid())  # the order in which parallel steps end is another in each process


async def _works() -> None:
    """The step that runs is in the ledger, and has taken a little time."""
    ledger = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(ledger, f"{current().key} {current().step}\n".encode())
    os.close(ledger)
    await asyncio.sleep(_chance.random() * 0.003)


# ---------------------------------------------------------------- pydantic-ai: a model and tools


@step
async def forecast(city: str) -> str:
    """What the weather will be."""
    await _works()
    return f"{city}: {'rain' if len(city) % 2 else 'sun'}"


@step
async def population(city: str) -> int:
    """How many people live there."""
    await _works()
    return len(city) * 100_000


@step
async def total(numbers: list[int]) -> int:
    """The sum."""
    await _works()
    return sum(numbers)


@step
async def think(told: list[str], tools: int) -> ModelResponse:
    """What the language model says: first six calls at once, then one more with what they gave, then the answer."""
    await _works()
    if not told:
        calls = [("forecast", {"city": c}) for c in ("Oslo", "Rome", "Kyiv")]
        calls += [("population", {"city": c}) for c in ("Oslo", "Lagos", "Tokyo")]
        return ModelResponse(parts=[ToolCallPart(name, args, f"call-{i}") for i, (name, args) in enumerate(calls)])
    if len(told) == 6:
        numbers = [int(t) for t in told if t.isdigit()]
        call = ToolCallPart("total", {"numbers": numbers}, "call-6")
        return ModelResponse(parts=[call])
    return ModelResponse(parts=[TextPart(f"with {tools} tools: {'; '.join(told)}")])


async def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """The messages carry the time of their making; the step gets what the model is to know of them."""
    parts: Sequence[Any] = [part for m in messages if isinstance(m, ModelRequest) for part in m.parts]
    told = [str(part.content) for part in parts if part.part_kind == "tool-return"]
    return await think(told, len(info.function_tools))


agent = Agent(FunctionModel(model), tools=[forecast, population, total])


@flow
async def ask(question: str) -> list[str]:
    """The answer of the agent."""
    answer = (await agent.run(question)).output
    return [answer, await receive(str)]


tester = Agent(TestModel(custom_output_text="tried everything"), tools=[forecast, population])


@flow
async def try_tools(question: str) -> list[str]:
    """The answer of an agent whose model calls every tool once, and takes no step itself."""
    runs = await asyncio.gather(*[tester.run(question) for _ in range(3)])
    return [*(run.output for run in runs), await receive(str)]


# ---------------------------------------------------------------- LangGraph: parallel branches


class Notes(TypedDict):
    """The state of the graph."""

    topic: str
    notes: Annotated[list[str], operator.add]


class Question(TypedDict):
    """What one of the parallel nodes is given."""

    about: str


@step
async def research(where: str, about: str) -> str:
    """What can be found there."""
    await _works()
    return f"{where} on {about}"


async def web(state: Notes) -> dict[str, list[str]]:
    """A node that calls two steps at once."""
    found = await asyncio.gather(research("news", state["topic"]), research("blogs", state["topic"]))
    return {"notes": list(found)}


async def books(state: Notes) -> dict[str, list[str]]:
    """A node that calls one step after the other."""
    first = await research("index", state["topic"])
    return {"notes": [await research("shelf", first)]}


@step
async def people(state: Notes) -> dict[str, list[str]]:
    """A node that is a step."""
    await _works()
    return {"notes": [f"people on {state['topic']}"]}


async def dig(question: Question) -> dict[str, list[str]]:
    """A node that runs once for each question."""
    return {"notes": [await research("archive", question["about"])]}


async def meet(state: Notes) -> dict[str, list[str]]:
    """A node that does nothing. A plain function would be run in a thread, which a flow's body refuses."""
    return {"notes": []}


async def questions(state: Notes) -> list[Send]:
    """One node for each note, all at once."""
    return [Send("dig", {"about": note}) for note in state["notes"]]


async def conclude(state: Notes) -> dict[str, list[str]]:
    """The last node."""
    return {"notes": [await research("desk", " + ".join(state["notes"]))]}


def _graph() -> Any:
    graph = StateGraph(Notes)
    for node in (web, books, people, meet, dig, conclude):
        graph.add_node(node.__name__, node)  # type: ignore[call-overload]
    for name in ("web", "books", "people"):
        graph.add_edge(START, name)
    graph.add_edge(["web", "books", "people"], "meet")
    graph.add_conditional_edges("meet", questions, ["dig"])
    graph.add_edge("dig", "conclude")
    graph.add_edge("conclude", END)
    return graph.compile()


graph = _graph()


@flow
async def study(topic: str) -> list[str]:
    """The notes of the graph."""
    notes = (await graph.ainvoke({"topic": topic, "notes": []}))["notes"]
    return [*notes, await receive(str)]


PROGRAMS = {f.name: f for f in (ask, try_tools, study)}
