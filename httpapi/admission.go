package httpapi

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/settkv/sett/kv"
)

// requestWeight is what any write weighs besides its body: key, headers, command
// and bookkeeping on the way through the proposal queue.
const requestWeight = 1 << 10

// admission bounds the bytes at work in this node. It never queues: a request that
// doesn't fit is told to come back, so that overload costs the node nothing.
type admission struct {
	capacity int64
	gauge    prometheus.Gauge

	mu   sync.Mutex
	used int64
}

func newAdmission(capacity int64, gauge prometheus.Gauge) *admission {
	return &admission{capacity: capacity, gauge: gauge}
}

// room reports whether n more bytes would fit for a request that holds held bytes.
// A request bigger than the whole capacity fits when it is alone.
func (a *admission) room(n, held int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.roomLocked(n, held)
}

func (a *admission) roomLocked(n, held int64) bool {
	return a.used+n <= a.capacity || a.used == held
}

// grant is one request's share of the bytes at work. It is used by one goroutine.
type grant struct {
	a    *admission
	held int64
}

// grow takes n more bytes, or fails with overloaded.
func (g *grant) grow(n int64) error {
	g.a.mu.Lock()
	ok := g.a.roomLocked(n, g.held)
	if ok {
		g.a.used += n
		g.held += n
	}
	g.a.mu.Unlock()
	if !ok {
		return errOverloaded()
	}
	g.a.gauge.Add(float64(n))
	return nil
}

// release gives everything back; it may be called again.
func (g *grant) release() {
	if g.held == 0 {
		return
	}
	g.a.mu.Lock()
	g.a.used -= g.held
	g.a.mu.Unlock()
	g.a.gauge.Sub(float64(g.held))
	g.held = 0
}

func errOverloaded() *kv.Error {
	e := kv.NotApplied(kv.CodeOverloaded, "this node has max-inflight-bytes of requests at work; try again after the Retry-After header's seconds, or another node")
	e.RetryAfter = retryAfterDefault
	return e
}
