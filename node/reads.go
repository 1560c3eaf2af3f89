package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/settkv/sett/fsm"
	"github.com/settkv/sett/kv"
)

// retryPause is how long a read-index call that met no leader waits for news before
// it asks again anyway.
const retryPause = 50 * time.Millisecond

// indexRound is one shared read-index call; those who joined it wait for done.
type indexRound struct {
	done  chan struct{}
	index uint64
	asked time.Time
	err   error
}

// rounds shares read-index calls among readers: one is in flight, and a reader that
// arrives meanwhile joins the next one, which starts after it arrived (Invariant 23).
type rounds struct {
	ask func(ctx context.Context) (index uint64, asked time.Time, err error)

	mu      sync.Mutex
	next    *indexRound // not started
	running bool
	wg      sync.WaitGroup
}

// join returns the result of a round that starts after the call.
func (r *rounds) join(ctx context.Context, life context.Context) (uint64, time.Time, error) {
	r.mu.Lock()
	if r.next == nil {
		r.next = &indexRound{done: make(chan struct{})}
	}
	round := r.next
	if !r.running {
		r.running = true
		r.wg.Go(func() { r.run(life) })
	}
	r.mu.Unlock()
	select {
	case <-round.done:
		return round.index, round.asked, round.err
	case <-ctx.Done():
		return 0, time.Time{}, ctx.Err()
	}
}

func (r *rounds) run(life context.Context) {
	for {
		r.mu.Lock()
		round := r.next
		r.next = nil
		if round == nil {
			r.running = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		ctx, cancel := context.WithTimeout(life, 3*time.Second)
		round.index, round.asked, round.err = r.ask(ctx)
		cancel()
		close(round.done)
	}
}

// confirmedIndex returns an index that a reader must have delivered to see every
// write acknowledged before the call: from this node's own gate if it leads, else
// from the leader. It waits for an election within ctx, with a new index for each try.
func (n *Node) confirmedIndex(ctx context.Context) (uint64, time.Time, error) {
	for {
		changed := n.cluster.LeaderChanged()
		asked := time.Now()
		var index uint64
		var err error
		if n.consensus.IsLeader() {
			index, err = n.consensus.ReadIndex(ctx)
		} else {
			index, asked, err = n.rounds.join(ctx, n.life)
		}
		if err == nil {
			return index, asked, nil
		}
		if ctx.Err() != nil {
			return 0, asked, readTimeout(err)
		}
		// Nothing was changed by asking: a read may always ask again.
		select {
		case <-ctx.Done():
			return 0, asked, readTimeout(err)
		case <-changed:
		case <-time.After(retryPause):
		}
	}
}

// readTimeout is the error of a read whose time ran out: no-leader if that was the
// reason, else timeout.
func readTimeout(err error) error {
	if errors.Is(err, kv.ErrNoLeader) || errors.Is(err, kv.ErrNotReady) {
		e := *kv.AsError(err)
		e.Outcome = kv.OutcomeNone
		return &e
	}
	return &kv.Error{Code: kv.CodeTimeout, Msg: "the read could not be confirmed in time; try again, or with a longer timeout", Err: err}
}

// catchUp makes this node's state machine at least as new as the cluster was when the
// call began.
func (n *Node) catchUp(ctx context.Context) error {
	index, asked, err := n.confirmedIndex(ctx)
	if err != nil {
		return err
	}
	if err := n.fsm.WaitDelivered(ctx, index); err != nil {
		if ctx.Err() != nil {
			return &kv.Error{Code: kv.CodeTimeout, Msg: "this node has not caught up with the cluster in time; try again, or ask another node", Err: err}
		}
		return err
	}
	n.noteCaughtUp(asked)
	return nil
}

// noteCaughtUp records that at the time asked all that was committed is now here.
func (n *Node) noteCaughtUp(asked time.Time) {
	for {
		old := n.caughtUp.Load()
		if old != nil && !asked.After(*old) {
			return
		}
		if n.caughtUp.CompareAndSwap(old, &asked) {
			return
		}
	}
}

// Get implements httpapi.Store.
func (n *Node) Get(ctx context.Context, key string, o kv.ReadOptions, t *kv.Timing) (kv.Item, kv.Revision, error) {
	start := time.Now()
	if err := n.whileServing(ctx, func(ctx context.Context) error { return n.prepareRead(ctx, o) }); err != nil {
		return kv.Item{}, n.fsm.Info().Revision, err
	}
	t.Queue = time.Since(start)
	start = time.Now()
	it, rev, err := n.fsm.Get(ctx, key, o.Revision)
	t.Read = time.Since(start)
	return it, rev, err
}

// prepareRead brings this node to where a read with these options may be served.
func (n *Node) prepareRead(ctx context.Context, o kv.ReadOptions) error {
	if err := n.serving(); err != nil {
		return err
	}
	var err error
	switch o.Consistency {
	case kv.Linearizable:
		err = n.catchUp(ctx)
	case kv.Leader:
		err = n.leaderRead(ctx)
	case kv.Stale:
		err = n.staleRead(ctx, o.MaxStaleness)
	}
	if err != nil {
		return err
	}
	if o.MinRevision > n.fsm.Info().Revision {
		if err := n.fsm.WaitRevision(ctx, o.MinRevision); err != nil {
			if ctx.Err() == nil {
				return err
			}
			return &kv.Error{Code: kv.CodeTimeout, Msg: "min_revision was not reached in time; check that it is a revision of this cluster", Err: err}
		}
	}
	// A revision that the cluster has reached and this node has not is waited for.
	if o.Revision > n.fsm.Info().Revision && o.Consistency == kv.Stale {
		return n.catchUp(ctx)
	}
	return nil
}

func (n *Node) leaderRead(ctx context.Context) error {
	index, err := n.consensus.LeaseIndex(ctx)
	if err != nil {
		return err
	}
	if err := n.fsm.WaitDelivered(ctx, index); err != nil {
		return readTimeout(err)
	}
	return nil
}

func (n *Node) staleRead(ctx context.Context, most time.Duration) error {
	at := n.caughtUp.Load()
	if at == nil {
		return notReady("this node has not caught up with the cluster since it started; ask another node, or wait")
	}
	if most <= 0 || time.Since(*at) <= most {
		return nil
	}
	// The background round may just be due: one of our own decides.
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := n.catchUp(ctx); err != nil || time.Since(*n.caughtUp.Load()) > most {
		e := notReady("this node may lag by more than max_staleness; ask another node")
		e.Err = err
		return e
	}
	return nil
}

func notReady(msg string) *kv.Error {
	return &kv.Error{Code: kv.CodeNotReady, Msg: msg, RetryAfter: time.Second}
}

// runFreshness keeps a node that nobody asks for linearizable reads up to date on how
// far behind it may be.
func (n *Node) runFreshness() {
	const every = time.Second
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-n.life.Done():
			return
		case <-t.C:
		}
		next := every
		if n.cluster.ClusterID() != "" {
			ctx, cancel := context.WithTimeout(n.life, 5*time.Second)
			if err := n.catchUp(ctx); err != nil {
				next = every / 4
			}
			cancel()
		}
		t.Reset(next)
	}
}

