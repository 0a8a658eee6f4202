# Two commands on a fresh machine: `make demo` and `make test`. Everything lands in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := pyproject.toml README.md $(wildcard search/*.py search/*.html trainables/*.py spaces/*.py)
ROOT ?= runs

.PHONY: demo test check-code tests faults slow docs clean

demo: .venv/installed examples/text/python-reference.txt
	@rm -rf $(ROOT)/demo
	$(BIN)/lorafront run examples/demo.yaml --root $(ROOT)
	@echo "exported:"
	@$(BIN)/lorafront export demo --out $(ROOT)/demo/export --root $(ROOT)
	@echo "The MLflow UI: $(BIN)/lorafront ui --root $(ROOT)"

test: .venv/installed-test check-code tests

check-code:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p lorafront.spaces -p lorafront.trainables -p lorafront.search
	$(BIN)/lint-imports --no-logo

# Two processes, since tests of searches mostly wait; one thread each, since torch's waiting threads take the cores.
tests:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --durations=25

# Whole searches under kills, full disks, hung servers and lost nodes; three quarters of an hour on two cores.
faults: .venv/installed-test
	$(BIN)/python -m pytest tests/faults -m "faults or not faults" --durations=10
	$(BIN)/python -m pytest tests/search tests/deployment -m faults --durations=10

# Whole trainings and simulations beside those of `make test`; a quarter of an hour on two cores.
slow: .venv/installed-test
	$(BIN)/python -m pytest -m slow --durations=10

# The documentation as a site, site/index.html; its reference is written from the code.
docs: .venv/installed-docs
	$(BIN)/python docs/generate/reference_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# torch comes first and alone, so that nothing else decides which build is taken.
.venv/dependencies: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) .
	touch $@

# The wheel, not an editable install: Ray's workers and mypy import what users import. build/ would ship deleted modules.
.venv/installed: .venv/dependencies $(SOURCES)
	rm -rf build
	$(PIP) --no-deps --force-reinstall .
	rm -rf build *.egg-info
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) '.[test]'
	rm -rf build *.egg-info
	touch $@

.venv/installed-docs: .venv/installed
	$(PIP) '.[docs]'
	rm -rf build *.egg-info
	touch $@

examples/text/python-reference.txt: .venv/installed examples/python_reference.py
	$(BIN)/python examples/python_reference.py $@

clean:
	rm -rf .venv build dist site *.egg-info examples/text
