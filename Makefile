# Two commands matter: `make lab` to learn, `make test` to check. `make` alone lists the rest.

PYTHON   ?= python3
PIP_ARGS ?=
LAB_ARGS ?=
DESK     ?=
ALL      ?=
LIST     ?=
REPOSITORY ?=

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
BOOK_STAMP := $(VENV)/.installed-book
PLACE := $(if $(DESK),--place "$(DESK)")

.DEFAULT_GOAL := help
.PHONY: help env lab desk class lint test test-quick demo notebooks book bench clean

help:
	@echo "make env         build the virtual environment in $(VENV)"
	@echo "make lab         open JupyterLab on your desk: copies of the chapters, which are yours to change"
	@echo "make desk        lay the desk, or bring it up to date, and open nothing"
	@echo "make class       lay a desk for each name of a list, and the folder that shows a teacher what they did"
	@echo "make test        look at style and types, run the tests, and every notebook against its stored outputs"
	@echo "make test-quick  the part of it that answers in three minutes, for who changes code"
	@echo "make lint        look at style and types only"
	@echo "make demo        run the main experiment without a browser"
	@echo "make notebooks   run every notebook again and store its outputs"
	@echo "make book        build the website in build/book from the stored outputs; nothing is run"
	@echo "make bench       run the measurements in tests/bench"
	@echo "make clean       remove the environment and everything else that make built"
	@echo "make help        show this list (as make alone does)"
	@echo
	@echo "PYTHON=python3.13   the Python to build with: 3.11, 3.12 or 3.13 (now: $(PYTHON))"
	@echo "PIP_ARGS='...'      more arguments for pip, for example to choose the CPU build of PyTorch"
	@echo "DESK=/some/folder   where desk/ is laid, for someone else or for a class (now: here)"
	@echo "LIST=names.txt      for make class: one name a line; the desks are laid in DESK"
	@echo "REPOSITORY=...      make book with links to the project's page on GitHub and to Binder (now: $(or $(REPOSITORY),none))"
	@echo "PUSH=1              make test as CI runs it for each push: with long cells of the chapters, clusters and the browser"
	@echo "ALL=1               make test as CI runs it once a week: with solved twins, scripts, all answers that checks are tested with, long tests"
	@echo "LAB_ARGS='...'      more arguments for JupyterLab, for example --no-browser"

env: $(STAMP)

# The stamp is written last, so an installation that was interrupted is repeated.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Error: there is no '$(PYTHON)' here; install Python 3.11, 3.12 or 3.13, or name it: make env PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Error: $(PYTHON) is Python %d.%d, but the course needs 3.11, 3.12 or 3.13; name one of these: make env PYTHON=python3.11" % v)'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Error: $(PYTHON) cannot make virtual environments; install its venv module (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install -c constraints.txt -e '.[test,cluster]' $(PIP_ARGS)
	@touch $@

lab: env
	$(PY) -m course_lib.learner lab $(PLACE) $(LAB_ARGS)

desk: env
	$(PY) -m course_lib.learner desk $(PLACE)

class: env
	@test -n "$(LIST)" && test -n "$(DESK)" || { echo "Error: say who and where: make class LIST=names.txt DESK=/srv/course" >&2; exit 1; }
	$(PY) -m course_lib.classroom lay "$(LIST)" "$(DESK)"

lint: env
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

# Some hundred processes import the course: what one of them has compiled is kept for the others, also where
# the environment asks for no such files.
test test-quick: export PYTHONDONTWRITEBYTECODE :=

# Four files at a time, each from top to bottom, the longest first: ranks that wait or sleep leave a core to
# others; six with clusters and browsers, which wait longer. A cell may take a minute, which `make notebooks`
# holds it to; fifteen are for a machine that is busy with other things. With PUSH=1, also what
# tests/levels.py calls thorough, but for what it calls weekly; with ALL=1, everything.
test: lint
	$(PY) -m pytest $(if $(ALL),,-m "not $(if $(PUSH),weekly,thorough)") -n $(if $(PUSH)$(ALL),6,4) --dist loadscope --no-loadscope-reorder --nbval --nbval-current-env --nbval-cell-timeout=900 --nbval-kernel-startup-timeout=900 tests notebooks

# Without the notebooks, and without what tests/levels.py calls slow.
test-quick: lint
	$(PY) -m pytest -n 4 --dist loadscope -m "not slow and not thorough" tests

demo: env
	$(PY) -m course_lib.demo

notebooks: env
	$(PY) tests/execute_notebooks.py

# What only the website needs is installed here, and not by `make env`. MathJax is in a package, too: a page
# asks no other host for anything.
$(BOOK_STAMP): $(STAMP)
	$(PY) -m pip install -c constraints.txt -e '.[test,cluster,book]' $(PIP_ARGS)
	@touch $@

book: $(BOOK_STAMP)
	REPOSITORY="$(REPOSITORY)" $(PY) docs/website/pages.py build/book-pages
	REPOSITORY="$(REPOSITORY)" $(PY) -m sphinx -W --keep-going -q -j auto -c docs/website -d build/book-read build/book-pages build/book

bench: env
	@for script in tests/bench/[a-z]*.py; do echo "== $$script"; $(PY) "$$script" || exit 1; done

clean:
	rm -rf $(VENV) build demo_output *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find course_lib tests notebooks data \( -name __pycache__ -o -name .ipynb_checkpoints -o -name .pytest_cache \) -prune -exec rm -rf {} +
