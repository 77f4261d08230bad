{{/* Ray: the head beside the server, its command, its token, and who may talk to whom. */}}

{{- define "remix.rayWorkers" -}}
app.kubernetes.io/name: remix-serve
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: ray
{{- end }}

{{- define "remix.rayToken" -}}
# Ray's ports run what they are sent: they ask for this token.
- {name: RAY_AUTH_MODE, value: token}
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .Values.ray.token.secret }}, key: {{ .Values.ray.token.key }}}
{{- end }}

{{- define "remix.rayHead" -}}
# A sidecar: it starts before the server, and ends after the server has drained.
- name: ray-head
  image: {{ include "remix.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  restartPolicy: Always
  env: {{- include "remix.rayToken" . | nindent 4 }}
  command: [ray, start, --head, --block, --port=6379, --num-cpus=0, --num-gpus=0, --disable-usage-stats, --include-dashboard=false]
  startupProbe:
    exec: {command: [ray, health-check, --address=127.0.0.1:6379]}
    periodSeconds: 5
    timeoutSeconds: 10
    failureThreshold: 24
  resources: {{ toJson .Values.ray.head }}
  securityContext: {{- include "remix.containerSecurity" . | nindent 4 }}
  volumeMounts: {{- include "remix.mounts" . | nindent 4 }}
{{- end }}

{{- define "remix.rayPeers" -}}
{{- if eq .root.Values.engine "ray" }}
- {{ .side }}:
    - podSelector:
        matchLabels:
          app.kubernetes.io/name: remix-serve
          app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}
{{- end }}
