"""From the figures of all repetitions to the table and to JSON."""

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measuring import Figures
from benchmarks.metrics import FILE, Metric, Suite
from benchmarks.stores import Server


@dataclass(slots=True)
class Results:
    """All that was measured in one run of the command."""

    suite: Suite = FILE
    limits: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    perdure: dict[str, list[Figures]] = field(default_factory=dict[str, list[Figures]])
    peer: dict[str, list[Figures]] = field(default_factory=dict[str, list[Figures]])
    company: set[str] = field(default_factory=set[str])  # "w1", "w1/peer": others used the machine meanwhile
    problems: list[str] = field(default_factory=list[str])
    peer_name: str = "DBOS"
    peer_missing: str | None = None


def values(metric: Metric, found: Sequence[Figures], suite: Suite) -> list[float]:
    """The metric in each repetition; those in raw commits are derived from the time and the run's own limit."""
    if metric.key.endswith("_raw"):
        source = next(m for m in suite.metrics if m.work == metric.work and m.key == metric.key.replace("_raw", "_ms"))
        return times_raw(source, found)
    return [figures[metric.key] for figures in found if metric.key in figures]


def times_raw(metric: Metric, found: Sequence[Figures]) -> list[float]:
    """In each repetition, our time as a multiple of what the bare database, measured right before, needs to write as much."""
    multiples: list[float] = []
    for figures in found:
        if "bare_commits_per_s" not in figures or metric.key not in figures:
            continue
        bare = metric.raw_commits / figures["bare_commits_per_s"] + metric.raw_rows / figures["bare_rows_per_s"]
        if bare:
            multiples.append(metric.seconds(figures[metric.key]) / bare)
    return multiples


def row(metric: Metric, results: Results) -> dict[str, Any]:
    """One metric with everything that the table and the JSON say of it."""
    plan = results.suite.plan(metric.work)
    ours = values(metric, results.perdure.get(metric.work, []), results.suite)
    theirs = values(metric, results.peer.get(metric.work, []), results.suite) if metric.peer else []
    scale = plan.count / plan.peer_count if metric.scales and plan.peer_count else 1.0
    theirs = [value * scale for value in theirs]
    found: dict[str, Any] = {
        "work": metric.work, "workload": plan.title, "metric": metric.key, "label": metric.label, "unit": metric.unit,
        "target": metric.target, "values": ours, "peer_values": theirs, "peer_scaled": scale != 1.0,
        "peer_count": plan.peer_count, "peer_company": f"{plan.work}/peer" in results.company,
    }  # fmt: skip
    if ours:
        median = statistics.median(ours)
        multiples = times_raw(metric, results.perdure[metric.work])
        found["median"] = median
        found["times_target"] = metric.better(median, metric.target) if metric.target else None
        found["times_raw"] = statistics.median(multiples) if multiples else None
        found["times_peer"] = metric.better(median, statistics.median(theirs)) if theirs else None
    return found


def number(value: float | None) -> str:
    """Three figures that count, thousands with a comma."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def spread(found: Sequence[float]) -> str:
    """The median, and the range when there is one."""
    if not found:
        return "-"
    median = number(statistics.median(found))
    return median if len(found) == 1 else f"{median} [{number(min(found))}..{number(max(found))}]"


def file_system(path: Path) -> str:
    """The kind of file system that `path` is on."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, kind = line.split()[:3]
        if path.resolve().is_relative_to(mount) and len(mount) > len(best[0]):
            best = (mount, kind)
    return best[1]


def heading(results: Results, repetitions: int, where: Path | Server) -> str:
    """What ran where, and the raw limits."""
    what, warnings = on_server(where) if isinstance(where, Server) else on_files(results, where)
    limits = (
        ("trip_ms", "ms a round trip"),
        ("commits_per_s", "single-row commits/s"),
        ("rows_per_s", f"rows/s in batches of {'1,000' if isinstance(where, Server) else '100'}"),
        ("fdatasync_per_s", "4 KB fdatasync/s"),
    )
    said = [
        f"{spread([float(found[key]) for found in results.limits])} {label}"
        for key, label in limits
        if results.limits and key in results.limits[0]
    ]
    python = f"CPython {platform.python_version()}"
    lines = [
        f"{python}, {what}, {os.cpu_count()} processors; median [min..max] of {repetitions}",
        f"raw limits{' *' if 'limits' in results.company else ''}: {', '.join(said)}",
    ]
    return "\n".join([*lines, *warnings])


