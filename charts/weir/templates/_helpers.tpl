{{- define "weir.fullname" -}}
{{ .Release.Name }}-operator
{{- end }}

{{- define "weir.selector" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- /* Labels of every object. */}}
{{- define "weir.labels" -}}
{{- $own := include "weir.selector" . | fromYaml }}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion }}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service }}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_")) }}
{{- toYaml (merge $own .Values.commonLabels) }}
{{- end }}

{{- /* metadata of an object: (dict "root" . "name" NAME "namespace" NAMESPACE "labels" MAP "annotations" MAP) */}}
{{- define "weir.metadata" -}}
name: {{ .name }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels:
  {{- merge (include "weir.labels" .root | fromYaml) (.labels | default dict) | toYaml | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "weir.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "weir.fullname" .) }}
{{- end }}

{{- /* (dict "root" . "image" .Values.operator.image) */}}
{{- define "weir.image" -}}
{{- $repository := printf "%s/%s" .root.Values.image.registry .image.name }}
{{- if .image.digest }}
{{- printf "%s@%s" $repository .image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (.root.Values.image.tag | default .root.Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "weir.operatorArgs" -}}
- --namespace=$(POD_NAMESPACE)
- --identity=$(POD_NAME)
- --lease-name={{ include "weir.fullname" . }}
- --router-image={{ include "weir.image" (dict "root" . "image" .Values.router.image) }}
{{- range .Values.watchNamespaces }}
- --watch-namespace={{ . }}
{{- end }}
- --workflow-support={{ .Values.router.workflowSupport.enabled }}
- --workflow-ttl={{ int .Values.router.workflowSupport.ttl }}
- --max-workflows={{ int .Values.router.workflowSupport.maxWorkflows }}
- --log-format={{ .Values.operator.log.format }}
- --log={{ .Values.operator.log.filter }}
{{- end }}

{{- define "weir.operatorEnv" -}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- end }}

{{- define "weir.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "weir.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* "true" if a monitor is to be made: (dict "root" . "create" MODE "kind" KIND) */}}
{{- define "weir.monitored" -}}
{{- $known := .root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind) }}
{{- if or (eq .create "Always") (and (eq .create "Auto") $known) }}true{{ end }}
{{- end }}

{{- /*
What the operator may do, verb by verb. It writes by server-side apply: a write is `patch`, and `create` where the object
is new. It never writes specs of its own kinds, and never lists Secrets.
*/}}
{{- define "weir.rules" -}}
# What it reconciles.
- apiGroups: [weir.dev]
  resources: [llmpools, workflowpolicies]
  verbs: [get, list, watch]
- apiGroups: [weir.dev]
  resources: [llmpools/status, workflowpolicies/status]
  verbs: [patch]
# What it makes for pools and gateways. `delete` is for what a changed spec no longer asks for.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# Replicas are written through the scale subresource alone.
- apiGroups: [apps]
  resources: [deployments/scale]
  verbs: [get, patch]
- apiGroups: [""]
  resources: [services, serviceaccounts, configmaps]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# A gateway's own Role: reading pods and configmaps of its namespace. Kubernetes lets the operator grant only what it
# holds itself, which are the two rules for configmaps and pods here.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, delete]
# `patch` sets the deletion cost of engine pods, so that the least valuable one goes first; `delete` ends those that are
# past their start deadline.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
# The control token of each gateway, by name.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
