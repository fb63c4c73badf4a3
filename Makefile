# Two commands do everything on a machine with Python 3.11 or newer and make: `make demo`, `make test`.

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := models,stac,netcdf,remote,search,learn,zonal,pretrain,demo,dev

.PHONY: setup demo test test-slow test-backbones check clean

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

# timm and segmentation-models-pytorch need torchvision, which has no CPU build: an environment of its
# own with the registry's plain torch (about 5.5 GB), outside the constraints.
test-backbones:
	test -x .venv-backbones/bin/python || $(PYTHON) -m venv .venv-backbones
	.venv-backbones/bin/python -m pip install --quiet --disable-pip-version-check -e ".[models,learn,backbones]" pytest
	.venv-backbones/bin/python -m pytest tests/learn/finetune/test_backbones.py

check: setup
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo-output .pytest_cache .mypy_cache .ruff_cache
