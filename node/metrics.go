package node

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/settkv/sett/kv"
)

// metrics are this package's: gauges of the node's state, and the phases that its
// storage goes through, which the crash tests aim at.
type metrics struct {
	phases *prometheus.GaugeVec
	total  *prometheus.CounterVec

	mu     sync.Mutex
	active map[string]int
}

func newMetrics(n *Node, reg *prometheus.Registry) *metrics {
	m := &metrics{
		phases: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sett_phase", Help: "1 while storage work of this phase is going on.",
		}, []string{"phase"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sett_phase_total", Help: "How often storage work of this phase has begun.",
		}, []string{"phase"}),
		active: map[string]int{},
	}
	for _, p := range []string{"append", "apply", "snapshot", "install", "gc"} {
		m.phases.WithLabelValues(p).Set(0)
		m.total.WithLabelValues(p).Add(0)
	}
	reg.MustRegister(m.phases, m.total, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string, fn func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if !n.started.Load() {
				return 0
			}
			return fn()
		}))
	}
	counter := func(phase, help string, fn func() float64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "sett_" + phase + "_total", Help: help,
		}, func() float64 {
			if !n.started.Load() {
				return 0
			}
			return fn()
		}))
	}
	gauge("sett_revision", "Newest revision of the data on this node.", func() float64 { return float64(n.fsm.Info().Revision) })
	gauge("sett_oldest_revision", "Oldest revision that is kept.", func() float64 { return float64(n.fsm.Info().Oldest) })
	gauge("sett_keys", "Live keys.", func() float64 { return float64(n.fsm.Info().Keys) })
	gauge("sett_applied_index", "Newest log index whose effects are in the data.", func() float64 { return float64(n.fsm.Info().Applied) })
	gauge("sett_commit_index", "Commit index as this node knows it.", func() float64 { return float64(n.consensus.CommitIndex()) })
	gauge("sett_term", "Raft term.", func() float64 { return float64(n.consensus.Term()) })
	gauge("sett_is_leader", "1 on the leader.", func() float64 {
		if n.role() == kv.RoleLeader {
			return 1
		}
		return 0
	})
	gauge("sett_data_bytes", "Bytes of the data store on disk.", func() float64 {
		lsm, vlog := n.store.Engine().Sizes()
		return float64(lsm + vlog)
	})
	gauge("sett_log_bytes", "Bytes of the log store on disk.", func() float64 { return float64(n.logs.DiskBytes()) })
	counter("log_appends", "Write transactions of the Raft log.", func() float64 { return float64(n.logs.Stats().Log.Writes) })
	counter("log_files_collected", "Value-log files of the Raft log that were given back.", func() float64 {
		return float64(n.logs.Stats().Log.CollectedFiles)
	})
	return m
}

// phase notes that storage work begins or ends. Work of one phase may overlap.
func (m *metrics) phase(name string, begin bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if begin {
		m.active[name]++
		m.total.WithLabelValues(name).Inc()
	} else {
		m.active[name]--
	}
	v := 0.0
	if m.active[name] > 0 {
		v = 1
	}
	m.phases.WithLabelValues(name).Set(v)
}
