package cluster

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

func TestThreeFormAndAFourthComesIn(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	r.with(func() {
		if len(r.boots) != 1 || len(r.servers) != 3 {
			t.Errorf("bootstrapped %v", r.boots)
		}
	})
	for _, n := range nodes {
		if n.ClusterID() == "" || n.ClusterID() != nodes[0].ClusterID() || !n.cfg.State.Started() {
			t.Errorf("%s belongs to %q", n.cfg.Name, n.ClusterID())
		}
	}
	n4 := startNode(t, r, "n4", joining(nodes[1]))
	eventually(t, "n4 is a voter and ready", func() bool { return isVoter(r, n4.id()) && n4.Ready()[0].OK })
	log := r.log()
	if i, j := slices.Index(log, "nonvoter "+n4.id()), slices.Index(log, "voter "+n4.id()); i < 0 || j < i {
		t.Errorf("changes: %v", log)
	}
	replica := startNode(t, r, "replica", func(c *Config) { c.Nonvoter = true; joining(n4)(c) })
	eventually(t, "the replica is taken in", func() bool { return replica.Ready()[0].OK })
	throughout(t, 400*time.Millisecond, "the replica is no voter", func() bool { return !isVoter(r, replica.id()) })

	l := leaderOf(t, nodes)
	eventually(t, "all five are alive for the leader", func() bool {
		ms := l.Members(t.Context())
		return len(ms) == 5 && !slices.ContainsFunc(ms, func(m kv.Member) bool { return m.State != kv.StateAlive || m.AppliedIndex != 990 || m.GossipAddr == "" })
	})
	for _, m := range l.Members(t.Context()) {
		if (m.Role == kv.RoleLeader) != (m.ID == l.cfg.Name) || m.LastContactMS < 0 || m.Version != "test" || m.Voter != (m.ID != "replica") {
			t.Errorf("member %+v", m)
		}
	}
	if id, addr, ok := n4.Leader(); !ok || id != l.cfg.Name || addr != l.cfg.HTTPAddr {
		t.Errorf("n4 sees the leader %s at %s, %v", id, addr, ok)
	}
}

// TestNewcomerWaitsUntilCaughtUp: a nonvoter that lags does not get a vote.
func TestNewcomerWaitsUntilCaughtUp(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 1)
	var id string
	n2 := startNode(t, r, "n2", func(c *Config) {
		joining(nodes...)(c)
		id = c.ServerID
		r.with(func() { r.behind[id] = true })
	})
	eventually(t, "n2 is a nonvoter", func() bool { _, ok := r.row(id); return ok && n2.Ready()[0].OK })
	throughout(t, 400*time.Millisecond, "a lagging server has no vote", func() bool { return !isVoter(r, id) })
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := nodes[0].Promote(short, "n2"); !errors.Is(err, kv.ErrTimeout) {
		t.Errorf("promoting a lagging server: %v", err)
	}
	r.with(func() { delete(r.behind, id) })
	eventually(t, "n2 is a voter", func() bool { return isVoter(r, id) })
}

