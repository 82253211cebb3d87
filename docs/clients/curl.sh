#!/bin/sh
# Encrypts and decrypts with curl alone: raw bytes in, raw bytes out. Each call is a connection: for
# many values, use the batch calls.
set -eu
server=${KMS_PROXY_SERVER:-http://127.0.0.1:8080}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# call PATH AAD IN OUT: sends the file IN. OUT has the answer, or what was said instead. A broken
# connection, 429 and 503 are worth another try: calls can be repeated.
call() {
  path=$1 aad=$2 in=$3 out=$4 try=1
  while :; do
    set -- --silent --show-error --noproxy '*' --max-time 15 \
      -H 'content-type: application/octet-stream' \
      -H "kms-proxy-aad: $(printf %s "$aad" | base64 | tr -d '\n')"
    if [ -n "${KMS_PROXY_CA:-}" ]; then set -- "$@" --cacert "$KMS_PROXY_CA"; fi
    if [ -n "${KMS_PROXY_CERT:-}" ]; then
      set -- "$@" --cert "$KMS_PROXY_CERT" --key "$KMS_PROXY_KEY"
    fi
    if [ -n "${KMS_PROXY_TOKEN_FILE:-}" ]; then
      # By a file: arguments can be seen by other users.
      printf 'authorization: Bearer %s\n' "$(cat "$KMS_PROXY_TOKEN_FILE")" > "$dir/authorization"
      set -- "$@" -H "@$dir/authorization"
    fi
    : > "$out"
    set -- "$@" -D "$dir/head" -o "$out" -w '%{http_code}' --data-binary "@$in"
    status=$(curl "$@" "$server$path") || status=000
    case $status in
      200)
        if grep -qi '^content-type: application/octet-stream' "$dir/head"; then return 0; fi
        echo "$server: the answer is not from kms-proxy" >&2
        return 1
        ;;
      000) wait=1 ;;
      429 | 503) wait=$(sed -n 's/^[Rr]etry-[Aa]fter: *\([0-9][0-9]*\).*/\1/p' "$dir/head") ;;
      *) try=5 ;;
    esac
    if [ "$try" = 5 ]; then return 1; fi
    sleep "${wait:-1}"
    try=$((try + 1))
  done
}

# code FILE: the code of a refusal, which is problem+json; what a proxy says may be anything.
code() {
  code=$(sed -n 's/.*"code":"\([a-z_]*\)".*/\1/p' "$1")
  echo "${code:-http_$status}"
}

printf hello > "$dir/plaintext"
if ! call /v1/encrypt 'row 7' "$dir/plaintext" "$dir/envelope"; then
  echo "refused: $(code "$dir/envelope")" >&2
  exit 1
fi
call /v1/decrypt 'row 7' "$dir/envelope" "$dir/opened"
cat "$dir/opened"
echo

# Another AAD does not open it: the answer is problem+json, and `code` says why.
if call /v1/decrypt 'row 8' "$dir/envelope" "$dir/problem"; then
  echo 'it opened' >&2
  exit 1
fi
echo "refused: $(code "$dir/problem")"
