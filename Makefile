# On a fresh machine `make train` and `make test` are enough: each sets up .venv.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
CONFIG ?= configs/tiny.py
WORKDIR ?= runs/$(basename $(notdir $(CONFIG)))
ARGS ?=
# Processes that share the tests; each has 5 GB of memory.
JOBS ?= 2
BIN := $(VENV)/bin

# Without huge pages a step on a CPU spends a third of its time in page faults.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# The rooms whose tests compare computed numbers, and what they run on: all that
# the CPU has, and what older ones have (in XLA, NumPy, OpenBLAS and PyTorch).
NUMERIC := $(addprefix tests/,$(addsuffix .py,test_close \
  pretrained/test_image_encoder pretrained/test_load \
  evals/test_features evals/test_finetune \
  probes/test_linear_heads train/test_health methods/test_ijepa \
  probes/test_knn probes/test_logistic methods/test_parity \
  models/test_functions models/test_positions methods/optim/test_schedules \
  pretrained/formats/test_release_adamw models/test_vit))
ISAS ?= native AVX2 AVX
BEYOND_AVX2 := AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL \
  AVX512_SPR X86_V4
# All of LLVM's passes, which tests/conftest.py leaves out.
PASSES := --xla_backend_optimization_level=3
AS_native := XLA_FLAGS="$$XLA_FLAGS $(PASSES)"
AS_AVX2 := XLA_FLAGS="$$XLA_FLAGS $(PASSES) --xla_cpu_max_isa=AVX2" \
  NPY_DISABLE_CPU_FEATURES="$(BEYOND_AVX2)" \
  OPENBLAS_CORETYPE=Haswell ATEN_CPU_CAPABILITY=avx2
AS_AVX := XLA_FLAGS="$$XLA_FLAGS $(PASSES) --xla_cpu_max_isa=AVX" \
  NPY_DISABLE_CPU_FEATURES="$(BEYOND_AVX2) AVX2 FMA3 X86_V3" \
  OPENBLAS_CORETYPE=Sandybridge ATEN_CPU_CAPABILITY=default

.PHONY: train see test test-slow test-portable test-oldest lint docs notebooks \
  clean its-python

# What was compiled is kept for the next start.
train see: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

train: $(VENV)/installed
	$(BIN)/python main.py --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

see: $(VENV)/installed
	$(BIN)/python main.py --config=configs/visualize.py \
	  --config.init_from=$(WORKDIR) $(ARGS)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: $(VENV)/installed-dev
	$(AS_native) $(BIN)/python -m pytest -m slow

test-portable: $(ISAS:%=portable-%)

portable-%: $(VENV)/installed-dev
	$(AS_$*) $(BIN)/python -m pytest -m "not slow" $(NUMERIC)

# Every requirement at its lower bound, in a venv of its own.
test-oldest:
	mkdir -p .venv-oldest
	grep -oE "[A-Za-z_-]+>=[0-9.]+" setup.py | sed 's/>=/==/' | sort -u \
	  > .venv-oldest/constraints.txt
	PIP_CONSTRAINT=$(CURDIR)/.venv-oldest/constraints.txt $(MAKE) test \
	  VENV=.venv-oldest \
	  PYTHON=$(if $(filter file,$(origin PYTHON)),python3.11,$(PYTHON))

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Warnings are errors; docs/check.py also looks at the pages as they are built.
docs: $(VENV)/installed-docs
	$(BIN)/zensical build --clean --strict
	$(BIN)/python docs/check.py --site=site

$(VENV)/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v < (3, 14) else "Python %d.%d is here, and \
	  3.11 to 3.13 are needed: make PYTHON=python3.12 ..." % v)'
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV) || { echo "The venv module of $(PYTHON) is \
	  missing: on Debian and Ubuntu, apt-get install python3-venv."; exit 1; }
	touch $@

# A venv keeps the Python that it was made with, whatever PYTHON says later.
its-python: | $(VENV)/pip
ifneq ($(origin PYTHON),file)
	@ours=$$($(BIN)/python -V) && asked=$$($(PYTHON) -V) && \
	  [ "$$ours" = "$$asked" ] || { echo "$(VENV) is of $$ours and" \
	  "PYTHON=$(PYTHON) is $$asked: give it a venv of its own, as in" \
	  "make VENV=.venv-other ..., or remove $(VENV)."; exit 1; }
endif

$(VENV)/installed: setup.py | its-python
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: setup.py | its-python
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	touch $(VENV)/installed $@

$(VENV)/installed-docs: setup.py | its-python
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $(VENV)/installed $@

# Executes them, or NOTEBOOKS=see, and keeps their outputs.
notebooks: $(VENV)/installed-dev
	$(BIN)/python notebooks/execute.py $(NOTEBOOKS)

clean:
	rm -rf .venv .venv-oldest .cache build site *.egg-info
