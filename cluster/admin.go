package cluster

import (
	"context"
	"errors"
	"time"

	"github.com/settkv/sett/kv"
)

// noLeader is the error of anything that only a leader can do; nothing was applied.
func (c *Cluster) noLeader() *kv.Error {
	e := kv.NotApplied(kv.CodeNoLeader, "this node does not lead; ask the leader")
	e.Leader, _, _ = c.Leader()
	e.RetryAfter = time.Second
	return e
}

// unreachable keeps what a node said, and explains what the network said.
func unreachable(name, addr string, err error) error {
	var e *kv.Error
	if errors.As(err, &e) {
		return err
	}
	return &kv.Error{Code: kv.CodeConflict, Outcome: kv.OutcomeNotApplied, Err: err,
		Msg: name + " does not answer at http address " + addr + " (" + rootCause(err) + "): start it, or check the address"}
}

// lockChange waits for the right to change membership and returns what is known
// then. The caller must call unlock if err is nil.
func (c *Cluster) lockChange(ctx context.Context) (w *world, unlock func(), err error) {
	select {
	case c.change <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, kv.NotApplied(kv.CodeTimeout, "another membership change is under way; try again")
	}
	if w, err = c.recon.world(); err != nil {
		<-c.change
		return nil, nil, err
	}
	return w, func() { <-c.change; c.wakeReconciler() }, nil
}

// AddMember takes in the node that answers at spec.HTTPAddr; leader only. It returns
// once the node is a nonvoter; it becomes a voter by itself once it has caught up,
// unless spec or the node say that it stays a nonvoter. The same again changes
// nothing. A node that was removed comes back this way.
func (c *Cluster) AddMember(ctx context.Context, spec kv.MemberSpec) (kv.Member, error) {
	if spec.ID == "" || spec.RaftAddr == "" || spec.HTTPAddr == "" {
		return kv.Member{}, kv.NotApplied(kv.CodeInvalidArgument, "id, raft_addr and http_addr are needed")
	}
	w, unlock, err := c.lockChange(ctx)
	if err != nil {
		return kv.Member{}, err
	}
	defer unlock()
	id, err := c.askIdentity(ctx, target{addr: spec.HTTPAddr})
	if err != nil {
		return kv.Member{}, err
	}
	switch {
	case id.ID != spec.ID:
		return kv.Member{}, kv.NotApplied(kv.CodeConflict, "the node at %s is called %s, not %s", spec.HTTPAddr, id.ID, spec.ID)
	case id.RaftAddr != spec.RaftAddr:
		return kv.Member{}, kv.NotApplied(kv.CodeConflict, "%s says that its raft address is %s, not %s", spec.ID, id.RaftAddr, spec.RaftAddr)
	}
	id.HTTPAddr = spec.HTTPAddr // the one that is known to work from here
	if s, ok := w.usesAddr(spec.RaftAddr, id.ServerID); ok && w.name(s.ID) != spec.ID {
		return kv.Member{}, kv.NotApplied(kv.CodeConflict, "%s (server %s) has the raft address %s", w.name(s.ID), s.ID, spec.RaftAddr)
	}
	if s, ok := w.server(id.ServerID); ok {
		if s.Addr != id.RaftAddr {
			s.Addr = id.RaftAddr
			if err := c.setServer(ctx, s); err != nil {
				return kv.Member{}, err
			}
		}
		return c.member(ctx, s.ID)
	}
	if old, ok := w.byName(spec.ID); ok {
		if why, _ := w.replaceable(old); why != "" {
			return kv.Member{}, kv.NotApplied(kv.CodeConflict, "%s", why)
		}
		if err := c.replace(ctx, w, old, target{server: id.ServerID, addr: spec.HTTPAddr}); err != nil {
			return kv.Member{}, err
		}
	}
	c.log.Info("administrator adds a server", "node", id.ID, "server", id.ServerID)
	if err := c.takeIn(ctx, id, admission{nonvoter: !spec.Voter || id.Nonvoter, rejoin: true}); err != nil {
		return kv.Member{}, err
	}
	return c.member(ctx, id.ServerID)
}

// lockLoss waits for the right to change, and finds the server id that is to lose
// its vote or its place; ok is false if there is none.
//
// Invariant 29: a voter counts as live only if it answered something that was sent
// after the administrator asked. One that died a second ago would pass for live
// otherwise, and the change could cost the quorum. So the guard is asked again until
// all voters had the time to answer; a new leader, which may have to connect to them
// first, gets longer.
func (c *Cluster) lockLoss(ctx context.Context, id string, force bool) (w *world, s kv.Server, ok bool, unlock func(), err error) {
	asked := time.Now()
	for {
		if w, unlock, err = c.lockChange(ctx); err != nil {
			return nil, kv.Server{}, false, nil, err
		}
		if s, ok = w.byName(id); !ok {
			return w, s, false, unlock, nil
		}
		hopeless := w.guardLoss(s.ID, force) != nil && w.now.Sub(w.readySince) > w.liveWithin
		w.askedAt = asked
		if err = w.guardLoss(s.ID, force); err == nil {
			return w, s, true, unlock, nil
		}
		unlock()
		waited := w.now.Sub(asked) > w.liveWithin/3 && w.now.Sub(w.readySince) > w.liveWithin
		if hopeless || waited || !pause(ctx, c.cfg.Timing.Reconcile/10) {
			return nil, kv.Server{}, false, nil, err
		}
	}
}

