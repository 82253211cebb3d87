# Lines of the audit log as CloudEvents 1.0 in JSON:
#   jq -c -f deploy/audit/cloudevents.jq audit.jsonl
# Checkpoints and openings have no equivalent and are left out.
select(has("operation"))
| {
    specversion: "1.0",
    id: "\(.node)/\(.time)/\(.seq)",
    source: "/kms-proxy/\(.node)",
    type: "kms-proxy.audit.\(.operation)",
    time: .time,
    subject: .chain,
    datacontenttype: "application/json",
    data: .
  }
| if .subject then . else del(.subject) end
