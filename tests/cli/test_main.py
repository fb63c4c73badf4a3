import os
import signal
import subprocess
import sys
import time
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
    assert ran.stderr.count("\n") == 1 and "No space left" in ran.stderr
    assert ran.returncode == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_no_failure(closed):
    line = f"{sys.executable} -m bocage models {closed}"
    ran = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "Traceback" not in ran.stderr


def test_a_reader_that_leaves_early_is_no_error_message():
    line = f"{sys.executable} -m bocage models | head -1"
    ran = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert ran.stdout.startswith("olmoearth")
    assert "Traceback" not in ran.stderr


def heed_interrupts():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_stops_with_a_word_about_what_is_kept(tmp_path, demo_scene):
    command = [sys.executable, "-m", "bocage", "embed", str(demo_scene), "--out", "x.zarr"]
    options = "--weights random --patch-size 2 --block 128 --date 2017-07-01 --level L1C"
    process = subprocess.Popen(
        [*command, *options.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test runner in the background may ignore the signal, and its children with it.
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - it takes no lock
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("x.zarr/bocage/[0-9]*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what is finished is kept" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("theirs", "spins"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_sleep_soon_unless_the_user_says_otherwise(theirs, spins):
    """The library reads the variable once, when torch is loaded."""
    probe = """
import builtins, os, sys
seen, load = [], builtins.__import__
def watch(name, *rest):
    if name == "torch" and not seen:
        seen.append(os.environ.get("GOMP_SPINCOUNT"))
    return load(name, *rest)
builtins.__import__ = watch
from bocage.cli import console
sys.argv = ["bocage", "bench", "scene", "no such file"]
import atexit
atexit.register(lambda: print(seen[0] or "unset"))
console()
"""
    clean = {k: v for k, v in os.environ.items() if k not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    ran = subprocess.run(
        [sys.executable, "-c", probe],
        env=clean | theirs,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.split() == [spins or "unset"], ran.stderr


@pytest.mark.parametrize(("arguments", "code"), [(["models"], 0), (["info", "no such file"], 1)])
def test_the_process_ends_with_the_command_after_what_has_to_be_tidied(arguments, code, tmp_path):
    """No module is taken apart, which takes long where torch is loaded; exit functions do run."""
    probe = f"""
import atexit, os, sys, tempfile, weakref
from bocage.cli import console
class Module:
    def __del__(self):
        os.write(1, b"taken apart")
sys.kept = Module()
folder = tempfile.TemporaryDirectory(dir={str(tmp_path)!r})
atexit.register(lambda: os.write(1, b"tidied"))
sys.argv = ["bocage", *{arguments}]
console()
"""
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert ran.returncode == code
    assert "tidied" in ran.stdout and "taken apart" not in ran.stdout
    assert ("olmoearth-v1.2-nano" in ran.stdout) == (code == 0)  # what was printed is not lost
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed", "SCENE", "--model", "bocage-nano", "--out", "x.zarr"],
        ["bench", "encoder", "olmoearth-v1.2-nano"],
        ["bench", "scene", "SCENE"],
        ["finetune", "SCENE", "labels.geojson", "--model", "bocage-nano", "--out", "f"],
        ["pretrain", "run", "samples", "--out", "y"],
    ],
)
def test_the_core_without_torch_says_which_extra_a_command_needs(arguments, demo_scene, tmp_path):
    ran = without("torch", [str(demo_scene) if a == "SCENE" else a for a in arguments], tmp_path)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert 'pip install "bocage[models]"' in ran.stderr
    assert not list(tmp_path.iterdir())


def test_the_core_without_torch_lists_the_models(tmp_path):
    assert "olmoearth-v1.2-tiny" in without("torch", ["models"], tmp_path).stdout


def without(package, arguments, folder):
    """The command where a package is not installed."""
    probe = f"""
import sys
sys.modules[{package!r}] = None
from bocage.cli import console
sys.argv = ["bocage", *{arguments}]
console()
"""
    command = [sys.executable, "-c", probe]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
