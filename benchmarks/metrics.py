"""What is measured: the workloads, their figures, the target of each and what the bare database would need for it."""

from dataclasses import dataclass

RAW_TARGET = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One workload as a user names it: how many, its time limit, and how the peer runs it."""

    work: str
    title: str
    count: int
    limit_s: float = 60.0
    kill_at: tuple[int, ...] = ()
    restarts: bool = False
    fill: bool = False  # another process makes the store that is measured
    once: bool = False  # measured in the first repetition only
    peer_count: int = 0
    peer_limit_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the table; `raw_commits` and `raw_rows` are what SQLite alone would have to write for it."""

    work: str
    key: str
    label: str
    unit: str
    target: float | None = None
    raw_commits: int = 0
    raw_rows: int = 0
    peer: bool = True
    scales: bool = False  # the peer's figure is multiplied up from its smaller count

    @property
    def more_is_better(self) -> bool:
        return self.unit == "steps/s"

    def seconds(self, value: float) -> float:
        """The time that the figure stands for; of a rate, the time of one."""
        return {"steps/s": 1 / value if value else 0.0, "ms": value / 1e3}.get(self.unit, value)

    def better(self, ours: float, other: float) -> float:
        """How many times better ours is than the other; 1 is equal, below 1 is worse."""
        above, below = (ours, other) if self.more_is_better else (other, ours)
        return above / below if below else float("inf")


PLANS = (
    Plan(work="w1", title="W1 1,000 flows x 10 steps", count=1_000, peer_count=200),
    Plan(work="w1x", title="W1 10,000 flows x 10 steps", count=10_000),
    Plan(work="w2", title="W2 one flow at a time, median of 100", count=100, peer_count=100),
    Plan(work="w3", title="W3 one flow, 1,000 steps in a gather", count=1_000, peer_count=1_000),
    Plan(work="w4", title="W4 message sent to flow done, median of 100", count=100, peer_count=100),
    Plan(work="w5", title="W5 10,000 flows waiting for a message", count=10_000, peer_count=1_000),
    Plan(work="w6", title="W6 one flow of 5,000 steps", count=5_000, kill_at=(2_500, 4_999), peer_count=5_000),
    Plan(work="w7", title="W7 kill -9 with 1,000 flows in a step", count=1_000, restarts=True, peer_count=1_000),
    Plan(work="w8", title="W8 1,000,000 suspended on disk", count=1_000_000, fill=True, once=True, limit_s=900.0),
    Plan(work="w9", title="W9 woken with 5,000 entries, median of 10", count=5_000, fill=True),
)

METRICS = (
    Metric(work="w1", key="steps_per_s", label="durable steps", unit="steps/s", target=40_000, raw_rows=1),
    Metric(work="w1x", key="steps_per_s", label="durable steps", unit="steps/s", target=25_000, raw_rows=1, peer=False),
    Metric(work="w2", key="ten_ms", label="10 steps", unit="ms", target=3, raw_commits=11),
    Metric(work="w2", key="ten_raw", label="10 steps in 11 raw commits", unit="x", target=RAW_TARGET, peer=False),
    Metric(work="w2", key="one_ms", label="1 step", unit="ms", target=0.8, raw_commits=2),
    Metric(work="w2", key="one_raw", label="1 step in 2 raw commits", unit="x", target=RAW_TARGET, peer=False),
    Metric(work="w3", key="gather_ms", label="wall", unit="ms", target=40, raw_rows=1_000),
    Metric(work="w4", key="wake_ms", label="send to done", unit="ms", target=1, raw_commits=2),
    Metric(work="w5", key="start_s", label="start all", unit="s", target=1, raw_rows=20_000, scales=True),
    Metric(work="w5", key="kb_each", label="memory each", unit="KB", target=6),
    Metric(work="w5", key="finish_s", label="message all, finish", unit="s", target=1.5, raw_rows=30_000, scales=True),
    Metric(work="w5", key="idle_cpu", label="processor while all wait", unit="%", peer=False),
    Metric(work="w6", key="wall_s", label="wall", unit="s", target=1.5, raw_commits=5_001),
    Metric(work="w6", key="first_ms", label="first 500, each", unit="ms", raw_commits=1),
    Metric(work="w6", key="growth", label="last 500 against first 500", unit="x", target=1.1),
    Metric(work="w6", key="restart_2500_s", label="killed at 2,500: start-up to next step", unit="s", target=0.25),
    Metric(work="w6", key="restart_4999_s", label="killed at 4,999: start-up to next step", unit="s", target=0.25),
    Metric(work="w6", key="spawn_4999_s", label="killed at 4,999: spawn to next step", unit="s"),
    Metric(work="w7", key="spawn_s", label="spawn to all done", unit="s", target=1),
    Metric(work="w7", key="restart_s", label="start-up to all done", unit="s"),
    Metric(work="w8", key="engine_mb", label="memory of the engine", unit="MB", target=200),
    Metric(work="w8", key="wake_ms", label="send to done, median of 300", unit="ms", target=5, raw_commits=3),
    Metric(work="w8", key="idle_cpu", label="processor while all wait", unit="%"),
    Metric(work="w9", key="replay_ms", label="send, load, replay, done", unit="ms", target=50),
)
