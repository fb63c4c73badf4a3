"""What all tests share."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _log_levels_stay():
    """A command run in this process sets how much is logged; the next test starts afresh."""
    loggers = [logging.getLogger("bocage"), logging.getLogger("bocage.models.load")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
