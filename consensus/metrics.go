package consensus

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/settkv/sett/kv"
)

// metrics are what consensus counts. They are made in any case; a Registerer makes
// them visible.
type metrics struct {
	proposals       *prometheus.CounterVec
	proposeSeconds  prometheus.Histogram
	batchCommands   prometheus.Histogram
	batchBytes      prometheus.Histogram
	readRounds      *prometheus.CounterVec
	readsPerRound   prometheus.Histogram
	readSeconds     prometheus.Histogram
	snapshotSeconds prometheus.Histogram
	collectors      []prometheus.Collector
}

func newMetrics(c *Consensus) *metrics {
	m := &metrics{}
	histogram := func(name, help string, start float64, n int) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "sett", Subsystem: "raft", Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(start, 2, n),
		})
		m.collectors = append(m.collectors, h)
		return h
	}
	counter := func(name, help, label string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "sett", Subsystem: "raft", Name: name, Help: help}, []string{label})
		m.collectors = append(m.collectors, v)
		return v
	}
	gauge := func(name, help string, value func() float64) {
		m.collectors = append(m.collectors, prometheus.NewGaugeFunc(
			prometheus.GaugeOpts{Namespace: "sett", Subsystem: "raft", Name: name, Help: help}, value))
	}
	m.proposals = counter("proposals_total", "Commands proposed on this node, by what became of them: applied, not-applied, unknown.", "outcome")
	m.proposeSeconds = histogram("propose_seconds", "From Propose to the state machine's result, of applied commands, in seconds.", 0.0001, 18)
	m.batchCommands = histogram("entry_commands", "Commands that shared one entry.", 1, 12)
	m.batchBytes = histogram("entry_bytes", "Bytes of one entry of shared commands.", 64, 13)
	m.readRounds = counter("read_rounds_total", "Rounds that confirmed, or failed to confirm, leadership for reads.", "result")
	m.readsPerRound = histogram("read_round_readers", "Readers that shared one round.", 1, 12)
	m.readSeconds = histogram("read_index_seconds", "From ReadIndex to its confirmation, in seconds.", 0.0001, 18)
	m.snapshotSeconds = histogram("snapshot_seconds", "Duration of taking a Raft snapshot on demand or by bytes of log, in seconds.", 0.001, 16)
	gauge("term", "Current Raft term.", func() float64 { return float64(c.Term()) })
	gauge("leader", "1 if this node leads, else 0.", func() float64 {
		if c.IsLeader() {
			return 1
		}
		return 0
	})
	gauge("commit_index", "Commit index this node knows.", func() float64 { return float64(c.CommitIndex()) })
	gauge("last_index", "Index of the last entry of this node's log.", func() float64 { return float64(c.LastIndex()) })
	gauge("inflight_bytes", "Bytes of commands between Propose and their results.", func() float64 { return float64(c.queue.inflight.Load()) })
	return m
}

// register makes the metrics visible; c.raft must be set, because gauges ask it.
func (m *metrics) register(reg prometheus.Registerer) error {
	if reg == nil {
		return nil
	}
	for i, col := range m.collectors {
		if err := reg.Register(col); err != nil {
			for _, done := range m.collectors[:i] {
				reg.Unregister(done)
			}
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

func (m *metrics) unregister(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	for _, col := range m.collectors {
		reg.Unregister(col)
	}
}

func (m *metrics) proposed(err error) {
	outcome := "applied"
	if err != nil {
		outcome = string(kv.AsError(err).Outcome)
	}
	m.proposals.WithLabelValues(outcome).Inc()
}

func (m *metrics) round(r *round) {
	result := "confirmed"
	if r.err != nil {
		result = "failed"
	}
	m.readRounds.WithLabelValues(result).Inc()
	m.readsPerRound.Observe(float64(r.readers))
}
