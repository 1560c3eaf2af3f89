package cluster

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/settkv/sett/kv"
)

// world is what the leader knows at one instant. Decisions are pure functions of it.
type world struct {
	now        time.Time
	self       string // server id of the leader
	clusterID  string
	readySince time.Time // since when this leader is ready in its term
	servers    []kv.Server
	peers      map[string]peer // alive in gossip, this node included
	records    map[string]kv.MemberRecord
	founders   []founder
	contact    map[string]time.Time // last Raft contact in this term, if any
	match      map[string]uint64
	commit     uint64
	caughtUp   map[string]time.Time // nonvoters: since when they are
	failed     map[string]bool      // changes that failed just now, by key
	leaving    map[string]bool      // servers whose removal was proposed here just now
	// askedAt, if set, is when an administrator asked: only contact after it counts.
	askedAt time.Time

	replaceAfter, liveWithin, stabilize time.Duration
	catchUp                             uint64
}

// live says whether the leader reaches a server through Raft.
func (w *world) live(id string) bool {
	if id == w.self {
		return true
	}
	t, ok := w.contact[id]
	return ok && w.now.Sub(t) <= w.liveWithin && !t.Before(w.askedAt)
}

// silence is how long the leader had no Raft contact with a server; a leader knows
// nothing of the time before it became ready.
func (w *world) silence(id string) time.Duration {
	if id == w.self {
		return 0
	}
	since := w.readySince
	if t, ok := w.contact[id]; ok && t.After(since) {
		since = t
	}
	return w.now.Sub(since)
}

func (w *world) server(id string) (kv.Server, bool) {
	for _, s := range w.servers {
		if s.ID == id {
			return s, true
		}
	}
	return kv.Server{}, false
}

// name returns what people call a server, "" if nobody knows.
func (w *world) name(id string) string {
	if p, ok := w.peers[id]; ok {
		return p.Name
	}
	if r, ok := w.records[id]; ok {
		return r.ID
	}
	for _, f := range w.founders {
		if f.ID == id {
			return f.Name
		}
	}
	return ""
}

// byName finds the server of a name, or of a server id.
func (w *world) byName(name string) (kv.Server, bool) {
	for _, s := range w.servers {
		if w.name(s.ID) == name {
			return s, true
		}
	}
	return w.server(name)
}

func quorum(voters int) int { return voters/2 + 1 }

// voters returns how many voters there are, and how many of them are live, without
// counting the server except.
func (w *world) voters(except string) (total, live int) {
	for _, s := range w.servers {
		if s.Voter && s.ID != except {
			total++
			if w.live(s.ID) {
				live++
			}
		}
	}
	return total, live
}

// guardLoss says whether a voter may go: by removal or by demotion.
//
// Invariant 29: not if fewer live voters than a quorum would be left, unless forced;
// and never the last one.
func (w *world) guardLoss(id string, force bool) error {
	s, ok := w.server(id)
	if !ok || !s.Voter {
		return nil
	}
	total, live := w.voters(id)
	if total == 0 {
		return kv.NotApplied(kv.CodeConflict, "%s is the last voter; there would be no cluster left", w.name(id))
	}
	if live < quorum(total) && !force {
		return kv.NotApplied(kv.CodeConflict, "without %s only %d of %d voters would be live, and %d are a quorum; bring the others back first, or use force", w.name(id), live, total, quorum(total))
	}
	return nil
}

// isCaughtUp says whether a server is live and close to the commit index.
func (w *world) isCaughtUp(id string) bool {
	m, ok := w.match[id]
	return ok && w.live(id) && m+w.catchUp >= w.commit
}

// catchingUp returns a live nonvoter that is on its way to be a voter.
func (w *world) catchingUp() (string, bool) {
	for _, s := range w.servers {
		if !s.Voter && !w.records[s.ID].Nonvoter && w.live(s.ID) {
			return s.ID, true
		}
	}
	return "", false
}

// replaceable says whether the server old may be replaced by a new one of its name;
// "" if so, else why not yet. clash says that both are there.
//
// Invariant 27: only after this leader itself had no Raft contact with it for
// replace-after, one at a time, and only if the live voters without it are a quorum.
func (w *world) replaceable(old kv.Server) (why string, clash bool) {
	name, silence := w.name(old.ID), w.silence(old.ID)
	_, seen := w.peers[old.ID]
	waits := silence < w.replaceAfter && !mutantReplaceAtOnce
	if w.live(old.ID) || seen && !waits {
		return fmt.Sprintf("a live server (%s, raft %s) is called %s: give this node another id, or stop or remove the other", old.ID, old.Addr, name), true
	}
	if waits {
		return fmt.Sprintf("server %s is called %s too and was there %s ago: it is replaced once it is silent for %s, or remove it", old.ID, name, silence.Round(time.Second), w.replaceAfter), false
	}
	total, live := w.voters("")
	if live < quorum(total) {
		return fmt.Sprintf("the lost server %s can't be replaced: only %d of %d voters are live", old.ID, live, total), false
	}
	if id, busy := w.catchingUp(); busy {
		return fmt.Sprintf("one at a time: %s is catching up first", w.name(id)), false
	}
	return "", false
}

// Kinds of step.
type stepKind int

