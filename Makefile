# make env    .venv with the tested versions; PYTHON=python3.12 chooses the Python, DALI=cuda120 the build for CUDA 12
# make demo   data, shards, training, evaluation, pictures: runs/demo, in minutes on two CPU cores
# make elpv   the same with photographs of solar cells
# make test   the tests; make test-slow  the long ones; make lint  ruff and mypy

PYTHON ?= python3
DALI ?= cuda130
PY = .venv/bin/python
ENV = .venv/.made-for-$(DALI)

.PHONY: env demo elpv test test-slow lint
.DELETE_ON_ERROR:

env: $(ENV)

$(ENV): requirements.txt setup.cfg
	$(PYTHON) -m venv .venv
	.venv/bin/pip uninstall --yes --quiet nvidia-dali-cuda120 nvidia-dali-cuda130 2>/dev/null
	sed 's/nvidia-dali-cuda130/nvidia-dali-$(DALI)/' requirements.txt > .venv/requirements.txt
	.venv/bin/pip install --requirement .venv/requirements.txt
	.venv/bin/pip install --no-deps --editable .
	rm -f .venv/.made-for-*
	touch $@

demo: $(ENV)
	$(PY) train.py --overwrite
	$(PY) tools/evaluate.py runs/demo/best.pt
	$(PY) tools/visualize.py runs/demo/best.pt

test: $(ENV)
	$(PY) -m pytest -m "not slow"

test-slow: $(ENV)
	$(PY) -m pytest -m slow

lint: $(ENV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
