package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/settkv/sett/fsm"
	"github.com/settkv/sett/kv"
)

const (
	expiryPeriod = 200 * time.Millisecond
	// expireBatch keys go at a time, since writes wait while a batch is applied, and after a
	// full batch expirePause passes. After expireRun batches the other chores get their turn.
	expireBatch = 100
	expirePause = 5 * time.Millisecond
	// expireBurst is how many keys may fall due in a second and still end within one.
	expireBurst   = 5000
	expireRun     = 15
	compactPeriod = 5 * time.Second
	trimPeriod    = 30 * time.Second
	roomPeriod    = 2 * time.Second
	choreTimeout  = 10 * time.Second
	// restartSlack is how far the clock stays behind the wall clocks after a start of all nodes.
	restartSlack = 500 * time.Millisecond
	// clockAlarm is how far a node's wall clock may be from the cluster clock.
	clockAlarm = time.Second
)

// chores are what only a leader does. They run while this node leads a ready term.
type chores struct {
	mu     sync.Mutex
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// leadership follows the consensus layer: it starts and stops the leader's clock and
// chores. It is called in order and must return soon.
func (n *Node) leadership(leads bool, term uint64) {
	n.chores.mu.Lock()
	defer n.chores.mu.Unlock()
	if n.chores.cancel != nil {
		n.chores.cancel()
		n.chores.cancel = nil
	}
	if !leads {
		n.fsm.Follow()
		n.log.Info("leadership ended", "term", term)
		return
	}
	n.fsm.Lead()
	n.log.Info("this node leads", "term", term)
	var ctx context.Context
	ctx, n.chores.cancel = context.WithCancel(n.life)
	n.chores.wg.Go(func() { n.runChores(ctx) })
}

// leaderCommand makes a new leader's first command: it says where the cluster clock goes
// on, forwards only (Invariant 14), once a majority of the voters has told its wall clock.
func (n *Node) leaderCommand(ctx context.Context, _ uint64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	clocks := n.cluster.Clocks(ctx)
	if need := n.voters()/2 + 1; len(clocks) < need {
		// Invariant 14: the clock moves to a majority's median before anything is stamped. A
		// clock that stood still would be moved later, and end keys early.
		return nil, fmt.Errorf("%d of %d voters told their clocks, %d are needed", len(clocks), n.voters(), need)
	}
	slices.SortFunc(clocks, time.Time.Compare)
	// The lower of the two middle ones: no single clock decides.
	median := clocks[(len(clocks)-1)/2]
	if d := clocks[len(clocks)-1].Sub(clocks[0]); d > clockAlarm {
		n.log.Error("the voters' clocks differ: set them right, with NTP for instance", "difference", d, "own_difference", n.wallClock().Sub(median))
	}
	return fsm.EncodeLead(n.identity.ServerID, n.clusterTime(median)), nil
}

// clusterTime is where the cluster's clock goes on under this leader. If this node was there
// before, that is what has passed since by its monotonic clock: a jump to the wall clocks
// would end keys early by what the clock had lost at earlier changes of leader. If all nodes
// were down only the wall clocks know for how long, and the clock stays behind them by more
// than it can have lost.
func (n *Node) clusterTime(median time.Time) time.Time {
	if now, ok := n.fsm.Elapsed(); ok {
		return now
	}
	if n.fsm.Info().Revision == 0 {
		return median
	}
	return median.Add(-restartSlack)
}

func (n *Node) wallClock() time.Time {
	if n.opts.WallClock != nil {
		return n.opts.WallClock()
	}
	return time.Now()
}

func (n *Node) runChores(ctx context.Context) {
	expiry, compact, room := time.NewTicker(expiryPeriod), time.NewTicker(compactPeriod), time.NewTicker(roomPeriod)
	defer expiry.Stop()
	defer compact.Stop()
	defer room.Stop()
	defer n.crowded.Store(false)
	refused := 0
	var behind backlog
	n.chore("initialise the cluster", n.initCluster(ctx))
	for {
		select {
		case <-ctx.Done():
			return
		case <-expiry.C:
			n.chore("initialise the cluster", n.initCluster(ctx))
			n.chore("expire keys", n.expire(ctx, &behind))
		case <-compact.C:
			n.chore("compact history", n.compact(ctx))
		case <-room.C:
			// Twice in a row: a voter that is slow once is not full.
			if n.cluster.RoomForGrowth(ctx) {
				refused = 0
			} else {
				refused++
			}
			n.crowded.Store(refused >= 2 && n.quorumAnswers())
		}
	}
}

// chore logs a failed chore; it is tried again with the next tick, or by the next leader.
func (n *Node) chore(what string, err error) {
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, kv.ErrNoLeader) && n.life.Err() == nil {
		n.log.Warn("could not "+what, "error", err)
	}
}