func TestStrangersAreRefused(t *testing.T) {
	ra, rb := newFakeRaft(), newFakeRaft()
	a := form(t, ra, 1)[0]
	// Two clusters of one name: b hears of a's address.
	first := startNode(t, rb, "b", func(c *Config) { c.BootstrapExpect = 1 })
	eventually(t, "b formed its own", func() bool { return first.Ready()[0].OK && first.cfg.State.Started() })
	// Started again, it names its cluster from its first word on; before, a would have
	// taken it for a newcomer, and been refused.
	first.stop(t)
	b := startNodeIn(t, first.dir, rb, "b", func(c *Config) { c.ServerID = first.id(); joining(a)(c) })
	// Another name, the same address list.
	c := startNode(t, newFakeRaft(), "c", func(c *Config) { c.ClusterName = "other"; joining(a)(c) })
	eventually(t, "the refusal is loud", func() bool {
		return strings.Contains(b.log.String(), "another cluster refused") || strings.Contains(a.log.String(), "refused")
	})
	eventually(t, "the other name is refused loudly", func() bool { return strings.Contains(a.log.String(), "unacceptable label") })
	throughout(t, 500*time.Millisecond, "strangers don't see each other", func() bool {
		return len(a.gossip.alive()) == 0 && len(b.gossip.alive()) == 0 && len(c.gossip.alive()) == 0 && c.ClusterID() == ""
	})
	if a.ClusterID() == b.ClusterID() {
		t.Error("the clusters merged")
	}
	if !detailHas(c, false, "cluster-name") {
		t.Errorf("c says %+v", c.Ready())
	}

	// Nor do they talk over HTTP.
	err := b.client.call(t.Context(), target{server: a.id(), addr: a.cfg.HTTPAddr}.post(pathReadIndex, empty{}), &readIndexAnswer{})
	if !errors.Is(err, kv.ErrConflict) {
		t.Errorf("read index for a stranger: %v", err)
	}
	if _, err := a.AddMember(t.Context(), kv.MemberSpec{ID: "b", RaftAddr: b.cfg.RaftAddr, HTTPAddr: b.cfg.HTTPAddr, Voter: true}); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("adding a member of another cluster: %v", err)
	}
	if _, err := a.AddMember(t.Context(), kv.MemberSpec{ID: "c", RaftAddr: c.cfg.RaftAddr, HTTPAddr: c.cfg.HTTPAddr, Voter: true}); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("adding a node of another cluster name: %v", err)
	}
	if b.ClusterID() == a.ClusterID() || c.ClusterID() != "" {
		t.Error("a refused node was adopted")
	}
}

func TestGossipKeyRotation(t *testing.T) {
	k := func(b byte) []byte { return slices.Repeat([]byte{b}, 32) }
	r := newFakeRaft()
	keys := func(ks ...[]byte) func(*Config) { return func(c *Config) { c.GossipKeys = ks } }
	old := startNode(t, r, "old", keys(k(1)))
	both := startNode(t, r, "both", func(c *Config) { keys(k(1), k(2))(c); joining(old)(c) })
	next := startNode(t, r, "next", func(c *Config) { keys(k(2), k(1))(c); joining(both)(c) })
	sees := func(n *testNode, others ...*testNode) bool {
		for _, o := range others {
			if _, ok := n.gossip.peer(o.id()); !ok {
				return false
			}
		}
		return true
	}
	eventually(t, "the middle of a rotation talks to both ends", func() bool {
		return sees(old, both) && sees(both, old, next) && sees(next, both)
	})
	wrong := startNode(t, r, "wrong", func(c *Config) { keys(k(9))(c); joining(both)(c) })
	plain := startNode(t, r, "plain", joining(both))
	throughout(t, 500*time.Millisecond, "nobody without a key is seen", func() bool {
		return !sees(both, wrong) && !sees(both, plain) && len(wrong.gossip.alive()) == 0 && len(plain.gossip.alive()) == 0
	})
}

func TestTwoLiveNodesOfOneName(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	twin := startNode(t, r, "n2", joining(nodes...))
	eventually(t, "the newcomer says why it is refused", func() bool { return detailHas(twin, false, "is called n2") })
	l := leaderOf(t, nodes)
	eventually(t, "the leader warns", func() bool { return strings.Contains(l.log.String(), "new server refused") })
	throughout(t, 2*twin.cfg.ReplaceAfter, "it stays out", func() bool { _, in := r.row(twin.id()); return !in })
	if _, err := l.AddMember(t.Context(), kv.MemberSpec{ID: "n2", RaftAddr: twin.cfg.RaftAddr, HTTPAddr: twin.cfg.HTTPAddr, Voter: true}); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("adding it by hand: %v", err)
	}
}

