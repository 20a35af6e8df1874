#!/bin/sh
# Prints the licences of the crates that are linked into jobcache, which they ask to be passed on with it.
#
#   config/notices.sh > THIRD-PARTY-NOTICES
#
# Needs cargo and the sources that it has unpacked, so it runs after a build. Each text is printed once, under the names
# of all crates that have it. Procedural macros are left out: they run in the compiler and are not linked.
set -eu
cd "$(dirname "$0")/.."
sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
texts=$(mktemp -d)
trap 'rm -rf "$texts"' EXIT

# Adds the file $2 to the texts, for the crate (or library) that $1 names.
add() {
  hash=$(sha256sum <"$2" | cut -c1-64)
  [ -e "$texts/$hash" ] || cp "$2" "$texts/$hash"
  echo "$1" >>"$texts/$hash.names"
}

echo 'jobcache contains the following third-party software. jobcache itself is under the MIT licence (LICENSE).'
echo
# Into a file and not into a pipe, which would hide that cargo failed.
cargo tree --locked --edges normal,no-proc-macro --prefix none --format '{p}|{l}' >"$texts/tree"
sed 's/ (\*)$//' "$texts/tree" | sort -u >"$texts/crates"
while IFS='|' read -r crate licence; do
  set -- $crate
  name=$1 version=${2#v}
  [ "$name" != jobcache ] || continue
  echo "$name $version ($licence)"
  # The second level holds the licence of what a crate brings with it, such as zstd.
  find "$sources"/*/"$name-$version" -maxdepth 2 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o \
    -iname 'copyright*' -o -iname 'notice*' -o -iname 'unlicense*' \) ! -name '*.rs' | sort >"$texts/files"
  [ -s "$texts/files" ] || echo "$name $version ($licence)" >>"$texts/without"
  while read -r file; do add "$name $version" "$file"; done <"$texts/files"
done <"$texts/crates"
# Rust comes with a page about its standard library, which is linked too.
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
  echo 'These come without a text; their licence is the one named in brackets:'
  cat "$texts/without"
fi
for names in "$texts"/*.names; do
  printf '\n%s\n' '--------------------------------------------------------------------------------'
  sort -u "$names"
  echo
  cat "${names%.names}"
done