// Revision implements httpapi.Store.
func (n *Node) Revision() kv.Revision { return n.fsm.Info().Revision }

// Settings implements httpapi.Store: the cluster's, or this node's own until there
// is a cluster.
func (n *Node) Settings() kv.ClusterSettings {
	if i := n.fsm.Info(); i.ClusterID != "" {
		return i.Settings
	}
	return n.ownSettings()
}

// Txn implements httpapi.Store.
func (n *Node) Txn(ctx context.Context, t kv.Txn, timing *kv.Timing) (kv.TxnResult, error) {
	if err := n.mayWrite(t); err != nil {
		return kv.TxnResult{}, err
	}
	cmd, err := n.fsm.Command(t)
	if err != nil {
		return kv.TxnResult{}, err
	}
	r, err := n.propose(ctx, cmd, timing)
	return r.Txn, err
}

// mayWrite refuses everything on a node that does not serve, and what makes the store
// bigger while disks are nearly full.
func (n *Node) mayWrite(t kv.Txn) error {
	if err := n.serving(); err != nil {
		e := *kv.AsError(err)
		e.Outcome = kv.OutcomeNotApplied
		return &e
	}
	switch {
	case !grows(t):
	case n.diskFull():
		return kv.NotApplied(kv.CodeDiskFull, "the leader's disk is nearly full: free space or delete keys; reads and deletes are still served")
	case n.crowded.Load():
		return kv.NotApplied(kv.CodeDiskFull, "the disks of too many voters are nearly full: free space there (sett status shows where) or delete keys; reads and deletes are still served")
	}
	return nil
}

func grows(t kv.Txn) bool {
	for _, ops := range [][]kv.Op{t.Then, t.Else} {
		for _, op := range ops {
			if op.Kind != kv.OpDelete && op.Kind != kv.OpGet {
				return true
			}
		}
	}
	return false
}

// propose runs a command through consensus and returns the state machine's answer.
// Invariant 24: success needs both.
func (n *Node) propose(ctx context.Context, cmd []byte, timing *kv.Timing) (fsm.Result, error) {
	if !n.work.enter() {
		e := kv.NotApplied(kv.CodeNoLeader, "this node is stopping and hands leadership over; ask another node")
		e.RetryAfter = time.Second
		return fsm.Result{}, e
	}
	defer n.work.leave()
	res, t, err := n.consensus.Propose(ctx, cmd)
	if timing != nil {
		timing.Queue, timing.Replicate = t.Queue, t.Replicate
	}
	if err != nil {
		return fsm.Result{}, err
	}
	r, ok := res.(fsm.Result)
	if !ok {
		return fsm.Result{}, kv.Unknown(nil, "the state machine gave no answer; check whether the write was applied")
	}
	if timing != nil {
		timing.Apply = min(r.Took, timing.Replicate)
		timing.Replicate -= timing.Apply
	}
	if r.Err != nil {
		return r, r.Err
	}
	return r, nil
}

// SetSettings implements httpapi.Store.
func (n *Node) SetSettings(ctx context.Context, s kv.ClusterSettings, once kv.Once) (kv.ClusterSettings, bool, error) {
	r, err := n.proposeKeyed(ctx, fsm.EncodeSettings(s), once)
	return r.Settings, r.Txn.Replayed, err
}

// Snapshot implements httpapi.Store.
func (n *Node) Snapshot(ctx context.Context) (uint64, error) { return n.consensus.Snapshot(ctx) }
