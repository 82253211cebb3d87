#!/usr/bin/env bash
# coverage.sh PROGRAMS LLVM_TOOLS TARGET...: the coverage of the parsers by the seeds and the corpus, by file.
#
# The programs are built with `-Cinstrument-coverage`, and get each input as a file.
set -euo pipefail
programs=$1 tools=$2
shift 2
cd "$(dirname "$0")"
programs=${programs#fuzz/}
profiles=$programs/profiles
rm -rf "$profiles"
mkdir -p "$profiles"
for target; do
    inputs=("seeds/$target")
    if [ -d "corpus/$target" ]; then inputs+=("corpus/$target"); fi
    find "${inputs[@]}" -type f -print0 |
        LLVM_PROFILE_FILE="$PWD/$profiles/$target-%p.profraw" xargs -0 -n 2000 "$programs/$target" >"$profiles/$target.log" 2>&1
done
"$tools/llvm-profdata" merge -sparse -o "$profiles/all.profdata" "$profiles"/*.profraw
# What reads foreign bytes, without the files of the targets and of tests.
mapfile -t parsers < <(sed '/^#/d; /^$/d' parsers)
objects=("$programs/$1")
for target in "${@:2}"; do objects+=(-object "$programs/$target"); done
"$tools/llvm-cov" report "${objects[@]}" -instr-profile="$profiles/all.profdata" -show-region-summary=false \
    -show-branch-summary=false "${parsers[@]/#/../src/}"