// TestWipedNodeComesBack is Invariant 27 with real gossip: a node that lost its data
// comes back by itself as a new server, and its predecessor is out for good.
func TestWipedNodeComesBack(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	lost := follower(t, nodes)
	lost.crash(t)
	r.cut(lost.id())
	since := time.Now()
	back := startNode(t, r, lost.cfg.Name, func(c *Config) {
		c.BootstrapExpect = 3
		joining(nodes...)(c)
		c.RaftAddr, c.GossipAddr = lost.cfg.RaftAddr, lost.GossipAddr()
	})
	eventually(t, "it waits and says so", func() bool { return detailHas(back, false, "replaced once") || back.Ready()[0].OK })
	eventually(t, "it is a voter again", func() bool { return isVoter(r, back.id()) && back.Ready()[0].OK })
	if d := time.Since(since); d < lost.cfg.ReplaceAfter {
		t.Errorf("replaced after %s, replace-after is %s", d, lost.cfg.ReplaceAfter)
	}
	log := r.log()
	i := slices.Index(log, "mark "+lost.id())
	if i < 0 || log[i+1] != "remove "+lost.id() || slices.Index(log, "nonvoter "+back.id()) < i {
		t.Errorf("changes: %v", log)
	}
	// The lost server turns up again: it learns that it is out, and stays so.
	r.with(func() { delete(r.silent, lost.id()) })
	again := startNodeIn(t, lost.dir, r, lost.cfg.Name, func(c *Config) {
		c.ServerID = lost.id()
		joining(nodes...)(c)
	})
	eventually(t, "the lost one learns it", func() bool { return again.Removed() && detailHas(again, false, "was removed") })
	if _, in := r.row(lost.id()); in {
		t.Error("it came in again")
	}
}

func TestRemovedNodeLearnsItAndComesBackWhenAsked(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	l, f := leaderOf(t, nodes), follower(t, nodes)
	if err := f.RemoveMember(t.Context(), f.cfg.Name, false); !errors.Is(err, kv.ErrNoLeader) || kv.AsError(err).Outcome != kv.OutcomeNotApplied {
		t.Errorf("removing through a follower: %v", err)
	}
	if err := l.RemoveMember(t.Context(), "nobody", false); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("removing nobody: %v", err)
	}
	if !l.HasMember(f.cfg.Name) || !l.HasMember(f.id()) || !l.HasMember(l.cfg.Name) || l.HasMember("nobody") {
		t.Error("who is a member and who is not")
	}
	if err := l.RemoveMember(t.Context(), f.cfg.Name, false); err != nil {
		t.Fatal(err)
	}
	if l.HasMember(f.cfg.Name) || l.HasMember(f.id()) {
		t.Error("it is a member after it was removed")
	}
	eventually(t, "it knows", func() bool { return f.Removed() && detailHas(f, false, "sett join --id "+f.cfg.Name) })
	throughout(t, 400*time.Millisecond, "it is not taken in again by itself", func() bool { _, in := r.row(f.id()); return !in })
	// The mark is durable.
	if st, err := OpenState(f.dir); err != nil || !st.Removed() {
		t.Errorf("on disk: %v, %v", st.Removed(), err)
	}
	spec := kv.MemberSpec{ID: f.cfg.Name, RaftAddr: f.cfg.RaftAddr, HTTPAddr: f.cfg.HTTPAddr, Voter: true}
	for range 2 { // idempotent
		m, err := l.AddMember(t.Context(), spec)
		if err != nil || m.ServerID != f.id() {
			t.Fatalf("adding it: %+v, %v", m, err)
		}
	}
	eventually(t, "it is a voter again", func() bool { return isVoter(r, f.id()) && !f.Removed() && f.Ready()[0].OK })
}

// TestEndingReachesTheLeader, from each node, whatever the bytes of the key.
func TestEndingReachesTheLeader(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	for _, n := range nodes {
		end := kv.Ending{Once: kv.Once{Key: "of \xff " + n.cfg.Name, Request: [32]byte{1}}, Status: 204}
		if err := n.PutEnding(t.Context(), end); err != nil {
			t.Errorf("%s: %v", n.cfg.Name, err)
		}
		if !slices.Contains(r.log(), "ending "+end.Once.Key+" ") {
			t.Errorf("what %s sent has not arrived", n.cfg.Name)
		}
	}
}

