package node

import (
	"context"
	"time"

	"github.com/settkv/sett/fsm"
	"github.com/settkv/sett/httpapi"
	"github.com/settkv/sett/kv"
)

const (
	// leaderlessWatch is how long watches go on without news of a confirmed leader.
	leaderlessWatch = 10 * time.Second
	// watchGuardPeriod is how often it is looked at whether they may.
	watchGuardPeriod = 500 * time.Millisecond
)

// Watch implements httpapi.Store. The watch begins at what the cluster had reached when
// it was asked for, on a follower too.
func (n *Node) Watch(ctx context.Context, w kv.Watch) (httpapi.Watcher, error) {
	if err := n.serving(); err != nil {
		return nil, err
	}
	if err := n.whileServing(ctx, n.catchUp); err != nil {
		return nil, err
	}
	watcher, err := n.fsm.Watch(w)
	if err != nil {
		return nil, err
	}
	return &guardedWatcher{Watcher: watcher, n: n}, nil
}

// guardedWatcher ends a watch when the node can't vouch for it any more: its state
// would stand still, and the watcher would not know.
type guardedWatcher struct {
	*fsm.Watcher
	n *Node
}

// Next implements httpapi.Watcher.
func (g *guardedWatcher) Next(ctx context.Context) (kv.WatchBatch, error) {
	life := g.n.watchLife()
	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(life, func() { cancel(context.Cause(life)) })
	defer stop()
	batch, err := g.Watcher.Next(wctx)
	if err != nil && ctx.Err() == nil && wctx.Err() != nil {
		return batch, context.Cause(wctx)
	}
	return batch, err
}

// watchLife is the context under which watches go on now. It ends, with the reason as
// its cause, when they must.
func (n *Node) watchLife() context.Context { return *n.watches.Load() }

// runWatchGuard ends all watches when this node stops, is removed, or has had no
// confirmed leader for leaderlessWatch; later ones begin anew.
func (n *Node) runWatchGuard() {
	t := time.NewTicker(watchGuardPeriod)
	defer t.Stop()
	for {
		ctx, end := context.WithCancelCause(context.Background())
		n.watches.Store(&ctx)
		reason := n.watchReason(t.C)
		end(reason)
		if n.serve.Err() != nil {
			return
		}
		// A watch that begins now waits until the node may serve it.
		for n.mayWatch() != nil {
			select {
			case <-t.C:
			case <-n.serve.Done():
				return
			}
		}
	}
}

// watchReason waits until watches must end and says why.
func (n *Node) watchReason(tick <-chan time.Time) error {
	for {
		select {
		case <-n.serve.Done():
			e := notReady("this node is stopping; watch on another node, from the next revision")
			e.Final = true
			return e
		case <-tick:
			if err := n.mayWatch(); err != nil {
				return err
			}
		}
	}
}

func (n *Node) mayWatch() error {
	if n.cluster.ClusterID() == "" {
		return nil // nobody watches yet
	}
	if err := n.serving(); err != nil {
		return err
	}
	if at := n.caughtUp.Load(); at != nil && time.Since(*at) > leaderlessWatch {
		return kv.Errorf(kv.CodeNoLeader, "this node has had no leader for %v; watch on another node, from the next revision", leaderlessWatch)
	}
	return nil
}

// whileServing does something that waits, and ends it when the node begins to stop.
func (n *Node) whileServing(ctx context.Context, do func(context.Context) error) error {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.serve, cancel)()
	err := do(wctx)
	if err != nil && n.serve.Err() != nil && ctx.Err() == nil {
		e := notReady("this node is stopping; ask another node")
		e.Final, e.Err = true, err
		return e
	}
	return err
}
