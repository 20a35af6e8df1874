#!/bin/sh
# Prints the licences of the crates that are linked into jobcache. The licences require that they are
# distributed with it.
#
#   config/notices.sh > THIRD-PARTY-NOTICES
#
# Needs cargo and the unpacked sources of the crates, so it runs after a build. Each text is printed once,
# under the names of all crates that have it. Procedural macros are left out: they run in the compiler and
# are not linked.
set -eu
cd "$(dirname "$0")/.."
sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
texts=$(mktemp -d)
trap 'rm -rf "$texts"' EXIT

# add NAME FILE: adds a file to the texts, under the name of a crate or library.
add() {
  hash=$(sha256sum <"$2" | cut -c1-64)
  [ -e "$texts/$hash" ] || cp "$2" "$texts/$hash"
  echo "$1" >>"$texts/$hash.names"
}

echo 'jobcache contains the following third-party software. jobcache itself is under the MIT licence (LICENSE).'
echo
# The output goes to a file, because a pipe would hide a failure of cargo.
cargo tree --locked --edges normal,no-proc-macro --prefix none --format '{p}|{l}' >"$texts/tree"
sed 's/ (\*)$//' "$texts/tree" | sort -u >"$texts/crates"
while IFS='|' read -r crate licence; do
  set -- $crate
  name=$1 version=${2#v}
  [ "$name" != jobcache ] || continue
  echo "$name $version ($licence)"
  # The second level has the licences of bundled libraries, such as zstd.
  find "$sources"/*/"$name-$version" -maxdepth 2 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o \
    -iname 'copyright*' -o -iname 'notice*' -o -iname 'unlicense*' \) ! -name '*.rs' | sort >"$texts/files"
  [ -s "$texts/files" ] || echo "$name $version ($licence)" >>"$texts/without"
  while read -r file; do add "$name $version" "$file"; done <"$texts/files"
done <"$texts/crates"
# The standard library is linked too. Rust includes a page with its licences.
rust=$(rustc --print sysroot)/share/doc/rust
if [ -f "$rust/COPYRIGHT-library.html" ]; then
  sed -e 's/<[^>]*>//g' -e 's/&lt;/</g' -e 's/&gt;/>/g' -e 's/&quot;/"/g' -e 's/&amp;/\&/g' \
    "$rust/COPYRIGHT-library.html" | cat -s >"$texts/page"
  add 'the standard library of Rust' "$texts/page"
else
  echo "config/notices.sh: $rust has no COPYRIGHT-library.html; the standard library is left out" >&2
fi
if [ -e "$texts/without" ]; then
  echo
  echo 'These crates contain no licence text; their licence is named in brackets:'
  cat "$texts/without"
fi
for names in "$texts"/*.names; do
  printf '\n%s\n' '--------------------------------------------------------------------------------'
  sort -u "$names"
  echo
  cat "${names%.names}"
done
