"""The rules that keep the house a house, read from the imports themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bocage

SOURCE = Path(bocage.__file__).parent

# A room may use the rooms before it, and none after; docs/architecture.md explains.
ORDER = [
    *("geo", "scoring", "imagery", "embeddings", "models", "mapping", "search"),
    *("learn", "change", "zonal", "pretrain", "bench", "cli"),
]
TORCH_ROOMS = {"models", "pretrain", "bench", "learn/finetune"}
FORBIDDEN = {
    # Not only order: these pairs must not know each other.
    "models": {"imagery", "embeddings"},
    "embeddings": {"imagery", "models"},
    "search": {"models", "imagery"},
}


def imports(path):
    """(module, whether at the top of the file) of every import of bocage or torch."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in top
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "bocage" and parts[1] in ORDER else None


SOURCES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_room_uses_only_rooms_before_it(path):
    room = path.relative_to(SOURCE).parts[0]
    has_torch = any(path.is_relative_to(SOURCE / name) for name in TORCH_ROOMS)
    assert room in ORDER, f"new room {room}: give it a place in ORDER and in architecture.md"
    for module, _ in imports(path):
        used = room_of(module)
        if used is not None and used != room:
            assert ORDER.index(used) < ORDER.index(room), f"{path.name} imports {module}"
            assert used not in FORBIDDEN.get(room, ()), f"{path.name} imports {module}"
        if not has_torch:
            assert module.split(".")[0] != "torch", f"{path.name} imports torch"


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*.py")), ids=lambda p: p.name)
def test_shared_files_know_no_room(path):
    if path.name in {"__init__.py", "__main__.py"}:
        return
    assert not [m for m, _ in imports(path) if room_of(m)]


@pytest.mark.parametrize("arguments", [["-c", "import bocage"], ["-m", "bocage", "--help"]])
def test_import_and_help_load_nothing_heavy(arguments):
    heavy = {"torch", "rasterio", "xarray", "zarr", "dask", "pandas", "odc", "pyarrow", "sklearn"}
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True
    )
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "bocage" in loaded
    assert not loaded & heavy


def test_no_file_outgrows_a_reader():
    long = {
        str(p.relative_to(SOURCE)): n
        for p in SOURCE.rglob("*.py")
        if (n := len(p.read_text().splitlines())) > 600
    }
    assert not long
