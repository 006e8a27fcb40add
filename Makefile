# Each goal sets up what it needs: only Python 3.11 or newer, pip and make have to be there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: quickstart test check clean

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

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
