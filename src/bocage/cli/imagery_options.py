"""The options of every command that opens imagery, declared once.

    @with_imagery
    def command(source, out, imagery: ImageryOptions): ...

gives a command --sensor, --bands, --date, ... in place of ``imagery``.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

PANEL = "Input"


def _option(help_text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True)
class ImageryOptions:
    """What files do not say about themselves, and what to read of them; as typed."""

    sensor: str | None = _option("If names do not tell.")
    bands: str | None = _option("Band names in file order: B02,B03,...")
    date: str | None = _option("If files do not say: 2024-07-01.")
    dates: str | None = _option("Keep these: 2024, or 2024-04-01/2024-09-30.")
    bbox: str | None = _option("west,south,east,north in degrees.")
    catalog: str | None = _option("STAC address to search in --bbox, --dates.")
    collections: str | None = _option("STAC collections, a,b.")
    max_cloud: float | None = _option("Most cloud of a STAC item, %.")
    crs: str | None = _option("utm or EPSG:n to reproject.")
    scale: str | None = _option("Multiply by: 10000, db, sentinel1=db20.")
    offset: str | None = _option("Add: -1000, sentinel1=-83.")
    level: str | None = _option("L1C or L2A, if known.")
    cloud_mask: bool = _option("Use SCL or QA_PIXEL if present.", default=True)
    composite: str | None = _option("month, year or 30d: one median per period.")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ImageryOptions:
        """Those among the options of a command."""
        return cls(**{f.name: options[f.name] for f in fields(cls) if f.name in options})

    def as_dict(self) -> dict[str, Any]:
        """Name and value as typed."""
        return asdict(self)

    def given(self) -> list[str]:
        """Names of the options that were typed."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]

    def sides(self) -> tuple[ImageryOptions, ImageryOptions]:
        """Those of an earlier and of a later image: texts may be before=X,after=Y."""
        typed = {name: _sides(name, getattr(self, name)) for name in self.given()}
        before, after = ({name: pair[i] for name, pair in typed.items()} for i in (0, 1))
        return ImageryOptions(**before), ImageryOptions(**after)

    def check_unused(self, source: str, *, fix: str) -> None:
        """ConfigError if an option was given though ``source`` opens no imagery."""
        given = self.given()
        if given:
            from bocage.errors import ConfigError

            raise ConfigError(
                got="--" + " and --".join(given).replace("_", "-") + f" with {source}",
                expected="options of imagery only where imagery is read",
                fix=fix,
            )

    def source_and_labels(
        self, source: str, labels: list[Path] | None
    ) -> tuple[str | None, list[Path]]:
        """What to read and the files of labels; with a catalog all words are files."""
        if self.catalog is None:
            return source, labels or []
        return None, [Path(source), *(labels or [])]

    def open(self, sources: list[str]) -> Any:
        """The stack of the sources, composited if that was asked for."""
        from bocage.imagery import composite, open_stack

        one = sources[0] if len(sources) == 1 else sources
        stack = open_stack(one or None, **self.open_options())
        return composite(stack, period=self.composite) if self.composite else stack

    def open_options(self) -> dict[str, Any]:
        """Options of `open_stack`."""
        names = ("sensor", "date", "crs", "level", "catalog")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        found["cloud_mask"] = self.cloud_mask
        for name in ("bands", "collections"):
            if getattr(self, name):
                found[name] = [part.strip() for part in getattr(self, name).split(",")]
        for name in ("scale", "offset"):
            if getattr(self, name) is not None:
                found[name] = _per_sensor(getattr(self, name))
        if self.max_cloud is not None:
            found["max_cloud_percent"] = self.max_cloud
        if self.dates:
            first, _, last = self.dates.partition("/")
            found["dates"] = (first, last or first)
        if self.bbox:
            found["bbox"] = _bbox(self.bbox)
        if self.catalog:
            # Items of a search may lie in several zones; the middle one serves the area.
            found.setdefault("crs", "utm")
        return found


def with_imagery(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter ``imagery`` of a command by an option for each of its fields."""
    hints = get_type_hints(command, include_extras=True)
    ours = get_type_hints(ImageryOptions)
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name == "imagery":
            parameters += [_parameter(f, ours[f.name]) for f in fields(ImageryOptions)]
        else:
            known = {"kind": inspect.Parameter.KEYWORD_ONLY, "annotation": hints[parameter.name]}
            parameters.append(parameter.replace(**known))

    @functools.wraps(command)
    def with_options(**options: Any) -> None:
        imagery = ImageryOptions(**{f.name: options.pop(f.name) for f in fields(ImageryOptions)})
        command(**options, imagery=imagery)

    # typer reads a command from its signature and its annotations.
    signed: Any = with_options
    signed.__signature__ = inspect.Signature(parameters)
    signed.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options


def _parameter(option: Any, hint: Any) -> inspect.Parameter:
    declared = typer.Option(help=option.metadata["help"], rich_help_panel=PANEL)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=option.default,
        annotation=Annotated[hint, declared],
    )


def _sides(name: str, value: Any) -> tuple[Any, Any]:
    from bocage.errors import ConfigError

    if not (isinstance(value, str) and value.startswith(("before=", "after="))):
        return value, value
    both = re.fullmatch("before=(.+),after=(.+)", value)
    if both is None:
        raise ConfigError(
            got=f"--{name} {value}",
            expected="one value for both images, or one for each",
            fix=f"use --{name} before=X,after=Y",
        )
    return both.group(1), both.group(2)


def _bbox(text: str) -> tuple[float, ...]:
    from bocage.errors import ConfigError

    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            got=f"--bbox {text}",
            expected="four numbers: west,south,east,north in degrees",
            fix="use for example --bbox 36.7,-1.4,36.9,-1.2",
        ) from error
    return west, south, east, north


def _per_sensor(text: str) -> Any:
    """A number or a rule such as db; or several as sentinel1=db20,sentinel2_l2a=10000."""
    if "=" not in text:
        return _number(text)
    pairs = (part.partition("=") for part in text.split(","))
    return {sensor.strip(): _number(value) for sensor, _, value in pairs}


def _number(text: str) -> float | str:
    from bocage.errors import ConfigError

    if text.strip() in {"db", "db20"}:
        return text.strip()
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(
            got=repr(text), expected="a number, db or db20", fix="check --scale and --offset"
        ) from error
