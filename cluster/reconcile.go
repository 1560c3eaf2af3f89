package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/settkv/sett/kv"
)

const (
	changeTimeout = 10 * time.Second // one membership change
	tellEvery     = 3 * time.Second  // the same news to the same node
	retrySteps    = 6                // a failed change waits for so many paces of the reconciler
)

// reconciler runs on every node and works on the leader.
type reconciler struct {
	c *Cluster

	mu       sync.Mutex
	term     uint64
	since    time.Time            // when this node became ready in term
	caughtUp map[string]time.Time // nonvoters

	failed   map[string]time.Time // changes, by key
	takenOut map[string]time.Time // servers whose removal this node proposed

	told map[string]time.Time // by the loop only: news that were sent
	wg   sync.WaitGroup
}

func newReconciler(c *Cluster) *reconciler {
	return &reconciler{c: c, caughtUp: map[string]time.Time{}, failed: map[string]time.Time{}, takenOut: map[string]time.Time{}, told: map[string]time.Time{}}
}

func (r *reconciler) wait() { r.wg.Wait() }

func (r *reconciler) run(ctx context.Context) {
	t := time.NewTicker(r.c.cfg.Timing.Reconcile)
	defer t.Stop()
	for {
		r.step(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-r.c.poke:
		}
	}
}

// step plans and executes once. An administrator's change that is under way goes
// first: the reconciler comes again soon.
func (r *reconciler) step(ctx context.Context) {
	c := r.c
	select {
	case c.change <- struct{}{}:
	default:
		return
	}
	defer func() { <-c.change }()
	w, err := r.world()
	if err != nil {
		return // not the leader, or not yet
	}
	for _, s := range w.plan() {
		if ctx.Err() != nil {
			return
		}
		if err := r.exec(ctx, w, s); err != nil {
			r.mu.Lock()
			r.failed[s.key()] = time.Now()
			r.mu.Unlock()
			if kind := "reconcile " + s.key(); c.warn.allow(kind) {
				c.log.Warn("membership step failed; it is tried again", "step", s.String(), "err", err)
			}
			return
		}
	}
}

// world collects what the leader knows. It is an error anywhere but on a leader that
// is ready in its term (Invariant 26).
func (r *reconciler) world() (*world, error) {
	c := r.c
	cons := c.cfg.Consensus
	r.mu.Lock()
	defer r.mu.Unlock()
	term, ready := cons.Ready()
	if !ready || !cons.IsLeader() {
		r.term = 0
		return nil, c.noLeader()
	}
	now := time.Now()
	if term != r.term {
		r.term, r.since, r.caughtUp = term, now, map[string]time.Time{}
	}
	w := &world{
		now: now, self: c.cfg.ServerID, clusterID: c.ClusterID(), readySince: r.since, servers: cons.Configuration(),
		peers: map[string]peer{}, records: map[string]kv.MemberRecord{}, founders: c.state.load().founders(),
		contact: map[string]time.Time{}, match: map[string]uint64{}, commit: cons.CommitIndex(), caughtUp: map[string]time.Time{},
		failed: map[string]bool{}, leaving: map[string]bool{}, replaceAfter: c.cfg.ReplaceAfter, liveWithin: c.cfg.Timing.LiveWithin, stabilize: c.cfg.Timing.Stabilize, catchUp: c.cfg.CatchUpEntries,
	}
	for key, t := range r.failed {
		if now.Sub(t) < retrySteps*c.cfg.Timing.Reconcile {
			w.failed[key] = true
		} else {
			delete(r.failed, key)
		}
	}
	for id, t := range r.takenOut {
		if now.Sub(t) < 2*changeTimeout {
			w.leaving[id] = true
		} else {
			delete(r.takenOut, id)
		}
	}
	for _, p := range c.gossip.alive() {
		w.peers[p.ServerID] = p
	}
	w.peers[w.self] = peer{meta: c.gossip.localMeta(), ServerID: w.self, GossipAddr: c.gossip.addr}
	for _, rec := range c.cfg.Directory.Records() {
		w.records[rec.ServerID] = rec
	}
	for _, s := range w.servers {
		if t, ok := cons.LastContact(s.ID); ok {
			w.contact[s.ID] = t
		}
		if m, ok := cons.Match(s.ID); ok {
			w.match[s.ID] = m
		}
	}
	for _, s := range w.servers {
		if s.Voter || !w.isCaughtUp(s.ID) {
			continue
		}
		if t, ok := r.caughtUp[s.ID]; ok {
			w.caughtUp[s.ID] = t
		} else {
			w.caughtUp[s.ID] = now
		}
	}
	r.caughtUp = w.caughtUp
	return w, nil
}

