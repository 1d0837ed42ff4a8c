# Each target sets up what it needs; see .ci/setup for what that may install.

.DEFAULT_GOAL := help
.PHONY: help test demo bench

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: ## Checks format, lints and documentation, and runs all tests
	@.ci/test

demo: ## Shows an edit made with etcdctl reach a running service (DEMO_ONCE=1: and ends)
	@.ci/setup etcd etcdctl protoc
	@examples/demo/demo.sh

bench: ## Measures the fan-out beside etcd's (QUICK=1: in five minutes; BENCH='--only small')
	@.ci/setup etcd etcdctl protoc
	@cargo bench --locked -p driftless --bench fanout -- run $(if $(QUICK),--quick) $(BENCH)
