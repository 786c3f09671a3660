# Every habit of this repository in one place. `make` alone lists the targets. All of them share one build (the dev
# profile, whose dependencies are optimised), kept in ./target or in CARGO_TARGET_DIR.

export CARGO_TARGET_DIR ?= $(CURDIR)/target
WASM := wasm32-wasip2
BIN := $(CARGO_TARGET_DIR)/debug
# What `make test` also runs over PostgreSQL: the core of what a broker does.
CORE := batches:: delivery:: idempotency:: pipelines:: pipeline_revisions:: request_reply:: seek:: webhooks::
OVER_POSTGRES := $(CORE)
# The same over three brokers, but for what looks at figures of the one that it comes to.
OVER_FLEET := batches:: idempotency:: pipelines:: seek:: webhooks:: powers::a_counter tried_values::two_versions --skip what_expires_behind_another
# The same with topics in Redis, but for what asks for what Redis lacks, or looks into the data directory.
OVER_REDIS := $(CORE) dead_letters:: $(addprefix --skip ,ordered at_most_once exactly_once delayed most_urgent \
	a_repeat_after_a_crash a_webhook_is_sent_again_what_stands a_replay_that_cannot_read_on)
# What `make soak` runs over PostgreSQL: all suites, but for what has a storage of its own, looks into the data directory, names the broker, or
# holds what the broker's own clock says to the millisecond, counts what is given at most once as acked, or asks whom a broker wakes first.
ALL_OVER_POSTGRES := $(addprefix --skip ,fleet rolling redis store_usual chaos migrate demo:: deploy:: outside:: languages:: full_disk:: \
	offline:: real_events brokers_are_shown a_replay_that_cannot_read_on a_topics_figures_say clock_jumps_break are_served_in_turn)
# And over three brokers: what asks any of them for what is all of theirs, not one for what it alone has seen (docs/api.md, "Operations").
ALL_OVER_FLEET := bad_input:: batches:: binary_payloads:: browsing:: cli:: cli_listen:: cli_settle:: cloud_events:: dead_letters:: delivery:: \
	directory:: encodings:: failures:: guide:: http:: idempotency:: ingest:: pipeline_revisions:: pipelines:: plugin_scope:: plugin_versions:: powers:: \
	quotas:: receivers:: reload:: request_reply:: seek:: streams:: telemetry:: tried_values:: webhooks:: $(addprefix --skip ,a_script_can_tell \
	brokers_are_shown a_replay_that_cannot_read_on a_topics_figures_say what_expires_behind_another a_stop_loses_nothing what_a_stop_leaves_open rates_are_limited \
	what_was_answered_is_there a_secret_is_the_instances few_components_are what_is_no_plugin a_plugins_log a_plugins_own_figures \
	what_a_plugin_says over_its_share plugins_of_a_prefix what_is_there_stays a_name_of_an_address whatever_a_receiver \
	another_port_serves a_broker_that_stops a_stream_takes_no_more a_stream_ends_when what_a_shadow_sets)

.DEFAULT_GOAL := help
.PHONY: help demo fleet run build plugins test check bench soak fuzz audit fmt clean wasm-target

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

demo: build ## see it work: events, a plugin swapped under load, the sums; stays up (DEMO_ONCE=1 ends it)
	@$(BIN)/sluice-demo

fleet: build ## the same through a proxy before three brokers on PostgreSQL and Redis, one of which leaves; stays up (DEMO_ONCE=1 ends it)
	@$(BIN)/sluice-demo --fleet

run: build ## a broker on http://localhost:5000 with its data and plugins in .sluice/
	@mkdir -p .sluice/plugins
	@$(BIN)/sluice serve --data-dir .sluice --plugins-dir .sluice/plugins --profile development

build: wasm-target
	@cargo build --workspace --bins

plugins: wasm-target ## build the plugins of this repository to WebAssembly
	cd plugins && cargo build --release --target $(WASM) --target-dir "$(CARGO_TARGET_DIR)/plugins"
	@ls -l "$(CARGO_TARGET_DIR)/plugins/$(WASM)/release/"*.wasm

# Most of them wait more than they compute.
test: export RUST_TEST_THREADS ?= $(shell echo $$(($$(nproc) * 3 / 2)))
test: build ## every test: broker, suites against the real binary, SDK, plugins
	cargo test --workspace
	SLUICE_TEST_STORAGE=postgres cargo test --workspace --test suites -- $(OVER_POSTGRES)
	SLUICE_TEST_STORAGE=fleet cargo test --workspace --test suites -- $(OVER_FLEET)
	SLUICE_TEST_STORAGE=redis-topics cargo test --workspace --test suites -- $(OVER_REDIS)
	cd plugin-sdk && cargo test
	cd plugins && cargo test --workspace

