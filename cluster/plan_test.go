package cluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// testWorld is a leader a that has been ready for long, and further voters, all live
// and seen, recorded, of cluster X.
func testWorld(ids ...string) *world {
	w := &world{
		now: noon, self: "a", clusterID: "X", readySince: noon.Add(-time.Hour), peers: map[string]peer{}, records: map[string]kv.MemberRecord{},
		contact: map[string]time.Time{}, match: map[string]uint64{}, commit: 1000, caughtUp: map[string]time.Time{}, failed: map[string]bool{}, leaving: map[string]bool{},
		replaceAfter: 30 * time.Second, liveWithin: 3 * time.Second, stabilize: 2 * time.Second, catchUp: 100,
	}
	for _, id := range ids {
		w.join(id, true)
	}
	return w
}

func (w *world) join(id string, voter bool) {
	p := testPeer(id, 0)
	p.ClusterID = w.clusterID
	w.peers[id] = p
	w.servers = append(w.servers, kv.Server{ID: id, Addr: p.RaftAddr, Voter: voter})
	w.records[id] = kv.MemberRecord{ServerID: id, ID: p.Name, HTTPAddr: p.HTTPAddr, GossipAddr: p.GossipAddr}
	w.contact[id] = w.now
	w.match[id] = w.commit
}

// lose takes a server from gossip and from Raft contact, for d so far.
func (w *world) lose(id string, d time.Duration) {
	delete(w.peers, id)
	w.contact[id] = w.now.Add(-d)
}

// newcomer adds a node to gossip that is in no configuration.
func (w *world) newcomer(id, name string) {
	p := testPeer(id, 0)
	p.Name = name
	w.peers[id] = p
}

// show renders steps for comparison.
func show(steps []step) string {
	var out []string
	for _, s := range steps {
		switch s.kind {
		case stepRecord:
			out = append(out, "record "+s.record.ServerID)
		case stepTell:
			out = append(out, "tell "+s.peer.ServerID)
		case stepRefuse:
			out = append(out, fmt.Sprintf("refuse %s clash=%v", s.peer.ServerID, s.clash))
		case stepAddress:
			out = append(out, "move "+s.server.ID+" to "+s.server.Addr)
		case stepPromote:
			out = append(out, "promote "+s.server.ID)
		case stepReplace:
			out = append(out, "replace "+s.server.ID+" by "+s.peer.ServerID)
		case stepInvite:
			out = append(out, "invite "+s.peer.ServerID)
		}
	}
	return strings.Join(out, ", ")
}

