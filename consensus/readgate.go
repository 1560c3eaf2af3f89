package consensus

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/kv"
)

// gate shares rounds of confirmation among readers.
type gate struct {
	mu      sync.Mutex
	next    *round // the round that has not begun; readers join this one
	running bool   // a runner goroutine exists
	kick    chan struct{}
}

type round struct {
	done    chan struct{} // closed when index and err are set
	readers int
	index   uint64
	err     error
}

// errUnconfirmed ends a round that no quorum confirmed in time while this node
// still believed that it leads.
var errUnconfirmed = errors.New("no quorum confirmed the leader in time")

// ReadIndex returns an index such that a state machine that has delivered it shows
// every write that was acknowledged anywhere before ReadIndex was called. It needs
// this node to lead; it waits for a new term to be ready. Concurrent callers share
// a round of messages. The error is a *kv.Error: kv.CodeNoLeader, or kv.CodeTimeout
// when ctx ended first.
func (c *Consensus) ReadIndex(ctx context.Context) (uint64, error) {
	start := time.Now()
	for {
		if _, err := c.waitReady(ctx); err != nil {
			e := kv.AsError(err)
			return 0, readError(e.Code, e.Err, e.Msg)
		}
		r := c.joinRound()
		select {
		case <-r.done:
		case <-ctx.Done():
			return 0, readError(kv.CodeTimeout, context.Cause(ctx), "the read could not be confirmed by a quorum in time")
		case <-c.ctx.Done():
			return 0, readError(kv.CodeNoLeader, errStopping, "this node is shutting down")
		}
		if r.err == nil {
			c.metrics.readSeconds.Observe(time.Since(start).Seconds())
			return r.index, nil
		}
		if errors.Is(r.err, errUnconfirmed) {
			continue
		}
		return 0, readError(kv.CodeNoLeader, r.err, "leadership was lost while the read was confirmed; try again")
	}
}

// joinRound returns the round that begins next. A round that has begun can't be
// joined: its messages may have been sent before this reader came.
func (c *Consensus) joinRound() *round {
	g := &c.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil {
		g.next = &round{done: make(chan struct{})}
	}
	r := g.next
	r.readers++
	if !g.running {
		g.running = true
		c.goRun(c.runRounds)
	}
	return r
}

// runRounds runs one round after the other while readers come.
func (c *Consensus) runRounds() {
	g := &c.gate
	for {
		g.mu.Lock()
		r := g.next
		g.next = nil
		if r == nil {
			g.running = false
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		r.index, r.err = c.confirm()
		c.metrics.round(r)
		close(r.done)
	}
}

// confirm is one round: it returns the commit index as of its beginning once a
// quorum of voters has shown that no later leader existed then.
//
// Invariant 23. Why this is enough: an entry acknowledged before t0 has an index
// at most the commit index read after t0, and what earlier terms committed is
// covered because the term is ready. A later leader elected before t0 has the votes
// of a quorum, which would have refused this term's messages sent after t0; ours
// has at least one voter in common with it.
func (c *Consensus) confirm() (uint64, error) {
	term, ready := c.Ready()
	if !ready {
		return 0, raft.ErrNotLeader
	}
	t0 := time.Now()
	index := c.raft.CommitIndex()
	if mutantReadWithoutRound {
		return index, nil
	}
	deadline := time.NewTimer(c.roundTimeout())
	defer deadline.Stop()
	acked, stop := c.acks.watch()
	defer stop()
	for kicked := false; ; kicked = true {
		changed := c.leadership.wait() // before looking, or a change could be missed
		if c.raft.CurrentTerm() != term || !c.IsLeader() {
			return 0, raft.ErrLeadershipLost
		}
		if c.quorumSent(term, t0) >= 0 {
			break
		}
		if !kicked {
			// Only to make raft send heartbeats now: what VerifyLeader itself finds out
			// counts nonvoters, and answers to messages sent before.
			select {
			case c.gate.kick <- struct{}{}:
			default: // one is on its way to raft, and the heartbeats it causes are still to be sent
			}
		}
		select {
		case <-acked:
		case <-changed:
		case <-deadline.C:
			return 0, errUnconfirmed
		case <-c.ctx.Done():
			return 0, errStopping
		}
	}
	if c.raft.CurrentTerm() != term || !c.IsLeader() {
		return 0, raft.ErrLeadershipLost
	}
	return index, nil
}

// roundTimeout is when a round is given up and begun anew.
func (c *Consensus) roundTimeout() time.Duration { return 2 * c.cfg.HeartbeatTimeout }

// quorumSent asks for this server's voters: see the function.
func (c *Consensus) quorumSent(term uint64, t0 time.Time) time.Duration {
	return quorumSent(c.raft.GetConfiguration().Configuration().Servers, quorumQuestion{c.cfg.ServerID, term, t0, c.acks})
}

type quorumQuestion struct {
	self string // reached at any time
	term uint64
	t0   time.Time
	acks *ackTable
}

// quorumSent returns the largest d such that a quorum of the voters among servers
// answered messages of q.term sent at q.t0+d or later; negative if a quorum has
// answered only messages sent before t0, or nothing.
func quorumSent(servers []raft.Server, q quorumQuestion) time.Duration {
	const never = time.Duration(-1 << 62)
	var ages []time.Duration
	voters := 0
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			voters++
		} else if !mutantNonvoterCounted {
			continue
		}
		switch a, ok := q.acks.get(string(s.ID), q.term); {
		case string(s.ID) == q.self:
			ages = append(ages, time.Since(q.t0))
		case ok:
			ages = append(ages, a.sent.Sub(q.t0))
		default:
			ages = append(ages, never)
		}
	}
	if voters == 0 {
		return never
	}
	slices.Sort(ages)
	quorum := voters/2 + 1
	return ages[len(ages)-quorum] // the quorum-th largest
}

// runKicker asks raft to send heartbeats now. VerifyLeader may block while raft's
// main loop is busy, so it has a goroutine of its own.
func (c *Consensus) runKicker() {
	for {
		select {
		case <-c.gate.kick:
			c.raft.VerifyLeader()
		case <-c.ctx.Done():
			return
		}
	}
}

// LeaseIndex is ReadIndex without a round of messages while this leader's lease
// holds: a quorum of voters answered messages sent so recently that they can't have
// elected another leader since. Where the lease does not hold (also in all of a
// term in which a leadership transfer was tried) it runs a round.
//
// It trusts that clocks of voters run at about the same rate and that this process
// was not frozen with its monotonic clock stopped (a suspended virtual machine);
// ReadIndex trusts neither.
func (c *Consensus) LeaseIndex(ctx context.Context) (uint64, error) {
	if _, err := c.waitReady(ctx); err != nil {
		e := kv.AsError(err)
		return 0, readError(e.Code, e.Err, e.Msg)
	}
	term, ready := c.Ready()
	if ready && term > c.leaseVoid.Load() {
		index := c.raft.CommitIndex()
		// The lease is checked after the index was read: at the moment of the check
		// no other leader had committed anything.
		if c.quorumSent(term, time.Now().Add(-c.leaseDuration())) > 0 &&
			term > c.leaseVoid.Load() && c.raft.CurrentTerm() == term && c.IsLeader() {
			return index, nil
		}
	}
	return c.ReadIndex(ctx)
}

// leaseDuration is how long after a message was sent its receiver surely votes for
// nobody else: it waits HeartbeatTimeout from receiving it. LeaseTimeout, which is
// at most that and after which raft itself steps down, less a tenth for clock rates.
func (c *Consensus) leaseDuration() time.Duration { return c.cfg.LeaseTimeout * 9 / 10 }
