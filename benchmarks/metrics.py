"""What is measured: the workloads, their figures, the target of each and what the bare database would need for it.

One suite for SQLite, one for servers: the same programs where the workload is the same.
"""

from dataclasses import dataclass, replace

RAW_TARGET = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One workload as a user names it: how many, its time limit, and how the peer runs it.

    `parts` are the programs that run for it, each on a store of its own: by default the one of the same name. The peer
    runs the same, unless `peer_parts` says others. `kill_at` and `restarts` are measured beside these.
    """

    work: str
    title: str
    count: int
    limit_s: float = 60.0
    kill_at: tuple[int, ...] = ()
    restarts: bool = False
    fill: bool = False  # another process makes the store that is measured
    once: bool = False  # measured in the first repetition only
    shown: bool = False  # it takes so long that it says how far it is
    parts: tuple[str, ...] | None = None
    peer_parts: tuple[str, ...] | None = None
    peer_restarts: bool = False
    peer_count: int = 0
    peer_limit_s: float = 120.0

    @property
    def programs(self) -> tuple[str, ...]:
        return (self.work,) if self.parts is None else self.parts

    def as_peer(self) -> "Plan":
        """As the peer runs it: fewer, and killed once."""
        return replace(
            self,
            count=self.peer_count,
            limit_s=self.peer_limit_s,
            parts=self.programs if self.peer_parts is None else self.peer_parts,
            restarts=self.restarts or self.peer_restarts,
            kill_at=self.kill_at[-1:],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the table; `raw_commits` and `raw_rows` are what the bare database would have to write for it."""

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
        return self.unit in ("steps/s", "flows/s")

    def seconds(self, value: float) -> float:
        """The time that the figure stands for; of a rate, the time of one."""
        rate = self.more_is_better and value
        return 1 / value if rate else {"ms": value / 1e3}.get(self.unit, value)

    def better(self, ours: float, other: float) -> float:
        """How many times better ours is than the other; 1 is equal, below 1 is worse."""
        above, below = (ours, other) if self.more_is_better else (other, ours)
        return above / below if below else float("inf")


PLANS = (
    Plan(work="w1", title="W1 1,000 flows x 10 steps", count=1_000, peer_count=200),
    Plan(work="w1x", title="W1 10,000 flows x 10 steps", count=10_000, parts=("w1",)),
    Plan(work="w2", title="W2 one flow at a time, median of 100", count=100, peer_count=100),
    Plan(work="w3", title="W3 one flow, 1,000 steps in a gather", count=1_000, peer_count=1_000),
    Plan(work="w4", title="W4 message sent to flow done, median of 100", count=100, peer_count=100),
    Plan(work="w5", title="W5 10,000 flows waiting for a message", count=10_000, peer_count=1_000),
    Plan(work="w6", title="W6 one flow of 5,000 steps", count=5_000, kill_at=(2_500, 4_999), peer_count=5_000),
    Plan(
        work="w7", title="W7 kill -9 with 1,000 flows in a step", count=1_000, parts=(), restarts=True, peer_count=1_000
    ),
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

SERVER_PLANS = (
    Plan(work="w1", title="W1 1,000 flows x 10 steps", count=1_000, peer_count=200),
    Plan(work="w2", title="W2 one flow at a time, median of 100", count=100, peer_count=100),
    Plan(work="w3", title="W3 one flow, 1,000 steps in a gather", count=1_000, peer_count=1_000),
    Plan(work="w4", title="W4 message sent to flow done, median of 100", count=100, parts=("w4", "w4_other"), peer_count=100),
    Plan(work="w5", title="W5 10,000 flows waiting for a message", count=10_000, peer_count=500),
    Plan(work="w6", title="W6 one flow of 5,000 steps", count=5_000, kill_at=(4_999,), peer_count=5_000),
    Plan(
        work="w7", title="W7 kill -9 with 1,000 flows in a step, another replica there", count=1_000,
        parts=("takeover",), peer_parts=(), peer_restarts=True, peer_count=1_000,
    ),
    Plan(
        work="w9", title="W9 100,000 scheduled flows, 2 replicas", count=100_000, parts=("claims",), limit_s=600.0,
        peer_count=2_000,
    ),
    Plan(work="w9i", title="W9 10 idle replicas", count=10, parts=("idle",), once=True, limit_s=120.0),
    Plan(
        work="w10", title="W10 10 million ended, 1 million suspended in the tables", count=10_000_000, parts=("size",),
        once=True, shown=True, limit_s=4 * 3600.0,
    ),
)  # fmt: skip

SERVER_METRICS = (
    Metric(work="w1", key="steps_per_s", label="durable steps", unit="steps/s", target=30_000, raw_rows=1),
    Metric(work="w2", key="ten_ms", label="10 steps", unit="ms", target=5, raw_commits=11),
    Metric(work="w2", key="one_ms", label="1 step", unit="ms", target=1, raw_commits=2),
    Metric(work="w3", key="gather_ms", label="wall", unit="ms", target=60, raw_rows=1_000),
    Metric(work="w4", key="wake_ms", label="same replica", unit="ms", target=2, raw_commits=2),
    Metric(work="w4", key="other_ms", label="a client sends, another process runs", unit="ms", target=6, raw_commits=2),
    Metric(work="w5", key="start_s", label="start all", unit="s", target=2, raw_rows=20_000, scales=True),
    Metric(work="w5", key="kb_each", label="memory each", unit="KB"),
    Metric(work="w5", key="finish_s", label="message all, finish", unit="s", target=3, raw_rows=30_000, scales=True),
    Metric(work="w6", key="wall_s", label="wall", unit="s", target=2.5, raw_commits=5_001),
    Metric(work="w6", key="growth", label="last 500 against first 500", unit="x"),
    Metric(work="w6", key="restart_4999_s", label="killed at 4,999: start-up to next step", unit="s", target=0.4),
    Metric(work="w7", key="done_s", label="kill to all done", unit="s", target=2.5),
    Metric(work="w9", key="flows_per_s", label="claimed, run and ended", unit="flows/s", target=2_000, raw_rows=2),
    Metric(work="w9", key="smaller_share", label="share of the replica with fewer", unit="of 1", peer=False),
    Metric(work="w9i", key="statements_per_s", label="statements", unit="/s", target=20),
    Metric(work="w9i", key="transactions_per_s", label="transactions", unit="/s"),
    Metric(work="w9i", key="idle_cpu", label="processor of all ten", unit="%", peer=False),
    Metric(work="w10", key="many_x", label="a step of 500 flows, against empty tables", unit="x", target=1.2),
    Metric(work="w10", key="alone_x", label="a step of one flow, against empty tables", unit="x", target=1.2),
    Metric(work="w10", key="instances", label="instances in the tables", unit=""),
    Metric(work="w10", key="bytes_each", label="disk each, with indexes", unit="bytes"),
    Metric(work="w10", key="fill_s", label="making them", unit="s"),
)


@dataclass(frozen=True, slots=True)
class Suite:
    """What is measured on one kind of store."""

    plans: tuple[Plan, ...]
    metrics: tuple[Metric, ...]

    def plan(self, work: str) -> Plan:
        """The plan of this name."""
        return next(plan for plan in self.plans if plan.work == work)


FILE = Suite(PLANS, METRICS)
SERVER = Suite(SERVER_PLANS, SERVER_METRICS)

MYSQL = Suite(tuple(plan for plan in SERVER_PLANS if plan.work != "w10"), SERVER_METRICS)
"""Without w10: its tables are filled in PostgreSQL's SQL."""
