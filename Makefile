# Everything that is done with kms-proxy, one target each; `make help` lists them.

CARGO ?= cargo

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: run
run: ## build and start the service on http://127.0.0.1:8080 with the embedded default
	$(CARGO) run --release --locked --bin kms-proxy -- serve

.PHONY: test
test: ## install what the tests need and run them all
	$(CARGO) test --release --locked

.PHONY: lint
lint: ## formatting, clippy and docs, warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

.PHONY: openapi
openapi: ## write openapi/kms-proxy.json anew from the code
	$(CARGO) run --release --locked --bin kms-proxy -- openapi > openapi/kms-proxy.json.new
	mv openapi/kms-proxy.json.new openapi/kms-proxy.json