// TestForgedRemoval: a node does not believe that it was removed; it asks.
func TestForgedRemoval(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	f := follower(t, nodes)
	err := nodes[0].client.call(t.Context(), target{server: f.id(), addr: f.cfg.HTTPAddr}.post(pathRemoved, removedRequest{From: nodes[0].id()}), &empty{})
	if err == nil || f.Removed() {
		t.Errorf("believed: %v, removed %v", err, f.Removed())
	}
}

// TestRemovingTheLeader: it hands over, and its successor removes it.
func TestRemovingTheLeader(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	l := leaderOf(t, nodes)
	if err := l.RemoveMember(t.Context(), l.cfg.Name, false); err != nil {
		t.Fatal(err)
	}
	log := r.log()
	if i, j := slices.Index(log, "transfer "), slices.Index(log, "remove "+l.id()); i < 0 || j < i {
		t.Errorf("changes: %v", log)
	}
	eventually(t, "it knows", l.Removed)
	if next := leaderOf(t, nodes); next == l {
		t.Error("it still leads")
	}
}

func TestDemotePromoteTransfer(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	l, f := leaderOf(t, nodes), follower(t, nodes)
	if m, err := l.Demote(t.Context(), f.cfg.Name, false); err != nil || m.Voter {
		t.Fatalf("demote: %+v, %v", m, err)
	}
	throughout(t, 400*time.Millisecond, "the reconciler leaves it so", func() bool { return !isVoter(r, f.id()) })
	if _, err := l.Transfer(t.Context(), f.cfg.Name); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("transfer to a nonvoter: %v", err)
	}
	if m, err := l.Promote(t.Context(), f.cfg.Name); err != nil || !m.Voter {
		t.Fatalf("promote: %+v, %v", m, err)
	}
	changed := f.LeaderChanged()
	if to, err := l.Transfer(t.Context(), f.cfg.Name); err != nil || to != f.cfg.Name {
		t.Fatalf("transfer: %q, %v", to, err)
	}
	select {
	case <-changed:
	case <-time.After(5 * time.Second):
		t.Error("the change of leader was not noticed")
	}
	if m, err := f.Demote(t.Context(), f.cfg.Name, false); err != nil || m.Voter || f.IsLeader() {
		t.Errorf("demoting the leader: %+v, %v, leads %v", m, err, f.IsLeader())
	}
	if _, err := l.Promote(t.Context(), "nobody"); !errors.Is(err, kv.ErrNotFound) && !errors.Is(err, kv.ErrNoLeader) {
		t.Errorf("promoting nobody: %v", err)
	}
}

// TestQuorumGuard: with one voter of three silent, taking another is refused, unless
// forced (Invariant 29).
func TestQuorumGuard(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	l := leaderOf(t, nodes)
	var others []*testNode
	for _, n := range nodes {
		if n != l {
			others = append(others, n)
		}
	}
	r.cut(others[0].id())
	eventually(t, "the cut is noticed", func() bool {
		w, err := l.recon.world()
		return err == nil && !w.live(others[0].id())
	})
	if err := l.RemoveMember(t.Context(), others[1].cfg.Name, false); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("remove: %v", err)
	}
	if _, err := l.Demote(t.Context(), others[1].cfg.Name, false); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("demote: %v", err)
	}
	if len(l.Members(t.Context())) != 3 || !isVoter(r, others[1].id()) {
		t.Fatal("refused, and done")
	}
	if err := l.RemoveMember(t.Context(), others[1].cfg.Name, true); err != nil {
		t.Errorf("forced: %v", err)
	}
	if !strings.Contains(l.log.String(), "overridden by force") {
		t.Error("force was not logged")
	}
	if err := l.RemoveMember(t.Context(), others[0].cfg.Name, false); err != nil {
		t.Errorf("removing the lost one: %v", err)
	}
	if err := l.RemoveMember(t.Context(), l.cfg.Name, true); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("removing the last voter: %v", err)
	}
}

