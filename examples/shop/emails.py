"""Emails may wait while there is anything else to do."""

from backstage import TaskRegistry

from .orders import Order

tasks = TaskRegistry(priority="low")


@tasks.on("email.receipt")
async def send_receipt(order: Order) -> None:
    print(f"{order.id}: receipt sent to {order.email}", flush=True)
