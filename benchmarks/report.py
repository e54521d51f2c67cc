"""The figures as Markdown, for the README."""

from __future__ import annotations

from benchmarks.measures import BACKSTAGE, PEERS
from benchmarks.results import Results, Spread

COLUMNS = (
    ("one", "awaited one by one"),
    ("gather", "1,000 at a time"),
    ("bulk", "in bulk"),
    ("drain", "**drained**"),
    ("sleep1ms", "sleep 1 ms"),
    ("cpu100us", "burn 100 µs"),
    ("p50_ms", "latency p50"),
    ("p99_ms", "p99"),
    ("idle_mb", "idle MB"),
    ("import_ms", "import ms"),
)

SHARES = (
    ("drain, of what the server alone can do", "drain", ("ceiling", "drain")),
    ("drain, of the bare loop", "drain", ("bare", "drain")),
    ("`enqueue_many`, of pipelined XADD from C", "bulk", ("ceiling", "bulk")),
    ("`enqueue`, 1,000 at a time, of the same", "gather", ("ceiling", "bulk")),
    ("`enqueue` one by one, of redis-py's XADD", "one", ("bare", "one")),
)

SIZES = (("100 B", 100), ("10 kB", 10_000), ("100 kB", 100_000))

DETAILS = (
    ("jobs waiting", "drained/s", [(f"{n:,}", f"waiting_{n}") for n in (1_000, 10_000, 100_000, 1_000_000)]),
    ("queues", "drained/s", [(str(n), f"queues_{n}") for n in (1, 3, 20)]),
    ("worker processes", "drained/s", [(str(n), f"workers_{n}") for n in (1, 2)]),
    ("payload", "in bulk/s", [(size, f"bulk_{n}_bytes") for size, n in SIZES]),
    ("payload", "drained/s", [(size, f"drain_{n}_bytes") for size, n in SIZES]),
    ("memory", "MB", [("idle", "idle_mb"), ("at 100,000 jobs", "waiting_mb")]),
    ("an idle worker", "% of a core", [("", "idle_cpu")]),
    (
        "lower jobs that start before an urgent one",
        "jobs",
        [("from its enqueue on", "flood_first"), ("once 1,000 urgent ones wait, before the last", "flood_last")],
    ),
    ("jobs turn long: held 0.3 s later, beyond the 100 that run", "jobs", [("", "hoarded")]),
)


def markdown(results: Results) -> str:
    sections = [
        ("### Against others", _systems(results)),
        ("### Against what is possible", _shares(results)),
        ("### In more detail", _details(results)),
    ]
    parts = [f"{title}\n\n" + "\n".join(lines) + "\n" for title, lines in sections if lines]
    return "\n".join([*parts, _footer(results)])


def _systems(results: Results) -> list[str]:
    lines = [
        "Jobs per second, and milliseconds; medians. [What each means](docs/benchmarks.md#what-the-figures-mean).\n"
    ]
    lines += ["| | " + " | ".join(title for _, title in COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    peers = sorted(
        (peer for peer in PEERS if peer.name in results.versions),
        key=lambda peer: -(spread.median if (spread := results.of(peer.name, "drain")) else 0),
    )
    rows = [
        ("the server's ceiling", "ceiling"),
        ("a bare loop over redis-py", "bare"),
        (f"**{BACKSTAGE.title}**", "backstage"),
    ]
    rows += [(f"{peer.title} {results.versions[peer.name]}", peer.name) for peer in peers]
    lines += [
        f"| {title} | " + " | ".join(_cell(results.of(name, key)) for key, _ in COLUMNS) + " |" for title, name in rows
    ]
    return lines


def _shares(results: Results) -> list[str]:
    lines = ["| Backstage, within one round | median | lowest to highest |", "|---|---:|---:|"]
    rows = list(SHARES)
    fastest = results.fastest_peer()
    for title, ours, theirs in rows:
        if spread := results.ratio(("backstage", ours), theirs):
            lines.append(f"| {title} | {spread.median:.2f} | {spread.low:.2f} – {spread.high:.2f} |")
    if fastest and (spread := results.ratio(("backstage", "drain"), (fastest, "drain"))):
        title = next(peer.title for peer in PEERS if peer.name == fastest)
        what = f"drain, times {title}'s, the fastest of the others"
        lines.append(f"| {what} | {spread.median:.0f} | {spread.low:.0f} – {spread.high:.0f} |")
    if spread := results.ratio(("backstage", "workers_2"), ("backstage", "workers_1")):
        lines.append(
            f"| two worker processes, times one | {spread.median:.2f} | {spread.low:.2f} – {spread.high:.2f} |"
        )
    return lines


def _details(results: Results) -> list[str]:
    lines = ["| Backstage | | |", "|---|---|---|"]
    for what, unit, cells in DETAILS:
        told = [
            f"{label}: {_cell(spread)}" if label else _cell(spread)
            for label, key in cells
            if (spread := results.of("backstage", key))
        ]
        if told:
            lines.append(f"| {what} | {unit} | {', '.join(told)} |")
    return lines if len(lines) > 2 else []


def _footer(results: Results) -> str:
    where = results.machine
    rounds = len(results.rounds)
    drifts = results.of("ceiling", "drain")
    drift = (
        f" The server's own ceiling went from {drifts.low:,.0f} to {drifts.high:,.0f} jobs/s meanwhile."
        if drifts and rounds > 1
        else ""
    )
    what = [f"{where['cores']} cores of {where['cpu']}", where["system"], f"Python {where['python']}", where["server"]]
    times = f"{rounds} round{'s' * (rounds > 1)} of `{results.command}`"
    return f"{results.date}, {', '.join(what)}; {times}.{drift}"


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    value = spread.median
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
