"""`backstage worker` and `backstage scheduler`: run what the user's code has made until a signal says to stop."""

from __future__ import annotations

import click

from backstage.cli.session import Session, connected
from backstage.cli.target import load


def _logging(level: str | None, json: bool) -> None:
    """Only where it's asked for: else what the user's code has set holds."""
    if level is not None or json:
        from backstage.logs import LoggerConfig, configure

        configure(LoggerConfig(level or "INFO", json=json))


_LEVEL = click.Choice(["debug", "info", "warning", "error"], case_sensitive=False)


@click.command()
@click.argument("target", metavar="MODULE[:WORKER]")
@click.option("--concurrency", type=click.IntRange(min=1), metavar="N", help="Jobs that run at once.")
@click.option("--queues", metavar="A,B", help="Instead of the worker's own list; queues of its tasks are served too.")
@click.option("--log-level", type=_LEVEL, help="Default: info, or what your code has set.")
@click.option("--log-json", is_flag=True, help="One JSON object a line.")
@connected
def worker(
    session: Session, target: str, concurrency: int | None, queues: str | None, log_level: str | None, log_json: bool
) -> None:
    """Run a worker until SIGTERM or Ctrl-C.

    MODULE is looked for in the current folder too. Without :WORKER it must hold exactly one.
    The first signal lets running jobs finish, a second one gives them back at once.

    \b
    Examples:
      backstage worker app:worker
      backstage worker shop.jobs --concurrency 20 --queues urgent,emails
      backstage worker app:worker --url embedded:///tmp/backstage
    """
    from backstage.worker.worker import Worker

    found = load(target, Worker)
    _logging(log_level, log_json)
    found.configure(**session.options)
    if concurrency is not None:
        found.configure(concurrency=concurrency)
    if queues is not None:
        known = {queue.name: queue for queue in found.config.queues}
        names = [name.strip() for name in queues.split(",")]
        found.configure(queues=[known.get(name, name) for name in names])
    session.address = found.config.address
    found.run()


@click.command()
@click.argument("target", metavar="MODULE[:SCHEDULER]")
@click.option("--log-level", type=_LEVEL, help="Default: info, or what your code has set.")
@click.option("--log-json", is_flag=True, help="One JSON object a line.")
@connected
def scheduler(session: Session, target: str, log_level: str | None, log_json: bool) -> None:
    """Run a scheduler until SIGTERM or Ctrl-C.

    It only enqueues what is due; workers run it. Any number may run: each slot is enqueued once.

    \b
    Examples:
      backstage scheduler app:scheduler
      backstage scheduler shop.cron --url redis://redis.internal:6379
    """
    from backstage.scheduler import Scheduler

    found = load(target, Scheduler)
    _logging(log_level, log_json)
    found.configure(**session.options)
    session.address = found.config.address
    found.run()