// TestWipedNodeIsReplacedOnlyAfterSilence is the table of Invariant 27's conditions.
func TestWipedNodeIsReplacedOnlyAfterSilence(t *testing.T) {
	const minute = time.Minute
	refused, clash, replaced := "refuse new clash=false", "refuse new clash=true", "replace c by new"
	tests := []struct {
		name   string
		change func(w *world)
		want   string
	}{
		{"silent for long", func(w *world) { w.lose("c", minute) }, replaced},
		{"never heard of in this term", func(w *world) { w.lose("c", 0); delete(w.contact, "c") }, replaced},
		{"just silent", func(w *world) { w.lose("c", 5*time.Second) }, refused},
		{"nearly", func(w *world) { w.lose("c", 30*time.Second-1) }, refused},
		{"exactly", func(w *world) { w.lose("c", 30*time.Second) }, replaced},
		{"the leader is new", func(w *world) { w.lose("c", minute); w.readySince = noon.Add(-10 * time.Second) }, refused},
		{"the leader is new and never heard of it", func(w *world) {
			w.lose("c", 0)
			delete(w.contact, "c")
			w.readySince = noon.Add(-10 * time.Second)
		}, refused},
		{"Raft hears it, gossip does not", func(w *world) { w.lose("c", 0) }, clash},
		{"gossip sees it, Raft does not", func(w *world) { w.contact["c"] = noon.Add(-minute) }, clash},
		{"gossip sees it, Raft not for long", func(w *world) { w.contact["c"] = noon.Add(-5 * time.Second) }, refused},
		{"both live", func(*world) {}, clash},
		{"no quorum without it", func(w *world) { w.lose("c", minute); w.lose("b", minute) }, refused},
		{"the name of the leader", func(w *world) { w.newcomer("new", "name-a") }, clash},
		{"a nonvoter is lost", func(w *world) { w.lose("c", minute); w.servers[2].Voter = false }, replaced},
		{"another is catching up", func(w *world) { w.lose("c", minute); w.join("d", false); w.match["d"] = 1 }, refused},
		{"a replica is no hindrance", func(w *world) {
			w.lose("c", minute)
			w.join("d", false)
			r := w.records["d"]
			r.Nonvoter = true
			w.records["d"] = r
		}, replaced},
		{"its own cluster id, made anew", func(w *world) {
			w.lose("c", minute)
			p := w.peers["new"]
			p.ClusterID = "X"
			w.peers["new"] = p
		}, replaced},
		{"of another cluster", func(w *world) {
			w.lose("c", minute)
			p := w.peers["new"]
			p.ClusterID = "Y"
			w.peers["new"] = p
		}, ""},
		{"at the address of the lost", func(w *world) {
			p := w.peers["new"]
			p.RaftAddr = "c:7000"
			w.peers["new"] = p
			w.lose("c", minute)
		}, replaced},
		{"two at once", func(w *world) {
			w.join("d", true)
			w.join("e", true)
			w.lose("c", minute)
			w.lose("d", minute)
			w.newcomer("new2", "name-d")
		}, replaced},
		{"two successors", func(w *world) { w.lose("c", minute); w.newcomer("new2", "name-c") }, "refuse new2 clash=true, " + replaced},
		{"one more voter may be lost of five", func(w *world) {
			w.join("d", true)
			w.join("e", true)
			w.lose("c", minute)
			w.lose("d", minute)
		}, replaced},
		{"not two more", func(w *world) {
			w.join("d", true)
			w.join("e", true)
			w.lose("c", minute)
			w.lose("d", minute)
			w.lose("e", minute)
		}, refused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := testWorld("a", "b", "c")
			w.newcomer("new", "name-c")
			tt.change(w)
			if got := show(w.plan()); got != tt.want {
				t.Errorf("plan: %s\nwant: %s", got, tt.want)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	tests := []struct {
		name   string
		change func(w *world)
		want   string
	}{
		{"nothing to do", func(*world) {}, ""},
		{"a newcomer", func(w *world) { w.newcomer("d", "d") }, "invite d"},
		{"one newcomer at a time", func(w *world) { w.newcomer("d", "d"); w.newcomer("e", "e") }, "invite d"},
		{"a failing one lets others go first", func(w *world) {
			w.newcomer("d", "d")
			w.newcomer("e", "e")
			w.failed[step{kind: stepInvite, peer: peer{ServerID: "d"}}.key()] = true
		}, "invite e"},
		{"two newcomers of one name", func(w *world) { w.newcomer("d", "d"); w.newcomer("e", "d") }, "refuse e clash=true, invite d"},
		{"a used address", func(w *world) {
			w.newcomer("d", "d")
			p := w.peers["d"]
			p.RaftAddr = "b:7000"
			w.peers["d"] = p
		}, "refuse d clash=true"},
		{"bound to a formation", func(w *world) {
			w.newcomer("d", "d")
			p := w.peers["d"]
			p.Promised = true
			w.peers["d"] = p
		}, ""},
		{"a removed server is told", func(w *world) {
			w.newcomer("d", "d")
			p := w.peers["d"]
			p.ClusterID = "X"
			w.peers["d"] = p
			w.records["d"] = kv.MemberRecord{ServerID: "d", ID: "d", Removed: true}
		}, "tell d"},
		{"and left alone once it knows", func(w *world) {
			w.newcomer("d", "d")
			p := w.peers["d"]
			p.ClusterID, p.Removed = "X", true
			w.peers["d"] = p
			w.records["d"] = kv.MemberRecord{ServerID: "d", ID: "d", Removed: true}
		}, ""},
		{"caught up long enough", func(w *world) {
			w.join("d", false)
			w.caughtUp["d"] = noon.Add(-2 * time.Second)
		}, "promote d"},
		{"not long enough", func(w *world) {
			w.join("d", false)
			w.caughtUp["d"] = noon.Add(-time.Second)
		}, ""},
		{"behind again", func(w *world) {
			w.join("d", false)
			w.caughtUp["d"] = noon.Add(-time.Minute)
			w.match["d"] = 899
		}, ""},
		{"not reached", func(w *world) {
			w.join("d", false)
			w.caughtUp["d"] = noon.Add(-time.Minute)
			w.contact["d"] = noon.Add(-4 * time.Second)
		}, ""},
		{"a replica stays one", func(w *world) {
			w.join("d", false)
			w.caughtUp["d"] = noon.Add(-time.Minute)
			r := w.records["d"]
			r.Nonvoter = true
			w.records["d"] = r
		}, ""},
		{"moved", func(w *world) {
			p := w.peers["b"]
			p.RaftAddr = "elsewhere:7000"
			w.peers["b"] = p
		}, "move b to elsewhere:7000"},
		{"moved to a used address", func(w *world) {
			p := w.peers["b"]
			p.RaftAddr = "c:7000"
			w.peers["b"] = p
		}, ""},
		{"no record yet", func(w *world) { delete(w.records, "b") }, "record b"},
		{"an old record", func(w *world) {
			p := w.peers["b"]
			p.HTTPAddr = "elsewhere:8080"
			w.peers["b"] = p
		}, "record b"},
		{"a removal that was not finished", func(w *world) {
			r := w.records["b"]
			r.Removed = true
			w.records["b"] = r
		}, "record b"},
		{"a removal that may be on its way", func(w *world) {
			r := w.records["b"]
			r.Removed = true
			w.records["b"], w.leaving["b"] = r, true
		}, ""},
		{"a founder that was never seen", func(w *world) {
			w.lose("b", 0)
			delete(w.records, "b")
			w.founders = []founder{testFounder("b")}
		}, "record b"},
		{"lost, and nobody came", func(w *world) { w.lose("b", time.Hour); w.lose("c", time.Hour) }, ""},
		{"a leader on its way out does not invite itself", func(w *world) { w.servers = w.servers[1:] }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := testWorld("a", "b", "c")
			tt.change(w)
			if got := show(w.plan()); got != tt.want {
				t.Errorf("plan: %s\nwant: %s", got, tt.want)
			}
		})
	}
}

// TestPlanIsOneChangeAtATime: whatever is due, a plan has one membership change, the
// last step.
func TestPlanIsOneChangeAtATime(t *testing.T) {
	w := testWorld("a", "b", "c")
	w.join("d", false)
	w.caughtUp["d"] = noon.Add(-time.Hour)
	w.newcomer("e", "e")
	w.newcomer("f", "name-c")
	w.lose("c", time.Hour)
	p := w.peers["b"]
	p.RaftAddr = "elsewhere:7000"
	w.peers["b"] = p
	for range 4 {
		steps := w.plan()
		changes := slices.DeleteFunc(slices.Clone(steps), func(s step) bool { return s.kind < stepAddress })
		if len(changes) > 1 || len(changes) == 1 && steps[len(steps)-1].kind != changes[0].kind {
			t.Errorf("plan: %s", show(steps))
		}
		if len(changes) == 1 {
			w.failed[changes[0].key()] = true
		}
	}
	if len(w.failed) < 3 {
		t.Errorf("only %d changes came up: the test tries too little", len(w.failed))
	}
}

// TestGuardLoss is the table of Invariant 29.
func TestGuardLoss(t *testing.T) {
	tests := []struct {
		voters string
		dead   string
		lose   string
		force  bool
		ok     bool
	}{
		{"a b c", "", "b", false, true},
		{"a b c", "", "a", false, true},
		{"a b c", "c", "b", false, false}, // 1 of 2
		{"a b c", "c", "b", true, true},
		{"a b c", "c", "c", false, true}, // the dead one may go
		{"a b c", "c", "a", false, false},
		{"a b", "", "b", false, true},
		{"a b", "b", "b", false, true},
		{"a", "", "a", false, false},
		{"a", "", "a", true, false}, // never the last
		{"a b c d", "d", "c", false, true},
		{"a b c d", "c d", "b", false, false},
		{"a b c d", "c d", "d", false, true}, // 2 of 3
		{"a b c d e", "d e", "c", false, false},
		{"a b c d e", "e", "d", false, true},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s, dead %s, lose %s, force %v", tt.voters, tt.dead, tt.lose, tt.force), func(t *testing.T) {
			w := testWorld(strings.Fields(tt.voters)...)
			w.join("replica", false)
			for _, id := range strings.Fields(tt.dead) {
				w.lose(id, time.Minute)
			}
			err := w.guardLoss(tt.lose, tt.force)
			if (err == nil) != tt.ok {
				t.Errorf("%v", err)
			}
			if err != nil && (!errors.Is(err, kv.ErrConflict) || kv.AsError(err).Outcome != kv.OutcomeNotApplied) {
				t.Errorf("%#v", err)
			}
			if err := w.guardLoss("replica", false); err != nil {
				t.Errorf("a nonvoter may always go: %v", err)
			}
		})
	}
}

