"""--years, as several commands take it."""

from __future__ import annotations


def parse_years(text: str | None) -> tuple[int, ...] | None:
    """2024 or 2023,2024 as numbers; ConfigError for other text."""
    from bocage.errors import ConfigError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            got=f"--years {text}",
            expected="years such as 2024 or 2023,2024",
            fix="see the years with `bocage info`",
        ) from error
