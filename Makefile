# make setup   a virtual environment, a real ComfyUI with what it requires, this pack linked into it
# make demo    train a motion on toy clips in ComfyUI and render it
# make run     ComfyUI with this pack, for a browser
# make test    all tests, including those against a real ComfyUI server
# make check   lint, formatting, types, import rules and the fast tests
# make types   mypy alone
# make test-browser   tests in a real chromium; installs it where apt-get is allowed to
#
# COMFYUI_PATH=/path/to/ComfyUI uses your ComfyUI instead of fetching one, and does not change it.
# COMFYUI_GIT=address fetches ComfyUI from that git mirror instead of GitHub.

# The first interpreter that is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin/python

# A second OpenMP thread spins while it waits. On a busy machine that made the same work a hundred
# times slower.
export OMP_NUM_THREADS = 1

# Tests start many processes: without compiled files each of them compiles ComfyUI again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo run test test-browser types check

setup:
	@test -n "$(PYTHON)" || { echo "setup needs Python 3.10 or newer"; exit 1; }
	@$(PYTHON) -m scripts.setup_host

demo: setup
	$(RUN) -m scripts.demo

run: setup
	$(RUN) -m scripts.run_host $(ARGS)

# Tests of a file stay together, since they share servers and models. They keep their order, since
# pytest-xdist would otherwise start the longest files last.
TOGETHER := -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(RUN) -m pytest $(TOGETHER)

test-browser: setup
	$(RUN) -m scripts.server.browser
	$(RUN) -m pytest tests/browser

# mypy sees the repository through a link with a package's name: the pack's imports are relative to
# its root, and the folder of a clone may have any name.
types: setup
	cd build/typecheck && MYPYPATH=$(CURDIR) $(CURDIR)/$(RUN) -m mypy \
		--config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache \
		-p comfyui_lamp.lamp -p comfyui_lamp.nodes \
		-m scripts.server.server -m scripts.setup_host -m scripts.run_host

check: types
	$(RUN) -m ruff check .
	$(VENV)/bin/lint-imports --no-cache
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest $(TOGETHER) -m "not host and not slow"
