package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/kv"
)

// leadership is what this node knows of its own and others' leading.
type leadership struct {
	mu        sync.Mutex
	readyTerm uint64        // the newest term of ours whose leader command was applied
	changed   chan struct{} // closed and replaced when this node's leading or readiness changes

	leaderChanged chan struct{} // closed and replaced when what Leader() says changes
	lastLeader    string
}

// signal wakes everybody who waits for a change of this node's leading or readiness.
func (l *leadership) signal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *leadership) wait() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// LeaderChanged returns a channel that is closed at the next change of what Leader
// says. Take the channel first, then ask Leader.
func (c *Consensus) LeaderChanged() <-chan struct{} {
	c.leadership.mu.Lock()
	defer c.leadership.mu.Unlock()
	return c.leadership.leaderChanged
}

// noteLeader closes the channel of LeaderChanged if there was a change.
func (c *Consensus) noteLeader() {
	id := c.Leader()
	l := &c.leadership
	l.mu.Lock()
	defer l.mu.Unlock()
	if id == l.lastLeader {
		return
	}
	l.lastLeader = id
	close(l.leaderChanged)
	l.leaderChanged = make(chan struct{})
}

// runObserver turns raft's observations into LeaderChanged.
func (c *Consensus) runObserver(observer *raft.Observer, observed <-chan raft.Observation) {
	defer c.raft.DeregisterObserver(observer)
	for {
		select {
		case <-observed:
			// One that was dropped because the channel was full is no loss: there are
			// others to read, and the state is asked after reading.
			c.noteLeader()
		case <-c.ctx.Done():
			return
		}
	}
}

// Ready returns the current term and whether this node leads it and a command of
// that term has been applied here, so that its state has all that earlier terms
// committed. It is keyed by term, because raft's leadership signals may coalesce.
func (c *Consensus) Ready() (term uint64, ok bool) {
	term = c.raft.CurrentTerm()
	if c.raft.State() != raft.Leader {
		return term, false
	}
	c.leadership.mu.Lock()
	defer c.leadership.mu.Unlock()
	return term, c.leadership.readyTerm == term
}

// waitReady waits, if this node leads, until the term is ready. It fails with
// kv.CodeNoLeader (not applied) at once when this node does not lead, and when ctx
// ends.
func (c *Consensus) waitReady(ctx context.Context) (uint64, error) {
	for {
		changed := c.leadership.wait()
		term, ok := c.Ready()
		if ok {
			return term, nil
		}
		if !c.IsLeader() {
			return 0, noLeader(nil, "this node does not lead the cluster")
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, noLeader(context.Cause(ctx), "a new leader was elected and was not ready in time; try again")
		case <-c.ctx.Done():
			return 0, noLeader(errStopping, "this node is shutting down")
		}
	}
}

// runLeadership follows this node's gains and losses of leadership. raft blocks its
// main loop when the channel is full, so nothing here may wait on raft.
func (c *Consensus) runLeadership(notify <-chan bool) {
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case leads := <-notify:
			stop()
			stop = func() {}
			c.leadership.signal()
			c.noteLeader()
			if leads {
				stop = c.startLeading()
			}
		case <-c.ctx.Done():
			return
		}
	}
}

// startLeading runs lead on a goroutine; stop ends it and waits.
func (c *Consensus) startLeading() (stop func()) {
	ctx, cancel := context.WithCancel(c.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.lead(ctx, c.raft.CurrentTerm())
	}()
	return func() {
		cancel()
		<-done
	}
}

// lead makes term ready and then waits for its end.
func (c *Consensus) lead(ctx context.Context, term uint64) {
	c.log.Info("elected leader", "term", term)
	retry := time.NewTicker(max(c.cfg.HeartbeatTimeout/10, 5*time.Millisecond))
	defer retry.Stop()
	for {
		err := c.proposeLeaderCommand(ctx, term)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		c.log.Warn("the new term's first command failed; trying again", "term", term, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-retry.C:
		}
	}
	c.leadership.mu.Lock()
	c.leadership.readyTerm = term
	c.leadership.mu.Unlock()
	c.leadership.signal()
	c.log.Info("leading", "term", term)
	if c.cfg.OnLeadership != nil {
		c.cfg.OnLeadership(true, term)
		defer c.cfg.OnLeadership(false, term)
	}
	<-ctx.Done()
}

// proposeLeaderCommand proposes the first command of term and waits until it is
// applied here.
//
// Invariant 23: an entry of the leader's own term. raft's own Barrier won't do: its
// entry never reaches the state machine, and waiting for its index would never end.
func (c *Consensus) proposeLeaderCommand(ctx context.Context, term uint64) error {
	cmd, err := c.cfg.LeaderCommand(ctx, term)
	if err != nil {
		return fmt.Errorf("make leader command: %w", err)
	}
	if c.raft.CurrentTerm() != term {
		return errTermEnded
	}
	future := c.raft.Apply(c.cfg.Envelope.Batch([][]byte{cmd}), c.enqueueTimeout())
	if err := c.waitFuture(ctx, future); err != nil {
		return err
	}
	// Terms only grow: if it is the same before and after, the entry is of this term.
	if c.raft.CurrentTerm() != term || !c.IsLeader() {
		return errTermEnded
	}
	return nil
}

var errTermEnded = errors.New("the term ended")

