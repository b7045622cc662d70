#!/usr/bin/env bash
# Builds the fuzz targets and runs each for FUZZ_SECONDS (600): all of them, or those that are named.
# Ends with an error at the first finding; the input that shows it is then in artifacts/TARGET/.
set -euo pipefail
cd "$(dirname "$0")"
seconds="${FUZZ_SECONDS:-600}"

if ! rustup run nightly rustc --version >/dev/null 2>&1; then
    echo "fuzzing needs a nightly toolchain, which the sanitizers are part of; installing it: rustup toolchain install nightly"
    rustup toolchain install nightly --profile minimal
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzzing needs cargo-fuzz; installing it: cargo install cargo-fuzz --locked"
    cargo install cargo-fuzz --locked
fi

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    for file in fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

dictionary() {
    case "$1" in
        request_head | response_head | chunked | path | gateway_*) echo http ;;
        yaml | documents) echo yaml ;;
        access_log | operator_texts) echo texts ;;
        *) echo paths ;;
    esac
}

# The examples that the configuration's own tests have are seeds too.
more_seeds() {
    case "$1" in
        yaml | documents) echo ../../gateway/config/tests/golden ;;
    esac
}

cargo +nightly fuzz build --fuzz-dir . --features server
mkdir -p logs
host="$(rustc +nightly -vV | sed -n 's/^host: //p')"
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    echo "$target: $seconds seconds; the log is logs/$target.log"
    # shellcheck disable=SC2046
    if ! "target/$host/release/$target" "corpus/$target" "seeds/$target" $(more_seeds "$target") \
        -dict="dictionaries/$(dictionary "$target").dict" -artifact_prefix="artifacts/$target/" \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 >"logs/$target.log" 2>&1; then
        tail -n 40 "logs/$target.log"
        echo "$target found something; the input is in loadtests/fuzz/artifacts/$target/" >&2
        exit 1
    fi
    grep -E 'cov: ' "logs/$target.log" | tail -n 1
    grep -E 'number_of_executed_units|average_exec_per_sec' "logs/$target.log"
done
