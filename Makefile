# make demo | demo-windows | test | test-all | vm | arm64 | lint | fuzz | lab | lab-down | bench | bench-check | bench-fleet | chaos |
# power-cuts | reboots | soak | screenshots | clean. Each does its own set-up.

PYTHON ?= python3
SUITE ?= trixie
SECONDS ?= 60
VENV := .venv
BIN := $(VENV)/bin
PYTHONS := streamer tests playbooks roles
# ansible-lint looks for its companions there.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo demo-windows test test-all vm arm64 lint fuzz image lab lab-down bench bench-check bench-fleet chaos power-cuts reboots \
  soak screenshots clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo          ## eight cameras, the hub and its page, in this terminal
	@$(BIN)/streamer demo

demo-windows: $(VENV)/demo-windows  ## the same, with a window for each camera on this screen
	@$(BIN)/streamer demo --display windows

# The lab's image is made, and the doors are fuzzed for a minute, while pip and the linters work: before the first test
# that looks at a clock. Fuzzed from one seed, so that a run fails by what was changed and not by luck.
test:                       ## everything, the nine-host lab included where it can run
	@$(MAKE) --no-print-directory --jobs=3 lint image fuzz SEED=1
	@$(BIN)/pytest

test-all: test              ## also what takes long: the two below
	@$(MAKE) --no-print-directory vm arm64

vm: $(VENV)/test            ## real picamera2 and V4L2 devices, in a machine with virtual cameras; root on an x86-64 Debian
	@$(BIN)/pytest tests/vm

arm64: $(VENV)/test         ## a Pi's packages, wheel and units, each kind of host, by emulation; root on Debian
	@$(BIN)/pytest tests/arm64

lint: $(VENV)/test
	@$(BIN)/ruff check $(PYTHONS)
	@$(BIN)/ruff format --check $(PYTHONS)
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive streamer playbooks roles
	@$(BIN)/mypy
	@$(BIN)/yamllint --strict .
	@$(BIN)/ansible-lint --offline --profile production

fuzz: $(VENV)/test          ## the hub's doors; SECONDS=3600 for longer; what breaks one is kept in build/fuzz
	@nice $(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# Status 2: the lab cannot run here. Its tests say so too.
image:
	@$(PYTHON) tests/lab/lab.py image --suite $(SUITE) || [ $$? -eq 2 ]

lab:                        ## nine Debian hosts on this machine, to deploy to; SUITE=bookworm for the older Debian
	@$(PYTHON) tests/lab/lab.py up --suite $(SUITE)

lab-down:
	@$(PYTHON) tests/lab/lab.py down

bench: $(VENV)/bench        ## this package and its peers side by side, tables and plots; half an hour
	@$(BIN)/python -m tests.bench

bench-check: $(VENV)/test   ## whether the hot paths still cost what they did, in instructions; also part of `test`
	@$(BIN)/python -m tests.bench.check

bench-fleet: $(VENV)/test   ## how long deploys of 9 and of 32 hosts of the lab take; half an hour, root on Debian
	@$(BIN)/python -m tests.bench.fleet

chaos: $(VENV)/test         ## a fleet is hurt in every way there is, and the frames at the hub are counted; half an hour
	@$(BIN)/python -m tests.chaos

power-cuts: $(VENV)/test    ## a Pi's power is cut at every step of its deploy; half an hour, root on Debian
	@$(BIN)/python -m tests.lab.power

reboots: $(VENV)/test       ## hosts of the lab reboot, or lose their power, a hundred times; half an hour, root on Debian
	@$(BIN)/python -m tests.lab.reboots

soak: $(VENV)/test          ## ten million frames and ten thousand reconnects: does anything grow? half an hour
	@$(BIN)/python -m tests.chaos.soak

screenshots: $(VENV)/test   ## the README's pictures
	@$(BIN)/python -m tests.pictures.take

clean:                      ## also the lab, and what was downloaded and built
	@$(PYTHON) tests/lab/lab.py down || [ $$? -eq 2 ]
	rm -rf $(VENV) .lab build dist .mypy_cache .pytest_cache .ruff_cache .ansible

# The environments: made once, and again when what they are made from changes.
$(VENV)/demo: pyproject.toml
	@tests/environment.sh "$(PYTHON)" $(VENV) pattern,hub
	@touch $@

$(VENV)/demo-windows: pyproject.toml
	@tests/environment.sh "$(PYTHON)" $(VENV) pattern,hub,opencv libgl1 libglib2.0-0 libsm6
	@touch $@ $(VENV)/demo

$(VENV)/test: pyproject.toml tests/environment.sh
	@tests/environment.sh "$(PYTHON)" $(VENV) pattern,hub,opencv,video,fleet,test python3-venv libgl1 libglib2.0-0 \
	  xvfb openbox xdotool openssh-client prometheus chromium firefox-esr webkit2gtk-driver ffmpeg iproute2 faketime \
	  valgrind
	@touch $@ $(VENV)/demo $(VENV)/demo-windows

$(VENV)/bench: $(VENV)/test
	@tests/environment.sh "$(PYTHON)" $(VENV) bench
	@touch $@
