# Lines of the audit log as OCSF 1.3 API Activity (class 6003):
#   jq -c -f deploy/audit/ocsf.jq audit.jsonl
# Checkpoints and openings have no equivalent and are left out.
select(has("operation"))
| {encrypt: 1, datakey: 1, decrypt: 2, read: 2, root_unwrap: 2, root_wrap: 1, rewrap: 3, rotate: 3, manage: 3}[.operation] as $activity
| (.outcome == "ok") as $ok
| (.peer // "" | capture("^\\[?(?<ip>[0-9a-fA-F.:]+?)\\]?:(?<port>[0-9]+)$") // null) as $peer
| {
    class_uid: 6003,
    class_name: "API Activity",
    category_uid: 6,
    category_name: "Application Activity",
    activity_id: ($activity // 99),
    activity_name: (if $activity then null else .operation end),
    type_uid: (600300 + ($activity // 99)),
    time: ((.time[0:19] + "Z" | fromdateiso8601) * 1000 + (.time[20:23] | tonumber)),
    severity_id: (if $ok then 1 else 2 end),
    status_id: (if $ok then 1 else 2 end),
    status_code: .outcome,
    count: (.count // 1),
    metadata: {
      version: "1.3.0",
      product: {name: "kms-proxy", vendor_name: "kms-proxy"},
      uid: "\(.node)/\(.time)/\(.seq)",
      sequence: .seq,
      correlation_uid: .trace_id
    },
    actor: {user: {name: (.client // "unknown")}},
    api: {operation: (.call // .operation), service: {name: .api}, request: (if .request_id then {uid: .request_id} else null end)},
    src_endpoint: (if $peer then {ip: $peer.ip, port: ($peer.port | tonumber)} else {name: (.peer // .node)} end),
    device: {hostname: .node, type_id: 1},
    resources: ([
      (if .chain then {type: "chain", name: .chain} else empty end),
      (if .kek_id then {type: "kek", uid: .kek_id} else empty end),
      (if .key then {type: "key", uid: .key} else empty end)
    ]),
    unmapped: {aad, item, plaintext_bytes, chunk, change, auth}
  }
| del(.. | nulls)
