#!/bin/sh
# Installs what building needs and this machine lacks, and with `setup.sh scenarios` also what the scenarios and benches
# use. Says what it does; does and says nothing where all is there.
set -eu

missing=""
need() { # command, Debian packages
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

need cmake cmake # builds zlib-ng, which pingora-core brings
need cc "gcc libc6-dev"
need c++ g++
if [ "${1:-}" = scenarios ]; then
    need curl curl
    need wrk wrk
    need haproxy haproxy
    if ! python3 -c 'import ensurepip' >/dev/null 2>&1; then missing="$missing python3-venv"; fi
fi

if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: cargo was not found: install Rust 1.92 or newer from https://rustup.rs, then run make again" >&2
    exit 1
fi
# `cargo 1.95.0 (...)`; an old one fails with messages that do not say so.
version="$(cargo --version)"
minor="$(echo "$version" | sed -n 's/^cargo 1\.\([0-9]*\)\..*/\1/p')"
if [ -n "$minor" ] && [ "$minor" -lt 92 ]; then
    echo "setup: Rust 1.92 or newer is needed, this is $version: rustup update stable (Debian's own package is too old)" >&2
    exit 1
fi
[ -z "$missing" ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: missing here, by their names in Debian:$missing. Please install them, then run make again" >&2
    exit 1
fi
as_root=""
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "setup: please run as root: apt-get install$missing" >&2
        exit 1
    fi
    as_root=sudo
fi
echo "setup: installing$missing with apt-get${as_root:+ (by sudo)} ..."
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086
if ! { $as_root apt-get update && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "setup: apt-get could not install$missing; its messages are above" >&2
    exit 1
fi
echo "setup: done"
