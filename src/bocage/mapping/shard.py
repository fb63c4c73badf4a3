"""One part of a run that many machines share."""

from __future__ import annotations

from dataclasses import dataclass

from bocage.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One part of a run that many machines share: part ``index`` of ``count``, from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "3/40"; ConfigError for anything else."""
        index, slash, count = text.partition("/")
        if slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count):
            return cls(index=int(index), count=int(count))
        raise ConfigError(
            got=f"--shard {text}",
            expected="a part and a number of parts such as 3/40, counted from 1",
            fix="use --shard 1/2 on one machine and --shard 2/2 on the other",
        )
