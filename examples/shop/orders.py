"""What travels from one task to the next."""

from dataclasses import dataclass, field


@dataclass
class Order:
    id: str
    email: str
    items: list[str] = field(default_factory=list)
