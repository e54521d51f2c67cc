"""The chart: jobs drained per second, as bars. Written by hand, readable on light and on dark ground."""

from __future__ import annotations

from benchmarks.measures import PEERS
from benchmarks.results import Results

WIDTH, LABELS, ROW, TOP = 760, 190, 24, 44

STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #24292f }
    .title { font-weight: 600 } .small { font-size: 11px; fill: #57606a }
    .ours { fill: #0969da } .peer { fill: #8c959f } .limit { fill: none; stroke: #8c959f; stroke-dasharray: 3 2 }
    .spread { stroke: #24292f; stroke-width: 1 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .small { fill: #9198a1 } .ours { fill: #4493f8 } .spread { stroke: #e6edf3 }
    }
"""


def svg(results: Results) -> str:
    rows = [
        ("the server alone (C)", "ceiling", "limit"),
        ("a bare redis-py loop", "bare", "limit"),
        ("Backstage", "backstage", "ours"),
    ]
    rows += [
        (f"{peer.title} {results.versions[peer.name]}", peer.name, "peer")
        for peer in PEERS
        if peer.name in results.versions
    ]
    found = [(title, kind, spread) for title, name, kind in rows if (spread := results.of(name, "drain"))]
    found.sort(key=lambda row: -row[2].median)
    most = max((spread.high for *_, spread in found), default=1.0)
    room = WIDTH - LABELS - 90
    height = TOP + ROW * len(found) + 30
    box = f'viewBox="0 0 {WIDTH} {height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" {box} role="img">',
        "  <title>Jobs drained per second by one worker process</title>",
        f"  <style>{STYLE}  </style>",
        f'  <text class="title" x="{LABELS}" y="20">No-op jobs per second, one worker process, concurrency 100</text>',
    ]
    for place, (title, kind, spread) in enumerate(found):
        y = TOP + ROW * place
        long, low, high = (max(1.0, value / most * room) for value in spread)
        lines += [
            f'  <text x="{LABELS - 8}" y="{y + 12}" text-anchor="end">{title}</text>',
            f'  <rect class="{kind}" x="{LABELS}" y="{y}" width="{long:.1f}" height="16" rx="2"/>',
            f'  <line class="spread" x1="{LABELS + low:.1f}" x2="{LABELS + high:.1f}" y1="{y + 8}" y2="{y + 8}"/>',
            f'  <text x="{LABELS + max(long, high) + 8:.1f}" y="{y + 12}">{float(f"{spread.median:.3g}"):,.0f}</text>',
        ]
    where = results.machine
    note = (
        f"{results.date}, {where['cores']} cores, Python {where['python']}, {where['server']}; medians, lines from "
        "lowest to highest"
    )
    lines += [f'  <text class="small" x="{LABELS}" y="{height - 10}">{note}</text>', "</svg>", ""]
    return "\n".join(lines)
