{{/*
What the objects share. `outrigger install` prints the same objects from the same values; a test compares them, so a change
here is one in crates/features/install, too.
*/}}

{{- define "outrigger.namespace" -}}
{{ .Values.namespace | default .Release.Namespace }}
{{- end }}

{{- define "outrigger.labels" -}}
app.kubernetes.io/name: outrigger
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "outrigger.selector" -}}
app.kubernetes.io/name: outrigger
app.kubernetes.io/component: controller
{{- end }}

{{- define "outrigger.metadata" -}}
name: outrigger-controller
namespace: {{ include "outrigger.namespace" . }}
labels:
  {{- include "outrigger.labels" . | nindent 2 }}
{{- end }}

{{- define "outrigger.clusterMetadata" -}}
name: outrigger-controller
labels:
  {{- include "outrigger.labels" . | nindent 2 }}
{{- end }}
