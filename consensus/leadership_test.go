package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/kv"
)

// TestTransferUnderLoadLosesNothing moves leadership around while clients write on
// whichever node leads: no acknowledged write is missing, no refused one is there.
func TestTransferUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, nil)
	tc.leader()
	ctx, stop := context.WithCancel(context.Background())
	var mu sync.Mutex
	acked, refused := map[string]bool{}, map[string]bool{}
	var wg sync.WaitGroup
	for client := range 8 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				cmd := fmt.Sprintf("%d/%d", client, i)
				op, cancel := context.WithTimeout(context.Background(), testPatience)
				_, _, err := tc.nodes[i%3].c.Propose(op, []byte(cmd))
				cancel()
				mu.Lock()
				switch {
				case err == nil:
					acked[cmd] = true
				case kv.AsError(err).Outcome == kv.OutcomeNotApplied:
					refused[cmd] = true
				}
				mu.Unlock()
				if err != nil {
					wait(ctx, time.Millisecond)
				}
			}
		})
	}
	moved := 0
	for i := range 6 {
		tc.until("some writes in between", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(acked) >= 100*(i+1)
		})
		from := tc.leader()
		to := tc.followers(from)[i%2]
		target := to.id
		if i == 5 {
			target = "" // whoever is furthest
		}
		err := from.c.Transfer(tc.ctx(testPatience), target)
		if err != nil {
			t.Logf("transfer to %q: %v", target, err)
			continue
		}
		if from.c.IsLeader() && target != "" {
			t.Errorf("%s still leads after the transfer to %s", from.id, to.id)
		}
		moved++
	}
	stop()
	wg.Wait()
	t.Logf("%d transfers, %d writes acknowledged, %d refused", moved, len(acked), len(refused))
	if moved < 3 {
		t.Error("the test shows little")
	}
	tc.sameEverywhere()
	count := map[string]int{}
	for _, cmd := range tc.nodes[0].fsm.applied() {
		count[cmd]++
	}
	for cmd := range acked {
		if count[cmd] != 1 {
			t.Errorf("acknowledged write %s was applied %d times", cmd, count[cmd])
		}
	}
	for cmd := range refused {
		if count[cmd] != 0 {
			t.Errorf("write %s was promised not to be applied, and was", cmd)
		}
	}
}

func TestTransferRefusals(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, nil)
	l := tc.leader()
	tc.start("reader")
	if err := l.c.AddNonvoter(tc.ctx(testPatience), "reader", "reader:7000"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		by   *testNode
		to   string
		want error
	}{
		{l, "reader", kv.ErrConflict},
		{l, "nobody", kv.ErrNotFound},
		{tc.followers(l)[0], "", kv.ErrNoLeader},
		{l, l.id, nil},
	} {
		if err := tt.by.c.Transfer(tc.ctx(testPatience), tt.to); !errors.Is(err, tt.want) {
			t.Errorf("transfer by %s to %q: %v", tt.by.id, tt.to, err)
		}
	}
	l.c.transferMu.Lock()
	if err := l.c.Transfer(tc.ctx(testPatience), ""); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("a second transfer at a time: %v", err)
	}
	l.c.transferMu.Unlock()
}

// TestStuckTransferIsFatal: raft refuses everything for ever after some interrupted
// transfers (#696). Only a new process helps.
func TestStuckTransferIsFatal(t *testing.T) {
	t.Parallel()
	var fatal atomic.Int32
	tc := newCluster(t, 1, func(_ string, cfg *Config) {
		cfg.ElectionTimeout = testHeartbeat
		cfg.OnFatal = func(error) { fatal.Add(1) }
	})
	l := tc.leader()
	l.c.noteTransferState(raft.ErrLeadershipTransferInProgress)
	l.c.noteTransferState(nil) // it ended
	l.c.noteTransferState(raft.ErrLeadershipTransferInProgress)
	if fatal.Load() != 0 {
		t.Fatal("fatal at once")
	}
	tc.until("fatal", func() bool {
		l.c.noteTransferState(raft.ErrLeadershipTransferInProgress)
		return fatal.Load() > 0
	})
	l.c.noteTransferState(raft.ErrLeadershipTransferInProgress)
	if n := fatal.Load(); n != 1 {
		t.Errorf("fatal %d times", n)
	}
}

// TestLeadershipEvents: OnLeadership alternates, true comes with a ready term, and
// LeaderChanged fires for each node.
func TestLeadershipEvents(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	events := map[string][]bool{}
	tc := newCluster(t, 3, func(id string, cfg *Config) {
		cfg.OnLeadership = func(leader bool, term uint64) {
			mu.Lock()
			defer mu.Unlock()
			if n := len(events[id]); n > 0 && events[id][n-1] == leader || n == 0 && !leader {
				t.Errorf("%s: leader=%v out of order after %v", id, leader, events[id])
			}
			if term == 0 {
				t.Error("term 0")
			}
			events[id] = append(events[id], leader)
		}
	})
	l := tc.leader()
	var wg sync.WaitGroup
	for _, n := range tc.nodes {
		tc.until("everybody knows the leader", func() bool { return n.c.Leader() == l.id })
		changed := n.c.LeaderChanged()
		wg.Go(func() {
			select {
			case <-changed:
			case <-time.After(testPatience):
				t.Errorf("%s saw no change", n.id)
			}
		})
	}
	if err := l.c.Transfer(tc.ctx(testPatience), ""); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	next := tc.leader(l)
	tc.until("both told", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Equal(events[l.id], []bool{true, false}) && slices.Equal(events[next.id], []bool{true})
	})
}

