"""An engine in a web application: it lives as long as the application does."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from perdure import Engine, flow, step


@step
async def greet(name: str) -> str:
    return f"Hello, {name}!"


@flow
async def greeting(name: str) -> str:
    return await greet(name)


class App:
    """As much of Starlette or FastAPI as is needed here: a lifespan, a state, routes."""

    def __init__(self, lifespan: Callable[["App"], AbstractAsyncContextManager[None]]) -> None:
        self.engine: Engine | None = None
        self.lifespan = lifespan
        self.routes: dict[str, Callable[[Engine, str], Awaitable[Any]]] = {}

    async def request(self, path: str, body: str) -> Any:
        """The answer."""
        assert self.engine is not None
        return await self.routes[path](self.engine, body)


def make_app(url: str) -> App:
    """The application, with its store."""

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncGenerator[None, None]:
        async with Engine(url, flows=[greeting]) as app.engine:
            yield

    async def post_greeting(engine: Engine, name: str) -> str:
        return await engine.run(greeting, name, id=name)

    app = App(lifespan)
    app.routes["/greetings"] = post_greeting
    return app


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        app = make_app(f"sqlite:///{folder}/flows.db")
        async with app.lifespan(app):
            print(await app.request("/greetings", "World"))


if __name__ == "__main__":
    asyncio.run(main())
