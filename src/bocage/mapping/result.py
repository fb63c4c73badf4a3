"""What a run wrote and what it took, as a person reads it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from bocage.mapping.streams import Clock
from bocage.progress import format_bytes, format_duration, size_on_disk


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """What a run wrote and what it took."""

    path: Path
    """The Zarr store or the COG."""

    files: tuple[Path, ...]
    """Everything written, sidecars too."""

    n_windows: int
    """Windows encoded in this run; 0 if everything was there already."""

    n_blocks_kept: int
    """Blocks that were finished before this run."""

    n_blocks_to_go: int = 0
    """Blocks that other parts of a shared run still have to write."""

    valid_fraction: float
    """Share of the output's cells that hold a vector."""

    wall_s: float
    clock: Clock

    def __str__(self) -> str:
        lines = [f"wrote    {p}  ({format_bytes(size_on_disk(p))})" for p in self.files]
        if self.n_windows:
            c = self.clock
            lines.append(
                f"took     {format_duration(self.wall_s)} (reading {c.read_s:.1f} s, encoding "
                f"{c.encode_s:.1f} s, writing {c.write_s:.1f} s, at the same time)"
            )
        elif self.n_blocks_to_go == 0:
            lines.append("nothing to do: every block was finished before")
        if self.n_blocks_to_go:
            lines.append(f"to go    {self.n_blocks_to_go} block(s): run the other parts")
            return "\n".join(lines)
        lines.append(f"valid    {self.valid_fraction:.1%} of the cells")
        lines.append(
            f"open     bocage.open_embeddings({str(self.path)!r})   or: "
            f"bocage preview {shlex.quote(str(self.path))}"
        )
        return "\n".join(lines)
