# `make demo` and `make test` are all that a newcomer needs.
CARGO ?= cargo

.PHONY: demo test setup build dist lint bench resilience scenarios guard guard-accept guard-build fuzz doc clean

## Shows the main job on real traffic: VMs to pods by weight, with a backend killed on the way. With DEMO_ARGS=--keep all
## of it stays up at the end, with lines to try.
demo: setup
	$(CARGO) build --release -p fieldgate -p fieldgate-loadtests
	./target/release/fieldgate demo $(DEMO_ARGS)

## Unit, property, golden and whole-gateway tests. Conformance data is found by FIELDGATE_FIXTURES, if that is set.
test: setup
	$(CARGO) build -p fieldgate -p fieldgate-loadtests
	$(CARGO) test --workspace --no-fail-fast

## What the build needs and this machine may lack: cmake and C and C++ compilers, for aws-lc and zlib-ng.
setup:
	@deploy/setup.sh

## The binary to install, target/dist/fieldgate, without a training run: one build.
build: setup
	$(CARGO) build --profile dist -p fieldgate

## The same, optimised by what a training run taught the compiler: two builds and half a minute of traffic.
dist:
	@deploy/setup.sh scenarios
	deploy/pgo.sh

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

## CPU and latency against every peer that can be had here, in the same run: docs/benchmarks.md. BENCH_ARGS chooses:
## BENCH_ARGS="--cases h1-64,rate-60 --peers haproxy,envoy --rounds 3 --seconds 2 --markdown bench.md --plots plots".
## --gateway target/dist/fieldgate, after `make dist`, measures what ships.
bench:
	@deploy/setup.sh bench
	$(CARGO) build --release -p fieldgate -p fieldgate-loadtests -p fieldgate-floor
	@$(CARGO) build --release --manifest-path loadtests/peers/pingora-lb/Cargo.toml || \
		echo "bench: pingora-lb could not be built and is left out" >&2
	./target/release/fieldgate-scenarios bench $(BENCH_ARGS)

## What clients see while backends break and while too much is asked for, beside Envoy and HAProxy: docs/resilience.md, whose
## tables it fills. RESILIENCE_ARGS chooses: RESILIENCE_ARGS="--cases kill,stop --seconds 2". Needs root for the network.
resilience:
	@deploy/setup.sh bench
	$(CARGO) build --release -p fieldgate -p fieldgate-loadtests
	status=0; for scenario in chaos overload "overload --gateway-itself"; do \
		./target/release/fieldgate-scenarios $$scenario --markdown docs/resilience.md $(RESILIENCE_ARGS) || status=1; \
	done; exit $$status

## All promises, at full size.
scenarios:
	@deploy/setup.sh scenarios
	$(CARGO) build --release -p fieldgate -p fieldgate-loadtests
	./target/release/fieldgate-scenarios all

## Instructions and allocations of hot pieces and whole exchanges, against loadtests/guard/baseline.json (docs/guard.md).
guard: guard-build
	$(CARGO) run -q -p fieldgate-guard -- check $(GUARD_ARGS)

## Takes what is counted now for the baseline.
guard-accept: guard-build
	$(CARGO) run -q -p fieldgate-guard -- accept $(GUARD_ARGS)

guard-build:
	@deploy/setup.sh guard
	$(CARGO) build --profile guard -p fieldgate -p fieldgate-guard-pieces

## Every parser against its oracle, each for FUZZ_SECONDS (600). Needs nightly and cargo-fuzz, and installs what is missing.
fuzz: setup
	loadtests/fuzz/run.sh

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

clean:
	$(CARGO) clean
