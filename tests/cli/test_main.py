import subprocess
import sys
from pathlib import Path

import pytest


def test_a_mistyped_option_exits_with_1_and_says_so(bocage):
    ran = bocage("embed", "scene", "--patchsize", "8")
    assert ran.code == 1
    assert "--patch" in ran.err


def test_an_option_of_the_wrong_type_exits_with_1(bocage):
    ran = bocage("embed", "scene", "--patch-size", "eight")
    assert ran.code == 1 and "integer" in ran.err
    assert "--patch-size" in ran.err


def test_version_and_help_exit_with_0(bocage):
    assert bocage("--version").out.startswith("bocage ")
    assert "embed" in bocage("--help").out


@pytest.mark.parametrize("arguments", [["models"], ["--help"]])
def test_output_that_cannot_be_written_is_no_traceback(arguments):
    command = [sys.executable, "-m", "bocage", *arguments]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert "Traceback" not in ran.stderr


def test_a_reader_that_leaves_early_is_no_error_message():
    line = f"{sys.executable} -m bocage models | head -1"
    ran = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert ran.stdout.startswith("olmoearth")
    assert "Traceback" not in ran.stderr
