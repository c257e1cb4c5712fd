# Every command works from a fresh clone with rustup, python3, git and a C compiler; tools land in
# .tools/.
.DEFAULT_GOAL := help
.PHONY: help wasm dist dist-check envoy demo test test-native test-sim test-wasm test-envoy \
  test-envoy-versions compose-test avail bench worlds fuzz check-config lint clean

export BEST ENVOY ENVOY_VERSION HOST IN_FLIGHT KEEP LONGER ONLY REAL SCALING SCENARIOS SCHEDULES STAND_INS \
  SEED SEEDS SIZE VERSIONS WITHOUT

help: ## show this list
	@echo "make COMMAND [ENVOY=/path/to/envoy] or [ENVOY_VERSION=1.39.3]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-19s %s\n", $$1, $$2 }' Makefile

wasm: ## build dist/haven.wasm, haven-portable.wasm and their sha256
	@scripts/wasm.sh

dist: ## a release in dist/: module, schema, images to pull, bill of materials, SHA256SUMS
	@scripts/dist.sh

dist-check: ## dist, and that another folder gives the same bytes
	@scripts/dist.sh --check

envoy: ## print the path of a real Envoy binary, fetched if missing
	@scripts/envoy.sh

demo: wasm ## tell the story with a real Envoy; KEEP=1 leaves it running
	@scripts/demo.sh

test: ## every test: native, simulated workers, in wasm, real Envoy
	@scripts/test.sh native sim wasm envoy

test-native: ## unit tests, properties and documentation examples
	@scripts/test.sh native

test-sim: ## workers on the simulated host; SCHEDULES=n tries n times as many orders
	@scripts/test.sh sim

test-wasm: ## the library's tests compiled to wasm32, under node
	@scripts/test.sh wasm

test-envoy: ## the filter in a real Envoy; ONLY=name; IN_FLIGHT=300 ONLY=in_flight, SCALING=120 ONLY=scaling for a long watch
	@scripts/test.sh envoy

test-envoy-versions: ## the same in each Envoy that haven is tested with, an hour; VERSIONS="1.36.2 1.37.0"
	@scripts/test_versions.sh

compose-test: ## docker-compose.yml on a real engine; STAND_INS=1 where no image can be pulled
	@python3 scripts/compose_test.py

avail: wasm ## availability under faults, plain, native and haven: SEED=7 SCENARIOS=regex
	@scripts/avail.sh

bench: wasm ## what a request costs, with and without haven: the tables of docs/cost.md
	@HAVEN_ENVOY="$$(scripts/envoy.sh)" python3 scripts/bench.py $(ARGS)

worlds: ## simulated worlds: SEEDS=0..1000 for tables, SEED=n shows one, REAL=10 beside a real Envoy; LONGER=n, BEST=1
	@scripts/worlds.sh

fuzz: ## fuzz one target of fuzz/ with nightly Rust: TARGET=cost SECONDS=300
	@scripts/fuzz.sh "$(TARGET)" "$(or $(SECONDS),60)"

check-config: ## validate a filter config offline: FILE=config.json BOOTSTRAP=envoy.yaml, or HOST=nginx
	@scripts/check_config.sh "$(FILE)" $(BOOTSTRAP)

lint: ## formatting, clippy on both targets, cargo deny
	@scripts/lint.sh

clean: ## remove what was built (keeps .tools)
	rm -rf dist target
