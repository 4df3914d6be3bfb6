# make env     .venv with the tested versions; PYTHON=python3.12 chooses the Python, DALI=cuda120 the build for CUDA 12
# make env TORCH=cpu    the same for a machine without a GPU: torch's CPU build, no DALI; 3 GB instead of 8
# make wheel   dist/*.whl with the compiled part and its own libjpeg-turbo; needs cmake and nasm
# make demo    data, shards, training, evaluation and pictures, in minutes on two CPU cores: runs/demo
# make solar   the same with 2,624 real photographs of solar cells: runs/solar
# make fuzz    damaged JPEGs through the compiled decoder, under sanitizers; MINUTES=10
# make notes VERSION=0.2.0   the changelog's section of a version, for its release
# make docs    the documentation site, in site/; needs no network and fails at the first warning
# make test    the quick tests;  make test-slow  the long ones, make demo among them, in two processes (JOBS=2)
# make lint    ruff and mypy

PYTHON ?= python3
DALI ?= cuda130
TORCH ?= cuda
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
MINUTES ?= 10
JOBS ?= 2
WHEELS ?= dist
PY = .venv/bin/python
# Processes with a thread each: tests wait for starting programs more than they compute. A process takes up to 6 GB.
TESTS = OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses $(JOBS)
ENV = .venv/.made-for-$(DALI)-$(TORCH)
ifeq ($(TORCH),cpu)
CHOSEN = -e '/^nvidia-dali/d' -e 's/^torch\(vision\)\{0,1\}==.*/&+cpu/'
INDEX = --extra-index-url $(CPU_INDEX)
else
CHOSEN = -e 's/nvidia-dali-cuda130/nvidia-dali-$(DALI)/'
endif

.PHONY: env wheel notes demo solar test test-slow fuzz lint docs

env: $(ENV)

# The compiled part takes the system's libjpeg-turbo; without its headers, the one that wheels/libjpeg.py builds.
$(ENV): requirements.txt setup.cfg setup.py $(wildcard $(addprefix pipelines/*/*.,c h cpp cu))
	$(PYTHON) -m venv .venv
	.venv/bin/pip uninstall --yes --quiet nvidia-dali-cuda120 nvidia-dali-cuda130
	sed $(CHOSEN) requirements.txt > .venv/requirements.txt
	.venv/bin/pip install $(INDEX) --requirement .venv/requirements.txt
	if ! echo '#include <jpeglib.h>' | $(CC) -include stdio.h -E - > /dev/null 2>&1 && $(PY) wheels/libjpeg.py build/libjpeg; \
	then export ALEXNET_STATIC_LIBJPEG=1; fi; .venv/bin/pip install --no-deps --editable .
	rm -f .venv/.made-for-*
	touch $@

wheel: .venv/bin/auditwheel
	$(PY) wheels/libjpeg.py build/libjpeg
	rm -rf build/lib build/bdist.* build/wheel
	ALEXNET_STATIC_LIBJPEG=1 .venv/bin/pip wheel --no-deps --wheel-dir build/wheel .
	PATH=$(CURDIR)/.venv/bin:$$PATH auditwheel repair --only-plat --plat manylinux_2_28_$$(uname -m) \
		--wheel-dir $(WHEELS) build/wheel/*.whl

.venv/bin/auditwheel:
	$(MAKE) env

demo: $(ENV)
	$(PY) train.py --overwrite --keep 1
	$(PY) tools/evaluate.py runs/demo
	$(PY) tools/visualize.py runs/demo
	$(PY) tools/report.py runs/demo

solar: data/solar/shards/manifest.json
	$(PY) train.py --data data/solar/shards --out runs/solar --epochs 8 --keep 1 --overwrite
	$(PY) tools/evaluate.py runs/solar
	$(PY) tools/visualize.py runs/solar
	$(PY) tools/report.py runs/solar

data/solar/shards/manifest.json: | $(ENV)
	.venv/bin/pip install --quiet elpv-dataset==1.0.0.post1
	test -d data/solar/images || $(PY) tools/make_demo.py --elpv data/solar/images
	$(PY) tools/shard_imagenet.py data/solar/images data/solar/shards

notes:
	@sed -n '/^## $(VERSION)\b/,/^## /{/^## /!p}' CHANGELOG.md | grep . || { echo "CHANGELOG.md has no section $(VERSION)" >&2; exit 1; }

test: $(ENV)
	$(TESTS) --dist loadfile -m "not slow"

test-slow: $(ENV)
	$(TESTS) --dist worksteal -m slow

fuzz: $(ENV)
	$(PY) -m tests.fuzz --minutes $(MINUTES)

lint: $(ENV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(ENV)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
