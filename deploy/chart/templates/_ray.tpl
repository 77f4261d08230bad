{{/* Ray: the head beside the server, its command, and who may talk to whom. Ray's ports ask for no key. */}}

{{- define "remix.rayWorkers" -}}
app.kubernetes.io/name: remix-serve
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: ray
{{- end }}

{{- define "remix.rayHead" -}}
# A sidecar: it starts before the server, and ends after the server has drained.
- name: ray-head
  image: {{ include "remix.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  restartPolicy: Always
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
