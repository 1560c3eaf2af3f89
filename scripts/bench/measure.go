package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"
)

// operation is one kind of request.
type operation struct {
	name, method, query string
}

var (
	put             = operation{"put", http.MethodPut, ""}
	getLinearizable = operation{"get, linearizable", http.MethodGet, ""}
	getLeader       = operation{"get, leader", http.MethodGet, "?consistency=leader"}
	getStale        = operation{"get, stale", http.MethodGet, "?consistency=stale"}
)

type measurement struct {
	op      operation
	urls    []string
	clients int
	options options
}

type result struct {
	took      time.Duration
	latencies []time.Duration // sorted
	errors    int
}

func (r result) perSecond() float64 { return float64(len(r.latencies)) / r.took.Seconds() }

// quantile returns the latency that a part q of the requests did not exceed.
func (r result) quantile(q float64) time.Duration {
	if len(r.latencies) == 0 {
		return 0
	}
	i := min(int(q*float64(len(r.latencies))), len(r.latencies)-1)
	return r.latencies[i].Round(time.Microsecond)
}

// run lets all clients work for the duration. Reads of keys that were never
// written are answers too.
func (m measurement) run(ctx context.Context) result {
	ctx, cancel := context.WithTimeout(ctx, m.options.duration)
	defer cancel()
	parts := make([]result, m.clients)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range parts {
		wg.Go(func() { parts[i] = m.client(ctx, i) })
	}
	wg.Wait()
	all := result{took: time.Since(began)}
	for _, p := range parts {
		all.latencies = append(all.latencies, p.latencies...)
		all.errors += p.errors
	}
	slices.Sort(all.latencies)
	return all
}

func (m measurement) client(ctx context.Context, number int) result {
	c := newClient(m.urls[number%len(m.urls)])
	defer c.close()
	rng := rand.New(rand.NewPCG(uint64(number), 1))
	value := make([]byte, m.options.valueBytes)
	var r result
	for ctx.Err() == nil {
		for i := range value {
			value[i] = byte('a' + rng.IntN(26))
		}
		target := fmt.Sprintf("/v1/kv/bench/%08d%s", rng.IntN(m.options.keys), m.op.query)
		began := time.Now()
		err := c.do(m.op.method, target, value)
		took := time.Since(began)
		switch {
		case ctx.Err() != nil:
			// Cut off by the end, or finished after it.
		case err != nil:
			r.errors++
		default:
			r.latencies = append(r.latencies, took)
		}
	}
	return r
}
