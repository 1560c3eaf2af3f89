package consensus

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/settkv/sett/kv"
)

// TestReadersShareRounds: many readers, few rounds, all of them fresh.
func TestReadersShareRounds(t *testing.T) {
	tc := newCluster(t, 3, nil)
	l := tc.leader()
	for _, f := range tc.followers(l) { // long enough for readers to pile up
		tc.net.SetDelay(l.id, f.id, 5*time.Millisecond, 0)
	}
	_, timing, err := l.c.Propose(tc.ctx(testPatience), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	const readers, each = 50, 5
	before := counterValue(t, l.c.metrics.readRounds.WithLabelValues("confirmed"))
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for range each {
				index, err := l.c.ReadIndex(tc.ctx(testPatience))
				if err != nil || index < timing.Index {
					t.Errorf("read index %d, %v; a write at %d was acknowledged before", index, err, timing.Index)
				}
			}
		})
	}
	wg.Wait()
	rounds := counterValue(t, l.c.metrics.readRounds.WithLabelValues("confirmed")) - before
	t.Logf("%d reads in %v rounds", readers*each, rounds)
	if rounds < each || rounds > readers*each/5 {
		t.Errorf("%d reads took %v rounds", readers*each, rounds)
	}
}

// TestNonvoterIsNotCounted leaves a leader alone with a nonvoter: that is no quorum.
func TestNonvoterIsNotCounted(t *testing.T) {
	t.Parallel()
	// Long timeouts: the leader must go on believing that it leads.
	slow := func(_ string, cfg *Config) {
		cfg.HeartbeatTimeout, cfg.LeaseTimeout = 1500*time.Millisecond, 1500*time.Millisecond
	}
	tc := newCluster(t, 3, slow)
	l := tc.leader()
	voters := tc.followers(l)
	tc.start("nonvoter")
	if err := l.c.AddNonvoter(tc.ctx(testPatience), "nonvoter", "nonvoter:7000"); err != nil {
		t.Fatal(err)
	}
	tc.until("the nonvoter follows", func() bool {
		match, ok := l.c.Match("nonvoter")
		return ok && match >= l.c.CommitIndex()
	})
	for _, v := range voters {
		tc.net.Isolate(v.id, l.id, "nonvoter")
	}
	// What the voters answered before the cut may still arrive; what was sent after can't.
	index, err := l.c.ReadIndex(tc.ctx(400 * time.Millisecond))
	if err == nil {
		t.Fatalf("a leader with nobody but a nonvoter confirmed a read at %d", index)
	}
	if _, ok := l.c.Ready(); !ok {
		t.Fatal("the leader stepped down too early: the test shows nothing")
	}
	if e := kv.AsError(err); e.Code != kv.CodeTimeout {
		t.Errorf("%v, want %s", err, kv.CodeTimeout)
	}
	if contact, ok := l.c.LastContact("nonvoter"); !ok || time.Since(contact) > time.Second {
		t.Fatalf("the nonvoter does not answer (%v): the test shows nothing", contact)
	}
	// The lease must not count it either, once the voters' answers are old.
	tc.until("the lease ends", func() bool {
		return l.c.quorumSent(l.c.Term(), time.Now().Add(-l.c.leaseDuration())) < 0 || !l.c.IsLeader()
	})
	tc.net.Heal()
	tc.until("a read after healing", func() bool {
		_, err := tc.leader().c.ReadIndex(tc.ctx(time.Second))
		return err == nil
	})
}

