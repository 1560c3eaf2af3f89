package faulttest

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/settkv/sett/internal/blackbox"
	"github.com/settkv/sett/internal/histories"
)

// forHistories is the cluster as the recorders of histories work on it.
func (c *cluster) forHistories() histories.Cluster {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	c.t.Cleanup(client.CloseIdleConnections)
	return histories.Cluster{Nodes: len(c.nodes), Do: func(ctx context.Context, i int, r histories.Request) (histories.Answer, error) {
		req, err := http.NewRequestWithContext(ctx, r.Method, c.urls[i]+r.Path, strings.NewReader(r.Body))
		if err != nil {
			return histories.Answer{}, err
		}
		if r.Header != nil {
			req.Header = r.Header
		}
		req.GetBody = nil // the transport must not repeat a request by itself
		resp, err := client.Do(req)
		if err != nil {
			return histories.Answer{}, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return histories.Answer{Status: resp.StatusCode, Header: resp.Header, Body: b}, err
	}}
}

// pause stops a process in the middle of whatever it does, for a time; it knows nothing
// of it and goes on as if it had not been.
func (n *node) pause(t *testing.T, d time.Duration) {
	t.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Here time is the fault: how long it lasts.
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
	if err := n.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// TestFaultPausesAreLinearizable: while leaders and followers are stopped in their tracks
// and go on later, and leaders are killed, single keys and transactions over several are
// one history each.
func TestFaultPausesAreLinearizable(t *testing.T) {
	rounds := 3
	if inCI(t) {
		rounds = 10
	}
	seed := uint64(setting(t, "SETT_FAULT_SEED", int(time.Now().UnixNano()>>10)))
	t.Logf("seed %d (SETT_FAULT_SEED=%d repeats the plan)", seed, seed)
	rng := rand.New(rand.NewPCG(seed, 81))
	c := newCluster(t)
	on := c.forHistories()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	keys, transactions := histories.NewRecorder(), histories.NewRecorder()
	var wg sync.WaitGroup
	var number atomic.Int64
	for i := range 4 {
		keyRand, txnRand := rand.New(rand.NewPCG(seed, uint64(800+i))), rand.New(rand.NewPCG(seed, uint64(900+i)))
		wg.Go(func() { keys.RegisterWorker(ctx, on, keyRand, &number) })
		wg.Go(func() { transactions.TrioWorker(ctx, on, txnRand, &number) })
	}
	progress := func(n int64) {
		t.Helper()
		wantKeys, wantTxns := keys.Done.Load()+n, transactions.Done.Load()+n
		c.must(blackbox.Await(c.within(40*time.Second), "operations", func(context.Context) error {
			if k, x := keys.Done.Load(), transactions.Done.Load(); k < wantKeys || x < wantTxns {
				return fmt.Errorf("%d of %d and %d of %d", k, wantKeys, x, wantTxns)
			}
			return nil
		}))
	}
	counts := map[string]int{}
	progress(50)
	for range rounds {
		leader := c.leader()
		d := time.Duration(300+rng.IntN(3000)) * time.Millisecond
		switch p := rng.IntN(10); {
		case p < 6:
			counts["leader paused"]++
			leader.pause(t, d)
		case p < 8:
			counts["follower paused"]++
			others := make([]*node, 0, len(c.nodes))
			for _, n := range c.nodes {
				if n != leader {
					others = append(others, n)
				}
			}
			others[rng.IntN(len(others))].pause(t, d)
		default:
			counts["leader killed"]++
			leader.kill()
			progress(20)
			leader.start(t)
		}
		c.must(blackbox.AwaitReady(c.within(40*time.Second), c.urls...))
		progress(50)
	}
	cancel()
	wg.Wait()
	c.mustRun()
	for _, h := range []struct {
		name  string
		rec   *histories.Recorder
		model porcupine.Model
	}{{"keys", keys, histories.Registers.ToModel()}, {"transactions", transactions, histories.Trios.ToModel()}} {
		ops := h.rec.Operations()
		if result := porcupine.CheckOperationsTimeout(h.model, ops, 2*time.Minute); result != porcupine.Ok {
			t.Errorf("%s: the history is %s", h.name, result)
		}
		t.Logf("%s: %d operations, %d with a known outcome", h.name, len(ops), h.rec.Done.Load())
	}
	_, err := blackbox.AwaitEqual(c.within(30*time.Second), c.urls)
	c.must(err)
	t.Logf("faults: %v", counts)
}
