package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/kv"
)

func TestProposeOnThreeNodes(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, nil)
	l := tc.leader()
	result, timing, err := l.c.Propose(tc.ctx(testPatience), []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("ok:%d:5", timing.Index); result != want {
		t.Fatalf("result %v, want %v", result, want)
	}
	for _, f := range tc.followers(l) {
		if _, _, err := f.c.Propose(tc.ctx(testPatience), []byte("x")); !errors.Is(err, kv.ErrNoLeader) || kv.AsError(err).Outcome != kv.OutcomeNotApplied {
			t.Errorf("propose on a follower: %v", err)
		}
		if _, err := f.c.ReadIndex(tc.ctx(testPatience)); !errors.Is(err, kv.ErrNoLeader) || kv.AsError(err).Outcome != kv.OutcomeNone {
			t.Errorf("read index on a follower: %v", err)
		}
	}
	tc.sameEverywhere()
}

// TestConcurrentProposalsShareEntries checks that many callers need few entries,
// that each gets its own result, and that nobody's is lost or doubled.
func TestConcurrentProposalsShareEntries(t *testing.T) {
	tc := newCluster(t, 3, nil)
	l := tc.leader()
	const clients, each = 64, 20
	before := l.c.LastIndex()
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for j := range each {
				cmd := fmt.Sprintf("%d/%d/%s", i, j, strings.Repeat("x", i))
				result, timing, err := l.c.Propose(context.Background(), []byte(cmd))
				if want := fmt.Sprintf("ok:%d:%d", timing.Index, len(cmd)); err != nil || result != want {
					t.Errorf("%s: %v, %v, want %v", cmd, result, err, want)
				}
			}
		})
	}
	wg.Wait()
	entries := l.c.LastIndex() - before
	t.Logf("%d commands in %d entries", clients*each, entries)
	if entries > clients*each/4 {
		t.Errorf("%d commands took %d entries: they are not shared", clients*each, entries)
	}
	got := l.fsm.applied()
	slices.Sort(got)
	if n := len(slices.Compact(got)); n != len(l.fsm.applied()) {
		t.Errorf("a command was applied twice")
	}
	if n := len(got) - 1; n != clients*each { // one is the leader's
		t.Errorf("%d commands applied, want %d", n, clients*each)
	}
	tc.sameEverywhere()
}

// TestEntriesAreBounded proposes commands around every limit and looks at the log.
func TestEntriesAreBounded(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, nil)
	l := tc.leader()
	var wg sync.WaitGroup
	for _, size := range []int{0, 1, maxBatchBytes - perCommandBytes - 1, maxBatchBytes - perCommandBytes, maxBatchBytes - perCommandBytes + 1,
		maxBatchBytes, maxBatchBytes + 1, MaxEntryBytes, 2 * maxBatchBytes, 2*maxBatchBytes + 1, 8 << 20} {
		wg.Go(func() {
			cmd := bytes.Repeat([]byte{byte(size)}, size)
			result, timing, err := l.c.Propose(context.Background(), cmd)
			if want := fmt.Sprintf("ok:%d:%d", timing.Index, size); err != nil || result != want {
				t.Errorf("%d bytes: %v, %v, want %v", size, result, err, want)
			}
			if !slices.Contains(l.fsm.applied(), string(cmd)) {
				t.Errorf("%d bytes: the command that was applied is another", size)
			}
		})
	}
	wg.Wait()
	first, _ := l.logs.FirstIndex()
	last, _ := l.logs.LastIndex()
	for i := first; i <= last; i++ {
		var e raft.Log
		if err := l.logs.GetLog(i, &e); err != nil {
			t.Fatal(err)
		}
		if len(e.Data) > MaxEntryBytes {
			t.Errorf("entry %d has %d bytes", i, len(e.Data))
		}
	}
	if _, _, err := l.c.Propose(context.Background(), make([]byte, MaxCommandBytes+1)); !errors.Is(err, kv.ErrTooLarge) {
		t.Errorf("too big a command: %v", err)
	}
	if n := l.c.queue.inflight.Load(); n != 0 {
		t.Errorf("%d bytes are still counted as in flight", n)
	}
	tc.sameEverywhere()
}