// initCluster gives a new cluster its identity and settings, from this node's
// configuration: it is the first leader.
func (n *Node) initCluster(ctx context.Context) error {
	if n.fsm.Info().ClusterID != "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, choreTimeout)
	defer cancel()
	_, err := n.propose(ctx, fsm.EncodeInit(n.cluster.ClusterID(), n.cfg.ClusterName, n.ownSettings()), nil)
	return err
}

// backlog is how many keys were deleted since last there was nothing left to delete.
type backlog int

// pause is how long the next batch waits for the writes of others, after one that took so
// long. Up to expireBurst keys a second the promise to be in time counts; what comes on top
// must not slow writes down, so it takes a quarter of the time at most.
func (b backlog) pause(took time.Duration) time.Duration {
	if b <= expireBurst {
		return expirePause
	}
	return max(2*expirePause, 3*took)
}

// expire deletes what is due, a bounded number of keys in each transaction.
func (n *Node) expire(ctx context.Context, behind *backlog) error {
	for range expireRun {
		due, ok, err := n.fsm.NextExpiry()
		if err != nil {
			return err
		}
		if !ok || due >= n.fsm.Stamp() {
			*behind = 0
			return nil
		}
		began := time.Now()
		pctx, cancel := context.WithTimeout(ctx, choreTimeout)
		r, err := n.propose(pctx, fsm.EncodeExpire(expireBatch), nil)
		cancel()
		if err != nil {
			return err
		}
		if len(r.Txn.Ops) != 1 || r.Txn.Ops[0].Deleted < expireBatch {
			*behind = 0
			continue
		}
		*behind += expireBatch
		timer := time.NewTimer(behind.pause(time.Since(began)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
	return nil
}

// compact lets history that is older than the retention go.
func (n *Node) compact(ctx context.Context) error {
	s := n.Settings()
	now, keep := n.fsm.Stamp(), uint64(s.HistoryRetention/time.Millisecond)
	rev, err := n.fsm.Retained(now-min(now, keep), s.HistoryRetentionBytes)
	if err != nil {
		return err
	}
	if rev <= n.fsm.Info().Oldest {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, choreTimeout)
	defer cancel()
	_, err = n.propose(ctx, fsm.EncodeCompact(rev), nil)
	return err
}

// quorumAnswers says whether this leader has heard from a quorum lately: if not, it is
// not for want of disk space that voters do not say they have some.
func (n *Node) quorumAnswers() bool {
	heard := 0
	for _, s := range n.consensus.Configuration() {
		if t, ok := n.consensus.LastContact(s.ID); s.Voter && (s.ID == n.identity.ServerID || ok && time.Since(t) < roomPeriod) {
			heard++
		}
	}
	return heard >= n.voters()/2+1
}

// runTrim drops, on every node for itself, what compaction made unreachable.
func (n *Node) runTrim() {
	t := time.NewTicker(trimPeriod)
	defer t.Stop()
	for {
		select {
		case <-n.life.Done():
			return
		case <-t.C:
			if _, err := n.fsm.Trim(); err != nil && n.life.Err() == nil {
				n.log.Warn("could not trim the change index", "error", err)
			}
		}
	}
}

// PutRecord implements cluster.Directory.
func (n *Node) PutRecord(ctx context.Context, r kv.MemberRecord) error {
	_, err := n.propose(ctx, fsm.EncodeMember(r), nil)
	return err
}

// Record implements cluster.Directory.
func (n *Node) Record(serverID string) (kv.MemberRecord, bool) { return n.fsm.Record(serverID) }

// Records implements cluster.Directory.
func (n *Node) Records() []kv.MemberRecord { return n.fsm.Records() }
