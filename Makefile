# Two commands do everything: `make run` and `make test`. Each alone prepares .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: run test scale-test lint bench bench-gpu sweep data-effect swap-check chat export vote gate card figures korean results estimates outputs owner colab-test clean help
.DEFAULT_GOAL := help

run: $(VENV)/.ready ## run the three notebooks, headless, without key or GPU, into runs/default/ (ARGS="--profile smoke")
	$(BIN)/python run.py $(ARGS)

# One thread each: two processes that both compute on two cores would wait for each other at every step
test: $(VENV)/.ready ## run the tests, two files at a time
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

scale-test: $(VENV)/scale/.ready ## run the tests of scale/, with Ray (`make test` skips those that need it)
	HF_HUB_OFFLINE=1 $(VENV)/scale/bin/python -m pytest tests/scale $(ARGS)

colab-test: ## run the notebooks with Colab's packages at Colab's versions, on Python 3.13 (6 GB; simulated: no Colab, no GPU)
	$(PYTHON) -m tests.colab.simulate $(ARGS)

lint: $(VENV)/.ready ## check style, arrows between modules, types and the workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.arrows
	$(BIN)/mypy
	$(BIN)/actionlint

bench: $(VENV)/.ready ## measure near-duplicates, client, loss and judging beside their references; answers must be equal
	$(BIN)/python -m benchmarks.duplicates
	$(BIN)/python -m benchmarks.client
	$(BIN)/python -m benchmarks.loss
	$(BIN)/python -m benchmarks.judge
	$(BIN)/python -m benchmarks.judge_statistics
	[ ! -d ../shared/reference ] || $(BIN)/python -m benchmarks.judge_reference ../shared/reference

bench-gpu: $(VENV)/.ready ## what a GPU does with the course: loss, precision, training, answers; random weights (ARGS="--tiny --device cpu")
	$(BIN)/python -m benchmarks.gpu_battery $(ARGS)

sweep: $(VENV)/.ready ## learning rates against steps on the packaged student, into benchmarks/results/ (resumable)
	$(BIN)/python -m benchmarks.sweep $(ARGS)

data-effect: $(VENV)/.ready ## more rows, one language, seeds or generated rows, into benchmarks/results/ (after `make run`; resumable)
	$(BIN)/python -m benchmarks.data_effect $(ARGS)

# LANGUAGE counts only where it is given to make: desktops set a variable of that name for their own translations
swap-check: $(VENV)/.ready ## can MODEL be the base model? template, mask, end token, LoRA, memory, Hangul (MODEL=id-or-folder [LANGUAGE=ko])
	@test -n "$(MODEL)" || { echo "Say which: make swap-check MODEL=<hub id or folder> [LANGUAGE=ko]"; exit 2; }
	@$(BIN)/python -m training.swap_check "$(MODEL)" $(if $(filter command,$(origin LANGUAGE)),--language "$(LANGUAGE)")

chat: $(VENV)/.ready ## talk with what a run has trained, beside its base model (ARGS="--run default")
	@$(BIN)/python -m training.talk $(ARGS)

export: $(VENV)/.ready ## what a run has trained as GGUF, with an Ollama Modelfile, in runs/default/gguf/ (ARGS="--run default")
	@$(BIN)/python -m training.export $(ARGS)

vote: $(VENV)/.ready ## vote blind on a run's answers, in a page on this machine (ARGS="--run default")
	$(BIN)/python -m evaluation.vote $(ARGS)

gate: $(VENV)/.ready ## check the shipped rows against evaluation prompts, judge pairs and seeds again (data/contamination.json)
	$(BIN)/python -m preprocessing.contamination data/instruction.jsonl

card: $(VENV)/.ready ## write data/README.md, the statistics of the shipped data
	$(BIN)/python -m preprocessing.data_card

figures: $(VENV)/.ready ## draw the concept figures of the pages again, assets/*.svg, from code and data
	$(BIN)/python -m assets.draw

korean: $(VENV)/.ready ## build *.ko.ipynb from the notebooks and translations/ko/ (ARGS=--update: changed English cells into translations/ko/)
	$(BIN)/python -m translations.build $(ARGS)

results: $(VENV)/.ready ## put the figures of runs/default/ into both READMEs (ARGS="--run NAME")
	$(BIN)/python -m assets.results $(ARGS)

estimates: $(VENV)/.ready ## put estimates of cost and time into colab_guide.md: tokens of runs/default/, prices, training/preflight.py
	$(BIN)/python -m assets.estimates $(ARGS)

# Where the default run is kept: settings.py knows it, COURSE_SAVE_TO included
RUN_FOLDER = $(shell $(BIN)/python -c "import settings; print(settings.run_folder())")

outputs: ## copy notebooks, figures and the adapter of runs/default/ over the committed ones, the figures into the READMEs, and build the Korean notebooks
	cp "$(RUN_FOLDER)"/preprocess.ipynb "$(RUN_FOLDER)"/train.ipynb "$(RUN_FOLDER)"/evaluation.ipynb .
	cp "$(RUN_FOLDER)"/funnel.png "$(RUN_FOLDER)"/loss.png "$(RUN_FOLDER)"/outcomes.png assets/
	mkdir -p assets/ko data/example_adapter
	cp "$(RUN_FOLDER)"/*.ko.png assets/ko/
	for file in adapter_model.safetensors adapter_config.json README.md data_card.md training.json; do cp "$(RUN_FOLDER)"/adapter/$$file data/example_adapter/ || exit 1; done
	$(MAKE) results
	$(MAKE) korean

owner: ## set the GitHub account in badges and the bootstrap cell: make owner NAME=you
	@test -n "$(NAME)" || { echo "Say whose: make owner NAME=you"; exit 2; }
	sed -i.bak -E 's#github(\.com)?/[^/" )]+/instruction-tuning-from-scratch#github\1/$(NAME)/instruction-tuning-from-scratch#g' *.ipynb *.md $(wildcard translations/ko/*.po) && rm -f *.bak translations/ko/*.bak

clean: ## remove what was made: .venv, caches, runs/smoke (runs/default stays: it may hold paid replies)
	rm -rf $(VENV) .cache runs/smoke .pytest_cache .ruff_cache

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /make \1|/' | column -t -s '|' 2>/dev/null || grep -E '^[a-z-]+:.*## ' Makefile

$(VENV)/.ready: requirements.txt requirements/student.txt requirements/rehearsal.txt requirements/dev.txt constraints.txt
	$(PYTHON) run.py --setup

# Ray, in an environment that sees the packages of .venv behind its own. In each of Ray's processes jsonschema
# would build a grammar that none of them uses, for 2.4 seconds: without that package it does without
$(VENV)/scale/.ready: $(VENV)/.ready requirements/scale.txt
	$(BIN)/python -m venv $(VENV)/scale
	$(VENV)/scale/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/scale.txt
	$(BIN)/python -c 'import site; print("import sys; sys.modules[\"rfc3987_syntax\"] = None"); print(site.getsitepackages()[0])' > "$$($(VENV)/scale/bin/python -c 'import site; print(site.getsitepackages()[0])')/course.pth"
	@touch $@
