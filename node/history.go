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
func (n *Node) Compact(ctx context.Context, rev kv.Revision) (kv.Compaction, error) {
	if err := n.reached(ctx, rev); err != nil {
		return kv.Compaction{}, err
	}
	r, err := n.propose(ctx, fsm.EncodeCompact(rev), nil)
	return r.Compaction, err
}

// Pin implements httpapi.Store.
func (n *Node) Pin(ctx context.Context, rev kv.Revision, ttl time.Duration) (kv.Pin, error) {
	if err := n.reached(ctx, rev); err != nil {
		return kv.Pin{}, err
	}
	r, err := n.propose(ctx, fsm.EncodePin(rev, ttl), nil)
	return r.Pin, err
}

// reached refuses a revision that the cluster has not reached, before anything is
// proposed. The state machine can't: what it decides about small state must not depend
// on how far the data is, which after a restart is further than the log that it gets.
func (n *Node) reached(ctx context.Context, rev kv.Revision) error {
	if rev > n.fsm.Info().Revision {
		// A new leader may have more to apply.
		if err := n.whileServing(ctx, n.catchUp); err != nil {
			e := *kv.AsError(err)
			e.Outcome = kv.OutcomeNotApplied
			return &e
		}
	}
	if newest := n.fsm.Info().Revision; rev > newest {
		return kv.NotApplied(kv.CodeInvalidArgument, "revision %d is in the future, the newest is %d", rev, newest)
	}
	return nil
}

// Unpin implements httpapi.Store.
func (n *Node) Unpin(ctx context.Context, id string) error {
	_, err := n.propose(ctx, fsm.EncodeUnpin(id), nil)
	return err
}

// Now implements httpapi.Store: the leader's clock, or on other nodes the time at which
// the newest entry was made.
func (n *Node) Now() time.Time {
	if ms := n.fsm.Stamp(); ms > 0 {
		return time.UnixMilli(int64(ms)).UTC()
	}
	return n.fsm.Info().Clock
}
