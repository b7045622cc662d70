#!/bin/sh
# Builds the binary that ships with what a training run has taught the compiler: which branches are taken, which
# functions are hot (profile-guided optimisation). Takes two builds and half a minute of traffic.
#
#   deploy/pgo.sh [target directory]        the binary: target/dist/fieldgate
set -eu
cd "$(dirname "$0")/.."
target="${1:-${CARGO_TARGET_DIR:-target}}"
profiles="$(mktemp -d)"
pids=""
finish() {
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$profiles"
}
trap finish EXIT

sysroot="$(rustc --print sysroot)"
host="$(rustc -vV | sed -n 's/^host: //p')"
profdata="$sysroot/lib/rustlib/$host/bin/llvm-profdata"
if [ ! -x "$profdata" ] && ! rustup component add llvm-tools; then
    echo "pgo: llvm-profdata of this toolchain is missing: rustup component add llvm-tools" >&2
    exit 1
fi
for tool in wrk h2load openssl; do
    command -v "$tool" >/dev/null || { echo "pgo: $tool is missing: deploy/setup.sh scenarios installs it" >&2; exit 1; }
done

echo "pgo: 1 of 3: a build that counts"
# Target given, so that build scripts and macros are not instrumented.
RUSTFLAGS="-Cprofile-generate=$profiles" cargo build --profile dist --target "$host" --target-dir "$target/pgo" -p fieldgate
cargo build --release --target-dir "$target" -p fieldgate-loadtests

echo "pgo: 2 of 3: traffic"
seconds="${PGO_SECONDS:-3}"
backend=127.0.0.1:21080
http=127.0.0.1:21081
https=127.0.0.1:21443
admin=127.0.0.1:21082
config="$profiles/config"
mkdir "$config"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=edge.example.com \
    -addext subjectAltName=DNS:edge.example.com,IP:127.0.0.1 -keyout "$profiles/key" -out "$profiles/crt" 2>/dev/null
cat >"$config/gateway.yaml" <<YAML
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: fieldgate
  addresses: [{value: 127.0.0.1}]
  listeners:
    - {name: web, port: ${http##*:}, protocol: HTTP}
    - {name: secure, port: ${https##*:}, protocol: HTTPS, tls: {certificateRefs: [{name: edge}]}}
---
apiVersion: v1
kind: Secret
metadata: {name: edge}
type: kubernetes.io/tls
data: {tls.crt: $(base64 -w0 "$profiles/crt"), tls.key: $(base64 -w0 "$profiles/key")}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/admin, /admin/*]}}]}]
YAML
pool() { # name, protocol
    printf -- '---\napiVersion: fieldgate.dev/v1alpha1\nkind: Pool\nmetadata: {name: %s}\nspec: {endpoints: [{address: 127.0.0.1, port: %s}], protocol: %s}\n' \
        "$1" "${backend##*:}" "$2" >>"$config/gateway.yaml"
}
route() { # name, prefix, backends
    printf -- '---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: %s}\nspec:\n  parentRefs: [{name: edge}]\n  rules:\n    - matches: [{path: {type: PathPrefix, value: %s}}]\n      backendRefs: [%s]\n' \
        "$1" "$2" "$3" >>"$config/gateway.yaml"
}
to() { printf '{group: fieldgate.dev, kind: Pool, name: %s, weight: %s}' "$1" "$2"; }
pool vms http1
pool pods http1
pool grpc http2
route all / "$(to vms 1)"
route split /split "$(to vms 90), $(to pods 10)"
route grpc /grpc "$(to grpc 1)"
n=0
while [ $n -lt 8 ]; do
    route "r$n" "/r$n" "$(to vms 1)"
    n=$((n + 1))
done

"$target/release/fieldgate-scenarios" backend --name pgo --listen "$backend" >"$profiles/backend.log" 2>&1 &
pids="$!"
# Profiles are written where a hardened process may not write.
LLVM_PROFILE_FILE="$profiles/fieldgate-%p.profraw" "$target/pgo/$host/dist/fieldgate" run --config "$config" --workers 1 --admin "$admin" --hardening off >"$profiles/gateway.log" 2>&1 &
gateway="$!"
pids="$pids $gateway"
tries=0
until curl -sf "http://$admin/ready" >/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { cat "$profiles/gateway.log" >&2; exit 1; }
    sleep 0.1
done
printf 'wrk.method = "POST"\nwrk.body = string.rep("x", 262144)\n' >"$profiles/upload.lua"
load() { "$@" >"$profiles/load.log" 2>&1 || { cat "$profiles/load.log" "$profiles/gateway.log" >&2; exit 1; }; }
load wrk -t1 -c64 -d"${seconds}s" "http://$http/"
load wrk -t1 -c512 -d"${seconds}s" "http://$http/r5/item"
load wrk -t1 -c64 -d"${seconds}s" "http://$http/split"
load wrk -t1 -c64 -d"${seconds}s" "https://$https/"
load h2load -t1 -c16 -m16 -D"$seconds" "https://$https/"
load h2load -t1 -c64 -m1 -D"$seconds" "https://$https/"
load h2load -t1 -c16 -m16 -D"$seconds" "https://$https/grpc"
load wrk -t1 -c16 -d"${seconds}s" "http://$http/bytes/1048576"
load wrk -t1 -c16 -d"${seconds}s" "https://$https/bytes/1048576"
load wrk -t1 -c16 -d"${seconds}s" -s "$profiles/upload.lua" "http://$http/upload"
load wrk -t1 -c64 -d"${seconds}s" -H "Connection: close" "https://$https/"
kill -TERM "$gateway"
wait "$gateway" || true
"$profdata" merge -o "$profiles/merged.profdata" "$profiles"/*.profraw

echo "pgo: 3 of 3: the build"
RUSTFLAGS="-Cprofile-use=$profiles/merged.profdata" cargo build --profile dist --target "$host" --target-dir "$target/pgo" -p fieldgate
mkdir -p "$target/dist"
cp "$target/pgo/$host/dist/fieldgate" "$target/dist/fieldgate"
echo "pgo: $target/dist/fieldgate"
