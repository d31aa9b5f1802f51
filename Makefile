# make lab         read the course in JupyterLab
# make test        check everything: the package, every cell of every notebook, the pages
# make copy        copy the notebooks to my_course/, for your own answers
# make notebooks   after an edit: bring twins, notebooks and modules together, run what changed;
#                  or one in any case: make notebooks NAME=03_cbam
# make versions    test the modules on the pinned versions, then on the lowest that users may have
# make chapter     start a new chapter: make chapter NAME=02_selective_kernel
# make lint        formatting, lint and types
# make clean       forget the environment and every cache
# `lab` and `test` set themselves up in .venv. Another Python: make lab PYTHON=python3.13

PYTHON ?= python3
BIN = .venv/bin
READY = .venv/ready
LOWEST = .venv-lowest

# What is wrong with $(PYTHON), in one line, or nothing. Any Python, however old, can run this.
WRONG = $(shell "$(PYTHON)" -c "import sys; v = sys.version_info; \
  v < (3, 11) and sys.exit('$(PYTHON) is Python %d.%d.' % (v[0], v[1])); \
  from importlib.util import find_spec; \
  find_spec('ensurepip') or sys.exit('$(PYTHON) lacks venv (Debian: apt install python3-venv).')" \
  2>&1 || echo "The course needs Python 3.11 or newer with venv: make lab PYTHON=python3.13")

ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)
SCREEN = $(or $(DISPLAY),$(WAYLAND_DISPLAY),$(filter Darwin,$(shell uname)))

# Linux's malloc gives a tensor's memory back to the system and asks for it anew at each step of a
# training, which costs a third of the time where two processes do it. These keep it.
export MALLOC_MMAP_THRESHOLD_ = 1000000000
export MALLOC_TRIM_THRESHOLD_ = 1000000000

.PHONY: lab test copy notebooks versions chapter lint clean

lab: $(READY)
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb \
	  $(ROOT) $(if $(SCREEN),,--no-browser)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest --nbval --numprocesses 2

copy:
	@mkdir -p my_course
	@for notebook in notebooks/*.ipynb; do \
	  test -e my_course/$${notebook##*/} || cp $$notebook my_course/ || exit; done
	@echo "Your copy is my_course/: open it with make lab. What was there already stays as it was."

notebooks: $(READY)
	$(BIN)/python -m attn_course.course.build $(if $(filter command%,$(origin NAME)),$(NAME))
	$(BIN)/python -c "from attn_course.course import course_map, pictures; pictures.use_style(); \
	  course_map.draw_course_map().figure.savefig('docs/course_map.png')"

MODULE_TESTS = $(wildcard tests/test_contract.py tests/test_uses.py tests/test_compilers.py \
  $(patsubst attn_course/%.py,tests/test_%.py,$(wildcard attn_course/*.py)))

versions: $(READY) $(LOWEST)/ready
	for bin in $(BIN) $(LOWEST)/bin; do $$bin/python -m pytest $(MODULE_TESTS) || exit 1; done

chapter: $(READY)
	$(BIN)/python -m attn_course.course.chapter $(NAME)

lint: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

clean:
	rm -rf .venv $(LOWEST) build dist *.egg-info .*_cache
	find . \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# The environment is made again only when a version changes.
$(READY): requirements.txt pyproject.toml
	$(if $(WRONG),$(error $(WRONG)))
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	$(BIN)/jupyter labextension disable @jupyterlab/apputils-extension:announcements
	@touch $@

# What the package needs in the lowest version of its range, and the tests' tools as pinned.
$(LOWEST)/ready: requirements.txt pyproject.toml
	$(if $(WRONG),$(error $(WRONG)))
	"$(PYTHON)" -m venv $(LOWEST)
	grep '^dependencies' pyproject.toml | grep -oE '[a-z]+>=[0-9.]+' | sed 's/>=/==/' > $(LOWEST)/lowest
	grep -vE '^(torch|jaxtyping)==' requirements.txt >> $(LOWEST)/lowest
	$(LOWEST)/bin/python -m pip install -r $(LOWEST)/lowest
	@touch $@