def on_files(results: Results, directory: Path) -> tuple[str, list[str]]:
    """The files that were measured, and what is wrong with them."""
    sqlite = results.limits[0]["sqlite"] if results.limits else "?"
    kind = file_system(directory)
    warnings = ["WARNING: these files are in memory; nothing here waits for a disk. Give --dir."]
    return f"SQLite {sqlite} (WAL, synchronous=FULL) on {kind}", warnings if kind in ("tmpfs", "ramfs") else []


def on_server(server: Server) -> tuple[str, list[str]]:
    """The server that was measured, as it is set, and what is wrong with that."""
    facts = server.facts
    settings = ", ".join(f"{name}={value}" for name, value in facts.settings.items())
    warnings = [f"WARNING: {it}; nothing here waits for a disk, and a crash may lose commits." for it in facts.warnings]
    return f"{facts.name} at {facts.host} ({settings})", warnings


def table(results: Results, repetitions: int) -> str:
    """The figures as text, one line a metric."""
    head = ("", "Perdure", "unit", "target", "met", "x raw", results.peer_name, "x better")
    lines: list[tuple[str, ...]] = []
    for plan in results.suite.plans:
        if plan.work not in results.perdure and plan.work not in results.peer:
            continue
        done = len(results.perdure.get(plan.work, []))
        short = f" ({done} of {repetitions} runs)" if done < repetitions else ""
        lines.append((plan.title + short + (" *" if plan.work in results.company else ""),))
        lines.extend(
            cells(metric, row(metric, results)) for metric in results.suite.metrics if metric.work == plan.work
        )
    widths = [max(len(line[n]) for line in [head, *lines] if len(line) > 1) for n in range(len(head))]
    widths[0] = max(widths[0], 44)

    def text(line: tuple[str, ...]) -> str:
        if len(line) == 1:
            return line[0]
        padded = [c.ljust(w) if n in (0, 2) else c.rjust(w) for n, (c, w) in enumerate(zip(line, widths, strict=True))]
        return "  ".join(padded)

    return "\n".join([text(head).rstrip(), *(text(line).rstrip() for line in lines)])


def cells(metric: Metric, found: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    sign = ">=" if metric.more_is_better else "<="
    times = found.get("times_target")
    met = "" if times is None else f"{'yes' if times >= 1 else 'NO'} {times:.2f}"
    theirs = spread(found["peer_values"]) if metric.peer else ""
    if found["peer_scaled"] and found["peer_values"]:
        theirs = f"~{theirs}"
    if found["peer_company"] and found["peer_values"]:
        theirs += " *"
    return (
        f"  {metric.label}", spread(found["values"]), metric.unit,
        f"{sign} {metric.target:,g}" if metric.target else "", met,
        number(found.get("times_raw")), theirs, number(found.get("times_peer")),
    )  # fmt: skip


LEGEND = """\
met: how many times better than the target. x raw: our time as a multiple of what the bare database, measured right
before, needs to write as many rows (n + 1 commits, or batches). x better: against DBOS in this run. ~: scaled up
linearly, from {w5} workflows on DBOS. W1 on DBOS: {w1} workflows. *: others used the machine meanwhile."""
SERVER_LEGEND = """
W4: the sender, another process' engine (for us one that runs nothing), sends, and learns that the flow is done.
W7 on DBOS: nobody takes over by itself; it is started again, at once. W9 on DBOS: a queue of {w9} workflows.
W9, idle: counted by a proxy between replicas and server; on MariaDB by the server, with what others ask of it.
The server's processes count as ours, whoever asked it."""


def legend(suite: Suite) -> str:
    """How to read the table."""
    text = LEGEND if suite is FILE else LEGEND + SERVER_LEGEND
    return text.format(**{plan.work: f"{plan.peer_count:,}" for plan in suite.plans})


def as_json(results: Results, repetitions: int, where: Path | Server) -> dict[str, Any]:
    """Everything, for a program."""
    return {
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        **({"server": asdict(where.facts)} if isinstance(where, Server) else {"file_system": file_system(where)}),
        "repetitions": repetitions,
        "limits": results.limits,
        "peer": results.peer_name,
        "peer_missing": results.peer_missing,
        "metrics": [row(metric, results) for metric in results.suite.metrics if metric.work in results.perdure],
        "raw_figures": {"perdure": results.perdure, "peer": results.peer},
        "company": sorted(results.company),
        "problems": results.problems,
    }
