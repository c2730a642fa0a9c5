# Everything runs in its own virtual environment; VENV=… puts it elsewhere.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
PARALLEL = -n auto --maxprocesses 4 --dist worksteal
unexport PYTHONDONTWRITEBYTECODE # or every process compiles PyTorch's thousands of modules again
test slow oldest: export OMP_NUM_THREADS = 1 # workers side by side share the cores

.PHONY: run test slow oldest bench docs clean

run: $(VENV)/installed  ## the default run, on CIFAR-10 if it is in ./data, else on rendered digits
	$(BIN)/python -m agents.hybrid_reinforce --env SkipResNet110-v0

test: $(VENV)/installed  ## lint, types and the test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

slow: $(VENV)/installed  ## every test, the deep networks included
	$(BIN)/python -m pytest $(PARALLEL)

oldest:  ## the test suite with the oldest versions that pyproject.toml allows, without its extras
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet uv
	$(VENV)-oldest/bin/uv pip install --quiet --python $(VENV)-oldest --resolution lowest-direct -e .
	$(VENV)-oldest/bin/uv pip install --quiet --python $(VENV)-oldest -e ".[test]"
	$(VENV)-oldest/bin/python -m pytest -m "not slow" $(PARALLEL)

bench: $(VENV)/installed  ## speed, as ratios inside one run; WRITE=--write renews docs/benchmarks.md
	for name in throughput training latency scaling; do $(BIN)/python -m benchmarks.$$name --device cpu $(WRITE) || exit; done

docs: $(VENV)/installed  ## the documentation as a site, in site/
	$(BIN)/mkdocs build --strict

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile -e ".[dev]" # most of PyTorch's modules are never imported
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist site *.egg-info
