//go:build tools

// Package helm names Helm, with which tests render the chart, so that go.mod and go.sum pin it and what it is made of.
package helm

import _ "helm.sh/helm/v4/cmd/helm"