// TestNoStaleReadAfterPause: a leader is cut off as a paused process is, others
// elect a new one and acknowledge a write; then it wakes up, still believing, and
// is asked. It must not answer from the past.
func TestNoStaleReadAfterPause(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, func(id string, cfg *Config) {
		// The node that will be deposed believes for long; the others elect soon.
		if id == "n0" {
			cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaseTimeout, cfg.RPCTimeout = testPatience, testPatience, testPatience, testPatience
		}
	})
	old := tc.nodes[0]
	tc.until("n0 leads", func() bool {
		l := tc.leader()
		if l != old {
			_ = l.c.Transfer(tc.ctx(2*time.Second), old.id)
		}
		_, ok := old.c.Ready()
		return ok
	})
	tc.put("before")
	// First only the followers' answers are held up. They answer this leader's
	// messages with success; those answers will arrive after the pause, as if they
	// had waited in a socket.
	followers := tc.followers(old)
	term := old.c.Term()
	known := make(map[string]time.Time) // by follower: the newest message it answered
	for _, f := range followers {
		tc.net.Block(f.id, old.id)
	}
	cut := time.Now()
	tc.until("answers under way", func() bool { return time.Since(cut) > 4*commitTimeout })
	for _, f := range followers {
		ack, _ := old.c.acks.get(f.id, term)
		known[f.id] = ack.sent
	}
	tc.net.Isolate(old.id, tc.ids()...)
	type answer struct {
		index uint64
		err   error
	}
	asked := make(chan answer, 1)
	next := tc.leader(old)
	_, timing, err := next.c.Propose(tc.ctx(testPatience), []byte("newer"))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := old.c.Ready(); !ok {
		t.Fatal("the old leader does not believe any more: the test shows nothing")
	}
	go func() { // begins after the new write was acknowledged, while still cut off
		index, err := old.c.ReadIndex(tc.ctx(testPatience))
		asked <- answer{index, err}
	}()
	select {
	case a := <-asked:
		if a.err == nil && a.index < timing.Index {
			t.Fatalf("stale read: index %d, but %d was acknowledged before", a.index, timing.Index)
		}
		t.Fatalf("a leader that is cut off answered %d, %v", a.index, a.err)
	case <-time.After(4 * testHeartbeat): // the read must hang: nobody can confirm it
	}
	tc.net.Heal() // whatever was sent before the cut arrives now
	a := <-asked
	if a.err == nil && a.index < timing.Index {
		t.Fatalf("stale read: index %d, but %d was acknowledged before", a.index, timing.Index)
	}
	if !errors.Is(a.err, kv.ErrNoLeader) {
		t.Errorf("the deposed leader answered %d, %v", a.index, a.err)
	}
	// Or the test shows less than it should.
	tc.until("an answer from before the pause comes after it", func() bool {
		return slices.ContainsFunc(followers, func(f *testNode) bool {
			ack, ok := old.c.acks.get(f.id, term)
			return ok && ack.sent.After(known[f.id])
		})
	})
	tc.sameEverywhere()
}

// TestReadsSeeAcknowledgedWrites reads and writes while leaders change, and checks
// each read index against the newest acknowledged write before it began.
func TestReadsSeeAcknowledgedWrites(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, nil)
	tc.leader()
	ctx, stop := context.WithTimeout(context.Background(), 3*time.Second)
	defer stop()
	var mu sync.Mutex
	var acked uint64
	var reads, writes int
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				n := tc.nodes[w%3]
				op, cancel := context.WithTimeout(ctx, time.Second)
				if w < 4 {
					if _, timing, err := n.c.Propose(op, []byte("w")); err == nil {
						mu.Lock()
						acked, writes = max(acked, timing.Index), writes+1
						mu.Unlock()
					}
				} else {
					mu.Lock()
					floor := acked
					mu.Unlock()
					read := n.c.ReadIndex
					if w == 7 {
						read = n.c.LeaseIndex
					}
					if index, err := read(op); err == nil {
						if index < floor {
							t.Errorf("stale: read index %d on %s, %d was acknowledged before", index, n.id, floor)
						}
						mu.Lock()
						reads++
						mu.Unlock()
					}
				}
				cancel()
				if !n.c.IsLeader() {
					wait(ctx, time.Millisecond)
				}
			}
		})
	}
	for ctx.Err() == nil { // the nemesis
		victim := tc.nodes[tc.rng.IntN(3)].id
		switch tc.rng.IntN(3) {
		case 0:
			tc.net.Isolate(victim, tc.ids()...)
		case 1:
			for _, o := range tc.ids() {
				if o != victim {
					tc.net.Block(victim, o)
				}
			}
		case 2:
			_ = tc.nodes[tc.rng.IntN(3)].c.Transfer(ctx, victim)
		}
		wait(ctx, 2*testHeartbeat)
		tc.net.Heal()
		wait(ctx, 2*testHeartbeat)
	}
	wg.Wait()
	t.Logf("%d reads, %d writes", reads, writes)
	if reads < 50 || writes < 50 {
		t.Errorf("only %d reads and %d writes succeeded: the test shows little", reads, writes)
	}
	tc.net.Heal()
	tc.sameEverywhere()
}

// wait pauses the nemesis or a client; nothing is synchronised by it.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// TestLease: it spares rounds, and is void in a term in which a transfer was tried.
func TestLease(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, nil)
	l := tc.leader()
	_, timing, err := l.c.Propose(tc.ctx(testPatience), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	rounds := func() float64 { return counterValue(t, l.c.metrics.readRounds.WithLabelValues("confirmed")) }
	tc.until("a read without a round", func() bool {
		before := rounds()
		index, err := l.c.LeaseIndex(tc.ctx(testPatience))
		if err != nil || index < timing.Index {
			t.Fatalf("lease index %d, %v; %d was acknowledged before", index, err, timing.Index)
		}
		return rounds() == before
	})
	l.c.leaseVoid.Store(l.c.Term())
	before := rounds()
	if _, err := l.c.LeaseIndex(tc.ctx(testPatience)); err != nil {
		t.Fatal(err)
	}
	if rounds() == before {
		t.Error("a void lease was used")
	}
}

