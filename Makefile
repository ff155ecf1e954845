# Each target is one or two plain commands; CONTRIBUTING.md shows them for those without make.
# `make setup PYTHON=python3.13` builds the environment with another Python.

PYTHON ?= python3
# Written last, so that an interrupted setup starts over.
STAMP := .venv/complete

.PHONY: setup run test test-all test-more test-attack test-manifests test-ray lint format lock clients release-check

setup: $(STAMP)
	@:

$(STAMP): requirements/development.txt
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or newer is needed; $(PYTHON) is ' + sys.version.split()[0] + '. Name another one: make $(MAKECMDGOALS) PYTHON=python3.13')"
	@test ! -L .venv || { echo ".venv is a link; making a new one would empty the folder behind it. Remove the link."; exit 1; }
	@echo "Installing packages into .venv; this takes a minute or more."
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --require-hashes -r requirements/development.txt
	@touch $(STAMP)

run: setup
	.venv/bin/python -m app

test: setup
	.venv/bin/python -m pytest

test-all: test test-more test-attack test-manifests test-ray

# What `make test` skips because it needs more than Python; the page in a browser and the fuzzing of
# the API; and HEIC pictures in an environment that has their decoder, so that the usual one shows how
# the service does without.
test-more: setup
	.venv/bin/python -m pytest -m "(container or network or slow) and not attack"
	.venv/bin/python -m uv run --quiet --no-project --isolated --python .venv/bin/python --with-requirements requirements/development.txt --with-requirements requirements/browser.txt --with-requirements requirements/fuzz.txt python -m pytest -m "browser or fuzz"
	.venv/bin/python -m uv run --quiet --no-project --isolated --python .venv/bin/python --with-requirements requirements/development.txt --with-requirements requirements/heic.txt python -m pytest -k heic

# A container of half a gigabyte under two hundred of every kind of the worst uploads.
test-attack: setup
	.venv/bin/python -m pytest -m attack

# What Kubernetes and KServe would say to deploy/, by their own schemas.
test-manifests: setup
	.venv/bin/python -m uv run --quiet --no-project --isolated --python .venv/bin/python --with-requirements requirements/manifests.txt python -m pytest tests/test_deploy.py

# The job for archives on Ray, which has its own environment. Ray would start its workers by uv too,
# elsewhere, where the path of Python is not right.
test-ray: setup
	RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 .venv/bin/python -m uv run --quiet --no-project --isolated --python .venv/bin/python --with-requirements requirements/ray.txt python -m pytest tests/test_ray_job.py

# The clients of other model servers against /v2; the first time it installs 1 GB of them.
clients: setup
	.venv/bin/python -m scripts.check_clients

lint: setup
	.venv/bin/python -m ruff check && .venv/bin/python -m ruff format --check
	.venv/bin/python -m mypy .

format: setup
	.venv/bin/python -m ruff check --fix
	.venv/bin/python -m ruff format

# Keeps the versions that still fit; `make lock LOCK_OPTIONS=--upgrade` takes the newest.
lock: setup
	scripts/lock $(LOCK_OPTIONS)

# What is still missing before a release.
release-check: setup
	.venv/bin/python -m scripts.release_check
