"""A fine-tuned network as the mapping machinery sees it: windows in, probabilities out.

Axes: B batch, T timesteps, C bands, H W pixels, h w cells of answers, K answers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bocage.errors import ConfigError, InputError
from bocage.learn.classes import LabelClass
from bocage.learn.finetune.heads import Features
from bocage.learn.finetune.inputs import prepare_inputs
from bocage.learn.finetune.network import TokenNetwork, image_of
from bocage.models.model import Model, WindowEncoder

if TYPE_CHECKING:
    from bocage.learn.finetune.saved import Description

WINDOW_PX = 64
"""Smallest side of the windows of networks of images: below it most of a window is halo."""


class Finetuned:
    """A network with its head: class probabilities, or values, for every cell of a window."""

    def __init__(
        self,
        network: TokenNetwork,
        description: Description,
        *,
        name: str,
        weights_id: str,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        compile: bool | str = "auto",  # noqa: A002
    ) -> None:
        self.description = description
        self.network = network.eval()
        self.name = name
        self.weights_id = weights_id
        self.model = Model(
            network.backbone,
            name=name,
            weights_id=weights_id,
            device=device,
            precision=precision,
            compile=compile,
        )
        self.precision = self.model.precision
        self.head = network.head.to(self.model.device)

    @property
    def task(self) -> str:
        """classification, multilabel, segmentation or regression."""
        return self.description.task.kind

    @property
    def classes(self) -> tuple[LabelClass, ...]:
        """Value, name and color of each output; empty for regression."""
        return self.description.task.classes

    @property
    def patch_size(self) -> int:
        """Pixels per patch that the network was trained with."""
        return self.description.patch_size

    @property
    def cell_px(self) -> int:
        """Side of an output cell in pixels: ask for it as ``query_px``."""
        return self.description.cell_px

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors that the network was trained on."""
        return tuple(self.description.sensors)

    @property
    def n_timesteps(self) -> int:
        """Dates per crop in training."""
        return self.description.n_timesteps

    def tokens_per_cell(self, sensor: str) -> int:
        """Tokens of one patch at one date."""
        return self.model.tokens_per_cell(sensor)

    def windows_per_batch(self, n_tokens: int) -> int:
        """How many windows its encoder takes best at once."""
        return self.model.windows_per_batch(n_tokens)

    def streams(self) -> int:
        """How many threads its encoder serves best."""
        return self.model.streams()

    def in_streams(self, n: int) -> AbstractContextManager[Callable[[], None]]:
        """Share the cores between ``n`` threads, each of which first calls what this gives."""
        return self.model.in_streams(n)

    def dims(self, output: str = "auto") -> int:  # noqa: ARG002
        """Numbers per cell: one per class, or one value."""
        return self.description.task.n_outputs

    def value_scale(self, output: str = "auto") -> float:  # noqa: ARG002
        """Probabilities and values are kept as they are."""
        return 1.0

    def reach_px(self, patch_size: int, neighborhood_px: int | None = None) -> int:
        """How far an output of the domain encoder can look."""
        return self.model.reach_px(patch_size, neighborhood_px)

    def window_encoder(
        self,
        *,
        patch_size: int | None = None,
        output: str = "auto",
        location_query_patch_size: int | None = None,
    ) -> WindowEncoder:
        """The function of a batch of windows for mapping.

        Takes ({sensor: float32 [B, T, C, H, W]} in product units, timestamps [B, T, 3]) and
        returns float32 [B, h, w, K] with cells of ``cell_px`` pixels and NaN where a cell saw
        nothing: probabilities of the classes, or the value. A network for whole crops says of
        each cell what it would say of a crop made of such cells.
        """
        self._check(patch_size, output, location_query_patch_size)
        return self._answers(self.model)

    def domain_encoder(
        self,
        *,
        patch_size: int | None = None,
        neighborhood_px: int | None = None,
        output: str = "auto",
        location_query_patch_size: int | None = None,
    ) -> WindowEncoder:
        """Like ``window_encoder`` for one large domain without seams (v1.2, v1.3; linear heads)."""
        self._check(patch_size, output, location_query_patch_size)
        if self.description.head.kind != "linear":
            raise ConfigError(
                got=f"seam-free prediction with the {self.description.head.kind} head",
                expected="a linear head, which looks at one cell at a time",
                fix="leave out --seam-free",
            )
        features = self.model.domain_encoder(
            patch_size=self.patch_size,
            neighborhood_px=neighborhood_px,
            output=self.description.features,
            location_query_patch_size=self._query,
        )

        def answer(
            values: dict[str, NDArray[np.float32]], timestamps: NDArray[np.int64]
        ) -> NDArray[np.float32]:
            return self._finish(torch.from_numpy(features(values, timestamps)), None)

        return answer

    @property
    def _query(self) -> int | None:
        return self.description.query_px if self.description.features == "locations" else None

    def _check(self, patch_size: int | None, output: str, query_px: int | None) -> None:
        if patch_size not in {None, self.patch_size}:
            raise ConfigError(
                got=f"patch_size={patch_size} for {self.name}",
                expected=f"{self.patch_size}, which it was trained with",
                fix=f"use --patch-size {self.patch_size}",
            )
        if output != "auto":
            raise ConfigError(
                got=f"output={output!r} of a fine-tuned network",
                expected="auto: its classes or values",
                fix=f"embed with the folder of {self.name} as the model instead",
            )
        if query_px not in {None, self.cell_px}:
            raise ConfigError(
                got=f"query={query_px} for {self.name}",
                expected=f"{self.cell_px}, the size of its labels in pixels",
                fix=f"use --query {self.cell_px}",
            )

    def _answers(self, model: Model) -> WindowEncoder:
        description = self.description
        own = description.normalization.source != "pretraining"

        @torch.no_grad()
        def answer(
            values: dict[str, NDArray[np.float32]], timestamps: NDArray[np.int64]
        ) -> NDArray[np.float32]:
            self._check_sensors(values)
            arrays: dict[str, Any] = {n: np.moveaxis(x, (3, 4), (1, 2)) for n, x in values.items()}
            if own:
                arrays = {
                    n: description.normalization.apply(n, torch.as_tensor(x))
                    for n, x in arrays.items()
                }
            options: dict[str, Any] = {
                "patch_size": description.patch_size,
                "location_query_patch_size": self._query,
            }
            if own:
                encoded = model.encode(arrays, timestamps, normalize=False, **options)
                grid = encoded.grid(description.features)
            else:
                grid = model.encode_grid(arrays, timestamps, output=description.features, **options)
            image = None
            if description.head.kind == "unet":
                image = self._image(values, timestamps)
            return self._finish(grid, image)

        return answer

    def _check_sensors(self, values: dict[str, NDArray[np.float32]]) -> None:
        if set(values) != set(self.sensors):
            raise InputError(
                got=f"{', '.join(values)} for {self.name}",
                expected=f"{', '.join(self.sensors)}, which it was trained on",
                fix="give the same sensors, with NaN for dates that one of them lacks",
            )

    def _image(self, raw: dict[str, NDArray[np.float32]], timestamps: NDArray[np.int64]) -> Tensor:
        device = self.model.device
        inputs = prepare_inputs(
            {n: torch.from_numpy(np.moveaxis(raw[n], (3, 4), (1, 2))) for n in self.sensors},
            torch.from_numpy(np.asarray(timestamps)),
            self.model.config,
            patch_size=self.patch_size,
            normalization=self.description.normalization,
        )
        return image_of(inputs.to(device))

    @torch.no_grad()
    def _finish(self, grid: Tensor, image: Tensor | None) -> NDArray[np.float32]:
        """Answers [B, h, w, K] of features [B, h, w, D] with NaN where there are none."""
        grid = grid.to(self.model.device).float()
        seen = torch.isfinite(grid).all(dim=-1)
        grid = torch.where(seen[..., None], grid, 0)
        logits = self.head.cells(Features(grid=grid, seen=seen, image=image))
        per_cell = logits.shape[1] // seen.shape[1]
        seen = seen.repeat_interleave(per_cell, 1).repeat_interleave(per_cell, 2)
        answers = torch.where(seen[..., None], answers_of(self.description, logits), torch.nan)
        plain: NDArray[np.float32] = answers.float().cpu().numpy()
        return plain


