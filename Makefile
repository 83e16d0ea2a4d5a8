# Every target works on a bare machine: `.venv` is made on first use from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo test format lint types unit docs bench bench-gpu clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	PYTHON=$(PYTHON) bash scripts/setup.sh

demo: $(STAMP)
	$(BIN)/fewer generate "three red apples on a blue background, flat style" --seed 7 --output outputs/demo.png

test: $(STAMP)
	bash scripts/test.sh

format lint types unit docs: $(STAMP)
	bash scripts/test.sh $@

bench: $(STAMP)
	bash scripts/bench.sh cpu

bench-gpu: $(STAMP)
	bash scripts/bench.sh gpu

clean:
	rm -rf $(VENV) outputs dist build
