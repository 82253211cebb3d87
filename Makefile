# Everything that is done with kms-proxy, one target each; `make help` lists them.

CARGO ?= cargo
PYTHON ?= python3

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: run
run: ## build and start the service on http://127.0.0.1:8080 with the embedded default
	$(CARGO) run --release --locked --bin kms-proxy -- serve

.PHONY: test
test: test-env ## install what the tests need and run them all
	$(CARGO) test --release --locked

.PHONY: test-env
test-env: target/test-env/stamp ## what the tests run in Python, installed in target/test-env

# The stamp is made last, so an installation that was broken off is made anew.
target/test-env/stamp: tests/requirements.txt
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	if [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && apt-get install -qq --no-install-recommends python3-venv; \
	else \
		echo 'python3 can make no virtual environment; run: sudo apt-get install python3-venv' >&2; exit 1; \
	fi
	$(PYTHON) -m venv --clear target/test-env
	target/test-env/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# Each round is a start, a load that a kill -9 ends, and a check of all that was answered.
ROUNDS ?= 300

.PHONY: soak
soak: ## kill -9 under load, ROUNDS times; KMS_PROXY_SOAK_SEED=n repeats the moments of a run
	KMS_PROXY_SOAK_ROUNDS=$(ROUNDS) $(CARGO) test --release --locked --test it -- --nocapture after_a_kill_at_any_moment

.PHONY: lint
lint: ## formatting, clippy and docs, warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

.PHONY: bench
bench: ## what an envelope costs next to bare AES-GCM, and the service next to a bare JSON handler
	$(CARGO) bench --locked --profile release --bench micro
	$(CARGO) bench --locked --profile release --bench load

CARGO_DENY := target/tools/bin/cargo-deny
ADVISORIES := https://github.com/RustSec/advisory-db

.PHONY: audit
audit: $(CARGO_DENY) ## licences, sources, duplicates and known vulnerabilities of the dependencies
	$(CARGO_DENY) --locked check bans licenses sources
	@if git ls-remote --quiet $(ADVISORIES) HEAD >/dev/null 2>&1; then \
		$(CARGO_DENY) --locked check advisories; \
	else \
		echo 'NOT CHECKED: known vulnerabilities. $(ADVISORIES) can not be reached.' >&2; \
	fi

$(CARGO_DENY):
	$(CARGO) install --locked --root target/tools cargo-deny@0.20.2

.PHONY: openapi
openapi: ## write openapi/kms-proxy.json anew from the code
	$(CARGO) run --release --locked --bin kms-proxy -- openapi > openapi/kms-proxy.json.new
	mv openapi/kms-proxy.json.new openapi/kms-proxy.json
