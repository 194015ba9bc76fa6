# Every target sets up what it needs by itself: Debian packages, .venv, the native core (tools/bootstrap.py).
PYTHON ?= python3
BIN := .venv/bin
# cython-lint starts pycodestyle by its name.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The programs that tests start would each compile the library anew.
unexport PYTHONDONTWRITEBYTECODE
FIRMWARE ?= bios
ARGS ?=
# Tests make networks, which takes root: that of a namespace where we are not the real one.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,unshare --user --map-root-user --net --mount \
  sh -c 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$$0" "$$@"' env LOGNAME=uid-$(shell id -u))

.DEFAULT_GOAL := help
.PHONY: help setup build debug test prove lint type demo bench bench-readme bench-dhcp bench-media fuzz clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install everything that the other targets need
	@$(PYTHON) tools/bootstrap.py build demo test bench

build: ## Make .venv and build the native core
	@$(PYTHON) tools/bootstrap.py build

debug: ## Build the native core for the debugger (then: make test FASTBOOT_DEBUG=1)
	@FASTBOOT_DEBUG=1 $(PYTHON) tools/bootstrap.py build

test: ## Run every test, machines booting in QEMU included (one of them: make test ARGS="-k name")
	@$(PYTHON) tools/bootstrap.py build demo test
	@$(AS_ROOT) $(BIN)/python -m pytest $(if $(ARGS),,-n 2) $(ARGS)

prove: ## Run the tests that take minutes each and are no part of make test
	@$(PYTHON) tools/bootstrap.py build demo test bench
	@$(AS_ROOT) $(BIN)/python -m pytest -m long --timeout 900 $(ARGS)

lint: build ## Check style: ruff, cython-lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python tools/lint_native.py

type: build ## Check types: mypy, and the native core against its stub
	@$(BIN)/mypy
	@$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml fastboot._core fastboot.lab._fleet \
	  fastboot.lab._machines fastboot.lab._sinks

demo: ## Boot a bare virtual machine from fastboot (make demo FIRMWARE=uefi)
	@$(PYTHON) tools/bootstrap.py build demo
	@$(BIN)/fastboot demo --firmware $(FIRMWARE) $(ARGS)

bench: ## Compare TFTP with dnsmasq, tftpd-hpa, atftpd and the limit, 20 minutes (less: make bench ARGS="--only window16")
	@$(PYTHON) tools/bootstrap.py build bench
	@$(AS_ROOT) $(BIN)/python -m bench.tftp $(ARGS)

bench-readme: build ## Make README's figures from bench/results
	@$(BIN)/python -m bench.readme README.md

bench-dhcp: ## Compare DHCP with Kea, ISC dhcpd and dnsmasq on this machine, about five minutes
	@$(PYTHON) tools/bootstrap.py build bench
	@$(AS_ROOT) $(BIN)/python -m bench.dhcp $(ARGS)

bench-media: ## Compare HTTP and FTP with nginx, vsftpd and pyftpdlib on this machine
	@$(PYTHON) tools/bootstrap.py build bench
	@$(AS_ROOT) $(BIN)/python -m bench.media $(ARGS)

fuzz: ## Fuzz all that takes packets, then all that reads images; a minute and a half (longer: make fuzz ARGS=600)
	@$(PYTHON) tools/bootstrap.py build fuzz
	@$(BIN)/python tests/fuzz_dhcp.py $(ARGS)
	@$(BIN)/python tests/fuzz_images.py $(ARGS)

clean: ## Remove what was built or downloaded
	rm -rf .venv .cache build dist *.egg-info
	rm -f $(foreach it,fastboot/_core fastboot/lab/_fleet fastboot/lab/_machines fastboot/lab/_sinks,$(it).c $(it).html $(it).*.so)
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
