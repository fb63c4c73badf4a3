"""Hamming top-10 over 1 M x 1024 bits: queries per second of faiss, numpy and the house, in turns.

python bench/search_hamming.py [--rows 1000000] [--rounds 3]
"""

import argparse
import time

import numpy as np

from bocage.memory import peak_resident_mb
from bocage.search.hamming import nearest_codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (options.rows, 128), dtype=np.uint8)
    batches = {n: rng.integers(0, 256, (n, 128), dtype=np.uint8) for n in (1, 32, 200)}

    for queries in batches.values():
        nearest_codes(queries, codes, 10)
    # The interpreter and numpy are in the peak; faiss, which copies the codes, is not yet loaded.
    mb, peak_mb = codes.nbytes / 1e6, peak_resident_mb()
    print(f"peak memory {peak_mb:.0f} MB with {mb:.0f} MB of codes ({peak_mb / mb:.2f}x)")
    import faiss

    index = faiss.IndexBinaryFlat(1024)
    index.add(codes)
    faiss.omp_set_num_threads(2)
    engines = {
        "faiss IndexBinaryFlat": lambda q: index.search(q, 10),
        "numkong, blocked": lambda q: nearest_codes(q, codes, 10, engine="numkong"),
        "numpy, blocked": lambda q: nearest_codes(q, codes, 10, engine="numpy"),
    }
    for n, queries in batches.items():
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(options.rounds * (10 if n == 1 else 1)):
            for name, run in engines.items():
                if name.startswith("numpy") and n == 200:
                    continue
                start = time.perf_counter()
                run(queries)
                seconds[name].append(time.perf_counter() - start)
        rates = {name: n / np.median(s) for name, s in seconds.items() if s}
        base = rates["faiss IndexBinaryFlat"]
        row = ", ".join(f"{name} {rate:.0f}/s ({rate / base:.2f}x)" for name, rate in rates.items())
        print(f"batch {n}: {row}")
    ours, theirs = nearest_codes(batches[32], codes, 10)[0], index.search(batches[32], 10)[0]
    print("distances equal to faiss:", bool((ours == theirs).all()))


if __name__ == "__main__":
    main()
