# On a fresh machine `make train` and `make test` are enough: each sets up .venv.
PYTHON ?= python3
CONFIG ?= configs/tiny.py
WORKDIR ?= runs/$(basename $(notdir $(CONFIG)))
ARGS ?=
BIN := .venv/bin

# Without huge pages a step on a CPU spends a third of its time in page faults.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: train test test-slow lint clean

train: .venv/installed
	$(BIN)/python main.py --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

test: .venv/installed-dev
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v < (3, 14) else "Python %d.%d is here, and \
	  3.11 to 3.13 are needed: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv .venv || { echo "The venv module of $(PYTHON) is \
	  missing: on Debian and Ubuntu, apt-get install python3-venv."; exit 1; }
	touch $@

.venv/installed: setup.py | .venv/pip
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-dev: setup.py | .venv/pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch .venv/installed $@

clean:
	rm -rf .venv build *.egg-info
