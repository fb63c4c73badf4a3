"""Memory and time of the patch discrimination for a batch of long sequences.

    python bench/pretrain_loss_memory.py [rows] [tokens] [width]

By default 64 rows of 2,250 tokens of width 768. Prints the peak (VmHWM) above the predictions and
targets themselves, forward and backward, with and without masked negatives, and what one tensor of
all scores would take.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from bocage.pretrain.losses import Pairs, mean_of_counted, patch_discrimination


def resident_mib(field: str) -> float:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(field)


def forget_peak() -> None:
    """Start VmHWM anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Measure and print."""
    rows, tokens, width = (
        int(a) for a in (*sys.argv[1:], *("64", "2250", "768")[len(sys.argv) - 1 :])
    )
    torch.manual_seed(0)
    print(
        f"{rows} x {tokens} tokens of width {width}, {torch.get_num_threads()} threads; "
        f"predictions {rows * tokens * width * 4 / 2**20:.0f} MiB, "
        f"all scores at once {rows * tokens**2 * 4 / 2**20:.0f} MiB"
    )
    flat = torch.randn(rows * tokens, width, requires_grad=True)
    targets = torch.randn(rows * tokens, width)
    numbers = torch.arange(rows * tokens).view(rows, tokens)
    counts = torch.full((rows,), tokens)
    for same_target in (None, 0.999):
        flat.grad = None
        before = resident_mib("VmRSS")
        forget_peak()
        start = time.perf_counter()
        pairs = Pairs(predictions=numbers, targets=numbers, counts=counts, same_target=same_target)
        losses, counted = patch_discrimination(flat, targets, [pairs])
        mean_of_counted(losses, counted).backward()
        seconds = time.perf_counter() - start
        peak = resident_mib("VmHWM") - before
        print(f"same_target {same_target}: peak {peak:.0f} MiB above the inputs, {seconds:.1f} s")


if __name__ == "__main__":
    main()
