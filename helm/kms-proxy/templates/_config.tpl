{{- /* The configuration as TOML: what is set, and what the chart knows itself. */ -}}
{{- define "kms-proxy.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $server := dict "listen" (printf "%s:%d" .Values.listen.address (int .Values.listen.port)) -}}
{{- $_ := set $server "admin_listen" (printf "%s:%d" .Values.listen.address (int .Values.listen.adminPort)) -}}
{{- if .Values.tls.enabled -}}
{{- $tls := dict "cert" "/etc/kms-proxy/tls/tls.crt" "key" "/etc/kms-proxy/tls/tls.key" -}}
{{- if .Values.tls.clientCASecret -}}
{{- $_ := set $tls "client_ca" "/etc/kms-proxy/client-ca/ca.crt" -}}
{{- $_ := set $tls "client_cert" .Values.tls.clientCertificates -}}
{{- end -}}
{{- $_ := set $server "tls" $tls -}}
{{- end -}}
{{- $_ := set $config "server" (mergeOverwrite $server (default dict $config.server)) -}}
{{- if eq .Values.config.store.kind "file" -}}
{{- /* Not the volume itself, whose mode and owner are the provisioner's. */ -}}
{{- $_ := set $config.store "path" "/var/lib/kms-proxy/data" -}}
{{- end -}}
{{- if .Values.plugin.enabled -}}
{{- $plugin := dict "socket" (printf "unix:///run/kms-proxy/%s" .Values.plugin.socket) "chain" .Values.plugin.chain -}}
{{- $_ := set $config "kubernetes" (mergeOverwrite $plugin (default dict $config.kubernetes)) -}}
{{- end -}}
{{- range $section := list "server" "admin" "log" "traces" "store" "root" "archive" "archive_policy" "chain" "cache" "auth" "client" "audit" "aws_api" "kubernetes" -}}
{{- $value := get $config $section -}}
{{- if kindIs "slice" $value -}}
{{- range $item := $value }}
[[{{ $section }}]]
{{ include "kms-proxy.toml.keys" $item }}
{{ end -}}
{{- else if $value }}
[{{ $section }}]
{{ include "kms-proxy.toml.keys" $value }}
{{ end -}}
{{- end -}}
{{- end -}}

{{- define "kms-proxy.toml.keys" -}}
{{- $lines := list -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $lines = append $lines (printf "%s = %s" $key (include "kms-proxy.toml.value" $value)) -}}
{{- end -}}
{{- end -}}
{{- join "\n" $lines -}}
{{- end -}}

{{- /* A string of JSON is one of TOML, and so is a fraction. Whole numbers are written without a point. */ -}}
{{- define "kms-proxy.toml.value" -}}
{{- if kindIs "string" . -}}
{{- toJson . -}}
{{- else if kindIs "bool" . -}}
{{- . -}}
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . -}}{{- $items = append $items (include "kms-proxy.toml.value" .) -}}{{- end -}}
[{{ join ", " $items }}]
{{- else if kindIs "map" . -}}
{{- $items := list -}}
{{- range $key, $value := . -}}
{{- $items = append $items (printf "%s = %s" $key (include "kms-proxy.toml.value" $value)) -}}
{{- end -}}
{ {{ join ", " $items }} }
{{- else if and (kindIs "float64" .) (ne (floor .) .) -}}
{{- toJson . -}}
{{- else -}}
{{- int64 . -}}
{{- end -}}
{{- end -}}

{{- /* Whether only its own machine reaches it. */ -}}
{{- define "kms-proxy.isLocal" -}}
{{- if or (hasPrefix "127." .Values.listen.address) (eq .Values.listen.address "[::1]") -}}true{{- end -}}
{{- end -}}

