"""Payments have a queue of their own, and five attempts."""

from datetime import timedelta

from backstage import Backoff, Discard, Next, Retry, Run, TaskRegistry

from .emails import send_receipt
from .orders import Order
from .stock import reserve

tasks = TaskRegistry(queue="payments", attempts=5, backoff=Backoff("exponential", delay=timedelta(milliseconds=200)))


@tasks.on("payment.process", timeout=timedelta(seconds=10))
async def process(order: Order, run: Run) -> list[Next]:
    """What comes next is enqueued exactly when the payment is done: both jobs, or none."""
    if not order.items:
        raise Discard("nothing to pay")  # no retry would help: it goes to the dead letter at once
    if order.id == "order-2" and run.attempt == 1:
        raise Retry("the bank is busy", delay=timedelta(milliseconds=100))
    print(f"{order.id} paid, at attempt {run.attempt}", flush=True)
    return [Next(reserve, order), Next(send_receipt, order, delay=timedelta(milliseconds=500))]