// pause waits for d; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// RemoveMember takes a server out for good; leader only, named by its id or its
// server id. A leader that is to remove itself hands leadership over first and has
// its successor do it. Without force it is refused if the live voters left were no
// quorum.
func (c *Cluster) RemoveMember(ctx context.Context, id string, force bool) error {
	w, s, ok, unlock, err := c.lockLoss(ctx, id, force)
	if err != nil {
		return err
	}
	defer unlock()
	if !ok {
		return c.removeAbsent(ctx, w, id)
	}
	c.log.Info("administrator removes a server", "node", w.name(s.ID), "server", s.ID, "force", force)
	c.warnForced(w, s, force)
	if s.ID == w.self && c.handOver(ctx, w) {
		return c.leaveTo(ctx, pathRemove, changeRequest{ID: s.ID, Force: force}, &empty{})
	}
	if err := c.takeOut(ctx, w, s); err != nil {
		return err
	}
	if p, ok := w.peers[s.ID]; ok && s.ID != w.self {
		ctx := context.WithoutCancel(ctx) // bounded by the call's own timeout
		c.recon.wg.Go(func() {
			err := c.client.call(ctx, target{server: s.ID, addr: p.HTTPAddr}.post(pathRemoved, removedRequest{From: w.self}), &empty{})
			if err != nil {
				c.log.Debug("news not delivered", "node", p.Name, "call", pathRemoved, "err", err)
			}
		})
	}
	return nil
}

// removeAbsent handles a server that is in no configuration: one that was recorded
// but never came in is marked, so that it is not taken in either.
func (c *Cluster) removeAbsent(ctx context.Context, w *world, id string) error {
	for _, r := range w.records {
		if (r.ID == id || r.ServerID == id) && !r.Removed {
			r.Removed = true
			return c.cfg.Directory.PutRecord(ctx, r)
		}
	}
	return kv.NotApplied(kv.CodeNotFound, "there is no member %s", id)
}

// warnForced logs what an administrator overrode (Invariant 29).
func (c *Cluster) warnForced(w *world, s kv.Server, force bool) {
	if force && w.guardLoss(s.ID, false) != nil {
		total, live := w.voters(s.ID)
		c.log.Warn("quorum guard overridden by force", "node", w.name(s.ID), "server", s.ID, "voters", total, "live", live)
	}
}

// Promote makes a nonvoter a voter; leader only. One that has not caught up yet is
// waited for until ctx ends; it becomes a voter by itself later.
func (c *Cluster) Promote(ctx context.Context, id string) (kv.Member, error) {
	for first := true; ; first = false {
		serverID, done, err := c.promote(ctx, id, first)
		if err != nil {
			return kv.Member{}, err
		}
		if done {
			return c.member(ctx, serverID)
		}
		if !pause(ctx, c.cfg.Timing.Reconcile/2) {
			return kv.Member{}, kv.Errorf(kv.CodeTimeout, "%s has not caught up yet; it becomes a voter by itself once it has", id)
		}
	}
}

func (c *Cluster) promote(ctx context.Context, id string, first bool) (serverID string, done bool, err error) {
	w, unlock, err := c.lockChange(ctx)
	if err != nil {
		return "", false, err
	}
	defer unlock()
	s, ok := w.byName(id)
	if !ok {
		return "", false, kv.NotApplied(kv.CodeNotFound, "there is no member %s", id)
	}
	if first {
		if err := c.recordNonvoter(ctx, w, s.ID, false); err != nil {
			return "", false, err
		}
	}
	if s.Voter {
		return s.ID, true, nil
	}
	if !w.isCaughtUp(s.ID) {
		return s.ID, false, nil
	}
	c.log.Info("administrator promotes a server", "node", w.name(s.ID), "server", s.ID)
	return s.ID, true, c.cfg.Consensus.AddVoter(ctx, s.ID, s.Addr)
}

// recordNonvoter records whether a server is to stay a nonvoter, so that the
// reconciler does not undo an administrator's word.
func (c *Cluster) recordNonvoter(ctx context.Context, w *world, serverID string, stay bool) error {
	r, ok := w.records[serverID]
	if ok && r.Nonvoter == stay {
		return nil
	}
	if !ok {
		r = c.describe(serverID)
	}
	r.Nonvoter, r.Removed = stay, false
	return c.cfg.Directory.PutRecord(ctx, r)
}