// TestReadinessWaitsForLeaderCommand: before a command of the term is applied, no
// client command and no read passes.
func TestReadinessWaitsForLeaderCommand(t *testing.T) {
	t.Parallel()
	var allow atomic.Bool
	var asked atomic.Int32
	tc := newCluster(t, 1, func(_ string, cfg *Config) {
		cfg.LeaderCommand = func(context.Context, uint64) ([]byte, error) {
			asked.Add(1)
			if !allow.Load() {
				return nil, errors.New("not yet")
			}
			return []byte("lead"), nil
		}
	})
	n := tc.nodes[0]
	tc.until("the leader command is retried", func() bool { return asked.Load() >= 2 })
	if !n.c.IsLeader() {
		t.Fatal("does not lead")
	}
	if _, ok := n.c.Ready(); ok {
		t.Error("ready without its command")
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := n.c.Propose(short, []byte("early")); kv.AsError(err).Outcome != kv.OutcomeNotApplied {
		t.Errorf("propose before the term is ready: %v", err)
	}
	if _, err := n.c.ReadIndex(short); !errors.Is(err, kv.ErrNoLeader) {
		t.Errorf("read before the term is ready: %v", err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, _, err := n.c.Propose(tc.ctx(testPatience), []byte("patient"))
		waiting <- err
	}()
	allow.Store(true)
	if err := <-waiting; err != nil {
		t.Errorf("a write that waits for readiness: %v", err)
	}
	if got := n.fsm.applied(); !slices.Equal(got, []string{"lead", "patient"}) {
		t.Errorf("applied %q", got)
	}
}

// TestShutdownHandsOver: a leader that leaves makes another one lead within far less
// than an election timeout, and calls after it fail at once.
func TestShutdownHandsOver(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, func(_ string, cfg *Config) {
		cfg.HeartbeatTimeout, cfg.LeaseTimeout = 1200*time.Millisecond, 600*time.Millisecond
	})
	l := tc.leader()
	start := time.Now()
	tc.stop(l)
	tc.stop(l) // again: the same
	next := tc.leader(l)
	if took := time.Since(start); took > 1200*time.Millisecond {
		t.Errorf("the next leader was ready after %v", took)
	}
	if _, _, err := next.c.Propose(tc.ctx(testPatience), []byte("x")); err != nil {
		t.Error(err)
	}
	if _, _, err := l.c.Propose(context.Background(), []byte("x")); kv.AsError(err).Outcome != kv.OutcomeNotApplied {
		t.Errorf("propose after shutdown: %v", err)
	}
	if _, err := l.c.ReadIndex(context.Background()); !errors.Is(err, kv.ErrNoLeader) {
		t.Errorf("read after shutdown: %v", err)
	}
	if _, err := l.c.Snapshot(context.Background()); err == nil {
		t.Error("snapshot after shutdown")
	}
}

func TestMembership(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, nil)
	l := tc.leader()
	tc.put("x")
	ctx := tc.ctx(testPatience)
	fourth := tc.start("n3")
	if fourth.c.HasState() || !l.c.HasState() {
		t.Error("HasState is wrong")
	}
	if err := l.c.AddNonvoter(ctx, "n3", tc.nodes[0].id+":7000"); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("an address twice: %v", err)
	}
	for _, missing := range []error{l.c.Remove(ctx, "nobody"), l.c.Demote(ctx, "nobody")} {
		if !errors.Is(missing, kv.ErrNotFound) {
			t.Errorf("%v", missing)
		}
	}
	f := tc.followers(l)[0]
	if err := f.c.AddNonvoter(ctx, "n3", "n3:7000"); !errors.Is(err, kv.ErrNoLeader) {
		t.Errorf("a change by a follower: %v", err)
	}
	if err := l.c.AddNonvoter(ctx, "n3", "n3:7000"); err != nil {
		t.Fatal(err)
	}
	if got := l.c.Configuration(); len(got) != 4 || got[3] != (kv.Server{ID: "n3", Addr: "n3:7000"}) {
		t.Errorf("%+v", got)
	}
	tc.until("n3 caught up", func() bool {
		m, ok := l.c.Match("n3")
		return ok && m >= l.c.LastIndex()
	})
	if at, ok := l.c.LastContact("n3"); !ok || time.Since(at) > testPatience {
		t.Errorf("last contact %v, %v", at, ok)
	}
	for _, step := range []error{
		l.c.AddVoter(ctx, "n3", "n3:7000"), l.c.Demote(ctx, "n3"), l.c.AddVoter(ctx, "n3", "n3:7000"), l.c.Remove(ctx, f.id),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	if err := l.c.Bootstrap([]kv.Server{{ID: l.id, Addr: "x", Voter: true}}); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("a second bootstrap: %v", err)
	}
	// Without a quorum a change can't be committed: its fate is unknown.
	for _, o := range tc.nodes {
		if o != l {
			tc.net.Isolate(o.id, tc.ids()...)
		}
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := l.c.Remove(short, "n3"); kv.AsError(err).Outcome != kv.OutcomeUnknown {
		t.Errorf("a change without a quorum: %v", err)
	}
	tc.net.Heal()
	tc.put("y")
}

