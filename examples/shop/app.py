"""The worker: all tasks, and where they are run. It opens nothing until it is started."""

from backstage import Worker

from . import emails, payments, stock

worker = Worker(tasks=[payments.tasks, stock.tasks, emails.tasks], concurrency=20)