// Demote makes a voter a nonvoter that stays one; leader only. It guards the quorum
// as RemoveMember does, and a leader hands over first.
func (c *Cluster) Demote(ctx context.Context, id string, force bool) (kv.Member, error) {
	w, s, ok, unlock, err := c.lockLoss(ctx, id, force)
	if err != nil {
		return kv.Member{}, err
	}
	defer unlock()
	if !ok {
		return kv.Member{}, kv.NotApplied(kv.CodeNotFound, "there is no member %s", id)
	}
	c.log.Info("administrator demotes a server", "node", w.name(s.ID), "server", s.ID, "force", force)
	c.warnForced(w, s, force)
	if s.ID == w.self && c.handOver(ctx, w) {
		var m kv.Member
		return m, c.leaveTo(ctx, pathDemote, changeRequest{ID: s.ID, Force: force}, &m)
	}
	if err := c.recordNonvoter(ctx, w, s.ID, true); err != nil {
		return kv.Member{}, err
	}
	if s.Voter {
		if err := c.cfg.Consensus.Demote(ctx, s.ID); err != nil {
			return kv.Member{}, err
		}
	}
	return c.member(ctx, s.ID)
}

// Transfer hands leadership to a voter, "" for any, and returns the id of the new
// leader once it leads; leader only.
func (c *Cluster) Transfer(ctx context.Context, to string) (leader string, err error) {
	w, unlock, err := c.lockChange(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	serverID := ""
	if to != "" {
		s, ok := w.byName(to)
		switch {
		case !ok:
			return "", kv.NotApplied(kv.CodeNotFound, "there is no member %s", to)
		case s.ID == w.self:
			return c.cfg.Name, nil
		case !s.Voter:
			return "", kv.NotApplied(kv.CodeConflict, "%s is a nonvoter and can't lead; promote it first", to)
		case !w.live(s.ID):
			return "", kv.NotApplied(kv.CodeConflict, "%s is not reached; it can't take over", to)
		}
		serverID = s.ID
	} else if total, live := w.voters(w.self); total == 0 || live == 0 {
		return "", kv.NotApplied(kv.CodeConflict, "there is no live voter that could take over")
	}
	if err := c.cfg.Consensus.Transfer(ctx, serverID); err != nil {
		return "", err
	}
	next, err := c.nextLeader(ctx)
	return next.name, err
}

// PutEnding has the leader note how an operation ended: this node, or the one that leads by now. It tries until
// ctx ends.
func (c *Cluster) PutEnding(ctx context.Context, end kv.Ending) error {
	for {
		err := c.putEnding(ctx, end)
		if err == nil || !pause(ctx, c.cfg.Timing.Reconcile/10) {
			return err
		}
	}
}

func (c *Cluster) putEnding(ctx context.Context, end kv.Ending) error {
	if c.IsLeader() {
		return c.cfg.Directory.PutEnding(ctx, end)
	}
	v := c.viewLeader()
	if v.serverID == "" || v.serverID == c.cfg.ServerID {
		return c.noLeader()
	}
	return c.client.call(ctx, target{server: v.serverID, addr: v.httpAddr}.post(pathEnding, endingRequest{
		Key: []byte(end.Once.Key), Request: end.Once.Request, Began: end.Began, Status: end.Status, Body: end.Body,
	}), &empty{})
}

// handOver transfers leadership to any voter; false if there is nobody to take it.
// Raft then lets a leader remove itself, and steps down.
func (c *Cluster) handOver(ctx context.Context, w *world) bool {
	if _, live := w.voters(w.self); live == 0 {
		return false
	}
	err := c.cfg.Consensus.Transfer(ctx, "")
	if err != nil {
		c.log.Warn("leadership not handed over", "err", err)
	}
	return err == nil
}

// leaveTo has the next leader do to this server what a leader does not do to itself.
// A new leader is not ready at once; what it refuses for that is asked again.
func (c *Cluster) leaveTo(ctx context.Context, path string, in changeRequest, out any) error {
	for {
		v, err := c.nextLeader(ctx)
		if err != nil {
			return kv.NotApplied(kv.CodeNoLeader, "leadership was handed over, and the new leader is not known yet; try again")
		}
		err = c.client.call(ctx, target{server: v.serverID, addr: v.httpAddr, within: 2 * changeTimeout}.post(path, in), out)
		var e *kv.Error
		switch {
		case err == nil || errors.As(err, &e) && e.Code != kv.CodeNoLeader:
			return err
		case e == nil:
			return kv.Unknown(err, "the new leader %s did not answer; look at the members and try again", v.name)
		}
		if !pause(ctx, c.cfg.Timing.Reconcile/4) {
			return e
		}
	}
}

// nextLeader waits until another server leads.
func (c *Cluster) nextLeader(ctx context.Context) (leaderView, error) {
	for {
		if v := c.viewLeader(); v.serverID != "" && v.serverID != c.cfg.ServerID {
			c.noticeLeader()
			return v, nil
		}
		if !pause(ctx, 10*time.Millisecond) {
			return leaderView{}, kv.Unknown(ctx.Err(), "leadership was handed over, and the new leader is not known yet")
		}
	}
}
