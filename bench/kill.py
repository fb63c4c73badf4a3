"""kill -9 at random moments, run again, compare every byte with an undisturbed run.

    python bench/kill.py [--times 5]

Uses the real scene of the `demo` extra, a nano model with random weights, and the command line as a
user has it. Prints one line per kill and ends with exit code 1 if any byte differs.
"""

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bocage.mapping.demo import scene_folder


def command(out):
    options = "--weights random --patch-size 8 --block 256 --date 2017-07-01 --level L1C"
    return [sys.executable, "-m", "bocage", "embed", str(scene_folder()), "--out", str(out),
            *options.split()]  # fmt: skip


def digest(store):
    files = sorted(p for p in store.rglob("*") if p.is_file())
    h = hashlib.sha256()
    for path in files:
        h.update(str(path.relative_to(store)).encode())
        h.update(path.read_bytes())
    return h.hexdigest(), len(files)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.zarr"
        start = time.perf_counter()
        subprocess.run(command(whole), check=True, capture_output=True)
        duration = time.perf_counter() - start
        expected, n_files = digest(whole)
        print(f"undisturbed: {duration:.1f} s, {n_files} files, sha256 {expected[:16]}")
        same = True
        for k in range(arguments.times):
            out = Path(folder) / f"killed{k}.zarr"
            process = subprocess.Popen(
                command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            after = rng.uniform(0.3, 1.0) * duration
            time.sleep(after)
            alive = process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
            done = len(list(out.glob("bocage/[0-9]*.json")))
            subprocess.run(command(out), check=True, capture_output=True)
            found, _ = digest(out)
            same &= found == expected
            print(
                f"killed after {after:.1f} s ({'running' if alive else 'already finished'}, "
                f"{done} blocks done): {'identical' if found == expected else 'DIFFERENT'}"
            )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
