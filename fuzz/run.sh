#!/usr/bin/env bash
# run.sh PROGRAMS SECONDS TARGET...: fuzzes each target for so many seconds, and prints the executions.
#
# A target starts from its seeds and from what earlier runs found in fuzz/corpus. It fails on a failed
# assertion, after 10 seconds for one input, or when it takes more than 1 GiB.
set -euo pipefail
programs=$1 seconds=$2
shift 2
cd "$(dirname "$0")"
programs=${programs#fuzz/}
mkdir -p logs
failed=0
printf '%-12s %15s %9s %8s\n' target executions seconds inputs
for target; do
    mkdir -p "corpus/$target" "artifacts/$target"
    start=$(date +%s)
    "$programs/$target" "corpus/$target" "seeds/$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 \
        -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix="artifacts/$target/" \
        >"logs/$target" 2>&1 || { failed=1; tail -n 20 "logs/$target"; }
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "logs/$target")
    printf '%-12s %15s %9s %8s\n' "$target" "${executions:-?}" $(($(date +%s) - start)) "$(find "corpus/$target" -type f | wc -l)"
done
exit "$failed"
