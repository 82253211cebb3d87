#!/bin/sh
# Builds the program as it is released: the same sources, compiler and linker give the same bytes, in any directory, at
# any time, for any user and locale. Writes the stripped program and its debug symbols to DIRECTORY.
#
#   release/build.sh DIRECTORY
#
# It needs cargo-auditable and protox; `make dist` and `make reproduce` install them in target/tools.
set -eu
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
root=$(pwd)
target=${CARGO_TARGET_DIR:-$root/target/dist-build}
cargo_home=${CARGO_HOME:-$HOME/.cargo}

# Names of files are in messages of panics and in debug symbols. Of two rules that match, the compiler takes the last.
separator=$(printf '\037')
CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$cargo_home=/cargo"
CARGO_ENCODED_RUSTFLAGS="$CARGO_ENCODED_RUSTFLAGS${separator}--remap-path-prefix=$root=/kms-proxy"
CARGO_ENCODED_RUSTFLAGS="$CARGO_ENCODED_RUSTFLAGS${separator}--remap-path-prefix=$target=/target"
CFLAGS="${CFLAGS:-} -ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$target=/target"
ASFLAGS="${ASFLAGS:-} -ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$target=/target"
export CARGO_ENCODED_RUSTFLAGS CFLAGS ASFLAGS
export CARGO_INCREMENTAL=0 CARGO_TARGET_DIR="$target"
# What C code takes for the date of the build: that of the commit, or the epoch where there is no commit.
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
export PROTOC="${PROTOC:-$root/target/tools/bin/protox}" PATH="$root/target/tools/bin:$PATH"

# The list of dependencies is in the program: `cargo audit bin` and scanners of images read it.
cargo auditable build --release --locked --bin kms-proxy

built=$target/release/kms-proxy
objcopy --only-keep-debug --compress-debug-sections=zlib "$built" "$out/kms-proxy.debug"
cp "$built" "$out/kms-proxy"
strip --strip-unneeded "$out/kms-proxy"
cd "$out"
objcopy --add-gnu-debuglink=kms-proxy.debug kms-proxy
chmod 755 kms-proxy
chmod 644 kms-proxy.debug