// TestRemovedLeaderStepsDown and is followed by another.
func TestRemovedLeaderStepsDown(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, nil)
	l := tc.leader()
	if err := l.c.Remove(tc.ctx(testPatience), l.id); err != nil {
		t.Fatal(err)
	}
	next := tc.leader(l)
	if len(next.c.Configuration()) != 2 {
		t.Errorf("%+v", next.c.Configuration())
	}
	tc.until("the removed one knows", func() bool { return !l.c.IsLeader() })
}

// TestRestartAndNewAddress: a server that restarts elsewhere is found through
// Resolve, and has all that was written meanwhile.
func TestRestartAndNewAddress(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	moved := map[string]string{}
	tc := newCluster(t, 3, func(id string, cfg *Config) {
		cfg.Resolve = func(id string) (string, bool) {
			mu.Lock()
			defer mu.Unlock()
			addr, ok := moved[id]
			return addr, ok
		}
	})
	l := tc.leader()
	f := tc.followers(l)[0]
	tc.stop(f)
	tc.put("while it was away")
	cfg := tc.config(f)
	_ = cfg.Stream.Close()
	stream, err := tc.net.Listen(f.id, "elsewhere:7001")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Stream = stream
	f.fsm = newTestFSM()
	cfg.FSM = f.fsm
	if f.c, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	moved[f.id] = "elsewhere:7001"
	mu.Unlock()
	tc.sameEverywhere()
}

// TestFirstVoteAfterRestart: connections of the pool whose peer restarted meanwhile
// must not cost a vote.
func TestFirstVoteAfterRestart(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, func(_ string, cfg *Config) { cfg.RPCTimeout = testPatience })
	l := tc.leader()
	a, b := tc.followers(l)[0], tc.followers(l)[1]
	ask := func() error {
		var resp raft.RequestPreVoteResponse
		req := &raft.RequestPreVoteRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(a.id), Addr: []byte(a.id)}, Term: 1}
		return a.c.trans.RequestPreVote(raft.ServerID(b.id), raft.ServerAddress(b.id+":7000"), req, &resp)
	}
	var wg sync.WaitGroup
	for range maxPool {
		wg.Go(func() {
			if err := ask(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := tc.net.Connections(a.id, b.id); n == 0 {
		t.Fatal("no connections in the pool")
	}
	tc.stop(b)
	b.fsm = newTestFSM()
	tc.open(b)
	if err := ask(); err != nil {
		t.Errorf("the first message after the restart: %v", err)
	}
	tc.sameEverywhere()
}

// TestHalfBootstrapIsHealed: a crash between the two writes of a bootstrap.
func TestHalfBootstrapIsHealed(t *testing.T) {
	t.Parallel()
	tc := newEmptyCluster(t, nil)
	store := raft.NewInmemStore()
	if err := store.SetUint64([]byte("CurrentTerm"), 1); err != nil {
		t.Fatal(err)
	}
	n := &testNode{id: "n0", fsm: newTestFSM(), inmem: store, logs: store, snaps: raft.NewInmemSnapshotStore()}
	tc.nodes = append(tc.nodes, n)
	tc.open(n)
	if n.c.HasState() {
		t.Error("half a bootstrap counts as state")
	}
	if err := n.c.Bootstrap([]kv.Server{{ID: "n0", Addr: "n0:7000", Voter: true}}); err != nil {
		t.Fatal(err)
	}
	tc.put("x")
}

// TestForeignClusterCantDisturb: two clusters whose addresses got mixed up.
func TestForeignClusterCantDisturb(t *testing.T) {
	t.Parallel()
	// So patient that only a stranger could move its term.
	tc := newCluster(t, 3, func(_ string, cfg *Config) {
		cfg.HeartbeatTimeout, cfg.LeaseTimeout = 4*testHeartbeat, 4*testHeartbeat
	})
	l := tc.leader()
	term := l.c.Term()
	other := newEmptyCluster(t, nil)
	other.net, other.clusterID = tc.net, "cluster-b"
	x := other.start("x")
	servers := []kv.Server{{ID: "x", Addr: "x:7000", Voter: true}}
	for _, n := range tc.nodes {
		servers = append(servers, kv.Server{ID: "y" + n.id, Addr: n.id + ":7000", Voter: true})
	}
	if err := x.c.Bootstrap(servers); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	tc.until("several elections of the stranger", func() bool { return time.Since(start) > 4*testHeartbeat })
	if x.c.IsLeader() {
		t.Error("the stranger won an election with foreign votes")
	}
	if now := tc.leader().c.Term(); now != term {
		t.Errorf("the stranger moved the term from %d to %d", term, now)
	}
}
