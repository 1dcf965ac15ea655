# The front door. Every target sets up what it needs in $(VENV), with nothing but Python and pip on the machine.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
CONSTRAINTS ?= constraints/tested.txt
RUN = $(VENV)/bin/python
BENCH_PAIR = SupMAE 'ViTMAE + head, 1 block'

ACTIVATE = source $(VENV)/bin/activate

.PHONY: demo test test-slow test-oldest bench quality style clean

$(VENV)/installed: setup.py pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	rm -rf $(VENV)/transformers-tests
	$(RUN) -m pip download --quiet --no-deps --no-binary transformers --dest $(VENV)/transformers-tests \
	  $$($(RUN) -m pip freeze | grep '^transformers==')
	cd $(VENV)/transformers-tests && $(abspath $(RUN)) -m tarfile -e transformers-*.tar.gz
	touch $@

$(VENV)/trains: setup.py pyproject.toml $(CONSTRAINTS)
	@echo "Installing PyTorch, Transformers and what the scripts need into $(VENV)/: several GB, minutes."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --constraint $(CONSTRAINTS) --editable '.[train]'
	@touch $@

# pre-train and fine-tune a small SupMAE on scikit-learn's digits: minutes on a laptop CPU
demo: $(VENV)/trains
	$(RUN) examples/run_pretrain.py examples/configs/pretrain_digits.yaml --overwrite_output_dir
	$(RUN) examples/run_finetune.py examples/configs/finetune_digits.yaml --overwrite_output_dir
	@echo
	@echo "Look at outputs/digits-pretrain/reconstructions.png and the card, outputs/digits-finetune/README.md."
	@echo "On images of your own:"
	@echo "  $(ACTIVATE)"
	@echo "  python examples/run_pretrain.py examples/configs/pretrain_photos_small.yaml --train_dir FOLDER --output_dir pretrained"
	@echo "  python examples/run_finetune.py examples/configs/finetune_photos_small.yaml --train_dir FOLDER --model_name_or_path pretrained \\"
	@echo "    --output_dir finetuned"

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist worksteal -m "not slow and not gpu"

# the tests that take minutes
test-slow: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist worksteal -m slow

# the tests on the oldest supported releases
test-oldest:
	$(MAKE) test VENV=$(VENV)-oldest CONSTRAINTS=constraints/oldest.txt

# speed and memory side by side with ViTMAE; see benchmarks/README.md for what more there is
bench: $(VENV)/installed
	$(RUN) benchmarks/bench_step.py
	$(RUN) benchmarks/bench_step.py --dtype fp32 --batch_size 16
	$(RUN) benchmarks/bench_step.py --attention eager --only SupMAE 'ViTMAE + head, 8 blocks'
	if command -v g++ > /dev/null; then $(RUN) benchmarks/bench_step.py --compile --only $(BENCH_PAIR); fi
	$(RUN) benchmarks/bench_input.py
	$(RUN) benchmarks/bench_folder.py --num_images 120000
	$(RUN) benchmarks/bench_end_to_end.py

quality: $(VENV)/installed
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

style: $(VENV)/installed
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

clean:
	rm -rf $(VENV) $(VENV)-oldest outputs build src/*.egg-info