func TestOutcomeOfRaftErrors(t *testing.T) {
	for _, tt := range []struct {
		err     error
		code    kv.Code
		outcome kv.Outcome
	}{
		{raft.ErrNotLeader, kv.CodeNoLeader, kv.OutcomeNotApplied},
		{raft.ErrEnqueueTimeout, kv.CodeNoLeader, kv.OutcomeNotApplied},
		{raft.ErrLeadershipTransferInProgress, kv.CodeNoLeader, kv.OutcomeNotApplied},
		{raft.ErrLeadershipLost, kv.CodeOutcomeUnknown, kv.OutcomeUnknown},
		{raft.ErrRaftShutdown, kv.CodeOutcomeUnknown, kv.OutcomeUnknown},
		{raft.ErrAbortedByRestore, kv.CodeOutcomeUnknown, kv.OutcomeUnknown},
		{errors.New("disk on fire"), kv.CodeOutcomeUnknown, kv.OutcomeUnknown},
		{context.DeadlineExceeded, kv.CodeOutcomeUnknown, kv.OutcomeUnknown},
		{context.Canceled, kv.CodeOutcomeUnknown, kv.OutcomeUnknown},
	} {
		for what, err := range map[string]error{"proposal": proposalError(tt.err), "change": changeError(tt.err)} {
			if e := kv.AsError(err); e.Code != tt.code || e.Outcome != tt.outcome || !errors.Is(err, tt.err) {
				t.Errorf("%s, %v: %v, outcome %q", what, tt.err, err, e.Outcome)
			}
		}
	}
	if proposalError(nil) != nil || changeError(nil) != nil {
		t.Error("no error became one")
	}
}

// TestLostLeadershipIsUnknown cuts a leader off with a write under way: whatever
// happens to the write, the client must hear "unknown". A write that was not
// proposed yet must hear "not applied", and not be applied.
func TestLostLeadershipIsUnknown(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, nil)
	l := tc.leader()
	tc.net.Isolate(l.id, tc.ids()...)
	const writes = 50
	errs := make([]error, writes)
	var wg sync.WaitGroup
	for i := range writes {
		wg.Go(func() {
			_, _, errs[i] = l.c.Propose(context.Background(), fmt.Appendf(nil, "lost %d", i))
		})
	}
	wg.Wait()
	unknown := 0
	for i, err := range errs {
		if err == nil {
			t.Fatalf("write %d was acknowledged by a leader without followers", i)
		}
		if kv.AsError(err).Outcome == kv.OutcomeUnknown {
			unknown++
		}
	}
	if unknown == 0 {
		t.Error("no write was under way: the test shows nothing")
	}
	tc.leader(l)
	tc.net.Heal()
	tc.sameEverywhere()
	for i, err := range errs {
		if kv.AsError(err).Outcome == kv.OutcomeNotApplied && slices.Contains(l.fsm.applied(), fmt.Sprintf("lost %d", i)) {
			t.Errorf("write %d was promised not to be applied, and was", i)
		}
	}
}

// TestContextEndsInQueueOrInFlight fills the window, so that later writes queue.
func TestContextEndsInQueueOrInFlight(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 1, nil)
	l := tc.leader()
	release := l.fsm.holdApply()
	before := l.c.LastIndex()
	var wg sync.WaitGroup
	for i := range proposeWindow {
		wg.Go(func() {
			_, _, err := l.c.Propose(tc.ctx(testHeartbeat), fmt.Appendf(nil, "flying %d", i))
			if kv.AsError(err).Outcome != kv.OutcomeUnknown || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("in flight: %v", err)
			}
		})
		tc.until("a proposal in flight", func() bool { return l.c.LastIndex() == before+uint64(i)+1 })
	}
	wg.Go(func() {
		_, _, err := l.c.Propose(tc.ctx(testHeartbeat/2), []byte("queued"))
		if kv.AsError(err).Outcome != kv.OutcomeNotApplied || !errors.Is(err, kv.ErrNoLeader) {
			t.Errorf("queued: %v", err)
		}
	})
	wg.Wait()
	release()
	tc.put("after")
	tc.until("all bytes given back", func() bool { return l.c.queue.inflight.Load() == 0 })
	if slices.Contains(l.fsm.applied(), "queued") {
		t.Error("a write that was promised not to be applied was")
	}
	if !slices.Contains(l.fsm.applied(), "flying 0") {
		t.Error("a write in flight was not applied, though nothing prevented it")
	}
}

