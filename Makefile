# Two commands: `make demo` and `make test`. Both make their own virtual environment first.

PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
# Programs that the tests check against; from Debian's package lists.
TOOLS  := dicom3tools dcmtk libgdcm-tools dcm2niix orthanc orthanc-dicomweb openssl iproute2 chromium

.PHONY: demo test lint docs tools clean

demo: $(VENV)/.installed
	$(BIN)/slicewise demo --out runs/demo

test: $(VENV)/.installed-test tools
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-test
	$(BIN)/ruff check src tests bench studies docs/conf.py
	$(BIN)/ruff format --check src tests bench studies docs/conf.py
	$(BIN)/mypy

# The documentation as HTML, from docs/ and the docstrings.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/html
	@echo build/html/index.html

# One figure or table of the paper: make study-fig1, or its minutes-long form: make study-fig1 ARGS=--quick
study-%: $(VENV)/.installed-studies
	$(BIN)/python studies/$*.py $(ARGS)

# Figure 4 shows the volumes of Table 1.
study-fig4: study-table1 ;

# Tests that need a program which is neither here nor installable skip and say so.
tools:
	@command -v dciodvfy >/dev/null && command -v dcm2niix >/dev/null && command -v dcmdump >/dev/null && \
	  command -v chromium >/dev/null && \
	  command -v Orthanc >/dev/null && test -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(TOOLS) >/dev/null; } || \
	echo "Optional test programs are missing; as root: apt-get install $(TOOLS)"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[evaluate]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/.installed-studies: $(VENV)/.installed
	$(PIP) -e '.[studies]'
	@touch $@

clean:
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
