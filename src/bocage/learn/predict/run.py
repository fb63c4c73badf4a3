"""One run of `predict`: where it writes, whether it is done, and how scores become files."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bocage.contents import contents_of
from bocage.embeddings.cog import own_grid
from bocage.learn.predict import record
from bocage.learn.predict.config import PredictConfig
from bocage.learn.predict.layer import tiles
from bocage.learn.predict.outputs import write_map
from bocage.learn.predict.predictor import Predictor
from bocage.learn.predict.result import PredictResult
from bocage.learn.predict.scores import choose_years
from bocage.learn.predict.target import in_the_way, is_ours
from bocage.progress import progress


@dataclass(kw_only=True)
class Run:
    """What was asked for, and what has been done so far."""

    known: Predictor
    out: Path
    config: PredictConfig
    request: dict[str, Any] | None = None
    report: Callable[[str], None] | None = None
    show_progress: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each stage of this process."""

    scene: str = ""
    """Hash of imagery, model and options where a scene is mapped: known before it is embedded."""

    temporary: list[Path] = field(default_factory=list)
    """Stores to remove when the map is there."""

    def targets(self, years: tuple[int, ...]) -> list[Path]:
        """One raster per year."""
        if len(years) == 1:
            return [self.out]
        return [self.out.with_name(f"{self.out.stem}_{y}{self.out.suffix}") for y in years]

    def fingerprint(self, identity: dict[str, Any]) -> str:
        """Short hash of everything that decides the files."""
        options = {k: str(v) for k, v in asdict(self.config).items() if k != "keep_embeddings"}
        if self.config.reference is not None:
            options["reference_contents"] = contents_of([self.config.reference])
        text = json.dumps([identity, options], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def finished(self, identity: dict[str, Any], years: tuple[int, ...]) -> PredictResult | None:
        """The result of an earlier identical run; StoreError if another map is in the way."""
        targets, fingerprint = self.targets(years), self.fingerprint(identity)
        complete = []
        for target in targets:
            found = record.read(target)
            if target.exists() and not is_ours(target, fingerprint):
                raise in_the_way(target)
            complete.append(
                target.exists() and found is not None and found.get("fingerprint") == fingerprint
            )
        if not all(complete):
            return None
        self.remove_temporary()
        return PredictResult(paths=tuple(targets), files=tuple(targets))

    def finished_scene(self, years: tuple[int, ...]) -> PredictResult | None:
        """The same for a scene, before hours go into embedding it."""
        targets = self.targets(self.config.years or years)
        found = [record.read(target) if target.exists() else None for target in targets]
        for target, told in zip(targets, found, strict=True):
            if told is not None and told.get("scene") != self.scene:
                raise in_the_way(target)
        if any(told is None for told in found):
            return None
        return PredictResult(paths=tuple(targets), files=tuple(targets))

    def finish(self, store: Path, identity: dict[str, Any]) -> PredictResult:
        """Scores to files; removes the stores that are not needed any more."""
        from bocage.embeddings.open import open_raster

        start = time.perf_counter()
        scores = open_raster(store)
        indices = choose_years(scores, self.config.years, str(store))
        years = tuple(scores.years[i] for i in indices)
        done = self.finished(identity, years)
        if done is not None:
            return done
        total = len(list(tiles(scores.shape[2:]))) * len(years)
        files: list[Path] = []
        tables: dict[int, Any] = {}
        n_valid = n_cells = 0
        places = ""
        with progress("writing", total, unit="tiles", enabled=self.show_progress) as advance:
            for index, target in zip(indices, self.targets(years), strict=True):
                year = scores.years[index]
                tags = {
                    "BOCAGE_RUN": self.fingerprint(identity),
                    "BOCAGE_PREDICTOR": self.known.identity,
                    **({"YEAR": str(year)} if year else {}),
                }
                config = replace(self.config, polygons=self._polygons(year, len(years)))
                made = write_map(
                    scores, index, self.known, target, config, tags=tags, advance=advance
                )
                self.seconds["writing"] = time.perf_counter() - start
                files += [*made.files, *self._describe(scores, target, year, identity, made)]
                tables[year] = made.table
                places = made.places
                n_valid, n_cells = n_valid + made.n_valid, n_cells + made.n_cells
        self.remove_temporary()
        return PredictResult(
            paths=tuple(self.targets(years)),
            files=tuple(files),
            tables=tables,
            places=places,
            valid_fraction=n_valid / n_cells,
            seconds=self.seconds,
        )

    def _describe(
        self, scores: Any, target: Path, year: int, identity: dict[str, Any], made: Any
    ) -> list[Path]:
        """The STAC item, then the record, whose presence says that everything is there."""
        known = self.known
        item = record.write_item(
            target,
            own_grid(scores),
            made.files,
            year=year,
            title=f"{known.task} with {known.name}",
            legend=known.legend if known.task == "classification" else None,
            properties={"bocage:predictor": known.identity},
        )
        run = record.write(
            target,
            identity,
            fingerprint=self.fingerprint(identity),
            scene=self.scene,
            request=self.request,
            predictor={"name": known.name, "task": known.task, "fitted_on": known.fitted_on},
            classes=known.legend.as_json() if known.legend else None,
            valid_fraction=made.n_valid / made.n_cells,
            n_polygons=made.n_polygons,
            areas=made.table,
            areas_known_from=made.places,
            seconds={k: round(v, 3) for k, v in self.seconds.items()},
        )
        return [item, run]

    def _polygons(self, year: int, n_years: int) -> Path | None:
        path = self.config.polygons
        if path is None or n_years == 1:
            return None if path is None else Path(path)
        return Path(path).with_name(f"{Path(path).stem}_{year}{Path(path).suffix}")

    def remove_temporary(self) -> None:
        """Remove stores that only this run needed, and what lies beside them."""
        for store in self.temporary:
            for path in (store, record.path_of(store), store.with_name(f"{store.name}.stac.json")):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
