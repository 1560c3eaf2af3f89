package consensus

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// maxPool is the number of idle connections kept for each peer.
	maxPool = 3
	// maxBodyBytes bounds the entries of one AppendEntries message; one entry always
	// goes. raft bounds their number only.
	maxBodyBytes = 2 << 20
)

var errOldTerm = errors.New("this server no longer leads the term of the message")

// transport is raft's transport. It embeds the concrete type: embedding the
// interface would lose pre-vote and Close.
type transport struct {
	*raft.NetworkTransport
	c     *Consensus
	ready chan struct{} // closed once c.raft is set
}

func newTransport(c *Consensus, log hclog.Logger) *transport {
	return &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Logger:  log,
			Stream:  c.stream,
			MaxPool: maxPool,
			// Invariant 22: with two, one transient error of a follower wedges its
			// replication for good (hashicorp/raft #612).
			MaxRPCsInFlight: 1,
			Timeout:         c.cfg.RPCTimeout,
		}),
		c:     c,
		ready: make(chan struct{}),
	}
}

// SetHeartbeatHandler does nothing.
//
// Invariant 21: with a handler, heartbeats change term and role on a connection's
// goroutine while the main loop may be about to stamp a client's write, which then
// lands in the next leader's term and diverges (hashicorp/raft #695, open in
// v1.8.0). Without one they go through the main loop. The price: they wait behind
// the follower's fsync, so timeouts must exceed its stalls.
func (t *transport) SetHeartbeatHandler(fn func(raft.RPC)) {
	if mutantHeartbeatFastPath {
		t.NetworkTransport.SetHeartbeatHandler(fn)
	}
}

// EncodePeer names a server by its id alone. raft records votes by this name: by
// address, two servers that trade addresses could get a vote each in one term.
func (t *transport) EncodePeer(id raft.ServerID, _ raft.ServerAddress) []byte { return []byte(id) }

// target is where server id is now, in the form that Dial of the stream layer wants.
func (t *transport) target(id raft.ServerID, configured raft.ServerAddress) raft.ServerAddress {
	if resolve := t.c.cfg.Resolve; resolve != nil {
		if addr, ok := resolve(string(id)); ok && addr != "" {
			return joinTarget(string(id), addr)
		}
	}
	return joinTarget(string(id), string(configured))
}

// leads says whether this server still is the leader of term.
func (t *transport) leads(term uint64) bool {
	select {
	case <-t.ready:
	default:
		return false
	}
	return t.c.raft.CurrentTerm() == term && t.c.raft.State() == raft.Leader
}

// AppendEntries sends entries, or a heartbeat, and records what the answer proves.
func (t *transport) AppendEntries(id raft.ServerID, addr raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	// raft fills args on the replicator's goroutine without asking again whether the
	// term still is ours: after a change it would hold another leader's entries and
	// commit index under our old term.
	if !t.leads(args.Term) {
		return errOldTerm
	}
	trimEntries(args)
	out := args
	if isHeartbeat(args) {
		out = t.withCommitIndex(id, args)
	}
	var sent time.Time
	send := func() error {
		sent = time.Now()
		return t.NetworkTransport.AppendEntries(id, t.target(id, addr), out, resp)
	}
	err := call(send)
	if err == nil && out != args && !resp.Success && resp.Term == args.Term {
		// The follower's log moved (an install): only the bare heartbeat tells
		// whether it follows.
		out = args
		err = call(send)
	}
	if err == nil && resp.Success && resp.Term == args.Term {
		a := ack{term: args.Term, sent: sent}
		if n := len(out.Entries); n > 0 {
			a.match, a.matchTerm = out.Entries[n-1].Index, out.Entries[n-1].Term
		} else {
			a.match, a.matchTerm = out.PrevLogEntry, out.PrevLogTerm
		}
		t.c.acks.record(string(id), a)
	}
	return err
}

// trimEntries drops entries beyond maxBodyBytes; raft sends the rest next, as it
// does beyond MaxAppendEntries.
func trimEntries(args *raft.AppendEntriesRequest) {
	size := 0
	for i, e := range args.Entries {
		size += len(e.Data)
		if i > 0 && size > maxBodyBytes {
			args.Entries = args.Entries[:i]
			return
		}
	}
}

func isHeartbeat(a *raft.AppendEntriesRequest) bool {
	return a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}

