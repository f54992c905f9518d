# `make` lists the commands. All need a Rust toolchain; they install other missing tools (deploy/ensure-*).

.DEFAULT_GOAL := help
.PHONY: help run demo example-chat test test-isolated test-servers test-clients test-clients-all test-console \
	test-example-chat upgrade-check conformance examples fuzz supply-chain deploy-check container-check mutants soak \
	check deb deb-check dist dist-check \
	bench bench-load bench-streams bench-peers bench-scale bench-capacity bench-soak bench-instructions bench-console

help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

run: ## Build and serve on http://127.0.0.1:3000, with an embedded Redis unless REDIS_URL is set
	deploy/ensure-redis
	cargo run --release --locked --

demo: ## Run the service with a synthetic load and a Prometheus, for SESSIOND_DEMO_SECONDS or until Ctrl-C
	deploy/ensure-redis
	deploy/ensure-prometheus
	cargo build --release --locked
	deploy/demo

example-chat: ## Run a chat on http://127.0.0.1:3080, or PORT, until Ctrl-C: SESSIOND_PROGRAM, or a debug build
	examples/chat/run

test: ## Run the whole test suite
	deploy/ensure-redis
	deploy/ensure-prometheus
	cargo test --locked

test-isolated: ## Run the whole test suite with cargo-nextest, each test in its own process
	deploy/ensure-redis
	deploy/ensure-prometheus
	cargo nextest --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-nextest@0.9.143
	cargo nextest run --locked

test-servers: ## Run the integration tests against the installed server, Redis 8.2 and Valkey 9.1: TESTS selects some
	tests/servers/run $(TESTS)

upgrade-check: ## Replace services under load by those of another version: the previous commit, or REVISION
	tests/upgrade/run $(REVISION)

test-clients: ## Run the tests of clients/ on the Node.js that is installed: SESSIOND_PROGRAM, or a debug build
	deploy/ensure-node
	clients/typescript/test/run

test-clients-all: ## Run the same also on Node 18 and 22, Chromium, workerd and edge-runtime
	deploy/ensure-node
	clients/typescript/test/run --all

test-console: ## Compare the console with console/dist and test it in Chromium: SESSIOND_PROGRAM, or a debug build
	console/test/run

test-example-chat: ## Test the chat of examples/chat in Chromium: SESSIOND_PROGRAM, or a debug build
	examples/chat/run --test

conformance: ## Test every operation with schemathesis, four times for SESSIOND_CONFORMANCE_SECONDS (30)
	tests/conformance/run

examples: ## Run each example and the code of docs/streaming.md against a service with an embedded Redis
	deploy/ensure-redis
	deploy/ensure-node
	examples/run

fuzz: ## Run each libFuzzer target for SESSIOND_FUZZ_SECONDS (60)
	fuzz/run

supply-chain: ## Check licences, duplicates and sources of all dependencies
	deploy/cargo-deny

deploy-check: ## Check the Dockerfile, compose file, manifests and unit, without containers
	tests/deploy/run

deb: ## Build a Debian package of the commit, in target/dist
	deploy/dist deb

deb-check: deb ## Install, upgrade, remove and purge the Debian package in a container with systemd (needs root)
	tests/deploy/package

dist: ## Build the release files of the commit for this architecture, in target/dist
	deploy/dist

dist-check: ## Build the release files twice, in two folders, and compare the bytes
	tests/deploy/reproducible

container-check: ## Build the image and run the compose file in containers, with replacements of the base images (needs root)
	tests/deploy/containers/run

mutants: ## Apply each mutant of tests/mutants and run the tests that must fail: MUTANTS selects some
	deploy/ensure-redis
	tests/mutants/run $(MUTANTS)

soak: ## Inject random faults into Redis and the service for SESSIOND_SOAK_SECONDS (60)
	deploy/ensure-redis
	SESSIOND_SOAK_SECONDS=$${SESSIOND_SOAK_SECONDS:-60} cargo test --locked --test it -- nemesis --nocapture

check: ## Check formatting, lints and documentation, as CI does
	cargo fmt --all --check
	@# Without the tests, so that a missing dependency outside of the tests is an error.
	cargo check --locked
	cargo clippy --locked --all-targets -- --deny warnings
	cargo clippy --locked --all-targets --features otel -- --deny warnings
	cargo clippy --locked --package sessiond-fuzz -- --cfg fuzzing --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --locked --no-deps --document-private-items

bench: ## Measure every operation of the store and of the HTTP interface, one call at a time
	deploy/ensure-redis
	cargo bench --locked

bench-load: ## Measure the service at its peak rate, at half of it and above it: ARGS (ARGS=--help explains them)
	benches/ensure-tools oha
	benches/load/load.py $(ARGS)

bench-streams: ## Measure event streams: idle, delivery, slow readers, shutdown: ARGS
	benches/ensure-tools
	benches/load/streams.py $(ARGS)

bench-peers: ## Compare with another build, bare Redis commands, bare axum, webdis, Fastify and others: ARGS
	benches/ensure-tools peers
	benches/load/peers.py $(ARGS)

bench-scale: ## Compare the cost of calls with few and with SESSIOND_SCALE_SESSIONS (1000000) sessions: ARGS
	benches/ensure-tools
	benches/load/scale.py $(ARGS)

bench-capacity: ## Compare three masters and three services with the formula of docs/capacity.md
	benches/ensure-tools
	benches/load/capacity.py $(ARGS)

bench-soak: ## Measure the service's memory over SESSIOND_SOAK_MINUTES (30)
	benches/ensure-tools oha
	benches/load/load.py soak

bench-instructions: ## Count the service's instructions per request, by valgrind: ARGS
	benches/ensure-tools valgrind
	benches/load/instructions.py $(ARGS)

bench-console: ## Measure the console in Chromium: bytes, first paint, elements, requests when hidden, CPU under load
	console/test/run --measure
