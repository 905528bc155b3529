"""What one worker asks of its node, in Kubernetes' own quantities."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?", re.ASCII)
_FACTORS = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", 1)},
    **{unit + "i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}


def quantity(text: str | int | float, field: str = "quantity") -> Decimal:
    """Parse a Kubernetes quantity: ``"500m"`` → 0.5, ``"2Gi"`` → 2147483648.

    Args:
        text: Digits with an optional suffix (m, k to E, Ki to Ei); numbers are taken as they are.
        field: Named in the error.

    Raises:
        ValueError: It does not parse.
    """
    match = _QUANTITY.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(
            f"{field}={text!r} is not a quantity. Write it as Kubernetes does: '500m', '2', '512Mi', '4Gi'."
        )
    return Decimal(match[1]) * _FACTORS[match[2] or ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """CPU, memory, GPUs and scratch disk of one worker.

    Attributes:
        cpu: Cores, e.g. ``"2"`` or ``"500m"``; None asks for nothing.
        memory: Bytes, e.g. ``"4Gi"``.
        gpu: Whole GPUs.
        ephemeral_storage: Bytes of local disk, e.g. ``"10Gi"``.

    Raises:
        ValueError: A quantity does not parse, or is not positive; names the field.
    """

    cpu: str | None = None
    memory: str | None = None
    gpu: int = 0
    ephemeral_storage: str | None = None

    def __post_init__(self) -> None:
        for field in ("cpu", "memory", "ephemeral_storage"):
            value = getattr(self, field)
            if value is not None and quantity(value, field) <= 0:
                raise ValueError(f"{field}={value!r} must be more than nothing; leave it out to ask for nothing.")
        if type(self.gpu) is not int or self.gpu < 0:
            raise ValueError(f"gpu={self.gpu!r} must be a whole number of GPUs, 0 or more.")