// TestMovedNodeIsFoundAgain: a node that restarts on other addresses.
func TestMovedNodeIsFoundAgain(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	f := follower(t, nodes)
	f.crash(t)
	moved := startNodeIn(t, f.dir, r, f.cfg.Name, func(c *Config) {
		c.ServerID = f.id()
		joining(nodes...)(c)
	})
	if moved.cfg.RaftAddr == f.cfg.RaftAddr {
		t.Fatal("it did not move")
	}
	l := leaderOf(t, nodes)
	eventually(t, "the configuration follows", func() bool {
		s, ok := r.row(f.id())
		addr, resolved := l.Resolve(f.id())
		rec, _ := l.fake.Record(f.id())
		return ok && s.Voter && s.Addr == moved.cfg.RaftAddr && resolved && addr == s.Addr && rec.HTTPAddr == moved.cfg.HTTPAddr
	})
}

func TestAddMemberChecks(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 1)
	l := nodes[0]
	// Waits for somebody: neither join nor bootstrap-expect.
	n2 := startNode(t, r, "n2", nil)
	if !detailHas(n2, false, "sett join --id n2") {
		t.Errorf("a node that waits says %+v", n2.Ready())
	}
	good := kv.MemberSpec{ID: "n2", RaftAddr: n2.cfg.RaftAddr, HTTPAddr: n2.cfg.HTTPAddr}
	for name, change := range map[string]func(*kv.MemberSpec){
		"another id":           func(s *kv.MemberSpec) { s.ID = "n3" },
		"another raft address": func(s *kv.MemberSpec) { s.RaftAddr = "elsewhere:1" },
		"nobody there":         func(s *kv.MemberSpec) { s.HTTPAddr = "127.0.0.1:1" },
	} {
		spec := good
		change(&spec)
		if _, err := l.AddMember(t.Context(), spec); !errors.Is(err, kv.ErrConflict) || kv.AsError(err).Outcome != kv.OutcomeNotApplied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := l.AddMember(t.Context(), kv.MemberSpec{ID: "n2"}); !errors.Is(err, kv.ErrInvalidArgument) {
		t.Errorf("no addresses: %v", err)
	}
	if n2.ClusterID() != "" {
		t.Fatal("adopted by a refused request")
	}
	m, err := l.AddMember(t.Context(), good)
	if err != nil || m.Voter || m.ID != "n2" || m.ServerID != n2.id() {
		t.Fatalf("%+v, %v", m, err)
	}
	eventually(t, "it gossips with its new cluster", func() bool { return n2.Ready()[0].OK && len(n2.gossip.alive()) == 1 })
	throughout(t, 300*time.Millisecond, "it stays the nonvoter it was added as", func() bool { return !isVoter(r, n2.id()) })
}

