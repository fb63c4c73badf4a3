"""Everything bocage raises on purpose.

    BocageError            the user can mend it; the command line exits with 1
    ├── InputError         imagery, values, bands, grids, dates
    ├── ConfigError        an option or a combination of options
    ├── SourceError        a file, URL or catalogue that cannot be read
    ├── StoreError         an embedding store or raster that is wrong, or in the way
    └── ModelError         weights, releases, model configuration
    PartialError           some windows failed; the command line exits with 2

    BocageWarning          something works less well than expected; says the consequence

Every error is one sentence with three parts: what was got, what was expected, how to fix it.
"""

from __future__ import annotations


class BocageError(Exception):
    """A mistake that the user can mend: "got ...; expected ...; fix"."""

    def __init__(self, *, got: str, expected: str, fix: str) -> None:
        """Keep the three parts, each a clause without a full stop."""
        self.got = got
        self.expected = expected
        self.fix = fix
        super().__init__(f"got {got}; expected {expected}; {fix}")

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling between worker processes.
        return _rebuild, (type(self), self.got, self.expected, self.fix)


class InputError(BocageError):
    """Imagery, values, bands, grids or dates are not what they must be."""


class ConfigError(BocageError):
    """An option, or a combination of options, that cannot be used."""


class SourceError(BocageError):
    """A file, URL or catalogue is missing or unreadable; never treated as nodata."""


class StoreError(BocageError):
    """An embedding store or raster is damaged, foreign, or of another configuration."""


class ModelError(BocageError):
    """Weights, release or model configuration do not fit."""


class PartialError(BocageError):
    """Part of the work is done and kept; the rest failed and can be run again."""


class BocageWarning(UserWarning):
    """A degraded or risky path, announced once with its consequence."""


def _rebuild(kind: type[BocageError], got: str, expected: str, fix: str) -> BocageError:
    return kind(got=got, expected=expected, fix=fix)
