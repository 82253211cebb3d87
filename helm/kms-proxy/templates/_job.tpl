{{- /* The pod of a Job that runs a command on the store, with the claim of backups. */ -}}
{{- define "kms-proxy.job" -}}
{{- $isFile := eq .top.Values.config.store.kind "file" -}}
metadata:
  labels:
    {{- include "kms-proxy.labels" .top | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  restartPolicy: Never
  serviceAccountName: {{ include "kms-proxy.serviceAccountName" .top }}
  automountServiceAccountToken: {{ .top.Values.serviceAccount.automountToken }}
  enableServiceLinks: false
  {{- with .top.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "kms-proxy.podSecurityContext" .top | nindent 4 }}
  {{- with .top.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .top.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .top.Values.hostNetwork }}
  hostNetwork: true
  {{- end }}
  {{- with default (ternary "ClusterFirstWithHostNet" "" .top.Values.hostNetwork) .top.Values.dnsPolicy }}
  dnsPolicy: {{ . }}
  {{- end }}
  {{- with .top.Values.dnsConfig }}
  dnsConfig:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .top.Values.hostAliases }}
  hostAliases:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "kms-proxy.image" .top }}
      imagePullPolicy: {{ .top.Values.image.pullPolicy }}
      args:
        {{- toYaml .args | nindent 8 }}
      securityContext:
        {{- include "kms-proxy.containerSecurityContext" .top | nindent 8 }}
      env:
        - name: POD_NAME
          valueFrom:
            fieldRef: {fieldPath: metadata.name}
        {{- with .top.Values.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .top.Values.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      resources:
        {{- toYaml .top.Values.backup.resources | nindent 8 }}
      volumeMounts:
        - name: backups
          mountPath: /backups
        {{- if $isFile }}
        - name: data
          mountPath: /var/lib/kms-proxy
        {{- end }}
        {{- include "kms-proxy.mounts" .top | nindent 8 }}
  volumes:
    - name: backups
      persistentVolumeClaim:
        claimName: {{ .claim }}
    {{- if $isFile }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ include "kms-proxy.claim" .top }}
    {{- end }}
    {{- include "kms-proxy.volumes" .top | nindent 4 }}
{{- end -}}

{{- /* The configuration, and what it names: the same in the service and in Jobs. */ -}}
{{- define "kms-proxy.mounts" -}}
- name: config
  mountPath: /etc/kms-proxy/config
  readOnly: true
{{- range .Values.secretMounts }}
- name: {{ .name }}
  mountPath: {{ .mountPath }}
  readOnly: true
{{- end }}
{{- range .Values.archiveMounts }}
- name: {{ .name }}
  mountPath: {{ .mountPath }}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "kms-proxy.volumes" -}}
- name: config
  configMap:
    name: {{ include "kms-proxy.fullname" . }}
{{- range .Values.secretMounts }}
- name: {{ .name }}
  secret:
    secretName: {{ .secretName }}
    defaultMode: 0440
    {{- with .items }}
    items:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}
{{- range .Values.archiveMounts }}
- name: {{ .name }}
  persistentVolumeClaim:
    claimName: {{ .existingClaim }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
