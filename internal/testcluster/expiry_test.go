package testcluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// mortal is a key with a ttl, and what is known of its end.
type mortal struct {
	ttl         time.Duration
	sent, acked time.Time // acked is zero while the write is not acknowledged
	told        time.Time // when a watcher learnt that it expired
}

// mortals are the keys of a test of expiry.
type mortals struct {
	mu   sync.Mutex
	keys map[string]*mortal
}

func (m *mortals) add(key string, ttl time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[key] = &mortal{ttl: ttl, sent: time.Now()}
}

func (m *mortals) acked(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[key].acked = time.Now()
}

func (m *mortals) note(e *eventLine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.keys[e.Key]; k != nil && e.Type == "expire" {
		k.told = time.Now()
	}
}

// waiting counts the keys of at most a minute that were acknowledged and are still there.
func (m *mortals) waiting() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.keys {
		if !k.acked.IsZero() && k.ttl < time.Minute && k.told.IsZero() {
			n++
		}
	}
	return n
}

// TestExpiryKeepsTheTime: no key ends before its time, whatever happens to leaders, nodes
// and the clock of one of them; and each ends.
func TestExpiryKeepsTheTime(t *testing.T) {
	seed := seedOf(t)
	faults := 5
	if testing.Short() {
		faults = 2
	}
	c := Start(t, 3, seed)
	rng := rand.New(rand.NewPCG(seed, 71))
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	wctx, stopWriting := context.WithCancel(ctx)
	defer stopWriting()

	all := &mortals{keys: map[string]*mortal{}}
	put := func(ctx context.Context, n *Node, key string, ttl time.Duration) bool {
		all.add(key, ttl)
		rctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		a, err := c.Do(rctx, n, Request{Method: http.MethodPut, Path: "/v1/kv/" + key + "?timeout=1500ms&ttl=" + ttl.String(), Body: "v"})
		if err != nil || a.Status >= 300 {
			return false
		}
		all.acked(key)
		return true
	}
	// Those that are to be there at the end: a clock that jumps an hour would end them.
	long := func(name string) {
		c.Await(20*time.Second, "a key for most of an hour", func() error {
			if !put(ctx, c.Nodes[0], name, 50*time.Minute) {
				return fmt.Errorf("%s was not written", name)
			}
			return nil
		})
	}
	long("long/before")

	var upTo atomic.Uint64
	watcher := &observer{name: "expiry", query: "prefix=", roams: true, c: c, next: 1, rng: rand.New(rand.NewPCG(seed, 72)), told: all.note}
	var watching, writing sync.WaitGroup
	var watchErr error
	watching.Go(func() { watchErr = watcher.watch(ctx, &upTo) })
	var done atomic.Int64
	for i := range 3 {
		wrng := rand.New(rand.NewPCG(seed, uint64(700+i)))
		writing.Go(func() {
			for n := 0; wctx.Err() == nil; n++ {
				ttl := time.Duration(100+wrng.IntN(2500)) * time.Millisecond
				if put(wctx, c.Nodes[wrng.IntN(3)], fmt.Sprintf("k/%d/%d", i, n), ttl) {
					done.Add(1)
				}
			}
		})
	}
	progress := getOn(c, &done)
	counts := map[string]int{}
	for range faults {
		// One clock is an hour off, in either direction, and the others are right.
		off := c.Nodes[rng.IntN(len(c.Nodes))]
		for _, n := range c.Nodes {
			n.SetClock(0)
		}
		off.SetClock([]time.Duration{time.Hour, -time.Hour}[rng.IntN(2)])
		progress(20)
		counts[fault(t, c, rng, progress)]++
		c.Net.Heal()
		c.AwaitReady(30 * time.Second)
		progress(20)
	}
	stopWriting()
	writing.Wait()
	long("long/after")
	c.Await(60*time.Second, "all keys to expire", func() error {
		if n := all.waiting(); n > 0 {
			return fmt.Errorf("%d are still there", n)
		}
		return nil
	})
	for _, key := range []string{"long/before", "long/after"} {
		for _, n := range c.Nodes {
			if a, err := c.Do(ctx, n, Request{Method: http.MethodGet, Path: "/v1/kv/" + key}); err != nil || a.Status != http.StatusOK {
				t.Errorf("%s at %s: %d %s: %v", key, n.ID, a.Status, a.Body, err)
			}
		}
	}
	upTo.Store(uint64(c.Nodes[0].Running().Revision()))
	watching.Wait()
	if watchErr != nil {
		t.Fatal(watchErr)
	}

	ended, latest := 0, time.Duration(0)
	for key, k := range all.keys {
		if k.told.IsZero() {
			continue // never written, or long
		}
		ended++
		if early := k.sent.Add(k.ttl).Sub(k.told); early > 0 {
			t.Errorf("%s of %v ended %v early", key, k.ttl, early)
		}
		if !k.acked.IsZero() {
			latest = max(latest, k.told.Sub(k.acked.Add(k.ttl)))
		}
	}
	if ended < 20*faults {
		t.Errorf("only %d keys ended", ended)
	}
	t.Logf("%d keys ended, the latest %v after its time; faults: %v", ended, latest, counts)
}
