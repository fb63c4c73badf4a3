"""The command line: each command parses, makes one library call, and prints what it wrote.

Every command stands in a file of its own, named like the command, with one function of that name;
nothing heavy is imported at the top of any of them. Exit codes: 0 done, 1 the user's mistake with
the fix, 2 partly done.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

import typer

from bocage._version import __version__
from bocage.cli.bench import bench
from bocage.cli.change import change
from bocage.cli.compress import compress
from bocage.cli.demo import demo
from bocage.cli.embed import embed
from bocage.cli.evaluate import evaluate
from bocage.cli.finetune import finetune
from bocage.cli.index import index
from bocage.cli.info import info
from bocage.cli.models import models
from bocage.cli.predict import predict
from bocage.cli.pretrain import pretrain
from bocage.cli.preview import preview
from bocage.cli.probe import probe
from bocage.cli.search import search
from bocage.cli.validate import validate
from bocage.cli.zonal import zonal
from bocage.errors import BocageError, BocageWarning, ConfigError, PartialError

app = typer.Typer(
    name="bocage",
    help="Satellite imagery to embedding maps with the OlmoEarth models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: tuple[Callable[..., None], ...] = (
    embed,
    predict,
    change,
    zonal,
    preview,
    info,
    validate,
    compress,
    evaluate,
    index,
    search,
    probe,
    finetune,
    models,
    demo,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(pretrain, name="pretrain")
app.add_typer(bench, name="bench")


INTERRUPTED = 130
"""Exit code of Ctrl-C, as shells count it."""

_RESUMED = {"embed", "predict", "change", "compress", "demo", "finetune", "pretrain"}
_KEPT = "; what is finished is kept, run the same command to go on"

SPINS = 5000
"""How often a thread looks for its next layer before it sleeps; torch's library has 300,000."""

EXTRAS = {
    "torch": "models",
    "safetensors": "models",
    "huggingface_hub": "models",
    "sklearn": "learn",
    "scipy": "learn",
    "geopandas": "learn",
    "pyogrio": "learn",
    "pyarrow": "learn",
    "matplotlib": "learn",
    "faiss": "search",
    "exactextract": "zonal",
    "h5py": "pretrain",
    "hdf5plugin": "pretrain",
}
"""The extra that brings a package, by the name under which it is imported."""

_shown: set[str] = set()


def _version(value: bool) -> None:
    if value:
        typer.echo(f"bocage {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log every step."),
    _show: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_version, is_eager=True
    ),
) -> None:
    """Satellite imagery to embedding maps with the OlmoEarth models."""
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("bocage").setLevel(level)


def share_the_cores() -> None:
    """Let threads that wait for each other sleep soon, so that another program may work meanwhile.

    Where one has a core, torch's threads otherwise spin through its turns: training is then 2 to 5
    times slower (docs/defaults.md). What the user has set stays. It counts before torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def console() -> NoReturn:
    """The command as installed: ``main`` in a process of its own, which ends when that is done.

    Python would first take apart every module that was loaded, 0.7 s where torch is among them.
    """
    share_the_cores()
    code: str | int | None = 0
    try:
        main()
    except SystemExit as ending:
        code = ending.code
    atexit._run_exitfuncs()  # temporary files, child processes, logs
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:  # None: begun with a closed one
                stream.flush()
    except BrokenPipeError:
        code = 1
    except OSError as error:
        os.write(2, f"bocage: error: {error}\n".encode())
        code = 1
    os._exit(code if isinstance(code, int) else 1)


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 1, no traceback."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]  # takes any position
    warnings.simplefilter("always", BocageWarning)
    try:
        code = app(standalone_mode=False)
    except PartialError as error:
        _complain("partly done", error)
        sys.exit(2)
    except BocageError as error:
        _complain("error", error)
        sys.exit(1)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _complain(
            "error",
            ConfigError(
                got=f"this command without the package {package}",
                expected=f"the extra {EXTRAS[package]!r}",
                fix=f'pip install "bocage[{EXTRAS[package]}]"',
            ),
        )
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()  # or Python complains about the pipe once more on its way out
        sys.exit(1)
    except OSError as error:
        sys.stderr.write(f"bocage: error: {error}\n")
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        # A mistyped option: exit code 2 would say that part of the work is done.
        error.show()  # type: ignore[attr-defined]
        sys.exit(1)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code without a word
        sys.stderr.write(f"stopped{_KEPT if _RESUMED & set(sys.argv[1:3]) else ''}\n")
    sys.exit(code or 0)


def _complain(kind: str, error: BocageError) -> None:
    sys.stderr.write(f"bocage: {kind}: {error}\n")


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if issubclass(category, BocageWarning):
        if str(message) in _shown:
            return  # the same for every window is said once
        _shown.add(str(message))
        sys.stderr.write(f"bocage: warning: {message}\n")
    else:
        logging.getLogger("bocage").debug("%s: %s", category.__name__, message)