// exec does one step. The caller holds the right to change.
func (r *reconciler) exec(ctx context.Context, w *world, s step) error {
	c := r.c
	cons := c.cfg.Consensus
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	switch s.kind {
	case stepRecord:
		return c.cfg.Directory.PutRecord(ctx, s.record)
	case stepTell:
		r.tell(ctx, s.peer, pathRemoved, removedRequest{From: w.self})
		return nil
	case stepRefuse:
		if s.clash && c.warn.allow("clash "+s.peer.ServerID) {
			c.log.Warn("new server refused", "node", s.peer.Name, "server", s.peer.ServerID, "why", s.reason)
		}
		r.tell(ctx, s.peer, pathRefused, refusedRequest{Reason: s.reason})
		return nil
	case stepAddress:
		// Gossip is a hint: the server itself has to confirm its address.
		id, err := c.askIdentity(ctx, target{server: s.server.ID, addr: s.peer.HTTPAddr})
		if err != nil {
			return err
		}
		if id.RaftAddr != s.server.Addr {
			return fmt.Errorf("it says its raft address is %s", id.RaftAddr)
		}
		c.log.Info("server has a new address", "node", s.peer.Name, "server", s.server.ID, "raft", s.server.Addr)
		return c.setServer(ctx, s.server)
	case stepPromote:
		if err := cons.AddVoter(ctx, s.server.ID, s.server.Addr); err != nil {
			return err
		}
		c.log.Info("server has caught up and is a voter", "node", w.name(s.server.ID), "server", s.server.ID)
		return nil
	case stepReplace:
		return c.replace(ctx, w, s.server, target{server: s.peer.ServerID, addr: s.peer.HTTPAddr})
	case stepInvite:
		id, err := c.askIdentity(ctx, target{server: s.peer.ServerID, addr: s.peer.HTTPAddr})
		if err != nil {
			return err
		}
		return c.takeIn(ctx, id, admission{nonvoter: s.peer.Nonvoter})
	}
	return nil
}

// tell sends news to a node in the background, once in a while.
func (r *reconciler) tell(ctx context.Context, p peer, path string, body any) {
	key := p.ServerID + path
	now := time.Now()
	if t, ok := r.told[key]; ok && now.Sub(t) < tellEvery {
		return
	}
	for k, t := range r.told {
		if now.Sub(t) >= tellEvery {
			delete(r.told, k)
		}
	}
	r.told[key] = now
	ctx = context.WithoutCancel(ctx) // bounded by the call's own timeout
	r.wg.Go(func() {
		if err := r.c.client.call(ctx, target{server: p.ServerID, addr: p.HTTPAddr}.post(path, body), &empty{}); err != nil {
			r.c.log.Debug("news not delivered", "node", p.Name, "call", path, "err", err)
		}
	})
}

// String names a step in the log.
func (s step) String() string {
	switch s.kind {
	case stepRecord:
		return "record " + s.record.ID
	case stepAddress:
		return "new address of " + s.peer.Name
	case stepPromote:
		return "promote " + s.server.ID
	case stepReplace:
		return "replace " + s.server.ID + " by " + s.peer.ServerID + " (" + s.peer.Name + ")"
	case stepInvite:
		return "take in " + s.peer.Name + " (" + s.peer.ServerID + ")"
	}
	return "tell " + s.peer.Name
}

// setServer writes a server's row with its address.
func (c *Cluster) setServer(ctx context.Context, s kv.Server) error {
	if s.Voter {
		return c.cfg.Consensus.AddVoter(ctx, s.ID, s.Addr)
	}
	return c.cfg.Consensus.AddNonvoter(ctx, s.ID, s.Addr)
}

// admission says how a server comes in.
type admission struct {
	nonvoter bool // it stays one
	rejoin   bool // an administrator asked for it
}

