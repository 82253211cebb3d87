#!/bin/sh
# Encrypts and decrypts with curl alone: raw bytes in, raw bytes out.
set -eu
server=${KMS_PROXY_SERVER:-http://127.0.0.1:8080}
envelope=$(mktemp)
trap 'rm -f "$envelope"' EXIT

# call PATH AAD [curl's arguments]: --fail-with-body makes a refusal a failure, and keeps what it says.
call() {
  path=$1 aad=$2
  shift 2
  curl --silent --show-error --fail-with-body "$server$path" \
    -H 'content-type: application/octet-stream' \
    -H "kms-proxy-aad: $(printf %s "$aad" | base64 | tr -d '\n')" "$@"
}

printf hello | call /v1/encrypt 'row 7' --data-binary @- > "$envelope"
call /v1/decrypt 'row 7' --data-binary "@$envelope"
echo

# Another AAD does not open it: the answer is problem+json, and `code` says why.
if answer=$(call /v1/decrypt 'row 8' --data-binary "@$envelope" 2> /dev/null); then
  echo 'it opened' >&2
  exit 1
fi
echo "refused: $(printf %s "$answer" | sed 's/.*"code":"\([a-z_]*\)".*/\1/')"
