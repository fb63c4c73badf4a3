"""Random rotations that spread information evenly over coordinates."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=4)
def haar_rotation(dims: int, seed: int) -> NDArray[np.float32]:
    """A uniformly random orthogonal matrix [D, D], the same for the same seed.

    QR of a Gaussian matrix with the signs of R's diagonal moved into Q; without that step the
    result is not uniform (Mezzadri 2007, "How to generate random matrices from the classical
    compact groups").
    """
    gaussian = np.random.default_rng([seed, dims]).standard_normal((dims, dims))
    q, r = np.linalg.qr(gaussian)
    rotation: NDArray[np.float32] = (q * np.sign(np.diag(r))).astype(np.float32)
    rotation.setflags(write=False)
    return rotation
