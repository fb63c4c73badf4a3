"""What README and docs show runs as shown: python blocks, command lines, options and links."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import rasterio
import typer
from affine import Affine

import bocage
from bocage.cli import app
from bocage.sensors import SENTINEL2_L2A

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]
OTHER_TOOLS = {"--index-url": "pip", "--nproc-per-node": "torchrun"}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


def command_lines():
    """Every ``bocage ...`` of a bash block or between backticks, as a list of words."""
    for page in PAGES:
        text = page.read_text()
        found = [line for block in blocks(page, "bash") for line in block.splitlines()]
        found += re.findall(r"`(bocage [^`]+)`", text)
        for line in found:
            words = shlex.split(line, comments=True)
            if words[:1] == ["bocage"] and words[1:] not in ([], ["--help"]):
                yield pytest.param(words[1:], id=f"{page.name}: {' '.join(words)}")


def write_scene(folder, seed):
    """A Sentinel-2 L2A scene of 32 x 32 px where quickstart looks: 450 km east, 4800 km north."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    with rasterio.open(
        folder / "bands.tif", "w", driver="GTiff", height=32, width=32, count=12, dtype="uint16",
        crs="EPSG:32632", transform=Affine(10, 0, 449_840, 0, -10, 4_800_160), nodata=0,
    ) as file:  # fmt: skip
        file.write(rng.integers(200, 4000, (12, 32, 32)).astype(np.uint16))
        for number, band in enumerate(SENTINEL2_L2A.band_names, start=1):
            file.set_band_description(number, band)


def write_store(path):
    """The store that quickstart opens; of v1.3, whose first 64 values stand alone."""
    from bocage.embeddings import EmbeddingGrid, create_store, write_shard

    grid = EmbeddingGrid(
        crs="EPSG:32632",
        transform=Affine(40, 0, 449_840, 0, -40, 4_800_160),
        shape_yx=(8, 8),
        dims=128,
        years=(2024,),
        model="olmoearth-v1.3-base",
        shard_cells=128,
        patch_size=4,
    )
    create_store(path, grid)
    h, w = grid.shard_shape(0, 0)
    write_shard(path, grid, 2024, 0, 0, np.full((128, h, w), 0.25, np.float32))


@pytest.mark.parametrize("page", RUN, ids=names(RUN))
def test_the_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scene(tmp_path / "2024-07-01", seed=0)
    (tmp_path / "scene").symlink_to("2024-07-01")
    for month in (1, 2, 3):
        write_scene(tmp_path / f"2024-0{month}", seed=month)
    if page.name != "README.md":
        write_store(tmp_path / "scene.zarr")  # README makes its own
    load = bocage.load_model

    def load_random(name, **options):
        """The one substitution: random weights, for the published ones are not here."""
        assert name in bocage_models()
        return load(name.replace("-tiny", "-nano"), **{**options, "weights": None})

    monkeypatch.setattr(bocage, "load_model", load_random, raising=False)
    found = blocks(page, "python")
    assert found
    scope = {}
    for block in found:
        code = block.replace('open_stack("scene/")', 'open_stack("scene/", date="2024-07-01")')
        exec(compile(code, str(page.relative_to(ROOT)), "exec"), scope)
    if page.name == "README.md":
        written = bocage.open_embeddings("scene.zarr")
        assert written.shape == (1, 128, 8, 8)
        assert np.isfinite(written.values).all()
    else:
        assert scope["emb"].shape == (1, 64, 8, 8)
        assert [str(t)[:10] for t in scope["stack"].time.values] == [
            "2024-01-01", "2024-02-01", "2024-03-01"
        ]  # fmt: skip


def bocage_models():
    from bocage.models import list_models

    return list_models()


@pytest.mark.parametrize("words", list(command_lines()))
def test_a_command_line_of_the_docs_parses(words):
    command = typer.main.get_command(app)
    if len(words) == 1:  # named in passing, without its arguments
        assert words[0] in command.commands
        return
    # Only parsing: values are checked by their types, nothing is opened.
    parsed, rest = command.make_context("bocage", list(words)), words
    while hasattr(command, "commands"):
        rest = [*parsed._protected_args, *parsed.args]
        name, command, rest = command.resolve_command(parsed, rest)
        parsed = command.make_context(name, list(rest), parent=parsed)
    assert not parsed.args
    model = parsed.params.get("model") or "NAME"
    if model != "NAME" and not str(model).endswith("/"):  # a name, not a folder
        assert model in bocage_models()


def test_a_misspelt_option_would_be_found():
    with pytest.raises(Exception, match="--patchsize"):
        test_a_command_line_of_the_docs_parses(["embed", "scene/", "--patchsize", "4"])


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_option_named_in_a_page_exists(page):
    known = {"--help", *OTHER_TOOLS}
    parts = [typer.main.get_command(app)]
    for part in parts:  # grows while it is walked: commands of commands
        parts.extend(getattr(part, "commands", {}).values())
        for parameter in part.params:
            known.update([*parameter.opts, *parameter.secondary_opts])
    # Scripts have options of their own.
    text = re.sub(r"`python bench/[^`]*`", "", page.read_text())
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))
    assert used <= known, used - known


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_relative_link_points_at_a_file(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    local = [t.split("#")[0] for t in targets if "://" not in t and not t.startswith("#")]
    missing = {t for t in local if not (page.parent / t).exists()}
    assert not missing


def test_every_entry_of_the_file_map_exists():
    text = (ROOT / "README.md").read_text()
    tree = text.split("## The files", 1)[1].split("```")[1]
    base = ROOT
    for line in filter(None, tree.splitlines()):
        entry = re.split(r"\s{2,}", line.strip())[0]
        if line.startswith(" "):
            assert all((base / name).exists() for name in entry.split()), entry
        else:
            assert all((ROOT / name).exists() for name in entry.split()), entry
            base = ROOT / entry.split()[0]


def test_make_targets_of_the_readme_exist():
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(
        re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    )
    assert named
    assert named <= rules, named - rules
