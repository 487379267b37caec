# make quickstart   install, then the whole chain on the documentation inside your own Python; FRESH=1 starts over
# make compare      after it: DPO, RLOO and GRPO at PPO's wall time, two more seeds of the chain, in one table
# make adapt        the quickstart's model adapted to a domain: what it gains, what it forgets, whether it serves as trained
# make chat         chat in the browser with the quickstart's base, SFT and PPO models side by side, scored by its reward model
# make rank         people rank the answers that the quickstart sampled, in the browser
# make test         the tests
# make lint         ruff, as continuous integration runs it
# make install      the install alone
#
# Settings, as in `make quickstart PYTHON=python3.12`:
#   PYTHON          the interpreter to make the virtual environment with (default: python3; 3.11 or newer)
#   VENV            the folder of the virtual environment (default: .venv)
#   INDEX           the package index (default: the one that pip or uv is configured with)
#   TORCH_INDEX     the index of torch's CPU build, used where there is no NVIDIA GPU; empty: take torch from INDEX

PYTHON ?= python3
VENV ?= .venv
INDEX ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(abspath $(VENV))/bin
RUN := PATH="$(BIN):$$PATH"
UV := $(shell command -v uv 2>/dev/null)
PIP_INSTALL := $(if $(UV),uv pip install --python "$(BIN)/python","$(BIN)/python" -m pip install)
FROM_INDEX := $(if $(INDEX),--index-url "$(INDEX)")

.DEFAULT_GOAL := help
.PHONY: help quickstart compare adapt chat rank test lint install

help:
	@sed -n -e '/^#/!q' -e 's/^# \{0,1\}//p' Makefile

quickstart: install
	$(RUN) bash recipes/quickstart.sh

compare: install
	$(RUN) bash recipes/compare.sh

adapt: $(VENV)/adapt
	$(RUN) bash recipes/adapt.sh

chat: $(VENV)/pages
	$(RUN) python -m eval.chat_page --model $(addprefix runs/quickstart/,base sft ppo) \
	    --reward_model runs/quickstart/reward --save_to runs/quickstart/chats.jsonl

rank: $(VENV)/pages
	$(RUN) python -m data_prep.rank_page --completions runs/quickstart/data/completions.jsonl \
	    --output runs/quickstart/data/rankings_by_people.jsonl

test: $(VENV)/test
	$(RUN) HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/test
	$(RUN) && ruff check . && ruff format --check .

install: $(VENV)/installed

# These files are touched when an install has ended well: until then it is repeated, afterwards it is not, and needs
# no network.
$(VENV)/installed: requirements.txt pyproject.toml
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || { $(MAKE_VENV); }
	@$(INSTALL_TORCH)
	$(PIP_INSTALL) $(FROM_INDEX) -r requirements.txt
	@touch $@

# NumPy's documentation is read from .html too, and the model is asked through a server.
$(VENV)/adapt: $(VENV)/installed
	$(PIP_INSTALL) $(FROM_INDEX) -e '.[documents,serving]'
	@touch $@

$(VENV)/pages: $(VENV)/installed
	$(PIP_INSTALL) $(FROM_INDEX) -e '.[pages]'
	@touch $@

$(VENV)/test: $(VENV)/installed
	$(PIP_INSTALL) $(FROM_INDEX) -e '.[test]'
	@touch $@

define MAKE_VENV
"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" \
    || { echo "error: $(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=python3.12" >&2; exit 1; }; \
$(if $(UV),uv venv --seed --allow-existing --python "$(PYTHON)" "$(VENV)","$(PYTHON)" -m venv "$(VENV)")
endef

# PyPI's torch for Linux comes with gigabytes of CUDA. Without a GPU the CPU build is installed first, from an index of its
# own; it has the same version, so that the line of requirements.txt is satisfied by it. A Mac's torch has no CUDA.
define INSTALL_TORCH
torch=$$(grep '^torch==' requirements.txt); \
if nvidia-smi >/dev/null 2>&1; then echo "$$torch with CUDA: there is an NVIDIA GPU"; \
elif [ "$$(uname -s)" = Darwin ] || [ -z "$(TORCH_INDEX)" ]; then echo "$$torch from the usual index"; \
elif ! "$(BIN)/python" -c "$$HAS_TORCH" "$(TORCH_INDEX)" "$$torch"; then \
    echo "$$torch from the usual index: $(TORCH_INDEX) does not answer, or lacks it"; \
else echo "$$torch, the CPU build: there is no NVIDIA GPU"; \
    $(PIP_INSTALL) "$$torch" --index-url "$(TORCH_INDEX)"; \
fi
endef

# Does the index have this version of torch? Asked first, once and briefly, where pip would retry for minutes.
define HAS_TORCH
import sys, urllib.request
index, (name, version) = sys.argv[1], sys.argv[2].split("==")
try:
    page = urllib.request.urlopen(f"{index.rstrip('/')}/{name}/", timeout=10).read().decode()
except (OSError, ValueError):
    sys.exit(1)
sys.exit(f"{name}-{version}" not in page)
endef
export HAS_TORCH