// waitFuture waits for a future of raft, but no longer than ctx: a future may never
// resolve. The goroutine that is left behind then is the lesser evil; it ends when
// the future does.
func (c *Consensus) waitFuture(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		c.noteTransferState(err)
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.stopped:
		return errStopping
	}
}

// noteTransferState watches for a leadership transfer that raft never ends (#696):
// such a node would refuse everything for ever while it leads.
func (c *Consensus) noteTransferState(err error) {
	if !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		if c.blockedSince.Load() != 0 {
			c.blockedSince.Store(0)
		}
		return
	}
	now := time.Now().UnixNano()
	if c.blockedSince.CompareAndSwap(0, now) {
		return
	}
	if since := c.blockedSince.Load(); since != 0 && time.Duration(now-since) > 3*c.cfg.ElectionTimeout {
		c.fatal(fmt.Errorf("a leadership transfer has not ended for %v (hashicorp/raft #696)", time.Duration(now-since)))
	}
}

// enqueueTimeout bounds how long raft's main loop may take to accept a proposal.
func (c *Consensus) enqueueTimeout() time.Duration { return 2 * c.cfg.ElectionTimeout }

// Transfer hands leadership to server id, or to the voter that is furthest when id
// is "", and returns once another server leads. One transfer runs at a time; a
// second one fails with kv.CodeConflict. Proposals made meanwhile fail as not
// applied. If ctx ends first, the transfer may still happen.
func (c *Consensus) Transfer(ctx context.Context, id string) error {
	if !c.transferMu.TryLock() {
		return kv.NotApplied(kv.CodeConflict, "a leadership transfer is running already")
	}
	defer c.transferMu.Unlock()
	if !c.IsLeader() {
		return noLeader(nil, "this node does not lead the cluster")
	}
	if id == c.cfg.ServerID {
		return nil
	}
	term := c.raft.CurrentTerm()
	target, err := c.transferTarget(id, term)
	if err != nil {
		return err
	}
	// The target may stand for election whenever the message that tells it to
	// arrives, and voters then vote although they have a leader: the lease is void
	// for the rest of this term, even if the transfer fails.
	c.leaseVoid.Store(max(term, c.leaseVoid.Load()))
	ctx, cancel := context.WithTimeout(ctx, 3*c.cfg.ElectionTimeout+c.cfg.RPCTimeout)
	defer cancel()
	err = c.waitFuture(ctx, c.raft.LeadershipTransferToServer(target.ID, target.Address))
	if err != nil {
		if errors.Is(err, raft.ErrNotLeader) {
			return noLeader(err, "this node does not lead the cluster")
		}
		return kv.Unknown(err, "leadership was not handed over in time; see who leads and try again")
	}
	for {
		changed := c.LeaderChanged()
		if leader := c.Leader(); leader != "" && (leader != c.cfg.ServerID || c.raft.CurrentTerm() != term) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return kv.Unknown(context.Cause(ctx), "leadership was given up, but no other server leads yet")
		}
	}
}

// transferTarget picks the server that is to lead next.
func (c *Consensus) transferTarget(id string, term uint64) (raft.Server, error) {
	var best raft.Server
	var bestMatch uint64
	for _, s := range c.raft.GetConfiguration().Configuration().Servers {
		if string(s.ID) == id {
			if s.Suffrage != raft.Voter {
				return s, kv.NotApplied(kv.CodeConflict, "server %s has no vote and can't lead; promote it first", id)
			}
			return s, nil
		}
		if id != "" || s.Suffrage != raft.Voter || string(s.ID) == c.cfg.ServerID {
			continue
		}
		if a, ok := c.acks.get(string(s.ID), term); ok && (best.ID == "" || a.match > bestMatch) {
			best, bestMatch = s, a.match
		}
	}
	if id != "" {
		return best, kv.NotApplied(kv.CodeNotFound, "server %s is not in the cluster's configuration", id)
	}
	if best.ID == "" {
		return best, kv.NotApplied(kv.CodeConflict, "there is no other voter that could lead")
	}
	return best, nil
}

// Shutdown leaves in order: leadership is handed over if there is somebody to take
// it, connections are closed, raft stops. It waits no longer than ctx and returns
// an error if raft had not stopped by then; the stores must stay open in that case.
// A second call waits for the first and returns the same.
func (c *Consensus) Shutdown(ctx context.Context) error {
	c.stopOnce.Do(func() {
		c.stopErr = c.shutdown(ctx)
		close(c.stopped)
	})
	select {
	case <-c.stopped:
		return c.stopErr
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *Consensus) shutdown(ctx context.Context) error {
	if c.IsLeader() {
		if err := c.Transfer(ctx, ""); err != nil {
			c.log.Info("stopping without handing leadership over", "reason", err)
		}
	}
	c.runMu.Lock()
	c.cancel()
	c.runMu.Unlock()
	// A stalled snapshot transfer holds up raft's main loop, which would then never
	// see that it is to stop.
	c.trans.CloseStreams()
	_ = c.stream.Close()
	done := make(chan error, 1)
	go func() {
		err := c.raft.Shutdown().Error()
		c.wg.Wait()
		done <- err
	}()
	defer c.metrics.unregister(c.cfg.Registerer)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("shut down raft: %w", context.Cause(ctx))
	}
}
