# Targets with a ## comment are listed by `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INPUTS := requirements.txt requirements-dev.txt constraints.txt pyproject.toml

.DEFAULT_GOAL := help
.PHONY: bench-train checkov help setup demo test test-full test-container lint format evaluate bench-dicom bench-data bench-inference

help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv with the tested versions (again only when they change)

$(STAMP): $(INPUTS)
	@echo "setup: making $(VENV); the first time downloads the packages, which takes a few minutes"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "setup: Python 3.11 or newer is needed: make PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
		-c constraints.txt -r requirements.txt -r requirements-dev.txt -e . \
		|| { echo "setup: the packages could not be installed (is there a network? run make setup again)"; exit 1; }
	@touch $@

demo: setup ## train, restore and evaluate on a real sample series (about 10 minutes)
	$(BIN)/python scripts/demo.py

test: setup ## the tests, without the long ones
	$(BIN)/python -m pytest -m "not full and not container"

test-full: setup ## all tests
	$(BIN)/python -m pytest -m "not container"

test-container: setup ## build the image and run it as the manifests say (podman, buildah; about 15 minutes)
	$(BIN)/python -m pytest -m container -s tests/k8s/test_container.py

checkov: setup ## checkov's rules over manifests and image (in an environment of its own, 290 MB)
	@test -x $(VENV)/checkov/bin/checkov || { $(PYTHON) -m venv $(VENV)/checkov && \
		$(VENV)/checkov/bin/python -m pip install --disable-pip-version-check --quiet checkov==3.3.30; }
	PATH="$(CURDIR)/$(VENV)/checkov/bin:$$PATH" $(BIN)/python -m pytest tests/k8s/test_checkov.py

lint: setup ## ruff and mypy, and the JSON twins of the configs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/make_json_twins.py --check

format: setup ## format the code and regenerate the JSON twins
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python scripts/make_json_twins.py

evaluate: setup ## the model card's table, of the held-out series below CT; options in ARGS="--dataset_dir CT --output_dir DIR"
	$(BIN)/python -m bundle run evaluation --config_file "['configs/evaluate.yaml','configs/held_out.yaml']" \
		--max_slices 4 --sampled_steps "[4,16]" --averaged_samples 4 --averaged_flips 4 \
		--trained_baselines#unet3d models/baselines/unet3d.pt --trained_baselines#redcnn models/baselines/redcnn.pt \
		--parameters_file docs/results/parameters/quarter_dose.json --best_of_series true $(ARGS)

bench-dicom: setup ## compare the DICOM reader with others on real series; options in ARGS="--data_dir DIR --rounds N"
	$(BIN)/python scripts/bench_dicom.py $(ARGS)

bench-inference: setup ## time our restoration beside other denoisers; options in ARGS="--data_dir SERIES --exported_dir FOLDER"
	$(BIN)/python scripts/bench_inference.py $(ARGS)

bench-data: setup ## the data pipeline against the trainer and MONAI's caches; options in ARGS="--data_dir DIR"
	$(BIN)/python scripts/bench_data.py $(ARGS)

bench-train: setup ## time a training step beside a bare PyTorch loop, with memory; options in ARGS="--steps N --preset P"
	$(BIN)/python scripts/bench_train.py $(ARGS)