const (
	stepRecord  stepKind = iota // write record
	stepTell                    // tell peer that it was removed
	stepRefuse                  // tell peer why it is not taken in
	stepAddress                 // server has a new address
	stepPromote                 // server becomes a voter
	stepReplace                 // take server out: peer, of its name, comes instead
	stepInvite                  // take peer in
)

type step struct {
	kind   stepKind
	server kv.Server
	peer   peer
	record kv.MemberRecord
	reason string
	clash  bool // stepRefuse: two live servers of one name
}

// key tells changes apart.
func (s step) key() string { return fmt.Sprint(s.kind, " ", s.server.ID, " ", s.peer.ServerID) }

// plan returns what is to be done now: any number of notes, and at most one
// membership change, the last step (Invariant 26: one at a time). A change that
// failed just now lets the others go first.
func (w *world) plan() []step {
	out := w.planRecords()
	newcomers, notes := w.newcomers()
	out = append(out, notes...)
	for _, s := range append(w.upkeep(), newcomers...) {
		if !w.failed[s.key()] {
			return append(out, s)
		}
	}
	return out
}

// planRecords keeps the records of the servers true. A server of the configuration
// that is recorded as removed is one whose removal was not finished, so it is a member, unless
// the removal may still be on its way.
func (w *world) planRecords() []step {
	var out []step
	for _, s := range w.servers {
		r, ok := w.records[s.ID]
		if r.Removed && w.leaving[s.ID] {
			continue
		}
		want := r
		want.ServerID, want.Removed = s.ID, false
		if p, seen := w.peers[s.ID]; seen {
			want.ID, want.HTTPAddr, want.GossipAddr = p.Name, p.HTTPAddr, p.GossipAddr
			if !ok {
				want.Nonvoter = p.Nonvoter
			}
		} else if !ok {
			for _, f := range w.founders {
				if f.ID == s.ID {
					want.ID, want.HTTPAddr = f.Name, f.HTTPAddr
				}
			}
		}
		if want.ID != "" && (!ok || want != r) {
			out = append(out, step{kind: stepRecord, record: want})
		}
	}
	return out
}

// newcomers returns the changes that newcomers call for, replacements first, and the
// notes for those that have to wait.
func (w *world) newcomers() (changes, notes []step) {
	ids := make([]string, 0, len(w.peers))
	for id := range w.peers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var invites []step
	taken := map[string]string{} // name → server id of an earlier newcomer
	for _, id := range ids {
		p := w.peers[id]
		if _, member := w.server(id); member || id == w.self || p.ClusterID != "" && p.ClusterID != w.clusterID {
			continue
		}
		if w.records[id].Removed || p.Removed {
			// Invariant 26: it comes back only when somebody asks for it.
			if p.ClusterID == w.clusterID && !p.Removed {
				notes = append(notes, step{kind: stepTell, peer: p})
			}
			continue
		}
		if p.Waits {
			continue // it was not told to join anybody; gossip found it by accident
		}
		if p.ClusterID == "" && p.Promised {
			continue // bound to a formation; it says so itself
		}
		if other, clash := taken[p.Name]; clash {
			notes = append(notes, step{kind: stepRefuse, peer: p, clash: true,
				reason: fmt.Sprintf("another new server (%s) is called %s too: give one of them another id", other, p.Name)})
			continue
		}
		taken[p.Name] = id
		if old, clash := w.byName(p.Name); clash {
			if why, both := w.replaceable(old); why != "" {
				notes = append(notes, step{kind: stepRefuse, peer: p, reason: why, clash: both})
			} else {
				changes = append(changes, step{kind: stepReplace, server: old, peer: p})
			}
			continue
		}
		if s, used := w.usesAddr(p.RaftAddr, id); used {
			notes = append(notes, step{kind: stepRefuse, peer: p, clash: true,
				reason: fmt.Sprintf("server %s (%s) has the raft address %s: give this node another, or remove the other", s.ID, w.name(s.ID), p.RaftAddr)})
			continue
		}
		invites = append(invites, step{kind: stepInvite, peer: p})
	}
	return append(changes, invites...), notes
}

// usesAddr finds another server with a Raft address.
func (w *world) usesAddr(addr, except string) (kv.Server, bool) {
	for _, s := range w.servers {
		if s.Addr == addr && s.ID != except {
			return s, true
		}
	}
	return kv.Server{}, false
}

// upkeep returns the changes for servers that are in the configuration: new
// addresses, then promotions.
func (w *world) upkeep() []step {
	var out []step
	servers := slices.Clone(w.servers)
	slices.SortFunc(servers, func(a, b kv.Server) int { return strings.Compare(a.ID, b.ID) })
	for _, s := range servers {
		p, seen := w.peers[s.ID]
		if !seen || p.RaftAddr == "" || p.RaftAddr == s.Addr {
			continue
		}
		if _, used := w.usesAddr(p.RaftAddr, s.ID); !used {
			out = append(out, step{kind: stepAddress, server: kv.Server{ID: s.ID, Addr: p.RaftAddr, Voter: s.Voter}, peer: p})
		}
	}
	for _, s := range servers {
		r, recorded := w.records[s.ID]
		if s.Voter || !recorded || r.Nonvoter || !w.isCaughtUp(s.ID) {
			continue
		}
		if t, ok := w.caughtUp[s.ID]; ok && w.now.Sub(t) >= w.stabilize {
			out = append(out, step{kind: stepPromote, server: s})
		}
	}
	return out
}
