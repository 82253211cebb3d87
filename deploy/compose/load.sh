#!/bin/sh
# Calls the replicas in turn, so that there is something to see: encrypts, decrypts, and now and then what goes wrong.
set -eu
: "${SERVERS:=http://kms-proxy-0:8080 http://kms-proxy-1:8080}"
: "${PAUSE:=0.2}"
# 0: no limit.
: "${ROUNDS:=0}"

post() {
    curl -sS "$1$2" -H 'content-type: application/json' -d "$3"
}

items='{"plaintext":"aGVsbG8="}'
for _ in 1 2 3 4 5 6 7; do items="$items,$items"; done

round=0
while [ "$ROUNDS" = 0 ] || [ "$round" -lt "$ROUNDS" ]; do
    round=$((round + 1))
    for server in $SERVERS; do
        for chain in default orders invoices; do
            # A replica that is not there now may be there the next time.
            post "$server" /v1/batch/encrypt "{\"chain\":\"$chain\",\"items\":[$items]}" >/dev/null || continue
            sealed=$(post "$server" /v1/encrypt "{\"chain\":\"$chain\",\"plaintext\":\"aGVsbG8=\"}" |
                sed 's/.*"ciphertext":"\([^"]*\)".*/\1/') || continue
            for _ in 1 2 3; do
                post "$server" /v1/decrypt "{\"chain\":\"$chain\",\"ciphertext\":\"$sealed\"}" >/dev/null || true
            done
        done
    done
    if [ $((round % 10)) = 0 ]; then
        for server in $SERVERS; do
            post "$server" /v1/decrypt '{"ciphertext":"kp:AAAA"}' >/dev/null || true
        done
    fi
    sleep "$PAUSE"
done
