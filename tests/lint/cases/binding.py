"""PD504 and PD505: work over a loop's variable."""

import asyncio
from functools import partial

from perdure import capture, flow, receive, transaction
from perdure import capture as record


def fetch(url: str) -> str:
    return url


@flow
async def later(urls: list[str], base: str) -> None:
    tasks = []
    for url in urls:
        tasks.append(asyncio.create_task(capture(lambda: fetch(url))))  # PD504 plain
        tasks.append(record(lambda: fetch(url)))  # PD504 alias
        tasks.append(capture(fetch, url))  # near PD504
        tasks.append(capture(partial(fetch, url)))  # near PD504
        tasks.append(capture(lambda: fetch(base)))  # near PD504
        tasks.append(capture(lambda url=url: fetch(url)))  # near PD504
        full = base + url
        tasks.append(capture(lambda: fetch(full)))  # PD504 plain
        tasks.append(asyncio.create_task(receive(str, where=lambda m: m == url)))  # PD504 plain

        def work() -> str:
            return fetch(url)

        tasks.append(capture(work))  # PD504 nested
    await asyncio.gather(*tasks)
    await asyncio.gather(*[capture(lambda: fetch(url)) for url in urls])  # PD504 nested
    await asyncio.gather(*all_of(urls))
    index = 0
    while index < 3:
        tasks.append(capture(lambda: fetch(urls[index])))  # PD504 plain
        index += 1


def all_of(urls: list[str]):
    return [capture(lambda: fetch(url)) for url in urls]  # PD504 helper


@flow
async def at_once(urls: list[str], base: str) -> None:
    for url in urls:
        await capture(lambda: fetch(url))  # PD505 plain
        await record(lambda: fetch(url))  # PD505 alias
        await transaction(lambda tx: tx.execute("x", url))  # PD505 plain
        await capture(fetch, url)  # near PD505
        await capture(lambda: fetch(base))  # near PD505
        await capture(partial(fetch, url))  # near PD505
        await receive(str, where=lambda m: m == url)  # near PD505
        await asyncio.gather(capture(lambda: fetch(url)), capture(lambda: fetch(base)))  # PD505 plain

        async def work() -> str:
            return fetch(url)

        await capture(work)  # PD505 nested
    await in_a_helper(urls)


async def in_a_helper(urls: list[str]) -> list[str]:
    return [await capture(lambda: fetch(url)) for url in urls]  # PD505 helper
