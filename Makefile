# The virtual environment is .venv; versions are those of constraints.txt. `make demo` is the place to begin.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
OPEN ?= 1

.PHONY: demo test check format bench clean

demo: $(VENV)/demo.stamp  ## Serve real requests through the embedded model, then open the dashboard (OPEN=0: do not)
	$(BIN)/fastrm-monitor demo $(if $(filter 0,$(OPEN)),--no-open,--open)

test: $(VENV)/test.stamp  ## Run every test, with coverage
	OMP_NUM_THREADS=1 $(BIN)/pytest --cov --cov-report=term:skip-covered --durations=10 $(TESTS)

check: $(VENV)/test.stamp  ## Format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build/types && mkdir -p build/types/fastrm_monitor
	ln -s $(CURDIR)/fastrm_monitor/* $(CURDIR)/dashboard $(CURDIR)/integrations build/types/fastrm_monitor/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml

format: $(VENV)/test.stamp  ## Format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/test.stamp  ## What monitoring costs, side by side in one run
	$(BIN)/python benchmarks/overhead.py

clean:  ## Remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis fastrm-demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python.stamp:
	$(PYTHON) -c 'import sys; sys.exit("fastrm-monitor needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade pip
	touch $@

$(VENV)/demo.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(PIP) -e '.[hf,otel,dashboard]'
	touch $@

$(VENV)/test.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(PIP) -e '.[hf,otel,dashboard,postgres,lab]' --group dev
	touch $@ $(VENV)/demo.stamp
