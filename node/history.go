package node

import (
	"context"
	"time"

	"github.com/settkv/sett/fsm"
	"github.com/settkv/sett/httpapi"
	"github.com/settkv/sett/kv"
)

// Scan implements httpapi.Store.
func (n *Node) Scan(ctx context.Context, q kv.Scan, o kv.ReadOptions, t *kv.Timing) (httpapi.Scanner, error) {
	start := time.Now()
	err := n.whileServing(ctx, func(ctx context.Context) error { return n.prepareRead(ctx, o) })
	t.Queue = time.Since(start)
	if err != nil {
		return nil, err
	}
	s, err := n.fsm.Scan(q, o.Revision)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Compact implements httpapi.Store.
func (n *Node) Compact(ctx context.Context, rev kv.Revision, once kv.Once) (kv.Compaction, bool, error) {
	if err := n.reached(ctx, rev); err != nil {
		return kv.Compaction{}, false, err
	}
	r, err := n.proposeKeyed(ctx, fsm.EncodeCompact(rev), once)
	return r.Compaction, r.Txn.Replayed, err
}

// Pin implements httpapi.Store.
func (n *Node) Pin(ctx context.Context, rev kv.Revision, ttl time.Duration, once kv.Once) (kv.Pin, bool, error) {
	if err := n.reached(ctx, rev); err != nil {
		return kv.Pin{}, false, err
	}
	r, err := n.proposeKeyed(ctx, fsm.EncodePin(rev, ttl), once)
	return r.Pin, r.Txn.Replayed, err
}

// proposeKeyed proposes a command on the small state, with an idempotency key if there is one. The state
// machine can't compare the key with those of transactions (ADR 0015), so this is done here.
func (n *Node) proposeKeyed(ctx context.Context, cmd []byte, once kv.Once) (fsm.Result, error) {
	if once.Key == "" {
		return n.propose(ctx, cmd, nil)
	}
	if err := n.whileServing(ctx, n.catchUp); err != nil {
		return fsm.Result{}, notApplied(err)
	}
	if err := n.fsm.OnceUsed(once.Key); err != nil {
		return fsm.Result{}, notApplied(err)
	}
	return n.propose(ctx, fsm.EncodeKeyed(once, n.fsm.Stamp(), cmd), nil)
}

// Begin implements httpapi.Store.
func (n *Node) Begin(ctx context.Context, once kv.Once, member bool) (kv.Operation, error) {
	r, err := n.proposeKeyed(ctx, fsm.EncodeBegin(member), once)
	return r.Operation, err
}

// End implements httpapi.Store.
func (n *Node) End(ctx context.Context, end kv.Ending) error { return n.cluster.PutEnding(ctx, end) }

// PutEnding implements cluster.Directory.
func (n *Node) PutEnding(ctx context.Context, end kv.Ending) error {
	_, err := n.propose(ctx, fsm.EncodeEnd(end), nil)
	return err
}

// notApplied is err of what comes before a proposal.
func notApplied(err error) error {
	e := *kv.AsError(err)
	e.Outcome = kv.OutcomeNotApplied
	return &e
}

// reached refuses a revision that the cluster has not reached, before anything is
// proposed. The state machine can't: what it decides about small state must not depend
// on how far the data is, which after a restart is further than the log that it gets.
func (n *Node) reached(ctx context.Context, rev kv.Revision) error {
	if rev > n.fsm.Info().Revision {
		// A new leader may have more to apply.
		if err := n.whileServing(ctx, n.catchUp); err != nil {
			return notApplied(err)
		}
	}
	if newest := n.fsm.Info().Revision; rev > newest {
		return kv.NotApplied(kv.CodeInvalidArgument, "revision %d is in the future, the newest is %d", rev, newest)
	}
	return nil
}

// Unpin implements httpapi.Store.
func (n *Node) Unpin(ctx context.Context, id string, once kv.Once) (bool, error) {
	r, err := n.proposeKeyed(ctx, fsm.EncodeUnpin(id), once)
	return r.Txn.Replayed, err
}

// Now implements httpapi.Store: the leader's clock, or on other nodes the time at which
// the newest entry was made.
func (n *Node) Now() time.Time {
	if ms := n.fsm.Stamp(); ms > 0 {
		return time.UnixMilli(int64(ms)).UTC()
	}
	return n.fsm.Info().Clock
}
