{{- /* The pod, the same in a Deployment and a DaemonSet. */ -}}
{{- define "kms-proxy.pod" -}}
metadata:
  labels:
    {{- include "kms-proxy.labels" . | nindent 4 }}
    app.kubernetes.io/component: server
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # Other settings make other pods. Clients do not: the service reads them again when the file changes.
    checksum/config: {{ include "kms-proxy.config" (dict "Values" (merge (dict "config" (omit .Values.config "client")) (omit .Values "config"))) | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "kms-proxy.serviceAccountName" . }}
  automountServiceAccountToken: {{ .Values.serviceAccount.automountToken }}
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "kms-proxy.podSecurityContext" . | nindent 4 }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if .Values.hostNetwork }}
  hostNetwork: true
  {{- end }}
  {{- with default (ternary "ClusterFirstWithHostNet" "" .Values.hostNetwork) .Values.dnsPolicy }}
  dnsPolicy: {{ . }}
  {{- end }}
  {{- with .Values.dnsConfig }}
  dnsConfig:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.hostAliases }}
  hostAliases:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and .Values.topologySpread (eq .Values.kind "Deployment") }}
  topologySpreadConstraints:
    {{- range .Values.topologySpread }}
    - topologyKey: {{ .topologyKey }}
      maxSkew: {{ .maxSkew }}
      whenUnsatisfiable: {{ .whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "kms-proxy.selectorLabels" $ | nindent 10 }}
    {{- end }}
  {{- end }}
  {{- with .Values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: kms-proxy
      image: {{ include "kms-proxy.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - serve
        - --config
        - /etc/kms-proxy/config/kms-proxy.toml
        {{- with .Values.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .Values.lifecycle }}
      lifecycle:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "kms-proxy.containerSecurityContext" . | nindent 8 }}
      {{- with .Values.env }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: api
          containerPort: {{ .Values.listen.port }}
        - name: admin
          containerPort: {{ .Values.listen.adminPort }}
      # It answers as soon as it listens; readiness may wait for a store or a root.
      startupProbe:
        {{- include "kms-proxy.probe" (dict "top" . "path" "/healthz" "values" .Values.startupProbe "defaults" (dict "periodSeconds" 2 "failureThreshold" 60)) | nindent 8 }}
      livenessProbe:
        {{- include "kms-proxy.probe" (dict "top" . "path" "/healthz" "values" .Values.livenessProbe "defaults" (dict "periodSeconds" 10 "timeoutSeconds" 5 "failureThreshold" 6)) | nindent 8 }}
      readinessProbe:
        {{- include "kms-proxy.probe" (dict "top" . "path" "/readyz" "values" .Values.readinessProbe "defaults" (dict "periodSeconds" 5 "timeoutSeconds" 5 "failureThreshold" 2)) | nindent 8 }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        {{- include "kms-proxy.mounts" . | nindent 8 }}
        {{- if .Values.tls.enabled }}
        - name: tls
          mountPath: /etc/kms-proxy/tls
          readOnly: true
        {{- if .Values.tls.clientCASecret }}
        - name: client-ca
          mountPath: /etc/kms-proxy/client-ca
          readOnly: true
        {{- end }}
        {{- end }}
        {{- if eq .Values.config.store.kind "file" }}
        - name: data
          mountPath: /var/lib/kms-proxy
        {{- end }}
        {{- if .Values.plugin.enabled }}
        - name: plugin
          mountPath: /run/kms-proxy
        {{- end }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "kms-proxy.volumes" . | nindent 4 }}
    {{- if .Values.tls.enabled }}
    - name: tls
      secret:
        secretName: {{ include "kms-proxy.tlsSecret" . }}
        defaultMode: 0440
    {{- if .Values.tls.clientCASecret }}
    - name: client-ca
      secret:
        secretName: {{ .Values.tls.clientCASecret }}
        # The authority's certificate alone, though its key may lie beside it.
        items:
          - {key: ca.crt, path: ca.crt}
        defaultMode: 0440
    {{- end }}
    {{- end }}
    {{- if eq .Values.config.store.kind "file" }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ include "kms-proxy.claim" . }}
    {{- end }}
    {{- if .Values.plugin.enabled }}
    - name: plugin
      hostPath:
        path: {{ .Values.plugin.hostPath }}
        type: Directory
    {{- end }}
{{- end -}}
