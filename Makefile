# Each goal sets up what it needs: only Python 3.11 or newer, pip and make have to be there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: quickstart test check docs attacks audit clean

# The main job: a small model learns to answer, and is scored before and after.
quickstart: $(READY)
	$(BIN)/llmft run recipes/quickstart.yaml

# Every check and every test.
test: $(READY) check
	$(BIN)/python -m pytest -n 2 --dist loadfile -q

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Hostile files of every kind, at random; SEED chooses others.
SAMPLE ?= 300
SEED ?= 0
attacks: $(READY)
	$(BIN)/python benchmarks/attacks/run.py --sample $(SAMPLE) --seed $(SEED)

# Known holes in the packages that are installed, and their licences, in licences.csv.
audit: $(READY)
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check pip-audit pip-licenses
	$(VENV)/audit/bin/pip-licenses --python $(BIN)/python --format csv --output-file licences.csv
	-$(VENV)/audit/bin/pip-audit --progress-spinner off --format json --output $(VENV)/audit.json \
	  $$($(BIN)/python -c 'import sys; print(*(f"--path {p}" for p in sys.path if p.endswith("-packages")))')
	$(BIN)/python -c "$$AUDITED" $(VENV)/audit.json

# pip-audit is content where a mirror of the package index knows of no package; then nothing was looked up.
define AUDITED
import json, sys
told = json.load(open(sys.argv[1]))["dependencies"]
known = [one for one in told if "vulns" in one]
holes = [(one["name"], one["version"], hole["id"]) for one in known for hole in one["vulns"]]
print(f"{len(known)} of {len(told)} packages were looked up, {len(holes)} known holes", *holes, sep="\n")
sys.exit("too few of them are known to the package index" if 2 * len(known) < len(told) else bool(holes))
endef
export AUDITED

# The documentation site, in site/; a warning is an error.
docs: $(VENV)/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.docs-ready: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist site licences.csv *.egg-info