// takeIn makes a server a nonvoter: adopt, record, add. Each part may be repeated;
// the reconciler makes it a voter later, once it has caught up. The caller holds the
// right to change and has checked for clashes.
func (c *Cluster) takeIn(ctx context.Context, id identity, how admission) error {
	if id.ClusterName != c.cfg.ClusterName {
		return kv.NotApplied(kv.CodeConflict, "%s is for a cluster named %q, this is %q", id.ID, id.ClusterName, c.cfg.ClusterName)
	}
	if id.ClusterID != "" && id.ClusterID != c.ClusterID() {
		return kv.NotApplied(kv.CodeConflict, "%s belongs to another cluster, %s", id.ID, id.ClusterID)
	}
	err := c.client.call(ctx, target{server: id.ServerID, addr: id.HTTPAddr}.post(pathAdopt,
		adoptRequest{ClusterID: c.ClusterID(), ClusterName: c.cfg.ClusterName, Seeds: c.seeds(), Rejoin: how.rejoin}), &empty{})
	if err != nil {
		return unreachable(id.ID, id.HTTPAddr, err)
	}
	rec := kv.MemberRecord{ServerID: id.ServerID, ID: id.ID, HTTPAddr: id.HTTPAddr, GossipAddr: id.GossipAddr, Nonvoter: how.nonvoter}
	if old, ok := c.cfg.Directory.Record(id.ServerID); !ok || old != rec {
		if err := c.cfg.Directory.PutRecord(ctx, rec); err != nil {
			return err
		}
	}
	c.recon.mu.Lock()
	delete(c.recon.takenOut, id.ServerID)
	c.recon.mu.Unlock()
	if err := c.cfg.Consensus.AddNonvoter(ctx, id.ServerID, id.RaftAddr); err != nil {
		return err
	}
	c.log.Info("server taken in as a nonvoter", "node", id.ID, "server", id.ServerID, "raft", id.RaftAddr, "stays", how.nonvoter)
	return nil
}

// replace takes a lost server out, after its successor has confirmed that it is
// there. The successor comes in with the next step.
func (c *Cluster) replace(ctx context.Context, w *world, old kv.Server, successor target) error {
	id, err := c.askIdentity(ctx, successor)
	if err != nil {
		return err
	}
	if id.ID != w.name(old.ID) || id.ClusterID != "" && id.ClusterID != w.clusterID {
		return kv.NotApplied(kv.CodeConflict, "server %s is not the successor of %s any more", id.ServerID, w.name(old.ID))
	}
	c.log.Warn("lost server is replaced", "node", id.ID, "lost", old.ID, "silent", w.silence(old.ID).Round(time.Millisecond), "new", id.ServerID)
	return c.takeOut(ctx, w, old)
}

// takeOut records a server as removed and removes it. A crash between leaves a
// record that the next leader puts right.
func (c *Cluster) takeOut(ctx context.Context, w *world, s kv.Server) error {
	c.recon.mu.Lock()
	c.recon.takenOut[s.ID] = time.Now()
	c.recon.mu.Unlock()
	rec := w.records[s.ID]
	rec.ServerID, rec.ID, rec.Removed = s.ID, w.name(s.ID), true
	if err := c.cfg.Directory.PutRecord(ctx, rec); err != nil {
		return err
	}
	return c.cfg.Consensus.Remove(ctx, s.ID)
}

// seeds returns gossip addresses for a newcomer.
func (c *Cluster) seeds() []string {
	out := []string{c.gossip.addr}
	for _, p := range c.gossip.alive() {
		if p.ClusterID == c.ClusterID() && len(out) < maxSeeds {
			out = append(out, p.GossipAddr)
		}
	}
	return out
}

// askIdentity asks a node who it is.
func (c *Cluster) askIdentity(ctx context.Context, to target) (identity, error) {
	var id identity
	if err := c.client.call(ctx, to.get(pathIdentity), &id); err != nil {
		return id, unreachable("the node", to.addr, err)
	}
	if id.ServerID == "" || id.ID == "" || id.RaftAddr == "" || to.server != "" && id.ServerID != to.server {
		return id, kv.NotApplied(kv.CodeConflict, "%s is not the node that was looked for", to.addr)
	}
	return id, nil
}
