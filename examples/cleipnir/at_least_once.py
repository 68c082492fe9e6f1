"""Work that is not done again once it is done."""

import asyncio
import hashlib
import tempfile

from perdure import Engine, FlowFunction, capture, flow


def hash_of(solution: str) -> str:
    return hashlib.sha256(solution.encode()).hexdigest()


class PuzzleSolver:
    """Takes its time."""

    def __init__(self) -> None:
        self.tried = 0

    def solve(self, hash_code: str) -> str:
        """The six digits with this hash; a plain function, which runs in a thread."""
        for number in range(1_000_000):
            self.tried += 1
            if hash_of(f"{number:06}") == hash_code:
                return f"{number:06}"
        raise ValueError(f"{hash_code} is of no six digits")


def at_least_once(solver: PuzzleSolver) -> FlowFunction[[str], str]:
    """The flow, with the service that it needs."""

    @flow(name="AtLeastOnceFlow")
    async def run(hash_code: str) -> str:
        return await capture(solver.solve, hash_code, id="PuzzleSolution")

    return run


async def main() -> None:
    solver = PuzzleSolver()
    run = at_least_once(solver)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):  # the second engine finds the solution
            async with Engine(f"sqlite:///{folder}/flows.db", flows=[run]) as engine:
                solution = await engine.run(run, hash_of("054321"), id="puzzle")
                print("solution:", solution, "after", solver.tried, "hashes")


if __name__ == "__main__":
    asyncio.run(main())
