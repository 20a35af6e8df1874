#!/usr/bin/env bash
# External judges of the proxy: varnishtest, h2load, floods of HTTP/2 frames, slowhttptest, large bodies.
# README.md explains the output. Needs Rust. On Debian it installs everything else that is missing.
# usage: run.sh [vtc|load|floods|many|slow|huge]...; without an argument it runs all. JOBCACHE=binary
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
readonly OUT=$PWD/../../target/judges
readonly STARTED_WITHIN=100 # tenths of a second
readonly SECONDS_EACH=20    # for each attack

need() {
  command -v "$1" >/dev/null && return
  echo "== installing $2 (for $1)"
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

need varnishtest varnish
need h2load nghttp2-client
need slowhttptest slowhttptest
need curl curl
need python3 python3
mkdir -p "$OUT"
ulimit -n "$(ulimit -Hn)"
if [ -z "${JOBCACHE-}" ]; then
  cargo build --locked --quiet
  JOBCACHE=$PWD/../../target/debug/jobcache
fi

# Processes that this run has started. They end with it.
RUNNING=()
stop() {
  [ ${#RUNNING[@]} = 0 ] || kill "${RUNNING[@]}" 2>/dev/null || true
  wait
  RUNNING=()
}
trap stop EXIT

free_port() {
  python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

listening() {
  local left=$STARTED_WITHIN
  until (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
    left=$((left - 1))
    [ $left -gt 0 ] || { echo "run.sh: nothing listens on $1; see $OUT" >&2; exit 1; }
    sleep 0.1
  done
}

# Starts a sidecar in front of port $1. It takes its other settings from the environment.
sidecar() {
  PORT=$(free_port) ADMIN=$(free_port)
  "$JOBCACHE" --listen "127.0.0.1:$PORT" --admin "127.0.0.1:$ADMIN" --upstream "http://127.0.0.1:$1" \
    --redis-url memory:// --route '/jobs/{id}' --route '/slow/{id}' 2>>"$OUT/sidecar.log" &
  SIDECAR=$!
  RUNNING+=("$SIDECAR")
  listening "$PORT"
}

# Starts upstream.py and a sidecar in front of it.
world() {
  UPSTREAM=$(free_port)
  python3 upstream.py "$UPSTREAM" 2>"$OUT/upstream.log" &
  RUNNING+=($!)
  listening "$UPSTREAM"
  sidecar "$UPSTREAM"
}

peak() { awk '/VmHWM/ { printf "peak RSS %.1f MiB\n", $2 / 1024 }' "/proc/$SIDECAR/status"; }

# Prints how many of 20 GETs of $1 get a 200 within a second. It runs during an attack.
served() {
  local ok=0
  for _ in $(seq 20); do
    [ "$(curl -s -o /dev/null -m 1 -w '%{http_code}' "http://127.0.0.1:$PORT$1")" != 200 ] || ok=$((ok + 1))
  done
  echo "$ok of 20"
}

vtc() {
  local file failed=0
  for file in vtc/*.vtc; do
    local port
    port=$(free_port)
    JOBCACHE_SETTLE=0s sidecar "$port"
    if varnishtest -t 20 -Dsidecar="127.0.0.1:$PORT" -Dsidecar_host=127.0.0.1 -Dsidecar_port="$PORT" \
      -Dupstream="127.0.0.1 $port" "$file" >"$OUT/vtc.log" 2>&1; then
      echo "${file#vtc/}: passed"
    else
      cat "$OUT/vtc.log"
      echo "${file#vtc/}: FAILED"
      failed=1
    fi
    stop
  done
  return $failed
}

load() {
  world
  curl -s -o /dev/null "http://127.0.0.1:$PORT/jobs/x1"
  h2load -n 50000 -c 16 -m 32 "http://127.0.0.1:$PORT/jobs/x1" | grep -E '^(finished|requests|status)'
  echo "more streams than allowed (300 of 200):"
  h2load -n 20000 -c 4 -m 300 "http://127.0.0.1:$PORT/jobs/x1" | grep -E '^(finished|requests)'
  peak
  stop
}

floods() {
  for kind in reset continuation ping settings; do
    world
    curl -s -o /dev/null "http://127.0.0.1:$PORT/jobs/x1"
    python3 frames.py "$PORT" $kind 5 &
    local flood=$!
    sleep 1
    echo "$kind: hits served meanwhile: $(served /jobs/x1)"
    wait $flood
    peak
    stop
  done
}

many() {
  world
  local at clients=()
  echo "20,000 ids at once, 5 s each, over 512 connections to the upstream:"
  # The clients of one h2load all start at the first line of its file, so each client is a process of its own.
  for at in $(seq 0 200 19800); do
    seq -f '/slow/%.0f' $((at + 1)) $((at + 200)) >"$OUT/ids-$at"
    h2load -n 200 -c 1 -m 200 -B "http://127.0.0.1:$PORT" -i "$OUT/ids-$at" >"$OUT/many-$at.log" &
    clients+=($!)
  done
  wait "${clients[@]}"
  awk '/^status codes/ { ok += $3; refused += $9 }
    END { print ok " answered 200, " refused " answered 503" }' "$OUT"/many-*.log
  rm "$OUT"/ids-* "$OUT"/many-*.log
  peak
  stop
}

slow() {
  local mode
  for mode in H B R X; do
    world
    curl -s -o /dev/null "http://127.0.0.1:$PORT/jobs/x1"
    local target=/jobs/x1 more=()
    case $mode in
      B) target=/upload more=(-s 65536) ;;
      X) target=/huge more=(-w 512 -y 1024 -n 5 -z 32) ;;
    esac
    slowhttptest -$mode -c 500 -r 200 -i 5 -l $SECONDS_EACH -p 3 "${more[@]}" \
      -u "http://127.0.0.1:$PORT$target" >"$OUT/slow-$mode.log" 2>&1 &
    local attack=$!
    RUNNING+=($attack)
    sleep 10
    echo "-$mode: hits $(served /jobs/x1), passes $(served /jobs/y1?q=1), $(peak)"
    wait $attack || true
    sed 's/\x1b\[[0-9;]*m//g' "$OUT/slow-$mode.log" | grep -E 'service available|connected:' | tail -2
    stop
  done
}

huge() {
  world
  local want
  want=$(python3 upstream.py digest)
  echo "down: $(curl -s "http://127.0.0.1:$PORT/huge" | sha256sum | cut -d' ' -f1)"
  curl -s "http://127.0.0.1:$PORT/huge" -o "$OUT/huge"
  echo "up:   $(curl -s -X POST -T "$OUT/huge" "http://127.0.0.1:$PORT/upload")"
  echo "want: $want"
  peak
  rm "$OUT/huge"
  stop
}

for judge in "${@:-vtc load floods many slow huge}"; do
  for one in $judge; do
    echo "== $one"
    "$one"
  done
done
