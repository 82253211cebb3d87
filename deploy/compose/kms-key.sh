#!/bin/sh
# Makes the root key in the stand-in for AWS KMS, and the alias by which the replicas know it. It does nothing when the
# alias is there.
set -eu
: "${KMS:=http://kms:5000}"

call() {
    curl -sS --fail --retry 60 --retry-delay 1 --retry-all-errors "$KMS/" \
        -H 'content-type: application/x-amz-json-1.1' -H "x-amz-target: TrentService.$1" \
        -H 'authorization: AWS4-HMAC-SHA256 Credential=test/20260101/eu-central-1/kms/aws4_request, SignedHeaders=host, Signature=0' \
        -d "$2"
}

case "$(call ListAliases '{}')" in *'"alias/kms-proxy"'*) exit 0 ;; esac
key=$(call CreateKey '{}' | sed 's/.*"KeyId": *"\([^"]*\)".*/\1/')
call CreateAlias "{\"AliasName\":\"alias/kms-proxy\",\"TargetKeyId\":\"$key\"}"
echo "alias/kms-proxy is $key"
