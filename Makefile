# make quickstart   the whole chain on the embedded domain; FRESH=1 starts over
# make compare      after it: DPO, RLOO, GRPO and two more seeds of PPO at equal wall time, in one table
# make test         the tests; make lint: ruff
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart compare test lint install

quickstart: install
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/quickstart.sh

compare: install
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/compare.sh

test: .venv/test
	PATH="$(CURDIR)/$(BIN):$$PATH" HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 $(BIN)/python -m pytest

lint: .venv/test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

install: .venv/installed

# A file's time says when the install ended well: a second run installs nothing and needs no network.
.venv/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/test: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@
