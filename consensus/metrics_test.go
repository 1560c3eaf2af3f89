package consensus

import (
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func counterValue(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// TestMetricsAreRegisteredOnce: a second instance in one registry is an error of
// Open, and what it registered before is taken back.
func TestMetricsAreRegisteredOnce(t *testing.T) {
	reg := prometheus.NewRegistry()
	tc := newCluster(t, 1, func(_ string, cfg *Config) { cfg.Registerer = reg })
	tc.put("x")
	families, err := reg.Gather()
	if err != nil || len(families) < 8 {
		t.Fatalf("%d metrics, %v", len(families), err)
	}
	second := &testNode{id: "second", fsm: newTestFSM(), inmem: tc.nodes[0].inmem, logs: tc.nodes[0].logs, snaps: tc.nodes[0].snaps}
	var already prometheus.AlreadyRegisteredError
	if _, err := Open(tc.config(second)); !errors.As(err, &already) {
		t.Errorf("two in one registry: %v", err)
	}
	tc.stop(tc.nodes[0])
	tc.nodes = nil
	if families, err := reg.Gather(); err != nil || len(families) != 0 {
		t.Errorf("after shutdown %d metrics are left, %v", len(families), err)
	}
}
