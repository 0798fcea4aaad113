#!/usr/bin/env bash
# usage: install.sh PREFIX [FOLDER]   Installs libbitsmith, its header, pkg-config and CMake files under PREFIX. The libraries are
# taken from FOLDER, else from BITSMITH_LIB_DIR, else from target/release, where `cargo build --release --workspace` puts them.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
prefix=${1:?usage: install.sh PREFIX [FOLDER]}
libraries=${2:-${BITSMITH_LIB_DIR:-$root/target/release}}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)
for library in libbitsmith.so libbitsmith.a; do
    [ -f "$libraries/$library" ] || { echo "install.sh: $libraries/$library is missing: cargo build --release --workspace" >&2; exit 2; }
done
mkdir -p "$prefix/lib/pkgconfig" "$prefix/lib/cmake/bitsmith" "$prefix/include"
prefix=$(cd "$prefix" && pwd)
# A file is replaced as a whole: a program that has the old library open keeps it.
put() { cp "$1" "$2.new" && mv -f "$2.new" "$2"; }
fill() { sed -e "s|@PREFIX@|$prefix|g" -e "s|@VERSION@|$version|g" "$1" > "$2.new" && mv -f "$2.new" "$2"; }
put "$libraries/libbitsmith.so" "$prefix/lib/libbitsmith.so"
put "$libraries/libbitsmith.a" "$prefix/lib/libbitsmith.a"
put "$root/templates/c/bitsmith.h" "$prefix/include/bitsmith.h"
fill "$root/templates/c/bitsmith.pc.in" "$prefix/lib/pkgconfig/bitsmith.pc"
fill "$root/templates/c/bitsmith-config.cmake.in" "$prefix/lib/cmake/bitsmith/bitsmith-config.cmake"
echo "installed bitsmith $version under $prefix"
