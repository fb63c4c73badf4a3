"""How long one probe takes to fit on a million pixels of 128 features, and how much memory.

    python bench/probe.py            # 1,000,000 x 128, 10 classes, and 2
    python bench/probe.py --check    # 20,000 rows and up to 4 classes, beside scikit-learn

The features are correlated and far from zero, like embeddings. Prints seconds, the peak of
resident memory (VmHWM) beside the data's size, and whether the optimum was reached.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from bocage.learn.logistic import fit_logistic, softmax


def make(n: int, dims: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of low intrinsic dimension with noise, and classes that they mostly tell."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(24, dims)).astype(np.float32)
    offset = rng.normal(0, 2, dims).astype(np.float32)
    truth = rng.normal(0, 0.5, (24, n_classes)).astype(np.float32)
    x = np.empty((n, dims), np.float32)
    y = np.empty(n, np.int64)
    for start in range(0, n, 10_000):
        rows = slice(start, min(start + 10_000, n))
        m = rows.stop - start
        hidden = rng.standard_normal((m, 24), dtype=np.float32)
        x[rows] = hidden @ mixing + offset
        x[rows] += 0.5 * rng.standard_normal((m, dims), dtype=np.float32)
        y[rows] = (hidden @ truth + rng.gumbel(size=(m, n_classes))).argmax(axis=1)
    return x, y


def peak_mb() -> float:
    """Peak resident memory of this process in MB."""
    with Path("/proc/self/status").open() as file:
        line = next(row for row in file if row.startswith("VmHWM"))
    return float(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Fit, time, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        check(20_000, options.dims, min(options.classes, 4))
        return
    x, y = make(options.rows, options.dims, options.classes)
    before = peak_mb()
    start = time.perf_counter()
    found = fit_logistic(x, y, options.classes)
    seconds = time.perf_counter() - start
    print(
        f"{options.rows:,} x {options.dims}, {options.classes} classes: {seconds:.1f} s, "
        f"{found.n_steps} steps, converged {found.converged}, loss {found.loss:.7f}; "
        f"data {x.nbytes / 1e6:.0f} MB, peak {peak_mb():.0f} MB (before the fit {before:.0f})"
    )


def check(n: int, dims: int, n_classes: int) -> None:
    """The same problem, smaller, beside scikit-learn run to the end."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y = make(n, dims, n_classes)
    start = time.perf_counter()
    found = fit_logistic(x, y, n_classes)
    ours = time.perf_counter() - start
    scaled = StandardScaler().fit_transform(x.astype(np.float64))
    start = time.perf_counter()
    default = LogisticRegression(max_iter=1000).fit(scaled, y)
    theirs = time.perf_counter() - start
    exact = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(scaled, y)
    p = exact.predict_proba(scaled)
    mine = softmax(scaled @ found.weight + found.bias) if n_classes > 2 else None
    apart = np.nan if mine is None else np.abs(mine - p).max()
    print(
        f"{n:,} x {dims}, {n_classes} classes: ours {ours:.2f} s, scikit-learn {theirs:.2f} s "
        f"(tol 1e-4); largest difference from its optimum (newton-cholesky): of a probability ours "
        f"{apart:.1e}, its default {np.abs(default.predict_proba(scaled) - p).max():.1e}; of a "
        f"weight {np.abs(found.weight.T - exact.coef_).max():.1e} and "
        f"{np.abs(default.coef_ - exact.coef_).max():.1e}, largest {np.abs(exact.coef_).max():.2f}"
    )


if __name__ == "__main__":
    main()
