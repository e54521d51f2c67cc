"""Code that isn't async runs in a thread."""

import time

from backstage import TaskRegistry

from .orders import Order

tasks = TaskRegistry()


@tasks.on("stock.reserve", priority="urgent")
def reserve(order: Order) -> None:
    time.sleep(0.01)
    print(f"{order.id}: {', '.join(order.items)} reserved", flush=True)