// TestFollowerLearnsCommitIndexWithRead: once a read is confirmed, a follower must
// not need long to know that the entries it reads are committed.
func TestFollowerLearnsCommitIndexWithRead(t *testing.T) {
	tc := newCluster(t, 3, nil)
	l := tc.leader()
	var took []time.Duration
	for range 30 {
		tc.put("x")
		index, err := l.c.ReadIndex(tc.ctx(testPatience))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for _, f := range tc.followers(l) {
			if err := f.fsm.WaitDelivered(tc.ctx(testPatience), index); err != nil {
				t.Fatal(err)
			}
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("both followers had it after a median of %v, a maximum of %v", took[len(took)/2], took[len(took)-1])
	// Without the commit index in heartbeats it is one to two commitTimeouts.
	if median := took[len(took)/2]; median > commitTimeout/2 {
		t.Errorf("median %v", median)
	}
}

// TestQuorumSent compares with the definition: the largest time t such that a
// quorum of voters answered a message sent at or after t.
func TestQuorumSent(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		voters := rapid.IntRange(1, 7).Draw(rt, "voters")
		acks := newAckTable()
		t0 := time.Now()
		var conf raft.Configuration
		var ages []time.Duration
		for i := range voters + 2 {
			id := raft.ServerID(string(rune('a' + i)))
			suffrage := raft.Voter
			if i >= voters {
				suffrage = raft.Nonvoter
			}
			conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: raft.ServerAddress(id), Suffrage: suffrage})
			age := time.Duration(rapid.IntRange(-5, 5).Draw(rt, "age")) * time.Hour
			term := uint64(rapid.IntRange(6, 7).Draw(rt, "term"))
			acks.record(string(id), ack{term: term, sent: t0.Add(age)})
			if term == 7 && suffrage == raft.Voter {
				ages = append(ages, age)
			}
		}
		got := quorumSent(conf.Servers, quorumQuestion{self: "nobody", term: 7, t0: t0, acks: acks})
		for _, at := range []time.Duration{-6 * time.Hour, -5 * time.Hour, -time.Hour, 0, time.Hour, 5 * time.Hour, 6 * time.Hour} {
			count := 0
			for _, age := range ages {
				if age >= at {
					count++
				}
			}
			if want := count > voters/2; (got >= at) != want {
				rt.Fatalf("%d of %d voters answered at %v or later, quorumSent says %v", count, voters, at, got)
			}
		}
	})
}

// TestHeartbeatCommitIndexIsBounded: a follower might hold entries of its own beyond
// what it is known to share with the leader. It must not be told to commit them.
func TestHeartbeatCommitIndexIsBounded(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 3, nil)
	l := tc.leader()
	tc.put("x")
	term, commit := l.c.Term(), l.c.CommitIndex()
	for _, tt := range []struct {
		name      string
		known     ack
		heartbeat uint64 // its term
		prev      uint64
		commit    uint64
	}{
		{"nothing known", ack{}, term, 0, 0},
		{"only contact known", ack{term: term}, term, 0, 0},
		{"behind", ack{term: term, match: commit - 1, matchTerm: 7}, term, commit - 1, commit - 1},
		{"ahead of what is committed", ack{term: term, match: commit + 5, matchTerm: 7}, term, commit + 5, commit},
		{"known from an older term", ack{term: term - 1, match: commit}, term, 0, 0},
		{"heartbeat of an older term", ack{term: term - 1, match: commit}, term - 1, 0, 0},
		{"of a later term", ack{term: term + 1, match: commit}, term + 1, 0, 0},
	} {
		l.c.acks.mu.Lock()
		l.c.acks.acks["elsewhere"] = tt.known
		l.c.acks.mu.Unlock()
		args := &raft.AppendEntriesRequest{Term: tt.heartbeat}
		got := l.c.trans.withCommitIndex("elsewhere", args)
		if got.PrevLogEntry != tt.prev || got.LeaderCommitIndex != tt.commit || got.Term != tt.heartbeat {
			t.Errorf("%s: previous entry %d, commit index %d", tt.name, got.PrevLogEntry, got.LeaderCommitIndex)
		}
		if !isHeartbeat(args) {
			t.Errorf("%s: raft's own message was changed", tt.name)
		}
	}
	f := tc.followers(l)[0]
	var resp raft.AppendEntriesResponse
	if err := f.c.trans.AppendEntries("n9", "n9:7000", &raft.AppendEntriesRequest{Term: term}, &resp); err != errOldTerm {
		t.Errorf("a server that does not lead sent as leader: %v", err)
	}
}
