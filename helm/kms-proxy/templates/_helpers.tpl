{{- define "kms-proxy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "kms-proxy.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "kms-proxy.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "kms-proxy.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "kms-proxy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "kms-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "kms-proxy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "kms-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "kms-proxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "kms-proxy.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "kms-proxy.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "kms-proxy.tlsSecret" -}}
{{- default (printf "%s-tls" (include "kms-proxy.fullname" .)) .Values.tls.existingSecret -}}
{{- end -}}

{{- define "kms-proxy.claim" -}}
{{- default (printf "%s-data" (include "kms-proxy.fullname" .)) .Values.persistence.existingClaim -}}
{{- end -}}

{{- /* Whether more than one process may run concurrently. */ -}}
{{- define "kms-proxy.isReplicated" -}}
{{- if or (eq .Values.kind "DaemonSet") .Values.autoscaling.enabled (gt (int .Values.replicas) 1) -}}true{{- end -}}
{{- end -}}

{{- define "kms-proxy.backupClaim" -}}
{{- default (printf "%s-backup" (include "kms-proxy.fullname" .)) .Values.backup.existingClaim -}}
{{- end -}}

{{- define "kms-proxy.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- with .Values.podSecurityContext }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Where the admin port is asked, as a probe of kubelet has it; more of it comes from the values. */ -}}
{{- define "kms-proxy.probe" -}}
{{- $ask := dict "path" .path "port" "admin" -}}
{{- if include "kms-proxy.isLocal" .top -}}
{{- $_ := set $ask "host" .top.Values.listen.address -}}
{{- end -}}
{{- toYaml (mergeOverwrite (dict "httpGet" $ask) .defaults (default dict .values)) -}}
{{- end -}}

{{- define "kms-proxy.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
