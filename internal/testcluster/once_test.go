package testcluster

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// incr is one increment under its own idempotency key, or one pin, and what was said of it.
type incr struct {
	key      string
	pin      bool
	answered bool
	body     string
	revision string
}

// incrementer does increments and repeats each until it is answered, some of them once
// more.
type incrementer struct {
	c        *Cluster
	rng      *rand.Rand
	replays  *atomic.Int64
	done     *atomic.Int64
	problems []string
}

func (w *incrementer) do(ctx context.Context, in *incr) {
	again := w.rng.IntN(6) == 0
	req := Request{Method: http.MethodPost, Path: "/v1/kv/counter?op=incr&timeout=1s", Header: http.Header{"Idempotency-Key": {in.key}}}
	if in.pin {
		req.Path, req.Body = "/v1/pins?timeout=1s", `{"revision":1,"ttl":"1h"}`
	}
	for ctx.Err() == nil {
		rctx, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
		n := w.c.Nodes[w.rng.IntN(len(w.c.Nodes))]
		a, err := w.c.Do(rctx, n, req)
		cancel()
		if err != nil || a.Status != http.StatusOK {
			if err == nil && a.Status < 500 && a.Status != http.StatusTooManyRequests {
				w.problems = append(w.problems, fmt.Sprintf("%s: %d %s", in.key, a.Status, a.Body))
				return
			}
			continue
		}
		replayed := a.Header.Get("Sett-Replayed") == "true"
		if replayed {
			w.replays.Add(1)
		}
		body, revision := strings.TrimSpace(string(a.Body)), a.Header.Get("Sett-Revision")
		if in.answered {
			if !replayed || body != in.body || (revision != in.revision && !in.pin) {
				w.problems = append(w.problems, fmt.Sprintf("%s: %s at revision %s (replayed: %v), was %s at %s", in.key, body, revision, replayed, in.body, in.revision))
			}
			return
		}
		in.answered, in.body, in.revision = true, body, revision
		w.done.Add(1)
		if !again {
			return
		}
	}
}

// pinEach is among how many requests of TestExactlyOnce there is one pin.
const pinEach = 21

// TestExactlyOnce increments a counter, and makes some pins, under idempotency keys while leaders are killed
// and cut off. Everybody repeats whatever was not answered, some what was: it counts
// exactly, and a repeat is answered as the first was.
func TestExactlyOnce(t *testing.T) {
	seed := seedOf(t)
	counted, faults, wantReplays := 1000, 10, int64(50)
	if testing.Short() {
		counted, faults, wantReplays = 300, 3, 15
	}
	total := counted * pinEach / (pinEach - 1)
	c := Start(t, 3, seed)
	if a, err := c.Do(context.Background(), c.Nodes[0], Request{Method: http.MethodPut, Path: "/v1/kv/first", Body: "v"}); err != nil || a.Status != http.StatusCreated {
		t.Fatalf("%+v, %v", a, err)
	}
	rng := rand.New(rand.NewPCG(seed, 31))
	incrs := make([]incr, total)
	var next, done, replays atomic.Int64
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	workers := make([]*incrementer, 6)
	// What is held back keeps the load on while there are faults.
	gate := make(chan struct{}, total)
	for i := range workers {
		w := &incrementer{c: c, rng: rand.New(rand.NewPCG(seed, uint64(300+i))), replays: &replays, done: &done}
		workers[i] = w
		wg.Go(func() {
			for {
				select {
				case <-gate:
				case <-ctx.Done():
					return
				}
				i := next.Add(1) - 1
				if i >= int64(total) {
					return
				}
				incrs[i].key, incrs[i].pin = fmt.Sprintf("incr %d", i), i%pinEach == pinEach-1
				w.do(ctx, &incrs[i])
			}
		})
	}
	each := total / (faults + 1)
	release := func(n int) {
		for range n {
			gate <- struct{}{}
		}
	}
	counts := map[string]int{}
	progress := getOn(c, &done)
	for range faults {
		release(each)
		counts[fault(t, c, rng, func(n int64) { progress(min(n, 10)) })]++
		c.Net.Heal()
		c.AwaitReady(30 * time.Second)
	}
	release(total - faults*each)
	close(gate)
	wg.Wait()
	if ctx.Err() != nil {
		t.Fatal("the increments were not done in time")
	}
	for _, w := range workers {
		for _, p := range w.problems {
			t.Error(p)
		}
	}
	numbers := map[string]bool{}
	pins := map[string]bool{}
	for _, in := range incrs {
		if !in.answered || numbers[in.body] {
			t.Errorf("%+v: not answered, or as another was", in)
		}
		numbers[in.body] = true
		var pin struct{ ID string }
		if in.pin && json.Unmarshal([]byte(in.body), &pin) == nil {
			pins[pin.ID] = true
		}
	}
	a, err := c.Do(context.Background(), c.Nodes[0], Request{Method: http.MethodGet, Path: "/v1/kv/counter"})
	if err != nil || string(a.Body) != fmt.Sprint(counted) {
		t.Errorf("the counter is at %s after %d increments: %v", a.Body, counted, err)
	}
	held, err := c.Do(context.Background(), c.Nodes[0], Request{Method: http.MethodPost, Path: "/v1/compact", Body: `{"revision":2}`})
	var compaction struct {
		HeldBy []string `json:"held_by"`
	}
	if err != nil || json.Unmarshal(held.Body, &compaction) != nil || len(pins) != total-counted || len(compaction.HeldBy) != len(pins) {
		t.Errorf("%d pins were made and %d answered, of %d: %v", len(compaction.HeldBy), len(pins), total-counted, err)
	}
	for _, id := range compaction.HeldBy {
		if !pins[id] {
			t.Errorf("%s was made and nobody was told", id)
		}
	}
	if replays.Load() < wantReplays {
		t.Errorf("only %d replays were seen, want %d at least", replays.Load(), wantReplays)
	}
	t.Logf("faults: %v; counter %s, %d pins, %d replays", counts, a.Body, len(pins), replays.Load())
	sameContent(t, c)
}
