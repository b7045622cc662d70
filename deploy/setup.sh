#!/bin/sh
# Installs what building and the demo need, if it is missing. Says what it does; does nothing where all is there.
set -eu
missing=""
command -v cmake >/dev/null 2>&1 || missing="$missing cmake"
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
command -v c++ >/dev/null 2>&1 || missing="$missing g++"
command -v curl >/dev/null 2>&1 || missing="$missing curl"
if ! command -v cargo >/dev/null 2>&1; then
    echo "cargo was not found: install Rust 1.92 or newer (rustup.rs), then run make again" >&2
    exit 1
fi
[ -z "$missing" ] && exit 0
echo "installing:$missing"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "no apt-get here: please install$missing by hand" >&2
    exit 1
fi
sudo=""
[ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
