# Each target sets up what it needs; see .ci/setup for what that may install.

.DEFAULT_GOAL := help
.PHONY: help test deny features long-tests simulation campaign mutants demo bench leak-tests soak

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: ## Checks format, lints and documentation, and runs all tests
	@.ci/test

deny: ## Checks licences, sources and banned packages of the dependencies
	@.ci/setup cargo-deny
	@cargo deny --locked check bans licenses sources

features: ## Checks every package with each of its features alone
	@.ci/setup protoc clippy
	@.ci/features

long-tests: ## Runs the tests whose short form is in `make test` at full length
	@.ci/setup etcd etcdctl protoc
	@DRIFTLESS_LONG=1 cargo test --locked --workspace --test heap --test scripted

simulation: SEEDS ?= 5000
simulation: ## Runs servers and clients on a simulated network that fails (SEEDS=5000)
	@.ci/setup etcd etcdctl protoc
	@DRIFTLESS_SEEDS=$(SEEDS) cargo test --locked --workspace --test simulation -- --nocapture

campaign: MINUTES ?= 10
campaign: ## Writes random frames to a server and watches its memory (MINUTES=10)
	@.ci/setup etcd etcdctl protoc
	@DRIFTLESS_MINUTES=$(MINUTES) cargo test --locked --workspace --test campaign -- --nocapture

mutants: ## Takes out clean-up code, one function at a time, and expects a test to fail (hours)
	@.ci/setup etcd etcdctl protoc
	@DRIFTLESS_LONG=1 cargo mutants --output target/mutants $(MUTANTS)

demo: ## Shows an edit made with etcdctl reach a running service (DEMO_ONCE=1: and ends)
	@.ci/setup etcd etcdctl protoc
	@examples/demo/demo.sh

bench: ## Measures the fan-out beside etcd's (QUICK=1: in five minutes; BENCH='--only small')
	@.ci/setup etcd etcdctl protoc
	@cargo bench --locked -p driftless --bench fanout -- run $(if $(QUICK),--quick) $(BENCH)

# In minutes, at most: a slow machine does fewer rounds, and says how many.
leak-tests: MINUTES ?= $(if $(SHORT),1,$(if $(filter 1000,$(ROUNDS)),5,10))
leak-tests: ROUNDS ?= $(if $(SHORT),1000,10000)
leak-tests: ## Proves that nothing leaks, and that leaks are found (SHORT=1: the most telling, in a minute)
	@.ci/leak-tests $(ROUNDS) $(MINUTES) $(if $(SHORT),--short)

soak: MINUTES ?= 480
soak: ROUNDS ?= 1000000
soak: ## The same for a night, most of it with everything at once as well (ROUNDS=1000000 MINUTES=480)
	@.ci/leak-tests $(ROUNDS) $(MINUTES) --soak

