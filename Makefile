SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# Where `make arm` keeps its toolchain.
ARM_PREFIX ?= /opt/arm-rust

.PHONY: help base demo test lint python arm bare fuzz peft clean-out

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

base: ## ONNX Runtime and the base model all-MiniLM-L6-v2: out/venv, out/base, out/env.sh
	@demo/setup/environment.sh

demo: base ## the whole way on the built-in tasks, training to running: out/demo
	$(CARGO) build --release -p preface
	. out/env.sh; $(CARGO) run --quiet --release -p preface -- demo --base out/base --out out/demo

# Some tests count all allocations of their process: without nextest, which gives each its own, one runs at a time.
test: base ## every test
	. out/env.sh; \
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  $(CARGO) nextest run --release --workspace; \
	  $(CARGO) test --release --workspace --doc; \
	else \
	  RUST_TEST_THREADS=1 $(CARGO) test --release --workspace; \
	fi

lint: ## formatting, clippy, licences and who may use which engine
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path runtime/python/Cargo.toml --check
	$(CARGO) fmt --manifest-path bundle/bare/Cargo.toml --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	$(CARGO) clippy --release -p preface --no-default-features --features device -- -D warnings
	$(CARGO) clippy --release -p preface --no-default-features --features device,plan -- -D warnings
	$(CARGO) clippy --release --locked --manifest-path runtime/python/Cargo.toml --target-dir target -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	  $(CARGO) deny check licenses bans sources; \
	else \
	  echo "lint: cargo-deny is not installed: deny.toml was NOT checked" >&2; \
	fi

python: base ## the runtime as a wheel for Python, installed and tested: out/wheels, out/python
	CARGO="$(CARGO)" tests/python.sh

arm: base ## cross-build for the boards in targets/boards and run the demo's tasks there under qemu
	targets/setup.sh --no-link --prefix "$(ARM_PREFIX)"
	CARGO="$(CARGO)" tests/arm.sh --prefix "$(ARM_PREFIX)"

bare: ## the bundle reader without an operating system: panics, flash, stack, byte order
	targets/setup.sh --no-link --bare --prefix "$(ARM_PREFIX)"
	bundle/bare/check.sh --prefix "$(ARM_PREFIX)"

# Exit code 3 says that what it takes is not here; it is said aloud.
fuzz: ## every fuzz target for FUZZ_SECONDS (20), where a nightly compiler and cargo-fuzz are
	fuzz/run.sh "$${FUZZ_SECONDS:-20}" || [ $$? = 3 ]

peft: ## a Python with PyTorch and PEFT for the tests that compare with them: out/peft (some GB)
	@demo/setup/environment.sh --peft

clean-out: ## remove out/
	rm -rf out
