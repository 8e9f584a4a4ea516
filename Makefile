# quantune: every job behind one command. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
CORES  ?= all
CONFIG ?= config.yaml
LOCK   ?= sources.lock.json
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

KEPT   := data checkpoints measurements all
of_dvc  = @test '$(CONFIG)' = config.yaml || { echo "DVC keeps the results of config.yaml: copy $(CONFIG) over it"; exit 1; }
nothing_to_do = snakemake $(KEPT) --dry-run 2>&1 | tee -a /dev/stderr | grep -q "Nothing to be done"

.DEFAULT_GOAL := help
.PHONY: help setup setup-llama demo plan test test-slow test-kill test-real commit push push-hub pull check current verify clean-stale lint schema stages lock update-lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# torch first: its build decides which builds of its dependencies are installed. The rest is pinned whole, so pip need not
# look for dependencies; if this Python or platform needs more, pip looks
$(VENV)/ready: envs/pinned.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quantune needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c envs/pinned.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --no-deps -r envs/pinned.txt
	@$(BIN)/python -m pip check > /dev/null || $(BIN)/python -m pip install --quiet --no-compile -r envs/pinned.txt
	@$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|pip|transformers/models|torch/testing)/' $(VENV)/lib || true  # pip would compile all, on one core
	@touch $@

$(VENV)/ready-for-dvc: $(VENV)/ready envs/pinned-dvc.txt
	$(BIN)/python -m pip install --quiet -r envs/pinned-dvc.txt
	@touch $@

$(VENV)/ready-to-test: $(VENV)/ready-for-dvc envs/pinned-test.txt
	$(BIN)/python -m pip install --quiet -r envs/pinned-test.txt
	@touch $@

setup: $(VENV)/ready-for-dvc  ## create .venv from the pinned packages, with DVC

setup-llama: $(VENV)/ready-to-test  ## build the optional llama-cpp-python (a C++ compiler, minutes): tests then open GGUF exports with it
	$(BIN)/python -m pip install --quiet --no-deps -r envs/pinned-llama.txt

demo: $(VENV)/ready  ## set-up, then the report of config.yaml: thirteen variants of two tiny models, a few minutes
	snakemake --cores $(CORES) --quiet host reason
	@echo "open work/report/report.html"

plan: $(VENV)/ready  ## print the artefacts to make for config.yaml, with their memory, disk and time
	snakemake plan --cores 1 --quiet all

test: $(VENV)/ready-to-test  ## set-up, then the tests
	python -m pytest --numprocesses 2 --dist worksteal

test-slow: $(VENV)/ready-to-test  ## the tests of whole workflows that `make test` leaves out: half an hour
	python -m pytest --numprocesses 2 --dist worksteal -m slow

test-kill: $(VENV)/ready-to-test  ## kill a small run KILLS=20 times at random moments; its files must be those of an undisturbed run
	HF_HUB_OFFLINE=1 PYTHONPATH=. python tests/attack/kill_loop.py

test-real: $(VENV)/ready-to-test  ## REAL=folder: run SmolLM2 and Whisper-base through all methods, compare with known values; wants a GPU
	REAL='$(REAL)' python -m pytest --noconftest -rs tests/test_real.py

commit: $(VENV)/ready-for-dvc  ## make the artefacts of config.yaml and record them in DVC's cache and dvc.lock
	$(of_dvc)
	@dvc root
	@mkdir -p work/sources work/prepared work/evaluations work/benchmarks
	DVC_STAGE=commit snakemake $(KEPT) --cores $(CORES) --quiet host reason
	dvc commit --force
	@$(nothing_to_do) || { echo "config.yaml or its inputs changed during the run: run make commit again"; exit 1; }
	@echo "commit config.yaml and dvc.lock with git; make push sends the files to DVC's remote"

push: $(VENV)/ready-for-dvc  ## send the files of DVC's cache that its remote does not have
	dvc push

