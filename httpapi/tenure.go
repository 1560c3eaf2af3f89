package httpapi

import (
	"context"
	"sync/atomic"
	"time"
)

// deposedGrace is how long a forward still waits for its leader's answer once another
// one leads: a leader that hands over in order answers within it, one that is frozen
// or cut off would keep the client for its whole timeout.
const deposedGrace = 500 * time.Millisecond

// tenure is one leader's time: ctx ends a little after another leads.
type tenure struct {
	addr   string
	ctx    context.Context
	cancel context.CancelFunc
}

// tenures follows who leads. The zero value knows of nobody.
type tenures struct{ cur atomic.Pointer[tenure] }

// of returns the tenure of the leader at addr, nil if that is not known to lead now.
func (t *tenures) of(addr string) *tenure {
	if c := t.cur.Load(); c != nil && c.addr == addr {
		return c
	}
	return nil
}

// watch follows c until stop is closed.
func (t *tenures) watch(c Cluster, stop <-chan struct{}) {
	var cur *tenure
	for {
		changed := c.LeaderChanged()
		if _, addr, ok := c.Leader(); ok && (cur == nil || cur.addr != addr) {
			if cur != nil {
				time.AfterFunc(deposedGrace, cur.cancel)
			}
			cur = &tenure{addr: addr}
			cur.ctx, cur.cancel = context.WithCancel(context.Background())
			t.cur.Store(cur)
		}
		select {
		case <-changed:
		case <-stop:
			if cur != nil {
				time.AfterFunc(deposedGrace, cur.cancel)
			}
			return
		}
	}
}
