{{- define "espalier.name" -}}
{{- printf "%s" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "espalier.labels" -}}
app.kubernetes.io/name: espalier
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "espalier.selector" -}}
app.kubernetes.io/name: espalier
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "espalier.podSecurity" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "espalier.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Variables of every process: secrets by reference, settings, the rest. */}}
{{- define "espalier.env" -}}
- {name: ESPALIER_DATABASE_URL, valueFrom: {secretKeyRef: {name: {{ required "secret.name: an existing Secret" .Values.secret.name }}, key: {{ .Values.secret.databaseUrl }}}}}
- {name: ESPALIER_BROKER_URL, valueFrom: {secretKeyRef: {name: {{ .Values.secret.name }}, key: {{ .Values.secret.brokerUrl }}}}}
- {name: ESPALIER_SECRET_KEY, valueFrom: {secretKeyRef: {name: {{ .Values.secret.name }}, key: {{ .Values.secret.secretKey }}}}}
- {name: ESPALIER_HOME, value: /var/lib/espalier}
- {name: ESPALIER_MODELS_DIR, value: /srv/models}
- {name: ESPALIER_DATA_DIR, value: /srv/data}
- {name: HOME, value: /var/lib/espalier}
{{- $_ := required "settings.artifacts_url: s3://bucket/prefix or another that all pods reach" .Values.settings.artifacts_url }}
{{- range $name, $value := .Values.settings }}
- {name: ESPALIER_{{ upper $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- range $name, $value := .Values.env }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- range .Values.secretEnv }}
- {name: {{ .name }}, valueFrom: {secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}}}
{{- end }}
{{- end -}}

{{- define "espalier.mounts" -}}
- {name: home, mountPath: /var/lib/espalier}
- {name: tmp, mountPath: /tmp}
- {name: models, mountPath: /srv/models, readOnly: true}
- {name: data, mountPath: /srv/data, readOnly: true}
{{- range .Values.secretFiles }}
- {name: secret-{{ .name }}, mountPath: /etc/espalier/{{ .name }}, readOnly: true}
{{- end }}
{{- end -}}

{{- define "espalier.volumes" -}}
- {name: home, emptyDir: {}}
- {name: tmp, emptyDir: {}}
- name: models
  {{- toYaml .Values.modelsVolume | nindent 2 }}
- name: data
  {{- toYaml .Values.dataVolume | nindent 2 }}
{{- range .Values.secretFiles }}
- {name: secret-{{ .name }}, secret: {secretName: {{ .secret }}, defaultMode: 288}}
{{- end }}
{{- end -}}

{{- define "espalier.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
