"""What differs between how something was begun and how it is asked for now, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SHOWN = 3
_LONGEST = 80


def describe_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first differences, like: size_px 32 (now 64); "" if there is none."""
    found = list(_differences(before, now))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], where: str = ""
) -> Iterator[str]:
    for key in {**before, **now}:
        place = f"{where}.{key}" if where else key
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, place)
        elif old == new:
            continue
        elif key == "contents":
            yield "other contents of its input files"
        elif len(f"{old}{new}") > _LONGEST:
            yield f"other {place}"
        else:
            yield f"{place} {old!r} (now {new!r})"