// withCommitIndex makes of a heartbeat a message that also tells the commit index,
// so that a follower which serves a read knows it as soon as the round that
// confirmed the read is done, and not only commitTimeout later.
//
// The index is bounded by what the follower is known to have of this term's log, or
// it might commit a divergent rest of its own; and it was read while this server
// led, or it might be another leader's.
func (t *transport) withCommitIndex(id raft.ServerID, args *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	a, ok := t.c.acks.get(string(id), args.Term)
	if !ok || a.match == 0 {
		return args
	}
	commit := min(t.c.raft.CommitIndex(), a.match)
	if !t.leads(args.Term) {
		return args
	}
	out := *args
	out.PrevLogEntry, out.PrevLogTerm, out.LeaderCommitIndex = a.match, a.matchTerm, commit
	return &out
}

// call makes a call again while it meets connections of the pool whose peer has
// gone, as after its restart: raft itself would count a failed vote, or back off.
// The messages called with it do no harm when they arrive twice.
func call(fn func() error) error {
	var err error
	for range maxPool + 1 {
		err = fn()
		var dial *dialError
		if errors.As(err, &dial) || !(errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)) {
			return err
		}
	}
	return err
}

// RequestVote implements raft.Transport.
func (t *transport) RequestVote(id raft.ServerID, addr raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return call(func() error { return t.NetworkTransport.RequestVote(id, t.target(id, addr), args, resp) })
}

// RequestPreVote implements raft.WithPreVote.
func (t *transport) RequestPreVote(id raft.ServerID, addr raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return call(func() error { return t.NetworkTransport.RequestPreVote(id, t.target(id, addr), args, resp) })
}

// TimeoutNow implements raft.Transport.
func (t *transport) TimeoutNow(id raft.ServerID, addr raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return call(func() error { return t.NetworkTransport.TimeoutNow(id, t.target(id, addr), args, resp) })
}

// AppendEntriesPipeline implements raft.Transport; see MaxRPCsInFlight.
func (t *transport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// InstallSnapshot sends a snapshot; the log after it is kept meanwhile.
func (t *transport) InstallSnapshot(id raft.ServerID, addr raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if !t.leads(args.Term) {
		return errOldTerm
	}
	done := t.c.installing(string(id))
	defer done()
	t.c.opened()
	sent := time.Now()
	err := t.NetworkTransport.InstallSnapshot(id, t.target(id, addr), args, resp, data)
	if err == nil && resp.Success && resp.Term == args.Term {
		t.c.acks.record(string(id), ack{term: args.Term, sent: sent, match: args.LastLogIndex, matchTerm: args.LastLogTerm})
	}
	return err
}

// ack is the best that a server proved to this leader.
type ack struct {
	term uint64
	// sent is when the newest message that was answered with success was sent. Not
	// when its answer came: that may have waited while another leader was elected.
	sent time.Time
	// match is the last index up to which its log equals ours; matchTerm that entry's term.
	match, matchTerm uint64
}

// ackTable holds one ack for each server that ever answered; servers are few.
type ackTable struct {
	mu       sync.Mutex
	acks     map[string]ack
	watchers map[chan struct{}]struct{}
}

func newAckTable() *ackTable {
	return &ackTable{acks: make(map[string]ack), watchers: make(map[chan struct{}]struct{})}
}

// record merges a into what is known. Acks of an older term are dropped.
func (t *ackTable) record(id string, a ack) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.acks[id]
	if old.term > a.term {
		return
	}
	if old.term == a.term {
		if old.sent.After(a.sent) {
			a.sent = old.sent
		}
		if a.match == 0 || a.match < old.match { // a heartbeat, or an answer that was overtaken
			a.match, a.matchTerm = old.match, old.matchTerm
		}
	}
	t.acks[id] = a
	for w := range t.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// get returns what server id proved in term.
func (t *ackTable) get(id string, term uint64) (ack, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a, ok := t.acks[id]
	return a, ok && a.term == term
}

// watch returns a channel that gets a value after each ack from now on, coalesced.
func (t *ackTable) watch() (ch <-chan struct{}, stop func()) {
	w := make(chan struct{}, 1)
	t.mu.Lock()
	t.watchers[w] = struct{}{}
	t.mu.Unlock()
	return w, func() {
		t.mu.Lock()
		delete(t.watchers, w)
		t.mu.Unlock()
	}
}
