# Lines of the audit log in the Elastic Common Schema:
#   jq -c -f deploy/audit/ecs.jq audit.jsonl
# Checkpoints and openings have no equivalent and are left out.
select(has("operation"))
| (.peer // "" | capture("^\\[?(?<ip>[0-9a-fA-F.:]+?)\\]?:(?<port>[0-9]+)$") // null) as $peer
| {
    "@timestamp": .time,
    ecs: {version: "8.17.0"},
    event: {
      kind: "event",
      category: (if .operation == "manage" or .operation == "rotate" then ["configuration"] else ["database"] end),
      type: (if .outcome == "ok" then ["access", "allowed"] else ["access", "denied"] end),
      action: .operation,
      outcome: (if .outcome == "ok" then "success" else "failure" end),
      reason: (if .outcome == "ok" then null else .outcome end),
      provider: .api,
      dataset: "kms_proxy.audit",
      sequence: .seq
    },
    host: {name: .node},
    service: {name: "kms-proxy", type: "kms-proxy"},
    user: (if .client then {name: .client} else null end),
    source: (if $peer then {ip: $peer.ip, port: ($peer.port | tonumber)} else null end),
    trace: (if .trace_id then {id: .trace_id} else null end),
    http: (if .request_id then {request: {id: .request_id}} else null end),
    kms_proxy: {auth, call, item, chain, kek_id, key, aad, plaintext_bytes, chunk, count, change}
  }
| del(.. | nulls)