class FinetunedImage:
    """The same for a network of images (timm, smp)."""

    precision = "fp32"

    def __init__(
        self,
        network: nn.Module,
        description: Description,
        *,
        name: str,
        weights_id: str,
        device: str | torch.device = "cpu",
    ) -> None:
        self.description = description
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.name, self.weights_id = name, weights_id
        self.task, self.classes = description.task.kind, description.task.classes
        self.answers_once = not description.task.dense
        self.patch_size, self.cell_px = description.patch_size, description.cell_px
        if self.answers_once:  # a map repeats the answer over the cells of a crop
            self.patch_size = max(n for n in range(1, 9) if description.crop_px % n == 0)
            self.cell_px = self.patch_size
        self.sensors, self.n_timesteps = tuple(description.sensors), description.n_timesteps

    @property
    def window_px(self) -> int:
        """Side of the windows of a map: that of the crops it was trained on.

        Some of these networks look at the mean of all they see (DeepLabV3) and know no other size;
        those with one answer per crop are asked crop by crop.
        """
        least = 1 if self.answers_once else WINDOW_PX
        return max(least, self.description.crop_px)

    def tokens_per_cell(self, sensor: str) -> int:  # noqa: ARG002
        """An image has one cell per pixel."""
        return 1

    def dims(self, output: str = "auto") -> int:  # noqa: ARG002
        """Numbers per cell."""
        return self.description.task.n_outputs

    def value_scale(self, output: str = "auto") -> float:  # noqa: ARG002
        """Answers are kept as they are."""
        return 1.0

    def reach_px(self, patch_size: int, neighborhood_px: int | None = None) -> int:  # noqa: ARG002
        """See ``domain_encoder``."""
        raise self._no_domain()

    def domain_encoder(self, **_: Any) -> WindowEncoder:
        """Networks of images have no window per token."""
        raise self._no_domain()

    def window_encoder(
        self,
        *,
        patch_size: int | None = None,
        output: str = "auto",  # noqa: ARG002
        location_query_patch_size: int | None = None,
    ) -> WindowEncoder:
        """As ``Finetuned.window_encoder``; a cell without any data is NaN."""
        for asked, own in (
            (patch_size, self.patch_size),
            (location_query_patch_size, self.cell_px),
        ):
            if asked not in {None, own}:
                raise ConfigError(
                    got=f"cells of {asked} px for {self.name}",
                    expected=f"{own}",
                    fix=f"use --patch-size {self.patch_size}",
                )
        from bocage.learn.finetune.backbones import prepare_image

        @torch.no_grad()
        def answer(
            values: dict[str, NDArray[np.float32]], timestamps: NDArray[np.int64]
        ) -> NDArray[np.float32]:
            n_times = timestamps.shape[1]
            if set(values) != set(self.sensors) or n_times != self.n_timesteps:
                raise InputError(
                    got=f"{', '.join(values)} at {n_times} date(s) for {self.name}",
                    expected=f"{', '.join(self.sensors)} at {self.n_timesteps}",
                    fix="give the dates and sensors it was trained on; composite by period",
                )
            arrays = {
                n: torch.from_numpy(np.moveaxis(values[n], (3, 4), (1, 2))) for n in self.sensors
            }
            inputs = prepare_image(
                arrays, torch.from_numpy(timestamps), self.description.normalization
            )
            logits = self.network(inputs.to(self.device)).float()
            seen = torch.stack([torch.isfinite(x).any(dim=-1).any(dim=-1) for x in arrays.values()])
            any_seen = seen.any(dim=0)  # [B, H, W]
            if logits.ndim == 2:
                p = self.patch_size
                any_seen = any_seen.unflatten(2, (-1, p)).unflatten(1, (-1, p)).any(4).any(2)
                logits = logits[:, None, None].expand(*any_seen.shape, -1)
            meant = answers_of(self.description, logits).cpu()
            plain: NDArray[np.float32] = torch.where(any_seen[..., None], meant, torch.nan).numpy()
            return plain

        return answer

    def _no_domain(self) -> ConfigError:
        return ConfigError(
            got=f"seam-free prediction with {self.name}",
            expected="an OlmoEarth v1.2 or v1.3 network",
            fix="leave out --seam-free",
        )


def answers_of(description: Description, logits: Tensor) -> Tensor:
    """What raw answers [..., K] say: probabilities that sum to 1, that do not, or values."""
    kind = description.task.kind
    if kind == "regression":
        return logits * description.target_std + description.target_mean
    return logits.sigmoid() if kind == "multilabel" else logits.softmax(dim=-1)
