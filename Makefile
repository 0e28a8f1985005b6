# Everything starts here, on a machine with Python 3.11+ and make. The logic is in scripts/.
PY := .venv/bin/python
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all test-slow venv model lint format types wheel-check bench clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS="$$(printf '\t')" read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

quickstart: model ## set up, then train SmolLM2-135M on sums over HTTP and show before and after
	@.venv/bin/quintain train examples/quickstart.yaml

test: model ## set up, then run every quick test
	@WORKERS=$(WORKERS) scripts/run_tests.sh quick

test-all: model ## the whole suite: the slow tests too (whole runs, real vLLM, docker, the wheel, a short soak)
	@WORKERS=$(WORKERS) scripts/run_tests.sh all

test-slow: model ## what test-all runs beside test
	@WORKERS=$(WORKERS) scripts/run_tests.sh slow

venv: ## make .venv with everything in it (PYTHON=python3.12 chooses the Python)
	@scripts/setup_venv.sh

model: venv ## fetch and convert SmolLM2-135M-Instruct into models/
	@$(PY) scripts/get_smollm2.py

lint: venv ## ruff
	@$(PY) -m ruff check .

format: venv ## let ruff mend what it can and lay out the code
	@$(PY) -m ruff check --fix . && $(PY) -m ruff format .

types: venv ## mypy, strict, on the installed package
	@scripts/typecheck.sh

wheel-check: venv ## build wheel and sdist, install into a clean environment, import every room
	@$(PY) -m pytest -m packaging tests/packaging

bench: venv model ## run the benchmarks, each prints its ratios as its last line (ONLY=import_time for one)
	@for file in benchmarks/$(or $(ONLY),[a-z]*).py; do echo "== $$file" && $(PY) $$file || exit 1; done

clean: ## remove what was built and cached (not .venv, models or runs)
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