func TestMemberState(t *testing.T) {
	for _, tt := range []struct {
		gossip, raft, leader bool
		want                 string
	}{
		{true, true, true, kv.StateAlive}, {true, false, true, kv.StateSuspect}, {false, true, true, kv.StateSuspect},
		{false, false, true, kv.StateGone}, {true, false, false, kv.StateAlive}, {false, false, false, kv.StateGone},
	} {
		if got := memberState(tt.gossip, tt.raft, tt.leader); got != tt.want {
			t.Errorf("gossip %v, raft %v, leader %v: %s", tt.gossip, tt.raft, tt.leader, got)
		}
	}
}

// TestNodeThatWaitsIsNotTakenIn: gossip may come across a node that was told to join
// nobody, on a reused address say; it comes only when an administrator asks.
func TestNodeThatWaitsIsNotTakenIn(t *testing.T) {
	w := testWorld("a", "b", "c")
	w.newcomer("d", "node-d")
	if got := show(w.plan()); !strings.Contains(got, "invite d") {
		t.Fatalf("a newcomer that wants in: %q", got)
	}
	p := w.peers["d"]
	p.Waits = true
	w.peers["d"] = p
	if got := show(w.plan()); strings.Contains(got, "d") {
		t.Errorf("a node that waits: %q", got)
	}
}
