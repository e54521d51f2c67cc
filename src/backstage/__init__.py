"""Backstage: background jobs on Redis Streams, with at-least-once delivery.

from backstage import Worker

worker = Worker()                               # where Redis is: REDIS_URL, or arguments

@worker.on("email.send")
async def send(message: dict[str, str]) -> None: ...

worker.run()
"""

from backstage.broadcast import Broadcast
from backstage.client import Client
from backstage.config import LoggerConfig, RedisConfig, RedisOptions, WorkerConfig, WorkerOptions
from backstage.cron import CronTask
from backstage.doctor import Doctor
from backstage.durations import Duration
from backstage.errors import (
    BackstageError,
    ConfigError,
    DuplicateTask,
    HardTimeout,
    InvalidCronSchedule,
    InvalidName,
    MalformedJob,
    NotSerializable,
    PayloadTooLarge,
    RedisRefused,
    RedisUnavailable,
    SoftTimeout,
    TaskError,
    TaskNotBound,
)
from backstage.findings import Finding
from backstage.inspector import Inspector, inspect
from backstage.job import Backoff, Dedupe, Delivery, EnqueueOptions, Job, Next, ScheduleOptions
from backstage.outcome import Again, Dead, Discard, Done, Outcome, Released, Retry
from backstage.queue import DEFAULT_QUEUES, Priority, Queue
from backstage.report import DeadJob, QueueInfo, QueuesInfo, WorkerInfo
from backstage.scheduler import Scheduler
from backstage.serializer import JsonSerializer, Serializer
from backstage.stream import Stream
from backstage.task import Middleware, Producer, Run, Task, TaskOptions, TaskRegistry
from backstage.worker.worker import Worker

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022  grouped, in the order of docs/api.md
    # running
    "Worker", "Scheduler", "Broadcast",
    # enqueueing
    "Client", "Job", "Next", "Backoff", "Dedupe", "Priority", "Queue", "DEFAULT_QUEUES", "Duration",
    "EnqueueOptions", "ScheduleOptions", "Producer",
    # tasks and handlers
    "Task", "TaskRegistry", "TaskOptions", "Run", "Retry", "Discard", "Middleware",
    # schedules
    "CronTask",
    # settings
    "RedisConfig", "WorkerConfig", "LoggerConfig", "RedisOptions", "WorkerOptions", "Serializer", "JsonSerializer",
    # looking in and repairing
    "Inspector", "QueuesInfo", "QueueInfo", "WorkerInfo", "DeadJob", "inspect",
    "Doctor", "Finding",
    # a loop of one's own
    "Stream", "Delivery", "Outcome", "Done", "Again", "Dead", "Released",
    # errors
    "BackstageError", "ConfigError", "TaskError", "DuplicateTask", "TaskNotBound", "InvalidName",
    "InvalidCronSchedule", "PayloadTooLarge", "NotSerializable", "MalformedJob", "RedisUnavailable", "RedisRefused",
    "SoftTimeout", "HardTimeout",
]  # fmt: skip