push-hub: $(VENV)/ready  ## upload EXPORT=work/exports/VARIANT/FORMAT TO=owner/name of a hub; REVISION=branch, PUBLIC=1
	python -c "import sys; from quantune.upkeep.upload import push; push(*sys.argv[1:])" '$(EXPORT)' '$(TO)' '$(REVISION)' '$(PUBLIC)'

pull: $(VENV)/ready-for-dvc  ## fetch the files of dvc.lock from DVC's remote; completes an interrupted pull
	@find work .dvc/cache -type f -name '.??????????????????????.tmp' -delete 2>/dev/null || true
	dvc pull || { echo "make commit keeps local results; dvc pull --force discards them"; exit 1; }

check: $(VENV)/ready-for-dvc  ## compare every file of the work folder and of DVC's cache with its recorded hash
	python -c "from quantune.upkeep.verify import check; check('$(CONFIG)')"

verify: $(VENV)/ready  ## make artefacts again and compare: all, or ONLY="opt-2m+rtn-w3 work/prepared/radio/whisper-3m"
	python -c "from quantune.upkeep.verify import verify; verify('$(CONFIG)', '$(ONLY)', '$(CORES)')"

current: $(VENV)/ready-for-dvc  ## fail unless Snakemake has nothing to do and DVC nothing to record
	$(of_dvc)
	$(nothing_to_do)
	dvc status 2>&1 | tee -a /dev/stderr | grep -q "up to date"

clean-stale: $(VENV)/ready-for-dvc  ## list, then remove, the results that config.yaml does not need; show disk use
	python -c "from quantune.upkeep.housekeeping import clean; clean('$(CONFIG)', '$(YES)')"

lint: $(VENV)/ready-to-test  ## the linters
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	snakemake --lint

schema: $(VENV)/ready  ## write schemas/config.schema.json from the typed models
	python -c "from pathlib import Path; from quantune.planning.load import write_schema; write_schema(Path('schemas/config.schema.json'))"

stages: $(VENV)/ready-to-test  ## record the stages' fingerprints, after you raised the versions of stages whose meaning changed
	PYTHONPATH=. python tests/test_stages.py '$(SAME)'

update-lock: $(VENV)/ready  ## query the hub again for all of sources.lock.json; print the changes
	python -c "from quantune.sources.lock import update; update('$(LOCK)')"

lock:  ## resolve envs/direct*.txt, all together, into envs/pinned*.txt
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock/all && $(PYTHON) -m venv .venv-lock/layers
	.venv-lock/all/bin/pip install --quiet $$(grep '^torch==' envs/direct.txt)
	.venv-lock/all/bin/pip install --quiet -r envs/direct.txt -r envs/direct-dvc.txt -r envs/direct-test.txt
	.venv-lock/all/bin/pip freeze | sed 's/^\(torch==[0-9.]*\)+.*/\1/' > .venv-lock/constraints.txt
	touch .venv-lock/known.txt
	for layer in '' -dvc -test; do \
	    .venv-lock/layers/bin/pip install --quiet -c .venv-lock/constraints.txt -r envs/direct$$layer.txt && \
	    .venv-lock/layers/bin/pip freeze | sed 's/^\(torch==[0-9.]*\)+.*/\1/' > .venv-lock/now.txt && \
	    { echo "# From direct$$layer.txt by \`make lock\`."; grep -vxFf .venv-lock/known.txt .venv-lock/now.txt; } > envs/pinned$$layer.txt && \
	    cp .venv-lock/now.txt .venv-lock/known.txt || exit 1; done
	{ printf '%s\n' '# From direct.txt by `make lock`, for `snakemake --sdm conda`.' 'channels: [conda-forge]' 'dependencies:' \
	    '  - python =3.12' '  - pip' '  - pip:'; grep -v '^#' envs/pinned.txt | sed 's/^/      - /'; } > envs/conda.yaml
	rm -rf .venv-lock

clean:  ## remove the demo's results
	rm -rf work .snakemake
