"""The tasks of a small shop. Nothing here knows that it is a demo, or where Redis is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta

from backstage import Backoff, Next, Run, TaskRegistry

RECEIPT_AFTER = timedelta(seconds=1)
PACKING = 1.5
"""Seconds that it takes to pack a parcel."""

tasks = TaskRegistry()


@dataclass(frozen=True)
class Order:
    number: int


@tasks.on("email.receipt")
def send_receipt(order: Order) -> None:
    """Not async, so it runs in a thread."""
    time.sleep(0.01)


@tasks.on("payment.process")
async def charge(order: Order) -> Next:
    """What it returns comes next. Payment done and receipt scheduled are one step in Redis."""
    await asyncio.sleep(0.02)
    return Next(send_receipt, order, delay=RECEIPT_AFTER)


@tasks.on("refund.pay", priority="urgent")
async def refund(order: Order) -> None:
    await asyncio.sleep(0.05)


@tasks.on("parcel.send")
async def send_parcel(order: Order) -> None:
    await asyncio.sleep(0.05)


@tasks.on("newsletter.send", priority="low")
async def send_newsletter(order: Order) -> None:
    await asyncio.sleep(0.05)


@tasks.on("parcel.pack")
async def pack(order: Order) -> None:
    await asyncio.sleep(PACKING)


@tasks.on("label.print", attempts=3, backoff=Backoff("fixed", delay=200))
async def print_label(order: Order, run: Run) -> None:
    """Works at the third attempt."""
    if run.attempt < 3:
        raise ConnectionError("the printer is offline")


@tasks.on("fax.send", attempts=3, backoff=Backoff("exponential", delay=100))
async def send_fax(order: Order) -> None:
    """Never works."""
    raise ConnectionError("nobody has a fax machine")


@tasks.on("report.month")
async def report() -> None:
    await asyncio.sleep(0.01)
