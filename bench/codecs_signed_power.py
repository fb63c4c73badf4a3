"""Speed of the signed-power codec on one core, in GB of float32 per second.

OMP_NUM_THREADS=1 python bench/codecs_signed_power.py
"""

import time

import numpy as np

from bocage.embeddings.codecs.signed_power import decode, encode


def best_seconds(run, repeats: int = 7) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    x = np.random.default_rng(0).normal(0, 0.23, (64, 1024, 1024 // 4)).astype(np.float32)
    q = encode(x)
    q_out, x_out = np.empty_like(q), np.empty_like(x)
    rows = {
        "numpy copy of the floats": lambda: np.copyto(x_out, x),
        "encode": lambda: encode(x, out=q_out),
        "encode, new array": lambda: encode(x),
        "decode": lambda: decode(q, out=x_out),
        "decode, new array": lambda: decode(q),
        "encode, naive numpy": lambda: np.clip(
            np.rint(np.sign(x) * np.sqrt(np.abs(x)) * np.float32(127.5)), -127, 127
        ).astype(np.int8),
    }
    for name, run in rows.items():
        print(f"{name:28s} {x.nbytes / best_seconds(run) / 1e9:6.2f} GB/s")


if __name__ == "__main__":
    main()
