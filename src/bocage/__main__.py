"""``python -m bocage`` is ``bocage``."""

from bocage.cli import console

if __name__ == "__main__":
    console()
