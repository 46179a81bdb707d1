# Everything runs in .venv, made on demand by scripts/_venv.sh; `make TARGET PYTHON=...` names its interpreter.

# An environment that happens to be active must not reach into ours.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV CONDA_PREFIX
export PYTHON

RUN := .venv/bin/python
DEMO := examples/vllm_cpu_12m_sweep.jsonl.gz --name demo --overwrite

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-slow test-vllm lint format constraints clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo:  ## fit the example trace; the report is in results/demo
	@sh scripts/_venv.sh
	$(RUN) scripts/fit_bayes.py $(DEMO)

test:  ## run all tests but the slow ones, on every core
	@sh scripts/_venv.sh dev
	$(RUN) -m pytest -n auto --dist loadfile -m "not slow and not vllm"

test-fast:  ## run those of one room: make test-fast ROOM=sampling
	@sh scripts/_venv.sh dev
	$(RUN) -m pytest -m "not slow and not vllm" tests/test_$(ROOM)*.py

test-slow:  ## run the statistical tests, which take minutes
	@sh scripts/_venv.sh dev
	$(RUN) -m pytest -m slow

test-vllm:  ## run the plugin in a real vLLM (CPU build, made in .venv-vllm; Python 3.11)
	@sh scripts/_venv.sh dev
	python=$$(sh scripts/_vllm_venv.sh) && BAYES_SCHED_VLLM_PYTHON=$$python $(RUN) -m pytest -m vllm -s

lint:  ## check style, types and which room imports which
	@sh scripts/_venv.sh dev
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	.venv/bin/lint-imports
	$(RUN) -m mypy

format:  ## repair what ruff can repair
	@sh scripts/_venv.sh dev
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

constraints:  ## pin what pyproject.toml asks for, with uv; UPGRADE=1 takes the newest versions
	UV_CUSTOM_COMPILE_COMMAND="make constraints" uv pip compile --quiet --universal --python-version 3.12 \
		--all-extras --no-annotate $(if $(UPGRADE),--upgrade) pyproject.toml -o constraints.txt

clean:  ## remove .venv, caches, builds and results/demo
	rm -rf .venv .venv-vllm .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist results/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
