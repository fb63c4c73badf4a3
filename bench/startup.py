"""Start-up times and the size of the core install.

python bench/startup.py            # median of 5, warm files
python bench/startup.py --install  # also installs the core into an empty environment
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def median_s(arguments):
    times = []
    for _ in range(6):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def install_mb(*options):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        site = next(Path(folder).glob("lib/python3*/site-packages"))
        before = size(site)
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "-q", *options, str(ROOT)]
        subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
        return (size(site) - before) / 1e6


def size(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--install", action="store_true")
    arguments = parser.parse_args()
    nothing = median_s(["-c", "pass"])
    print(f"python alone     {nothing:.3f} s")
    print(f"import bocage    {median_s(['-c', 'import bocage']):.3f} s")
    print(f"bocage --help    {median_s(['-m', 'bocage', '--help']):.3f} s")
    if arguments.install:
        print(f"core as shipped  {install_mb('--no-compile'):.0f} MB")
        print(f"with byte code   {install_mb():.0f} MB")


if __name__ == "__main__":
    main()
