#!/usr/bin/env bash
# Everything that an NVIDIA GPU is asked for: hardware suite, our kernels, peers, the table.
#
#   benches/gpu/run.sh [options of bench.py]     with the binary of target/release, or the one beside this script
#   benches/gpu/run.sh --pack bitsmith-gpu.tgz   an archive with the binary and these scripts, for a machine without Rust
#
# Needs a driver of CUDA 12 or later, glibc 2.34 or later and Python 3.8; peers need PyTorch there.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

if [ "${1:-}" = --pack ]; then
    archive="${2:?--pack takes the name of the archive}"
    binary="${BITSMITH:-$here/../../target/release/bitsmith}"
    [ -x "$binary" ] || { echo "$binary is absent: cargo build --release" >&2; exit 2; }
    # It may ask for the C library and its parts, nothing else: everything further is loaded when a device is opened.
    foreign="$(ldd "$binary" | grep -vE 'linux-vdso|ld-linux|lib(c|m|gcc_s|dl|pthread|rt)\.so' || true)"
    [ -z "$foreign" ] || { echo "$binary needs more than the C library: $foreign" >&2; exit 2; }
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' EXIT
    mkdir "$folder/bitsmith-gpu"
    cp "$here"/{run.sh,bench.py,gates.py,peers.py,peers_matmul.py,peers_attend.py,marlin_entry.cu} "$folder/bitsmith-gpu/"
    install -m 755 "$binary" "$folder/bitsmith-gpu/bitsmith"
    strip --strip-debug "$folder/bitsmith-gpu/bitsmith" 2>/dev/null || true
    tar -C "$folder" -czf "$archive.part" bitsmith-gpu
    mv "$archive.part" "$archive"
    echo "$archive: unpack it and run bitsmith-gpu/run.sh"
    exit 0
fi

exec "${PYTHON:-python3}" "$here/bench.py" "$@"
