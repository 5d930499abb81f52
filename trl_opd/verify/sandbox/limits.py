"""What a program may use."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use; the kernel enforces all but the wall-clock and the output, which we do.

    Attributes:
        cpu_seconds (`float`): Processor time, rounded up to whole seconds. It is the limit that decides a verdict,
            since it does not depend on the load of the machine.
        memory_bytes (`int`): Address space.
        output_bytes (`int`): What it may write to its streams, together.
        file_bytes (`int`): One file, and all files of its private folder together where a namespace gives it one.
        threads (`int`): Threads; new processes it has none.
        open_files (`int`): Open file descriptors.
    """

    cpu_seconds: float = 6.0
    memory_bytes: int = 2048 * MEBIBYTE
    output_bytes: int = 16 * MEBIBYTE
    file_bytes: int = 32 * MEBIBYTE
    threads: int = 64
    open_files: int = 64

    @property
    def wall_seconds(self) -> float:
        """Five times the processor time and five seconds: for programs that wait, and for a machine that is busy."""
        return 5 * self.whole_cpu_seconds + 5

    @property
    def whole_cpu_seconds(self) -> int:
        """Processor time as the kernel counts it."""
        return math.ceil(self.cpu_seconds)

    def rlimits(self, count_threads: bool) -> dict[str, int]:
        """The limits by the names of the module `resource`.

        Args:
            count_threads (`bool`): Whether the user id is the program's own; the kernel counts threads by user.
        """
        threads = {"RLIMIT_NPROC": self.threads} if count_threads else {}
        return {
            "RLIMIT_CPU": self.whole_cpu_seconds,
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
            "RLIMIT_MSGQUEUE": 0,
            **threads,
        }

    def with_cpu_seconds(self, seconds: float) -> "Limits":
        """The same limits with another processor time."""
        return replace(self, cpu_seconds=seconds)

    def describe(self) -> dict[str, Any]:
        """All of them, for a record."""
        return {**asdict(self), "wall_seconds": self.wall_seconds}
