"""Schedules, in a process of their own. It runs until Ctrl-C; any number may run, each slot is enqueued once.

    python examples/scheduler.py

or `backstage scheduler scheduler:scheduler` in this folder. Workers run what it enqueues; a worker can have the
schedules itself as well: Worker(schedules=[…]).
"""

from backstage import CronTask, Scheduler

scheduler = Scheduler(
    schedules=[
        CronTask("*/15 * * * *", "stock.sync", args={"full": False}),
        CronTask("30 8 * * MON-FRI", "report.send", timezone="Europe/Berlin"),
        CronTask("@hourly", "cache.clean", name="clean-cache", queue="low", catch_up="skip"),
    ]
)

if __name__ == "__main__":
    scheduler.run()
