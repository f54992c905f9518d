# `make` lists what there is. Everything needs a Rust toolchain; what else is missing is installed (deploy/ensure-*).

.DEFAULT_GOAL := help
.PHONY: help run demo test conformance fuzz supply-chain deploy-check soak check \
	bench bench-load bench-peers bench-scale bench-soak bench-instructions

help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

run: ## Build and serve on http://127.0.0.1:3000, with a private Redis unless REDIS_URL is set
	deploy/ensure-redis
	cargo run --release --locked --

demo: ## Show the service at work: with a synthetic load, and a Prometheus, for SESSIOND_DEMO_SECONDS or until Ctrl-C
	deploy/ensure-redis
	deploy/ensure-prometheus
	cargo build --release --locked
	deploy/demo

test: ## Run the whole test suite
	deploy/ensure-redis
	deploy/ensure-prometheus
	cargo test --locked

conformance: ## Call every operation as schemathesis thinks of it, four times for SESSIOND_CONFORMANCE_SECONDS (30)
	tests/conformance/run

fuzz: ## Let libFuzzer look for inputs that break a property, SESSIOND_FUZZ_SECONDS (60) for each target
	fuzz/run

supply-chain: ## Check licences, duplicates and sources of all dependencies
	deploy/cargo-deny

deploy-check: ## Check the Dockerfile, compose file, manifests and unit as far as goes without containers
	tests/deploy/run

soak: ## Let everything happen to Redis and the service for SESSIOND_SOAK_SECONDS (60)
	deploy/ensure-redis
	SESSIOND_SOAK_SECONDS=$${SESSIOND_SOAK_SECONDS:-60} cargo test --locked --test it -- nemesis --nocapture

check: ## Check formatting, lints and documentation, as CI does
	cargo fmt --all --check
	@# The program alone: what only tests depend on must not be needed.
	cargo check --locked
	cargo clippy --locked --all-targets -- --deny warnings
	cargo clippy --locked --all-targets --features otel -- --deny warnings
	cargo clippy --locked --package sessiond-fuzz -- --cfg fuzzing --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --locked --no-deps --document-private-items

bench: ## Measure every verb of the store and of the HTTP interface, one call at a time
	deploy/ensure-redis
	cargo bench --locked

bench-load: ## Load the service at its peak, at half of it and over it: SCENARIOS (see benches/README.md)
	benches/ensure-tools oha
	benches/load/load.py $(SCENARIOS)

bench-peers: ## Compare it with bare axum, axum + redis, webdis, Fastify and NestJS, in one run: PEERS (see benches/README.md)
	benches/ensure-tools peers
	benches/load/peers.py $(PEERS)

bench-scale: ## Compare what calls cost with few and with SESSIOND_SCALE_SESSIONS (1000000) sessions
	benches/ensure-tools
	benches/load/scale.py

bench-soak: ## Watch the service's memory for SESSIOND_SOAK_MINUTES (30)
	benches/ensure-tools oha
	benches/load/load.py soak

bench-instructions: ## Count the service's instructions a call, by valgrind
	benches/ensure-tools valgrind
	benches/load/instructions.py
