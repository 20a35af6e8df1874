#!/usr/bin/env bash
# Runs the public test suite for HTTP caches (cache-tests.fyi) against jobcache, and with --peers also
# against nginx, Varnish, HAProxy and Squid. README.md explains the output.
# Needs Rust. On Debian it installs everything else that is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
readonly OUT=$PWD/../../target/http-cache
readonly STARTED_WITHIN=100 # tenths of a second

usage() {
  echo "usage: bash tests/http-cache/run.sh [--peers]" >&2
  exit 2
}

PEERS=()
case "${1-}" in
  "") ;;
  --peers) PEERS=(nginx varnish haproxy squid) ;;
  *) usage ;;
esac
[ $# -le 1 ] || usage

# Installs package $2 if command $1 is missing. Starts no service.
need() {
  command -v "$1" >/dev/null && return
  echo "== installing $2 (for $1)"
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  if ! command -v apt-get >/dev/null || ! command -v "${as_root[0]:-env}" >/dev/null; then
    echo "run.sh: $1 is missing and cannot be installed without apt-get and root;" \
      "install $2 and run again" >&2
    exit 1
  fi
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

PATH=$PATH:/usr/sbin
need node nodejs
need npm npm
for peer in "${PEERS[@]}"; do
  case $peer in
    varnish) need varnishd varnish ;;
    *) need "$peer" "$peer" ;;
  esac
done
command -v cargo >/dev/null || { echo "run.sh: cargo is missing; see https://rustup.rs" >&2; exit 1; }

mkdir -p "$OUT"
cp package.json package-lock.json "$OUT"
# The versions come from the lock file. Scripts of packages do not run.
npm ci --prefix "$OUT" --ignore-scripts --no-audit --no-fund --loglevel=error
cargo build --locked --quiet
readonly JOBCACHE=$PWD/../../target/debug/jobcache
readonly SUITE=$OUT/node_modules/http-cache-tests

# Processes that this run has started. They end with it.
RUNNING=()
DIR=$(mktemp -d)
# Squid started as root changes to its own user, which must be able to write here.
chmod 777 "$DIR"
finish() {
  [ ${#RUNNING[@]} = 0 ] || kill "${RUNNING[@]}" 2>/dev/null || true
  wait
  rm -rf "$DIR"
}
trap finish EXIT

# Starts a server in the background and writes its output to its own log.
start() {
  local name=$1
  shift
  "$@" >"$OUT/$name.log" 2>&1 &
  RUNNING+=($!)
}

# Prints a free port.
free_port() {
  node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => {
    console.log(s.address().port); s.close() })'
}

# Waits until $1 listens on port $2.
listening() {
  local left=$STARTED_WITHIN
  until (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null; do
    left=$((left - 1))
    [ $left -gt 0 ] || { echo "run.sh: $1 does not listen; see $OUT/$1.log" >&2; exit 1; }
    sleep 0.1
  done
}

# Writes the configuration of a peer with its ports filled in, and prints the path.
configured() {
  sed -e "s|@DIR@|$DIR|g; s|@PORT@|$2|g; s|@UPSTREAM@|$3|g" "peers/$1" >"$DIR/$1"
  echo "$DIR/$1"
}

# Starts cache $1 on port $2 in front of port $3.
start_cache() {
  case $1 in
    # Stores only responses that state a lifetime, as each peer does here. The cookies and query parameters
    # that count are set too.
    jobcache)
      JOBCACHE_TTL=1h JOBCACHE_TTL_STATED_ONLY=true JOBCACHE_QUERY_ALLOW=test \
        JOBCACHE_CREDENTIALS_COOKIES=session \
        start jobcache "$JOBCACHE" --upstream "http://127.0.0.1:$3" --redis-url memory:// \
        --listen "127.0.0.1:$2" --admin "127.0.0.1:$(free_port)" --route '/test/{id}' --settle 0s
      ;;
    nginx) start nginx nginx -p "$DIR" -c "$(configured nginx.conf "$2" "$3")" ;;
    haproxy) start haproxy haproxy -db -f "$(configured haproxy.cfg "$2" "$3")" ;;
    varnish)
      start varnish varnishd -F -n "$DIR/varnish" -j none -a "127.0.0.1:$2" -T none \
        -f "$(configured varnish.vcl "$2" "$3")" -s malloc,64m \
        -p default_ttl=0 -p default_grace=0 -p default_keep=3600
      ;;
    squid) start squid squid -N -f "$(configured squid.conf "$2" "$3")" ;;
  esac
}

version_of() {
  case $1 in
    jobcache) "$JOBCACHE" --version ;;
    nginx) nginx -v ;;
    haproxy) haproxy -v ;;
    varnish) varnishd -V ;;
    squid) squid -v ;;
  esac 2>&1 | sed -n 1p
}

# Runs the suite against cache $1. Then interim.mjs takes the place of the upstream and tests interim
# responses, for which the published suite has no tests.
run_suite() {
  local upstream port
  upstream=$(free_port)
  start "$1-upstream" env npm_config_port="$upstream" npm_config_protocol=http \
    npm_config_pidfile="$DIR/suite.pid" bash -c "cd '$SUITE' && exec node server/server.mjs"
  local origin=${RUNNING[-1]}
  listening "$1-upstream" "$upstream"
  port=$(free_port)
  start_cache "$1" "$port" "$upstream"
  listening "$1" "$port"
  (cd "$SUITE" && npm_config_base=http://127.0.0.1:$port npm_config_id='' npm_package_config_id='' \
    node --no-warnings cli.mjs) >"$OUT/$1.json"
  kill "$origin"
  wait "$origin" || true
  node interim.mjs "http://127.0.0.1:$port" "$upstream" >"$OUT/$1.interim.json"
  version_of "$1" >"$OUT/$1.version"
  echo "== $(cat "$OUT/$1.version"): done"
}

for cache in jobcache "${PEERS[@]}"; do
  run_suite "$cache"
done
node summary.mjs "$OUT" jobcache "${PEERS[@]}"
