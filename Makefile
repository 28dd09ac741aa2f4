# Every target works from a fresh clone. CI (.ci/run) calls the same ones.

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
# -qq: errors only. --no-compile: compiling all of torch takes longer than copying it. Python compiles what it imports,
# once, since it may write bytecode here. Constraints hold for every install, so that an environment is the one that was tested.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -c constraints.txt
# The project's environment is the only one that counts: neither an active one nor extra import paths reach it.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE

# Each test file runs in one of these processes, each on one thread.
TEST_PROCESSES ?= 2
# How long `make gpu` may take, and where it writes.
GPU_MINUTES ?= 6
GPU_OUTPUT ?= outputs/gpu
# More options of pytest for `make test`.
TEST_OPTIONS ?=
APT_CHROMIUM = { echo "Installing Chromium ..." && timeout 60 apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
    timeout 180 apt-get -qq install --no-install-recommends chromium > /dev/null; }
# Where `make docs` writes.
SITE ?= site

.DEFAULT_GOAL := help
.PHONY: help quickstart serve install test browser clients peers test-fast lint fix types docs results gpu
.PHONY: test-versions clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.runtime  ## Install the package with what it needs to run, then run the example
	$(BIN)/python examples/quickstart.py

# Another model, address or default: make serve SERVE="MODEL --port 9000 --depth 4".
serve: $(VENV)/.serve  ## Install the package with its server, then serve mini on http://127.0.0.1:8080
	$(BIN)/mrr serve $(SERVE)

install: $(VENV)/.dev  ## Install the package, editable, with the development tools

test: lint types  ## Check style and types, then run the tests, the doctests and the README's snippets
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile $(TEST_OPTIONS)

# Without Chromium, and without a way to install it, the tests are skipped and say so.
browser: $(VENV)/.dev  ## Test the server's page in Chromium, which apt installs if it is missing
	@command -v chromium || command -v chromium-browser || command -v google-chrome || $(APT_CHROMIUM) || \
	    echo "Chromium is missing, and apt-get could not install it."
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -rs tests/browser

test-fast: $(VENV)/.dev  ## Run the tests that start no process, train nothing and need no framework
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile -m "not slow" \
	    tests mrr_model --ignore tests/docs --ignore tests/examples --ignore tests/integrations \
	    --ignore mrr_model/training --ignore mrr_model/evaluation

lint: $(VENV)/.dev  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fix: $(VENV)/.dev  ## Correct style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev  ## Check types
	$(BIN)/mypy

# The variable silences an announcement of mkdocs-material about its own future.
docs: $(VENV)/.docs  ## Build the documentation into site/, strictly and without the network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir $(abspath $(SITE))

results: $(VENV)/.dev  ## Render benchmarks/results/*.json into the tables and the picture of README.md and docs/
	$(BIN)/python benchmarks/render.py

# Any Python with the requirements will do, from a bare checkout: a borrowed machine has its own.
gpu:  ## Check, profile and measure on a CUDA device, within GPU_MINUTES, into GPU_OUTPUT
	$(PYTHON) benchmarks/gpu.py --minutes $(GPU_MINUTES) --output $(GPU_OUTPUT)

ADAPTERS := langchain-core llama-index-core sentence-transformers
ADAPTER_TESTS := tests/integrations
# The lowest versions that pyproject.toml claims, and the newest that resolve together. Of old releases under new
# pydantic, import warnings are the framework's own: they are shown, not raised.
test-versions: .venv-lowest/.done .venv-newest/.done  ## Test the adapters at both ends of the frameworks' versions
	for end in lowest newest; do \
	    .venv-$$end/bin/python -m pip list 2>/dev/null | grep -E "$(subst $(eval ) ,|,$(ADAPTERS))" ; \
	    HF_HUB_OFFLINE=1 .venv-$$end/bin/python -m pytest -q -W default $(ADAPTER_TESTS) || exit 1; \
	done

.venv-lowest/.done: LIMITS = langchain-core==1.0.0 llama-index-core==0.14.0 sentence-transformers==6.0.0
.venv-newest/.done: LIMITS = --upgrade $(ADAPTERS)
.venv-%/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -qq -c constraints.txt torch
	.venv-$*/bin/python -m pip install -qq -e ".[dev]" $(LIMITS)
	@touch $@

# Warnings are the clients' own.
clients: $(VENV)-clients/.done  ## Test the server with the clients that applications call re-rankers with
	HF_HUB_OFFLINE=1 $(VENV)-clients/bin/python -m pytest -q -W ignore tests/clients

peers: $(VENV)-onnx/.done $(VENV)-openvino/.done  ## Install what benchmarks/speed.py also compares with

PURELIB := import sysconfig; path = sysconfig.get_path("purelib")
# A layer over the development environment, which Python and pip read too: only what that one lacks is installed.
define layer
	$(BIN)/python -m venv --without-pip $(1)
	$(BIN)/python -c '$(PURELIB); print(f"import site; site.addsitedir({path!r})")' > \
	    $$($(1)/bin/python -c '$(PURELIB); print(path)')/development.pth
	$(BIN)/python -m pip --python $(1)/bin/python install -qq --disable-pip-version-check --no-compile $(2)
	@touch $(1)/.done
endef

$(VENV)-clients/.done: $(VENV)/.dev tests/clients/requirements.txt
	$(call layer,$(VENV)-clients,-r tests/clients/requirements.txt)

$(VENV)-onnx/.done $(VENV)-openvino/.done: $(VENV)-%/.done: $(VENV)/.dev benchmarks/requirements-%.txt
	$(call layer,$(VENV)-$*,--no-deps -r benchmarks/requirements-$*.txt)

clean:  ## Remove the environment, the caches and what was built
	rm -rf $(VENV) $(VENV)-clients $(VENV)-onnx $(VENV)-openvino .venv-lowest .venv-newest
	rm -rf build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find mrr_* tests examples benchmarks -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# A stamp is as new as the last install that went through; a change to the requirements makes it old.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.serve: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e ".[serve]"
	@touch $@ $(VENV)/.runtime

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.runtime $(VENV)/.serve

$(VENV)/.docs: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e ".[docs]"
	@touch $@ $(VENV)/.runtime
