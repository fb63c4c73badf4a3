# Two commands do everything on a machine with Python 3.11 or newer and make: `make demo`, `make test`.

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := models,stac,netcdf,remote,search,learn,pretrain,demo,dev

.PHONY: setup demo test test-slow check clean

setup: .venv/installed

# The stamp keeps a second run from reinstalling; editing the requirements renews it.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

demo: setup
	$(BIN)/python -m bocage demo --out demo-output

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu and not network"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo-output .pytest_cache .mypy_cache .ruff_cache