{{- /* What the schema can't see: settings that don't go together. */ -}}
{{- define "kms-proxy.check" -}}
{{- $store := .Values.config.store.kind -}}
{{- $replicated := include "kms-proxy.isReplicated" . -}}
{{- if and (eq $store "file") $replicated -}}
{{- fail "config.store.kind = file is for one process: set replicas to 1 and no autoscaling, or use etcd or inline" -}}
{{- end -}}
{{- if and (eq $store "file") (not .Values.persistence.enabled) -}}
{{- fail "config.store.kind = file without persistence.enabled loses all keys, and so all data, with the pod" -}}
{{- end -}}
{{- range $root := .Values.config.root -}}
{{- if and (eq $root.kind "local") (ne $store "file") (not $root.key_file) -}}
{{- fail (printf "config.root: %s is a local root, and each pod would make a key of its own; name a key_file of secretMounts, or another kind" $root.name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.config.archive (eq $store "inline") -}}
{{- fail "config.archive: the store inline stores nothing, so there is nothing to archive" -}}
{{- end -}}
{{- range $archive := .Values.config.archive -}}
{{- if eq $archive.kind "dir" -}}
{{- $isMounted := false -}}
{{- range $mount := concat $.Values.archiveMounts $.Values.extraVolumeMounts -}}
{{- if hasPrefix (printf "%s/" (trimSuffix "/" $mount.mountPath)) (printf "%s/" $archive.path) -}}
{{- $isMounted = true -}}
{{- end -}}
{{- end -}}
{{- if not $isMounted -}}
{{- fail (printf "config.archive: %s, the path of %s, is in no volume of archiveMounts or extraVolumeMounts" $archive.path $archive.name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) (not .Values.tls.certManager.enabled) -}}
{{- fail "tls.enabled needs tls.existingSecret or tls.certManager.enabled" -}}
{{- end -}}
{{- if and (eq .Values.tls.clientCertificates "required") (not .Values.tls.clientCASecret) -}}
{{- fail "tls.clientCertificates = required needs tls.clientCASecret" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager needs issuerRef.name" -}}
{{- end -}}
{{- if not (or (include "kms-proxy.isLocal" .) .Values.config.server.insecure) -}}
{{- if not .Values.tls.enabled -}}
{{- fail "callers would reach it in plain HTTP: set tls.enabled, or config.server.insecure = true if you accept that" -}}
{{- end -}}
{{- if ne .Values.config.auth.mode "required" -}}
{{- fail "config.auth.mode = none lets everyone decrypt: name your callers in config.client, or set config.server.insecure = true if you accept that" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.config.auth.mode "required") (not .Values.config.client) -}}
{{- fail "config.auth.mode = required needs callers in config.client" -}}
{{- end -}}
{{- if and (ne .Values.config.auth.mode "required") .Values.config.client -}}
{{- fail "config.client has callers, but config.auth.mode is not required" -}}
{{- end -}}
{{- if and (include "kms-proxy.isLocal" .) .Values.service.enabled -}}
{{- fail "service.enabled: nobody reaches what listens on listen.address = 127.0.0.1 through a Service" -}}
{{- end -}}
{{- range $client := .Values.config.client -}}
{{- if and $client.tls_san (not $.Values.tls.clientCASecret) -}}
{{- fail (printf "config.client: %s is known by a certificate, and none is asked for without tls.clientCASecret" $client.name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.backup.enabled (ne $store "etcd") -}}
{{- fail "backup.enabled is for the store etcd: the process has a store `file` to itself, so take a snapshot of its volume; `inline` stores nothing" -}}
{{- end -}}
{{- if .Values.restore.enabled -}}
{{- if eq $store "inline" -}}
{{- fail "restore.enabled: with config.store.kind = inline there is no store to restore into" -}}
{{- end -}}
{{- if ne .Values.kind "Deployment" -}}
{{- fail "restore.enabled needs kind = Deployment, which can have no replicas meanwhile" -}}
{{- end -}}
{{- if not .Values.restore.file -}}
{{- fail "restore.enabled needs restore.file, the name of the backup in its claim" -}}
{{- end -}}
{{- if not (or .Values.restore.existingClaim .Values.backup.enabled .Values.backup.existingClaim) -}}
{{- fail "restore.enabled needs restore.existingClaim, the claim with the backup" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.service.enabled) -}}
{{- fail "ingress.enabled needs service.enabled" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled needs ingress.hosts" -}}
{{- end -}}
{{- if and .Values.plugin.enabled (ne .Values.kind "DaemonSet") -}}
{{- fail "plugin.enabled needs kind = DaemonSet: kube-apiserver finds the socket on its own node" -}}
{{- end -}}
{{- end -}}
