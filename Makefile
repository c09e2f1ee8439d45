# Thin: every target calls one command of the package or a tool.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SETUP := $(VENV)/.installed

.PHONY: setup setup-lowest sample simulate preprocess train train-residual smoke demo evaluate ablation plot-loss \
	slurm-preprocess slurm-train test test-lowest bench docs lint clean
.DEFAULT_GOAL := demo

# Modules are compiled when first imported, as all of torch's would take a minute; and then for good.
unexport PYTHONDONTWRITEBYTECODE

# Made anew when the requirements change.
$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(SETUP)

sample: setup
	$(RUN) -m rheidae.datasets .data

preprocess: sample
	$(RUN) -m rheidae.preprocess --config config/pre_process.yaml

train: preprocess
	$(RUN) -m rheidae.train --config config/model.yaml --train-parms config/train_parms.yaml

train-residual: preprocess
	$(RUN) -m rheidae.train --config config/model.yaml --train-parms config/train_parms.yaml --architecture residual --predict-residual

smoke: preprocess
	$(RUN) -m rheidae.train --config config/model.yaml --train-parms config/train_parms.yaml --smoke

# Raw files -> Box3D -> training set -> model -> comparison with Box3D on rows that it has not seen.
demo: preprocess
	$(RUN) -m rheidae.train --config config/model.yaml --train-parms config/train_parms.yaml --run-id demo
	$(RUN) -m rheidae.evaluate --run checkpoints/demo --data .pdata/preprocessed_all.h5 --json results/demo/metrics.json --markdown results/demo/metrics.md --figures results/demo

# How good are the defaults?  Cross-validation by rows and by families, five seeds: the table of the README.
evaluate: preprocess
	$(RUN) -m rheidae.evaluate --cv rows groups --seeds 5 --test-only mutau pairs published three_d --data .pdata/preprocessed_all.h5 --markdown results/evaluate/scores.md --json results/evaluate/scores.json --figures results/evaluate

# What is each choice worth?  Writes docs/ablation.md; takes a quarter of an hour and more.
ablation: preprocess
	$(RUN) -m rheidae.ablation --test-only mutau pairs published three_d

# The losses of a run, also of one that still goes on:  make plot-loss RUN_ID=demo
RUN_ID ?= demo
plot-loss: setup
	$(RUN) -m rheidae.plots --run checkpoints/$(RUN_ID) --output results/$(RUN_ID)/loss.png

# Preprocessing as a batch job; see docs/cluster.md for several nodes.
CONFIG ?= config/pre_process.yaml
slurm-preprocess: setup
	sbatch --export=ALL,CONFIG=$(CONFIG) config/slurm/preprocess.sbatch

# The same training as a batch job; started again, it goes on from its last checkpoint.
slurm-train: setup
	sbatch --export=ALL,RUN_ID=$(RUN_ID) config/slurm/train.sbatch

# A few of the shipped asymptotic states made again, in about a minute, and compared with the shipped rows.
simulate: setup
	$(RUN) -m rheidae.simulate.comparison --rows 2

# By two processes, which share the files of tests, the longest first.
test: setup
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# With the lowest versions that pyproject.toml allows: the tests that are quick, and touch every one of them.
LOWEST := .venv-lowest
$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --no-compile --constraint constraints-lowest.txt --editable . pytest pytest-timeout hypothesis
	touch $@

setup-lowest: $(LOWEST)/.installed

test-lowest: setup-lowest
	NUMBA_CACHE_DIR=$(CURDIR)/$(LOWEST)/numba $(LOWEST)/bin/python -m pytest -m 'not slow' $(LOWEST_TESTS)
LOWEST_TESTS := tests/test_fourflux.py tests/test_quadrature.py tests/test_minerbo.py tests/test_config.py \
	tests/test_datasets.py tests/test_regressor.py tests/test_train.py \
	tests/test_compiled.py::test_asymptotic_scheme_is_there_with_all_its_levels

bench: setup
	$(RUN) -m pytest benchmarks

docs: setup
	$(RUN) -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) $(LOWEST) .data .pdata results build docs/_build docs/_gallery *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find rheidae tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
