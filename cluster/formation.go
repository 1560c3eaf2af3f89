package cluster

import (
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Formation. Each node may hold one promise. The proposer, the lowest server id of
// its view, makes a cluster id and a configuration of exactly N founders, promises
// itself, and asks the other founders for theirs. Once it has all of them it decides:
// it writes the cluster id as its own. Then each founder starts Raft with the same
// configuration.
//
// Invariant 28: formation can't split. Why it holds:
//
//   - A decision needs the durable promises of all N founders, and a node that holds
//     one promise gives no other. Two decided configurations therefore have no
//     founder in common (with fewer than 2N servers: there is one at most).
//   - A promise is given up only if its proposer durably gave the proposal up before
//     it decided; it never proposes the same cluster id again, and after giving up it
//     can't decide. So a proposal with a promise missing is never decided later.
//   - Every step is on disk before anybody hears of it. A crash between is a crash
//     before or after.
//
// Giving up is always safe, so a proposer that is refused, or gets no answer for a
// while, does. A founder that holds a promise keeps asking what became of it: from
// any founder it takes the word that it was decided, and only from the proposer that
// it was given up. Lost messages thus cost time only. A proposer that never comes
// back leaves its founders waiting; they say so.
//
// This file is a pure machine: no I/O, no clock, no goroutine. Its caller carries
// messages and serializes calls.

// ledger keeps the durable part. update must not return nil before the change is on
// stable storage; State is one.
type ledger interface {
	load() *durable
	update(fn func(d *durable) error) error
}

// Kinds of formation message.
const (
	msgPromise = "promise" // will you take part?
	msgAbort   = "abort"   // the proposal is given up
	msgCommit  = "commit"  // all promised: start
	msgStatus  = "status"  // what became of it?
)

// message goes from one founder to another.
type message struct {
	Kind      string    `json:"kind"`
	From      string    `json:"from"`     // server id
	Target    string    `json:"target"`   // server id
	Proposer  string    `json:"proposer"` // server id
	ClusterID string    `json:"cluster_id"`
	Founders  []founder `json:"founders"`
}

// Answers to a message.
const (
	ansGranted = "granted" // promise: given, now or before
	ansRefused = "refused"
	ansDone    = "done"    // abort, commit: so it is
	ansDecided = "decided" // status
	ansPending = "pending" // status: not decided, not given up
	ansAborted = "aborted" // status, from the proposer only: given up for ever
	ansUnknown = "unknown" // status
)

type answer struct {
	Kind string `json:"kind"`
	// PromisedTo is the proposer that a refused promise was given to.
	PromisedTo string `json:"promised_to,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

// view is what gossip shows a node: the others, alive.
type view struct {
	peers []peer
}

// formed returns a peer that belongs to a cluster, if there is one.
func (v view) formed() (peer, bool) {
	for _, p := range v.peers {
		if p.ClusterID != "" {
			return p, true
		}
	}
	return peer{}, false
}

// Paces of formation. Safety does not depend on them.
const (
	settleFor      = 300 * time.Millisecond // a view must stand still this long
	resendEvery    = 500 * time.Millisecond
	giveUpAfter    = 6 * time.Second
	proposePauseLo = 200 * time.Millisecond
	proposePauseHi = 10 * time.Second
)

type formation struct {
	self     founder
	expect   int
	eligible bool // may take part: bootstrap-expect is set, not a nonvoter
	ledger   ledger
	newID    func() string
	rng      *rand.Rand

	// What follows is lost in a crash, harmlessly.
	proposal  string            // cluster id that granted and troubles are about
	granted   map[string]bool   // founders that promised
	troubles  map[string]string // founder → why it did not
	giveUp    bool
	deadline  time.Time
	nextSend  time.Time
	nextTry   time.Time // no new proposal before
	pause     time.Duration
	committed map[string]bool // founders that confirmed a decision made here
	telling   bool            // this node decided and has founders to tell

	lastView  string
	viewSince time.Time
}

// tick does what is due and returns the messages to send. An error is the ledger's.
func (f *formation) tick(now time.Time, v view) ([]message, error) {
	d := f.ledger.load()
	switch {
	case d.ClusterID != "":
		return f.tellDecision(now, d), nil
	case d.Promise == nil:
		if err := f.propose(now, v); err != nil {
			return nil, err
		}
		if d = f.ledger.load(); d.Promise == nil {
			return nil, nil
		}
		return f.drive(now, v, d)
	case d.Promise.Proposer == f.self.ID:
		return f.drive(now, v, d)
	default:
		return f.ask(now, d), nil
	}
}

// candidates returns those that could found a cluster now, this node included,
// lowest server id first. Of two that share a name or an address only the lower counts.
func (f *formation) candidates(v view) []founder {
	all := []founder{f.self}
	for _, p := range v.peers {
		if p.ClusterID == "" && p.Expect == f.expect && !p.Nonvoter && !p.Removed && !p.Started && !p.Promised {
			all = append(all, p.founder())
		}
	}
	slices.SortFunc(all, func(a, b founder) int { return strings.Compare(a.ID, b.ID) })
	names, addrs := map[string]bool{}, map[string]bool{}
	return slices.DeleteFunc(all, func(x founder) bool {
		clash := names[x.Name] || addrs[x.RaftAddr]
		names[x.Name], addrs[x.RaftAddr] = true, true
		return clash
	})
}

// propose promises this node to a new configuration, if it is its turn to make one.
func (f *formation) propose(now time.Time, v view) error {
	if !f.eligible || now.Before(f.nextTry) {
		return nil
	}
	var founders []founder
	if f.expect == 1 {
		founders = []founder{f.self}
	} else {
		if _, formed := v.formed(); formed {
			return nil
		}
		cand := f.candidates(v)
		key := ""
		for _, c := range cand {
			key += c.ID + " "
		}
		if key != f.lastView {
			f.lastView, f.viewSince = key, now
		}
		if len(cand) < f.expect || cand[0].ID != f.self.ID || now.Sub(f.viewSince) < settleFor {
			return nil
		}
		founders = slices.Clone(cand[:f.expect])
	}
	p := &promise{Proposer: f.self.ID, ClusterID: f.newID(), Founders: founders}
	return f.ledger.update(func(d *durable) error {
		d.Promise = p
		return nil
	})
}

// adopt resets what is remembered if it is about another proposal: after a restart
// the proposer asks again, and a promise that was given is confirmed.
func (f *formation) adopt(now time.Time, id string) {
	if f.proposal == id {
		return
	}
	f.proposal, f.granted, f.troubles = id, map[string]bool{f.self.ID: true}, map[string]string{}
	f.giveUp, f.nextSend, f.deadline = false, now, now.Add(giveUpAfter)
}

// drive moves this node's own proposal: decide, give up, or ask again.
func (f *formation) drive(now time.Time, v view, d *durable) ([]message, error) {
	p := d.Promise
	f.adopt(now, p.ClusterID)
	if all(p.Founders, f.granted) {
		return f.decide(now)
	}
	if x, formed := v.formed(); formed && f.expect > 1 {
		f.giveUp = true
		f.troubles[x.ServerID] = "it belongs to cluster " + x.ClusterID
	}
	if f.giveUp || now.After(f.deadline) {
		return f.abort(now, p)
	}
	if now.Before(f.nextSend) {
		return nil, nil
	}
	f.nextSend = now.Add(resendEvery)
	var out []message
	for _, to := range p.Founders {
		if !f.granted[to.ID] {
			out = append(out, f.message(msgPromise, to.ID, p))
		}
	}
	return out, nil
}

func all(founders []founder, in map[string]bool) bool {
	for _, x := range founders {
		if !in[x.ID] {
			return false
		}
	}
	return true
}

func (f *formation) message(kind, to string, p *promise) message {
	return message{Kind: kind, From: f.self.ID, Target: to, Proposer: p.Proposer, ClusterID: p.ClusterID, Founders: p.Founders}
}

// decide makes the decision durable. From here on the cluster exists.
func (f *formation) decide(now time.Time) ([]message, error) {
	if err := f.ledger.update(keepPromise); err != nil {
		return nil, err
	}
	f.telling, f.committed, f.nextSend = true, map[string]bool{f.self.ID: true}, now
	return f.tellDecision(now, f.ledger.load()), nil
}

// keepPromise turns the promise into membership.
func keepPromise(d *durable) error {
	d.ClusterID, d.Founders, d.Promise = d.Promise.ClusterID, d.Promise.Founders, nil
	return nil
}

// tellDecision tells the founders that don't know it yet. It ends with this life of
// the process: those left out ask by themselves.
func (f *formation) tellDecision(now time.Time, d *durable) []message {
	if !f.telling || now.Before(f.nextSend) {
		return nil
	}
	f.nextSend = now.Add(resendEvery)
	f.telling = false
	var out []message
	for _, to := range d.Founders {
		if !f.committed[to.ID] {
			f.telling = true
			out = append(out, f.message(msgCommit, to.ID, &promise{Proposer: f.self.ID, ClusterID: d.ClusterID, Founders: d.Founders}))
		}
	}
	return out
}

// abort durably gives this node's undecided proposal up and tells the founders once;
// one that misses it will ask.
func (f *formation) abort(now time.Time, p *promise) ([]message, error) {
	if err := f.ledger.update(func(d *durable) error {
		d.Promise = nil
		return nil
	}); err != nil {
		return nil, err
	}
	f.pause = min(max(2*f.pause, proposePauseLo), proposePauseHi)
	f.nextTry = now.Add(time.Duration(f.rng.Int64N(int64(f.pause)) + 1))
	var out []message
	for _, to := range p.Founders {
		if to.ID != f.self.ID {
			out = append(out, f.message(msgAbort, to.ID, p))
		}
	}
	return out, nil
}

// ask asks the other founders what became of the proposal that this node promised
// itself to.
func (f *formation) ask(now time.Time, d *durable) []message {
	p := d.Promise
	if f.proposal != p.ClusterID {
		f.proposal, f.troubles = p.ClusterID, map[string]string{}
		f.granted = nil
		f.nextSend = now.Add(2 * resendEvery) // the proposer usually speaks first
	}
	if now.Before(f.nextSend) {
		return nil
	}
	f.nextSend = now.Add(2 * resendEvery)
	var out []message
	for _, to := range p.Founders {
		if to.ID != f.self.ID {
			out = append(out, f.message(msgStatus, to.ID, p))
		}
	}
	return out
}

// handle answers a message. The answer may be sent only if err is nil.
func (f *formation) handle(m message, v view) (answer, error) {
	if m.Target != f.self.ID {
		return answer{Kind: ansRefused, Reason: "this is server " + f.self.ID}, nil
	}
	switch m.Kind {
	case msgPromise:
		return f.onPromise(m, v)
	case msgAbort:
		return answer{Kind: ansDone}, f.release(m.ClusterID, m.From)
	case msgCommit:
		return f.onCommit(m)
	case msgStatus:
		return f.status(m), nil
	}
	return answer{Kind: ansRefused, Reason: "unknown message"}, nil
}

func (f *formation) onPromise(m message, v view) (answer, error) {
	d := f.ledger.load()
	refuse := func(why string) (answer, error) { return answer{Kind: ansRefused, Reason: why}, nil }
	switch {
	case d.ClusterID == m.ClusterID && m.ClusterID != "":
		return answer{Kind: ansGranted}, nil // and kept
	case d.ClusterID != "":
		return refuse("it belongs to cluster " + d.ClusterID)
	case d.Promise != nil && d.Promise.ClusterID == m.ClusterID && d.Promise.Proposer == m.From:
		return answer{Kind: ansGranted}, nil
	case d.Promise != nil && !mutantForgetPromise:
		return answer{Kind: ansRefused, PromisedTo: d.Promise.Proposer, Reason: "it has promised itself to " + d.Promise.proposer().Name}, nil
	case !f.eligible || len(m.Founders) != f.expect || f.expect < 2:
		return refuse("its bootstrap-expect differs, or it may not take part in formation")
	case m.ClusterID == "" || m.Proposer != m.From || !slices.ContainsFunc(m.Founders, func(x founder) bool { return x.ID == m.From }):
		return refuse("the proposal is malformed")
	case !slices.Contains(m.Founders, f.self):
		return refuse("the proposal knows it by other addresses")
	}
	if x, formed := v.formed(); formed {
		return refuse("it sees cluster " + x.ClusterID)
	}
	p := &promise{Proposer: m.From, ClusterID: m.ClusterID, Founders: slices.Clone(m.Founders)}
	if err := f.ledger.update(func(d *durable) error {
		d.Promise = p
		return nil
	}); err != nil {
		return answer{}, err
	}
	return answer{Kind: ansGranted}, nil
}

// release gives up a promise on its proposer's word.
func (f *formation) release(clusterID, proposer string) error {
	return f.ledger.update(func(d *durable) error {
		if p := d.Promise; p != nil && p.ClusterID == clusterID && p.Proposer == proposer && proposer != f.self.ID {
			d.Promise = nil
		}
		return nil
	})
}

// learn takes the word that the proposal this node promised itself to was decided.
func (f *formation) learn(clusterID string) (bool, error) {
	d := f.ledger.load()
	if d.ClusterID == clusterID {
		return true, nil
	}
	if d.Promise == nil || d.Promise.ClusterID != clusterID {
		return false, nil
	}
	return true, f.ledger.update(keepPromise)
}

func (f *formation) onCommit(m message) (answer, error) {
	ok, err := f.learn(m.ClusterID)
	if !ok {
		return answer{Kind: ansRefused, Reason: "it has made no such promise"}, err
	}
	return answer{Kind: ansDone}, err
}

// status tells what became of a proposal. "Aborted" is for its proposer alone to
// say: it is the one that could have decided, and what it does not hold any more it
// has given up.
func (f *formation) status(m message) answer {
	d := f.ledger.load()
	switch {
	case m.ClusterID == "":
		return answer{Kind: ansUnknown}
	case d.ClusterID == m.ClusterID:
		return answer{Kind: ansDecided}
	case d.Promise != nil && d.Promise.ClusterID == m.ClusterID:
		return answer{Kind: ansPending}
	case m.Proposer == f.self.ID:
		return answer{Kind: ansAborted}
	}
	return answer{Kind: ansUnknown}
}

// onAnswer takes the answer to a message that this node sent. It may return more to send.
func (f *formation) onAnswer(now time.Time, m message, a answer) ([]message, error) {
	d := f.ledger.load()
	p := d.Promise
	switch m.Kind {
	case msgPromise:
		if p == nil || p.ClusterID != m.ClusterID || p.Proposer != f.self.ID {
			return nil, nil // of a proposal that is over
		}
		f.adopt(now, p.ClusterID)
		if a.Kind == ansGranted {
			f.granted[m.Target] = true
			delete(f.troubles, m.Target)
			if all(p.Founders, f.granted) {
				return f.decide(now)
			}
			return nil, nil
		}
		f.troubles[m.Target] = a.Reason
		// A promise given to a higher proposer is waited for: that one gives up when it
		// meets a founder of ours. Anything else can't come right by waiting.
		if a.PromisedTo == "" || a.PromisedTo < f.self.ID {
			f.giveUp = true
		}
	case msgCommit:
		if a.Kind == ansDone && f.telling {
			f.committed[m.Target] = true
		}
	case msgStatus:
		if p == nil || p.ClusterID != m.ClusterID {
			return nil, nil
		}
		switch {
		case a.Kind == ansDecided:
			_, err := f.learn(m.ClusterID)
			return nil, err
		case a.Kind == ansAborted && m.Target == p.Proposer:
			return nil, f.release(m.ClusterID, p.Proposer)
		}
	}
	return nil, nil
}

// unreachable notes that a founder did not answer, for people.
func (f *formation) unreachable(m message, why string) {
	if f.troubles != nil && f.proposal == m.ClusterID {
		f.troubles[m.Target] = why
	}
}
