"""The end of a group of training processes."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

_ended: list[Any] = []
"""Groups that were left; they live as long as the process."""


def leave_process_group() -> None:
    """Leave the group that this process trained in; it does not wait for the others.

    The group's object is kept. Else the module that averaged gradients would be its last owner: on
    its own end it would wait, holding the interpreter, for gloo's thread, which may still need the
    interpreter to let go of the last collective. A finished run hung for ever that way.
    """
    _ended.append(dist.group.WORLD)
    dist.destroy_process_group()