// holdApply makes the state machine stop before its next batch.
func (f *testFSM) holdApply() (release func()) {
	hold := make(chan struct{})
	f.mu.Lock()
	f.hold = hold
	f.mu.Unlock()
	return func() {
		f.mu.Lock()
		f.hold = nil
		f.mu.Unlock()
		close(hold)
	}
}

func TestInflightBytesAreBounded(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 1, func(_ string, cfg *Config) { cfg.MaxInflightBytes = 1000 })
	l := tc.leader()
	release := l.fsm.holdApply()
	var overloaded, ok atomic.Int32
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			_, _, err := l.c.Propose(context.Background(), make([]byte, 100))
			switch e := kv.AsError(err); {
			case err == nil:
				ok.Add(1)
			case e.Code == kv.CodeOverloaded && e.Outcome == kv.OutcomeNotApplied && e.RetryAfter > 0:
				overloaded.Add(1)
			default:
				t.Errorf("%v", err)
			}
		})
	}
	tc.until("refusals", func() bool { return overloaded.Load() == 20 })
	release()
	wg.Wait()
	if ok.Load() != 10 {
		t.Errorf("%d writes of 100 bytes were admitted, the limit is 1000", ok.Load())
	}
	// A single command beyond the limit passes when it is alone.
	if _, _, err := l.c.Propose(context.Background(), make([]byte, 5000)); err != nil {
		t.Errorf("a lone big command: %v", err)
	}
}

// TestChunkFailureIsNotApplied lets a big command fail before its last part.
func TestChunkFailureIsNotApplied(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, nil)
	l := tc.leader()
	tc.net.Isolate(l.id, tc.ids()...)
	big := bytes.Repeat([]byte("y"), 20*maxBatchBytes) // more than the window of chunks
	_, _, err := l.c.Propose(context.Background(), big)
	if e := kv.AsError(err); e.Code != kv.CodeNoLeader || e.Outcome != kv.OutcomeNotApplied {
		t.Fatalf("%v, outcome %q", err, e.Outcome)
	}
	tc.leader(l)
	tc.net.Heal()
	tc.sameEverywhere()
	if slices.Contains(l.fsm.applied(), string(big)) {
		t.Error("it was applied")
	}
}

// TestStuckFutureHasADeadline: raft's main loop hangs in its log store.
func TestStuckFutureHasADeadline(t *testing.T) {
	t.Parallel()
	var stall stallingLogs
	tc := newCluster(t, 1, func(_ string, cfg *Config) {
		stall.LogStore = cfg.Logs
		cfg.Logs = &stall
	})
	l := tc.leader()
	release := stall.hang()
	defer release()
	start := time.Now()
	_, _, err := l.c.Propose(tc.ctx(testHeartbeat), []byte("stuck"))
	if kv.AsError(err).Outcome != kv.OutcomeUnknown {
		t.Errorf("a write in a store that hangs: %v", err)
	}
	// Another can't even be handed to raft: it waits in raft's queue or in ours.
	_, _, err = l.c.Propose(tc.ctx(testHeartbeat), []byte("behind"))
	if kv.AsError(err).Outcome == kv.OutcomeNone {
		t.Errorf("a write behind it: %v", err)
	}
	if _, err := l.c.ReadIndex(tc.ctx(testHeartbeat)); err != nil {
		t.Errorf("a lone voter needs no messages to confirm a read: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	// Shutting down can't succeed, but ends in time and says so.
	err = l.c.Shutdown(tc.ctx(testHeartbeat))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown with a hanging store: %v", err)
	}
	release()
	tc.nodes = nil
}

type stallingLogs struct {
	raft.LogStore
	mu sync.Mutex
	ch chan struct{}
}

func (s *stallingLogs) hang() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := make(chan struct{})
	s.ch = ch
	return sync.OnceFunc(func() { close(ch) })
}

func (s *stallingLogs) StoreLogs(logs []*raft.Log) error {
	s.mu.Lock()
	ch := s.ch
	s.mu.Unlock()
	if ch != nil {
		<-ch
	}
	return s.LogStore.StoreLogs(logs)
}
