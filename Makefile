# make env     .venv with the tested versions; PYTHON=python3.12 chooses the Python, DALI=cuda120 the build for CUDA 12
# make demo    data, shards, training, evaluation and pictures, in minutes on two CPU cores: runs/demo
# make solar   the same with 2,624 real photographs of solar cells: runs/solar
# make fuzz    damaged JPEGs through the compiled decoder, under sanitizers; MINUTES=10
# make test    the quick tests;  make test-slow  the long ones, make demo among them;  make lint  ruff and mypy

PYTHON ?= python3
DALI ?= cuda130
MINUTES ?= 10
PY = .venv/bin/python
ENV = .venv/.made-for-$(DALI)

.PHONY: env demo solar test test-slow fuzz lint

env: $(ENV)

$(ENV): requirements.txt setup.cfg setup.py $(wildcard pipelines/*/*.c pipelines/*/*.h pipelines/*/*.cpp pipelines/*/*.cu)
	$(PYTHON) -m venv .venv
	.venv/bin/pip uninstall --yes --quiet nvidia-dali-cuda120 nvidia-dali-cuda130
	sed 's/nvidia-dali-cuda130/nvidia-dali-$(DALI)/' requirements.txt > .venv/requirements.txt
	.venv/bin/pip install --requirement .venv/requirements.txt
	.venv/bin/pip install --no-deps --editable .
	rm -f .venv/.made-for-*
	touch $@

demo: $(ENV)
	$(PY) train.py --overwrite
	$(PY) tools/evaluate.py runs/demo
	$(PY) tools/visualize.py runs/demo
	$(PY) tools/report.py runs/demo

solar: data/solar/shards/manifest.json
	$(PY) train.py --data data/solar/shards --out runs/solar --epochs 8 --overwrite
	$(PY) tools/evaluate.py runs/solar
	$(PY) tools/visualize.py runs/solar
	$(PY) tools/report.py runs/solar

data/solar/shards/manifest.json: | $(ENV)
	.venv/bin/pip install --quiet elpv-dataset==1.0.0.post1
	test -d data/solar/images || $(PY) tools/make_demo.py --elpv data/solar/images
	$(PY) tools/shard_imagenet.py data/solar/images data/solar/shards

test: $(ENV)
	$(PY) -m pytest -m "not slow"

test-slow: $(ENV)
	$(PY) -m pytest -m slow

fuzz: $(ENV)
	$(PY) -m tests.fuzz --minutes $(MINUTES)

lint: $(ENV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
