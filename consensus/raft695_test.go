package consensus

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gometrics "github.com/hashicorp/go-metrics"
	"github.com/hashicorp/raft"
)

// parkingSink is a metrics sink that parks raft's main goroutine right after it
// took a proposal and before it stamps it with the term, as the scheduler or a
// paused machine may at any time. raft reports there once a second.
type parkingSink struct {
	gometrics.BlackholeSink
	frame   string // file:line of the place in raft.go
	places  atomic.Int32
	caught  chan struct{}
	release atomic.Pointer[chan struct{}]
}

func (p *parkingSink) AddSampleWithLabels(key []string, _ float32, _ []gometrics.Label) {
	if p.places.Load() <= 0 || !strings.HasSuffix(strings.Join(key, "."), "raft.thread.main.saturation") {
		return
	}
	stack := make([]byte, 1<<14)
	stack = stack[:runtime.Stack(stack, false)]
	if !strings.Contains(string(stack), p.frame) || p.places.Add(-1) < 0 {
		return
	}
	release := *p.release.Load()
	p.caught <- struct{}{}
	<-release
}

// raftApplyFrame finds the line of raft.go where the leader's loop has just taken a
// proposal, so that another version of raft can't make the test blind.
func raftApplyFrame(t *testing.T) string {
	t.Helper()
	pc := runtime.FuncForPC(reflect.ValueOf((*raft.Raft).Apply).Pointer())
	file, _ := pc.FileLine(pc.Entry())
	source, err := os.ReadFile(strings.TrimSuffix(file, "api.go") + "raft.go")
	if err != nil {
		t.Fatal(err)
	}
	found := ""
	lines := strings.Split(string(source), "\n")
	inLeader := false
	for i, line := range lines {
		inLeader = inLeader || strings.HasPrefix(line, "func (r *Raft) leaderLoop()")
		if inLeader && strings.Contains(line, "case newLog := <-r.applyCh:") {
			if !strings.Contains(lines[i+1], "mainThreadSaturation.working()") {
				t.Fatal("raft's leader loop changed; find a new place to park it")
			}
			found = fmt.Sprintf("raft.go:%d", i+2)
			break
		}
	}
	if found == "" {
		t.Fatal("raft's leader loop changed; find a new place to park it")
	}
	return found
}

// TestRaft695 is the regression test for hashicorp/raft #695, open in v1.8.0: a
// deposed leader logs a client's write under its successor's term, and replicas
// differ for ever at the same index. It parks the leader's main goroutine with a
// write in its hands, cuts it off, lets another one be elected, heals, so that the
// new leader's heartbeats arrive, and lets it go on.
//
// Invariant 21. The build mutant_heartbeat_fast_path must fail this test.
func TestRaft695(t *testing.T) {
	const atOnce = 10 // clusters, because raft reports to the sink only once a second
	batches := 2
	if testing.Short() {
		batches = 1
	}
	sink := &parkingSink{frame: raftApplyFrame(t), caught: make(chan struct{})}
	conf := gometrics.DefaultConfig("raft695")
	conf.EnableRuntimeMetrics, conf.EnableHostname = false, false
	if _, err := gometrics.NewGlobal(conf, sink); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = gometrics.NewGlobal(conf, &gometrics.BlackholeSink{}) }()
	diverged := 0
	for batch := range batches {
		t.Run(fmt.Sprint(batch), func(t *testing.T) { diverged += divergences(t, sink, atOnce) })
		if t.Failed() {
			return
		}
	}
	if diverged > 0 {
		t.Fatalf("replicas differ in %d of %d runs", diverged, batches*atOnce)
	}
}

// divergences runs n clusters side by side and counts those that diverge.
func divergences(t *testing.T, sink *parkingSink, n int) (diverged int) {
	clusters := make([]*testCluster, n)
	leaders := make([]*testNode, n)
	for i := range clusters {
		clusters[i] = newCluster(t, 3, nil)
	}
	for _, tc := range clusters {
		tc.leader()
	}
	release := make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	sink.release.Store(&release)
	sink.places.Store(int32(n))
	ctx, stop := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	defer func() {
		sink.places.Store(0)
		free()
		stop()
		writers.Wait()
	}()
	for _, tc := range clusters { // a client of each
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				_, _, _ = tc.nodes[i%3].c.Propose(ctx, fmt.Appendf(nil, "w%d", i))
				if i%3 == 2 {
					wait(ctx, 2*time.Millisecond)
				}
			}
		})
	}
	timeout := time.After(testPatience)
	for range n {
		select {
		case <-sink.caught:
		case <-timeout:
			t.Fatal("a leader's main goroutine was not caught")
		}
	}
	terms := make([]uint64, n)
	for i, tc := range clusters {
		leaders[i] = tc.leader() // its goroutine is parked: it can't have changed since
		terms[i] = leaders[i].c.Term()
		tc.net.Isolate(leaders[i].id, tc.ids()...)
	}
	for i, tc := range clusters {
		next := tc.leader(leaders[i])
		if _, _, err := next.c.Propose(tc.ctx(testPatience), []byte("by the new leader")); err != nil {
			t.Error(err)
		}
		tc.net.Heal()
	}
	// Until the new leaders' heartbeats changed the old ones' terms, which they must
	// not while those are parked, or surely would have.
	deadline := time.Now().Add(2 * testHeartbeat)
	for i, tc := range clusters {
		tc.until("heartbeats", func() bool { return leaders[i].c.Term() != terms[i] || time.Now().After(deadline) })
	}
	free()
	for _, tc := range clusters {
		if !agrees(tc) {
			diverged++
		}
	}
	return diverged
}

// agrees says whether all nodes of a cluster have the same entries.
func agrees(tc *testCluster) bool {
	for i := range 3 {
		tc.put(fmt.Sprintf("after %d", i))
	}
	by := tc.put("mark")
	index, err := by.c.ReadIndex(tc.ctx(testPatience))
	if err != nil {
		tc.t.Fatal(err)
	}
	for _, n := range tc.nodes {
		if err := n.fsm.WaitDelivered(tc.ctx(testPatience), index); err != nil {
			tc.t.Fatal(err)
		}
	}
	for i := uint64(1); i <= index; i++ {
		a, b, c := tc.nodes[0].fsm.entry(i), tc.nodes[1].fsm.entry(i), tc.nodes[2].fsm.entry(i)
		if a != b || b != c {
			tc.t.Logf("index %d: %q, %q, %q", i, a, b, c)
			return false
		}
	}
	return true
}