func TestReadIndexAndClocks(t *testing.T) {
	r := newFakeRaft()
	ahead := time.Hour
	nodes := make([]*testNode, 0, 3)
	for _, name := range []string{"n1", "n2", "n3"} {
		nodes = append(nodes, startNode(t, r, name, func(c *Config) {
			c.BootstrapExpect = 3
			joining(nodes...)(c)
			c.ReadIndex = func(ctx context.Context) (uint64, error) {
				if f := (&fakeConsensus{r: r, id: c.ServerID}); !f.IsLeader() {
					return 0, kv.Errorf(kv.CodeNoLeader, "not the leader")
				}
				return 4711, nil
			}
			if name == "n3" {
				c.WallClock = func() time.Time { return time.Now().Add(ahead) }
			}
		}))
	}
	if _, _, err := nodes[0].AskReadIndex(t.Context()); !errors.Is(err, kv.ErrNoLeader) {
		t.Errorf("before there is a leader: %v", err)
	}
	eventually(t, "formed", func() bool {
		return !slices.ContainsFunc(nodes, func(n *testNode) bool { return !n.Ready()[0].OK })
	})
	for _, n := range nodes {
		before := time.Now()
		i, at, err := n.AskReadIndex(t.Context())
		if err != nil || i != 4711 || at.Before(before) || at.After(time.Now()) {
			t.Errorf("%s: index %d asked %s, %v", n.cfg.Name, i, at, err)
		}
	}
	clocks := nodes[0].Clocks(t.Context())
	slices.SortFunc(clocks, time.Time.Compare)
	if len(clocks) != 3 || time.Since(clocks[1]).Abs() > 2*time.Second || time.Until(clocks[2]) < ahead-2*time.Second {
		t.Errorf("clocks %v", clocks)
	}
	f := follower(t, nodes)
	leaderOf(t, nodes).stop(t)
	if _, _, err := f.AskReadIndex(t.Context()); !errors.Is(err, kv.ErrNoLeader) {
		t.Errorf("leader gone: %v", err)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := f.AskReadIndex(done); !errors.Is(err, kv.ErrTimeout) {
		t.Errorf("asker gone: %v", err)
	}
}

// TestGossipDeathChangesNothing is Invariant 26: gossip loses sight of a member, and
// of its Raft contact nothing is wrong.
func TestGossipDeathChangesNothing(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	l, f := leaderOf(t, nodes), follower(t, nodes)
	before := len(r.log())
	f.stop(t)
	eventually(t, "gossip lost it", func() bool { _, ok := l.gossip.peer(f.id()); return !ok })
	throughout(t, 2*l.cfg.ReplaceAfter, "membership stays", func() bool { return len(r.log()) == before && isVoter(r, f.id()) })
	for _, m := range l.Members(t.Context()) {
		if want := map[bool]string{true: kv.StateSuspect, false: kv.StateAlive}[m.ServerID == f.id()]; m.State != want {
			t.Errorf("%s is %s, want %s", m.ID, m.State, want)
		}
	}
	r.cut(f.id())
	eventually(t, "it is gone for both", func() bool {
		return slices.ContainsFunc(l.Members(t.Context()), func(m kv.Member) bool { return m.ServerID == f.id() && m.State == kv.StateGone && m.ID == f.cfg.Name })
	})
	throughout(t, 2*l.cfg.ReplaceAfter, "membership stays", func() bool { return len(r.log()) == before })
}

// TestFreshlyDeadVoterIsNotLive: a voter that answered a moment before the request and
// never since does not count for the quorum that a removal or demotion must leave.
func TestFreshlyDeadVoterIsNotLive(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	l := leaderOf(t, nodes)
	var others []*testNode
	for _, n := range nodes {
		if n != l {
			others = append(others, n)
		}
	}
	r.with(func() { r.silent[others[0].id()] = time.Now() })
	if err := l.RemoveMember(t.Context(), others[1].cfg.Name, false); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("removing a live voter of three just after another died: %v", err)
	}
	if _, err := l.Demote(t.Context(), others[1].cfg.Name, false); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("demoting it: %v", err)
	}
	r.with(func() { delete(r.silent, others[0].id()) })
	if _, err := l.Demote(t.Context(), others[1].cfg.Name, false); err != nil {
		t.Errorf("with all of them live: %v", err)
	}
}

func TestRoomForGrowth(t *testing.T) {
	r := newFakeRaft()
	nodes := form(t, r, 3)
	l := leaderOf(t, nodes)
	if !l.RoomForGrowth(t.Context()) {
		t.Fatal("no room while all three have some")
	}
	nodes[0].full.Store(true)
	if !l.RoomForGrowth(t.Context()) {
		t.Error("no room while two of three have some")
	}
	nodes[1].full.Store(true)
	if l.RoomForGrowth(t.Context()) {
		t.Error("room while two of three have none")
	}
}
