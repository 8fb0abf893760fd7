// The operator's kinds for the chart's tests: files of the module, nothing is built. `go mod tidy` would drop what no
// package imports; for another version change it here and run `go mod download`.
module lb.test/prometheus-operator

go 1.26

require github.com/prometheus-operator/prometheus-operator v0.85.0
