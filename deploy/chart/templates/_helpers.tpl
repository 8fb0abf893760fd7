{{/* One agent serves a node, so one release serves a cluster: names are the same in every release. */}}
{{- define "lb-agent.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: lb
app.kubernetes.io/version: {{ .context.Chart.AppVersion | quote }}
{{- end }}

{{/* What finds monitoring objects goes by labels of its own. */}}
{{- define "lb-agent.monitoringLabels" -}}
{{ include "lb-agent.labels" (dict "name" "lb-agent" "context" .context) }}
{{- with .labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The port of metricsBindAddress, for a Prometheus that comes from outside of the node. */}}
{{- define "lb-agent.metricsPort" -}}
{{- $address := .Values.metricsBindAddress }}
{{- if or (not $address) (regexMatch "^(127\\.|\\[?::1(\\]|$))" $address) }}
{{- fail (printf "\n\npodMonitor.enabled with metricsBindAddress %q: Prometheus can't reach that from outside of the node. Say which address it may come to, such as\n  --set metricsBindAddress=0.0.0.0:10249\nand keep others away from the port: it has no authentication.\n" $address) }}
{{- end }}
{{- if regexMatch "^(\\[.*\\]|[^:]*):[0-9]+$" $address }}{{ regexFind "[0-9]+$" $address }}{{ else }}10249{{ end }}
{{- end }}

{{/* YAML reads on and off as true and false. */}}
{{- define "lb-agent.switch" -}}
{{ if kindIs "bool" . }}{{ ternary "on" "off" . }}{{ else if kindIs "string" . }}{{ . }}{{ else }}{{ int64 . }}{{ end }}
{{- end }}

{{- define "lb-agent.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The API server's addresses, checked as far as the cluster itself can tell. */}}
{{- define "lb-agent.apiServer" -}}
{{- $addresses := .Values.apiServer.addresses }}
{{- if not $addresses }}
{{- fail "\n\napiServer.addresses is empty. The agents can't use the Service `kubernetes`, whose ClusterIP works only once they run: name the address that the nodes' kubelets use, such as\n  --set 'apiServer.addresses={https://10.0.0.10:6443}'\nvalues.yaml says how to find it.\n" }}
{{- end }}
{{- $service := lookup "v1" "Service" "default" "kubernetes" }}
{{- range $ip := dig "spec" "clusterIPs" (list) ($service | default dict) }}
{{- range $address := $addresses }}
{{- $host := regexReplaceAll "^https?://(\\[([^]]+)\\]|([^:/]+)).*$" $address "${2}${3}" }}
{{- if eq $host $ip }}
{{- fail (printf "\n\napiServer.addresses: %s is the ClusterIP of the Service default/kubernetes, which works only once the agents run. Name the address that the nodes' kubelets use:\n  kubectl -n default get endpointslices -l kubernetes.io/service-name=kubernetes\n" $address) }}
{{- end }}
{{- end }}
{{- end }}
{{- join "," $addresses }}
{{- end }}
