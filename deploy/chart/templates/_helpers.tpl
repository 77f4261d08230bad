{{/* Names, labels and the parts that several pods share. */}}

{{- define "remix.name" -}}
{{- if contains "remix-serve" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-remix-serve" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "remix.selector" -}}
app.kubernetes.io/name: remix-serve
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "remix.labels" -}}
app.kubernetes.io/name: remix-serve
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "remix.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "remix.name" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "remix.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end }}

{{/* One option of the command line. Helm reads whole numbers as floats. */}}
{{- define "remix.option" -}}
{{- $value := .value }}
{{- if kindIs "bool" $value }}
- --{{ ternary "" "no-" $value }}{{ .name }}
{{- else if kindIs "slice" $value }}
{{- range $value }}
- {{ printf "--%s=%v" $.name . | quote }}
{{- end }}
{{- else if and (kindIs "float64" $value) (eq (floor $value) $value) }}
- --{{ .name }}={{ int64 $value }}
{{- else if not (kindIs "invalid" $value) }}
- {{ printf "--%s=%v" .name $value | quote }}
{{- end }}
{{- end }}

{{- define "remix.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
# Volumes belong to this group.
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "remix.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where pods go. */}}
{{- define "remix.placement" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Requests and limits, with GPUs. Takes resources and gpu. */}}
{{- define "remix.resources" -}}
{{- $found := deepCopy .resources }}
{{- if .gpu.count }}
{{- $_ := set $found "limits" (merge (dict .gpu.resource (int64 .gpu.count)) ($found.limits | default dict)) }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* What every container of the image has mounted, and the volumes for it. */}}
{{- define "remix.mounts" -}}
- {name: models, mountPath: /models, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .Values.sharedMemory }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- end }}

{{- define "remix.volumes" -}}
- name: models
  persistentVolumeClaim: {claimName: {{ .Values.models.claim }}, readOnly: true}
# Compiled kernels are in it: an emptyDir on disk allows execution.
- {name: tmp, emptyDir: {sizeLimit: {{ .Values.tmpSize }}}}
{{- with .Values.sharedMemory }}
- {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ . }}}}
{{- end }}
{{- end }}

{{/* Values that cannot be served together. */}}
{{- define "remix.check" -}}
{{- range list "base" "engine" "host" "port" "drain-seconds" "drain-delay-seconds" "data-dir" "import-root" "max-import-bytes" "admin-host" "admin-port" "adapter" "ray-address" "api-key" "database-url" }}
{{- if hasKey ($.Values.options | default dict) . }}
{{- fail (printf "options.%s: the chart gives it, by a value of its own" .) }}
{{- end }}
{{- end }}
{{- if and .Values.tenants.enabled .Values.adapters }}
{{- fail "adapters: with tenants.enabled adapters belong to tenants: remix set apply" }}
{{- end }}
{{- $most := ternary .Values.replicas .Values.autoscaling.max (eq .Values.autoscaling.kind "none") }}
{{- if and .Values.tenants.enabled (gt (int $most) 1) (not .Values.database.secret) }}
{{- fail (printf "replicas: found %d with SQLite, which is one pod's; expected 1, or database.secret" (int $most)) }}
{{- end }}
{{- if and (eq .Values.engine "ray") (gt (int $most) 1) }}
{{- fail (printf "replicas: found %d with the Ray engine, whose head is the server; expected 1, and options.replicas for the engine's" (int $most)) }}
{{- end }}
{{- end }}
