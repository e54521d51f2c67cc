"""`backstage doctor`: what is wrong with a server and a deployment, what it means and what to do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import click
import msgspec

from backstage.cli.session import Session, connected
from backstage.cli.table import printable
from backstage.cli.target import load
from backstage.doctor import Doctor
from backstage.findings import SEVERITIES, Finding, worst

STATUS = {"ok": 0, "notice": 0, "warning": 1, "danger": 2}


@click.command()
@click.argument("target", metavar="[MODULE[:WORKER]]", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with the worst severity and all findings.")
@connected
def doctor(session: Session, target: str | None, as_json: bool) -> None:
    """Examine the server and the deployment.

    It only looks. With the WORKER of your code it knows its schedules too, and so which are overdue.
    Ends with 0; with 1 if there is a warning, or where it can't look; with 2 if there is a danger.

    \b
    Examples:
      backstage doctor
      backstage doctor app:worker
      backstage doctor --json | jq '.findings[] | select(.severity == "danger")'
    """
    found = asyncio.run(_examine(session, target))
    click.echo(_json(found) if as_json else _plain(found))
    click.get_current_context().exit(STATUS[worst(found)])


async def _examine(session: Session, target: str | None) -> list[Finding]:
    if target is None:
        async with session.client() as client:
            return await Doctor(client).examine()
    from backstage.worker.worker import Worker

    worker = load(target, Worker)
    worker.configure(**session.options)
    session.address = worker.config.address
    async with worker:
        return await Doctor(worker).examine()


def _plain(found: Sequence[Finding]) -> str:
    lines: list[str] = []
    for finding in found:
        lines.append(f"{finding.severity:<8} {printable(str(finding))}")
        lines += [f"{'':8} {line}" for line in (finding.meaning, finding.advice and f"→ {finding.advice}") if line]
    counts = Counter(finding.severity for finding in found)
    return "\n".join([*lines, ", ".join(f"{counts[each]} {each}" for each in reversed(SEVERITIES) if counts[each])])


def _json(found: Sequence[Finding]) -> str:
    listed = [
        {
            "severity": finding.severity, "title": finding.title, "meaning": finding.meaning, "advice": finding.advice,
            "facts": dict(finding.facts),
        }
        for finding in found
    ]  # fmt: skip
    return msgspec.json.encode({"severity": worst(found), "findings": listed}).decode()