check: wasm-target ## what must hold before a commit: format, lints, docs, tidy
	cargo fmt --all --check
	cd plugin-sdk && cargo fmt --check
	cd plugins && cargo fmt --all --check
	cd tests/guests && cargo fmt --all --check
	cd tests/fuzz && cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
	cd plugin-sdk && cargo clippy --all-targets -- -D warnings
	cd plugins && cargo clippy --workspace --all-targets -- -D warnings
	cd plugins && cargo clippy --workspace --target $(WASM) -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	cd plugin-sdk && RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
	cargo test --package sluice-tests --test tidy

bench: wasm-target ## measure each path beside a baseline in the same run, into docs/benchmarks.md (release build)
	cargo build --release --workspace --bins
	@SLUICE_BENCHMARKS="$(CURDIR)/docs/benchmarks.md" "$(CARGO_TARGET_DIR)/release/sluice-bench"

# Here the running takes longer than the building.
soak: export CARGO_PROFILE_DEV_OPT_LEVEL = 1
soak: build ## 300 kills, 100 more among clocks that jump, a million simulated steps, 100 swaps, 10 minutes of racing changes, 30 of a fleet under chaos, 30 of load, the suites over PostgreSQL, three brokers and Redis (SOAK_ROUNDS, _TROUBLE, _CASES, _SWAPS, _RACES, _CHAOS, _MINUTES; SEED=n)
	SLUICE_CRASH_SEED=$${SEED:-0} SLUICE_CRASH_ROUNDS=$${SOAK_ROUNDS:-300} cargo test --package sluice-tests --test suites -- a_kill_at_any_instant --nocapture
	SLUICE_TROUBLE_SEED=$${SEED:-0} SLUICE_TROUBLE_ROUNDS=$${SOAK_TROUBLE:-100} cargo test --package sluice-tests --test suites -- crashes_pauses_and_clock_jumps --nocapture
	SLUICE_MODEL_SEED=$${SEED:-1} SLUICE_MODEL_CASES=$${SOAK_CASES:-6000} cargo test --package sluice-tests --test store_model -- --nocapture
	SLUICE_SWAPS=$${SOAK_SWAPS:-100} cargo test --package sluice-tests --test suites -- swaps_under_load --nocapture
	SLUICE_RACES_SEED=$${SEED:-1} SLUICE_RACES_MINUTES=$${SOAK_RACES:-10} cargo test --package sluice-tests --test suites -- plugin_races --nocapture
	SLUICE_CHAOS_SEED=$${SEED:-0} SLUICE_CHAOS_MINUTES=$${SOAK_CHAOS:-30} cargo test --package sluice-tests --test suites -- a_fleet_under_chaos --nocapture
	SLUICE_SOAK_MINUTES=$${SOAK_MINUTES:-30} cargo test --package sluice-tests --test suites -- mixed_load --nocapture
	SLUICE_TEST_STORAGE=postgres cargo test --workspace --test suites -- $(ALL_OVER_POSTGRES)
	SLUICE_TEST_STORAGE=fleet cargo test --workspace --test suites -- $(ALL_OVER_FLEET)
	SLUICE_TEST_STORAGE=redis-topics cargo test --workspace --test suites -- $(OVER_REDIS)

# Instrumented, and so a build of its own. Without a sanitizer (our code is safe Rust) no nightly compiler is needed. A
# target's finds go to $(FUZZ_DIR), the first input that fails is named there; keep it in tests/fuzz/regressions/.
FUZZ_TARGETS ?= journal segment expression jwt publish guest_edits
FUZZ_DIR = $(CARGO_TARGET_DIR)/fuzz-found
fuzz: export TMPDIR := $(shell test -w /dev/shm && echo /dev/shm || echo $${TMPDIR:-/tmp})
fuzz: wasm-target ## feed parsers random texts, then six fuzz targets 10 minutes each (FUZZ_SECONDS, FUZZ_TARGETS, FUZZ_CASES; installs cargo-fuzz)
	PROPTEST_CASES=$${FUZZ_CASES:-100000} cargo test --package sluice-tests --test parsers
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	@cd tests && for target in $(FUZZ_TARGETS); do \
		mkdir -p "$(FUZZ_DIR)/$$target" && \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --release --sanitizer none --target-dir "$(CARGO_TARGET_DIR)/fuzz" $$target \
			"$(FUZZ_DIR)/$$target" fuzz/corpus/$$target -- -max_total_time=$${FUZZ_SECONDS:-600} -timeout=60 \
			-artifact_prefix="$(FUZZ_DIR)/$$target-" -print_final_stats=1 || exit 1; \
	done

audit: ## licences and sources of dependencies, spelling (installs cargo-deny and typos)
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	@command -v typos >/dev/null || cargo install --locked typos-cli
	cargo deny check licenses bans sources
	typos

fmt: ## format everything
	cargo fmt --all
	cd plugin-sdk && cargo fmt
	cd plugins && cargo fmt --all
	cd tests/guests && cargo fmt --all

clean: ## remove builds and what `make run` kept
	cargo clean
	rm -rf .sluice

wasm-target:
	@test -d "$$(rustc --print target-libdir --target $(WASM))" || rustup target add $(WASM)
