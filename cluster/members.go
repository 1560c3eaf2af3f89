package cluster

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/settkv/sett/kv"
)

// statusTimeout bounds what a table of members waits for a node's answer.
const statusTimeout = 500 * time.Millisecond

// Members returns the servers of the Raft configuration, by id. It asks each of them
// for its applied index, for at most half a second. Contact and lag are the leader's
// knowledge: on another node the contact is unknown (-1).
func (c *Cluster) Members(ctx context.Context) []kv.Member {
	servers := c.cfg.Consensus.Configuration()
	out := make([]kv.Member, len(servers))
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { out[i] = c.describeMember(ctx, s) })
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b kv.Member) int {
		if d := strings.Compare(a.ID, b.ID); d != 0 {
			return d
		}
		return strings.Compare(a.ServerID, b.ServerID)
	})
	return out
}

// HasMember says whether a server of that id or name is in the Raft configuration. It asks nobody.
func (c *Cluster) HasMember(id string) bool {
	return slices.ContainsFunc(c.cfg.Consensus.Configuration(), func(s kv.Server) bool {
		return s.ID == id || c.describe(s.ID).ID == id
	})
}

// RoomForGrowth says whether a quorum of the voters has, by their own word, disk space
// to grow. A voter that does not answer counts as one that has none. It takes at most
// half a second.
func (c *Cluster) RoomForGrowth(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var wg sync.WaitGroup
	var room atomic.Int32
	voters := 0
	for _, s := range c.cfg.Consensus.Configuration() {
		if !s.Voter {
			continue
		}
		voters++
		wg.Go(func() {
			st := c.ownStatus()
			if s.ID != c.cfg.ServerID {
				st = Status{}
				if err := c.client.call(ctx, target{server: s.ID, addr: c.describe(s.ID).HTTPAddr}.get(pathStatus), &st); err != nil {
					return
				}
			}
			if !st.DiskFull {
				room.Add(1)
			}
		})
	}
	wg.Wait()
	return int(room.Load()) >= quorum(voters)
}

// member describes one server after a change.
func (c *Cluster) member(ctx context.Context, serverID string) (kv.Member, error) {
	for _, s := range c.cfg.Consensus.Configuration() {
		if s.ID == serverID {
			ctx, cancel := context.WithTimeout(ctx, statusTimeout)
			defer cancel()
			return c.describeMember(ctx, s), nil
		}
	}
	return kv.Member{}, kv.Errorf(kv.CodeNotFound, "server %s is not a member any more", serverID)
}

func (c *Cluster) describeMember(ctx context.Context, s kv.Server) kv.Member {
	cons := c.cfg.Consensus
	r := c.describe(s.ID)
	m := kv.Member{
		ID: r.ID, ServerID: s.ID, RaftAddr: s.Addr, HTTPAddr: r.HTTPAddr, GossipAddr: r.GossipAddr, Voter: s.Voter,
		LastContactMS: -1,
	}
	if m.ID == "" {
		m.ID = s.ID // nobody knows its name yet
	}
	commit := cons.CommitIndex()
	if s.ID == c.cfg.ServerID {
		st := c.ownStatus()
		m.State, m.LastContactMS, m.AppliedIndex, m.Version = kv.StateAlive, 0, st.AppliedIndex, st.Version
		m.Role = c.roleOf(s.ID, st.Role)
		m.Lag = behind(commit, m.AppliedIndex)
		return m
	}
	p, seen := c.gossip.peer(s.ID)
	contact, known := cons.LastContact(s.ID)
	recent := known && time.Since(contact) <= c.cfg.Timing.LiveWithin
	if known && c.IsLeader() {
		m.LastContactMS = max(time.Since(contact).Milliseconds(), 0)
	}
	m.State = memberState(seen, recent, c.IsLeader())
	m.Lag = commit // of a server that nothing is known of: it may lack everything
	if match, ok := cons.Match(s.ID); ok {
		m.Lag = behind(commit, match)
	}
	if seen {
		m.Version = p.Version
	}
	var st Status
	if seen || recent {
		if err := c.client.call(ctx, target{server: s.ID, addr: r.HTTPAddr}.get(pathStatus), &st); err == nil {
			m.AppliedIndex, m.Version = st.AppliedIndex, st.Version
			m.Lag = behind(commit, st.AppliedIndex)
		}
	}
	m.Role = c.roleOf(s.ID, st.Role)
	return m
}

// roleOf goes by who leads for this node: another's word about itself may be older.
func (c *Cluster) roleOf(serverID, says string) string {
	switch {
	case serverID == c.cfg.Consensus.Leader():
		return kv.RoleLeader
	case says == kv.RoleCandidate:
		return says
	}
	return kv.RoleFollower
}

// memberState combines the two kinds of contact: with one of them missing a server
// is suspect. Only a leader has Raft contact.
func memberState(gossip, raft, leader bool) string {
	switch {
	case gossip && (raft || !leader):
		return kv.StateAlive
	case gossip || raft:
		return kv.StateSuspect
	}
	return kv.StateGone
}

func behind(commit, index uint64) uint64 {
	if index >= commit {
		return 0
	}
	return commit - index
}

func (c *Cluster) inConfiguration(serverID string) bool {
	return slices.ContainsFunc(c.cfg.Consensus.Configuration(), func(s kv.Server) bool { return s.ID == serverID })
}

// How long Clocks waits for more voters once a majority has answered.
const (
	clockGrace = 50 * time.Millisecond
	// clockPatience is how long it waits if those differ by more than a second.
	clockPatience = time.Second
)

// Clocks returns the wall clocks of the voters that answer, this node's included, all
// brought to about the same instant by half the time that asking took. It returns
// soon after a majority has answered: the leader that was just lost never will, and
// writes wait for this. It takes at most Timing.Call.
func (c *Cluster) Clocks(ctx context.Context) []time.Time {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var voters []kv.Server
	for _, s := range c.cfg.Consensus.Configuration() {
		if s.Voter {
			voters = append(voters, s)
		}
	}
	answers := make(chan time.Duration, len(voters)) // offsets to this node's clock
	for _, s := range voters {
		wg.Go(func() {
			var off time.Duration
			if s.ID != c.cfg.ServerID {
				start, own := time.Now(), c.cfg.WallClock()
				var a clockAnswer
				if err := c.client.call(ctx, target{server: s.ID, addr: c.describe(s.ID).HTTPAddr}.get(pathClock), &a); err != nil {
					return
				}
				off = time.Unix(0, a.UnixNano).Sub(own.Round(0).Add(time.Since(start) / 2))
			}
			answers <- off
		})
	}
	all := make(chan struct{})
	go func() {
		wg.Wait()
		close(all)
	}()
	var offsets []time.Duration
	var enough <-chan time.Time
	patient := false
	for waiting := true; waiting && len(offsets) < len(voters); {
		select {
		case off := <-answers:
			offsets = append(offsets, off)
			if len(offsets) == quorum(len(voters)) {
				enough = time.After(clockGrace)
			}
		case <-enough:
			// Clocks that differ ask for one more, which then decides.
			if slices.Max(offsets)-slices.Min(offsets) > time.Second && !patient {
				patient = true
				enough = time.After(clockPatience)
				continue
			}
			waiting = false
		case <-all:
			for len(answers) > 0 {
				offsets = append(offsets, <-answers)
			}
			waiting = false
		}
	}
	cancel()
	<-all
	now := c.cfg.WallClock()
	out := make([]time.Time, len(offsets))
	for i, off := range offsets {
		out[i] = now.Add(off)
	}
	return out
}

// AskReadIndex asks the leader for an index that a linearizable read must have
// applied, and returns it with the instant before the leader was asked. Its errors
// are kv no-leader, or timeout if ctx ended first.
func (c *Cluster) AskReadIndex(ctx context.Context) (index uint64, askedAt time.Time, err error) {
	v := c.viewLeader()
	if v.serverID == "" {
		e := kv.Errorf(kv.CodeNoLeader, "no leader is known; try again")
		e.RetryAfter = time.Second
		return 0, time.Time{}, e
	}
	askedAt = time.Now()
	if v.serverID == c.cfg.ServerID {
		index, err = c.cfg.ReadIndex(ctx)
		return index, askedAt, err
	}
	var a readIndexAnswer
	err = c.client.call(ctx, target{server: v.serverID, addr: v.httpAddr}.post(pathReadIndex, empty{}), &a)
	if err == nil {
		return a.Index, askedAt, nil
	}
	var e *kv.Error
	switch {
	case ctx.Err() != nil:
		return 0, askedAt, &kv.Error{Code: kv.CodeTimeout, Msg: "the leader did not confirm the read in time", Err: err, Leader: v.name}
	case errors.As(err, &e) && (e.Code == kv.CodeNoLeader || e.Code == kv.CodeTimeout || e.Code == kv.CodeNotReady):
		e.Outcome = kv.OutcomeNone
		return 0, askedAt, e
	}
	return 0, askedAt, &kv.Error{Code: kv.CodeNoLeader, Msg: "the leader is not reached; try again", Err: err, Leader: v.name, RetryAfter: time.Second}
}

// runRemovalCheck notices that this node is not a member any more, also if nobody
// managed to tell it: its own record says so, or it sees itself in no configuration.
func (c *Cluster) runRemovalCheck(ctx context.Context) {
	t := time.NewTicker(4 * c.cfg.Timing.Reconcile)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if !c.looksRemoved() {
				continue
			}
			if err := c.verifyRemoval(ctx, ""); err != nil {
				c.log.Debug("removal not confirmed", "err", err)
			}
		}
	}
}

func (c *Cluster) looksRemoved() bool {
	d := c.state.load()
	if d.ClusterID == "" || d.Removed {
		return false
	}
	r, _ := c.cfg.Directory.Record(c.cfg.ServerID)
	servers := c.cfg.Consensus.Configuration()
	return r.Removed || len(servers) > 0 && !c.inConfiguration(c.cfg.ServerID)
}

// verifyRemoval asks the leader whether this node was removed, and makes the mark
// durable only on its word. first, if set, is the server to ask first.
func (c *Cluster) verifyRemoval(ctx context.Context, first string) error {
	if c.Removed() {
		return nil
	}
	var err error = c.noLeader()
	for _, to := range c.leaderGuesses(first) {
		var a membershipAnswer
		if err = c.client.call(ctx, to.post(pathMembership, membershipRequest{ServerID: c.cfg.ServerID}), &a); err != nil {
			continue // it does not lead, or is gone
		}
		if a.Member || !a.Removed {
			return kv.Errorf(kv.CodeConflict, "the leader says that this node was not removed")
		}
		news := false
		err = c.state.update(func(d *durable) error {
			news = !d.Removed
			d.Removed = true
			return nil
		})
		if err != nil || !news {
			return err
		}
		c.log.Warn("this node was removed from the cluster; it comes back only when an administrator adds it", "cluster", c.ClusterID())
		c.gossip.announce()
		return nil
	}
	return err
}

// leaderGuesses lists who might lead, the likeliest first.
func (c *Cluster) leaderGuesses(first string) []target {
	ids := []string{first, c.cfg.Consensus.Leader()}
	for _, p := range c.gossip.alive() {
		if p.ClusterID == c.ClusterID() {
			ids = append(ids, p.ServerID)
		}
	}
	for _, r := range c.cfg.Directory.Records() {
		if !r.Removed {
			ids = append(ids, r.ServerID)
		}
	}
	seen := map[string]bool{"": true, c.cfg.ServerID: true}
	var out []target
	for _, id := range ids {
		if addr := c.describe(id).HTTPAddr; !seen[id] && addr != "" {
			out = append(out, target{server: id, addr: addr})
		}
		seen[id] = true
	}
	return out
}

// refusalFor is how long a leader's refusal is shown after it was last heard.
const refusalFor = 30 * time.Second

// Ready says whether this node is a member of a cluster, and if not, why and what to
// do.
func (c *Cluster) Ready() []kv.Check {
	ok, detail := c.standing()
	return []kv.Check{{Name: "membership", OK: ok, Detail: detail}}
}

func (c *Cluster) standing() (ok bool, detail string) {
	d := c.state.load()
	if d.Removed {
		return false, "this node was removed from cluster " + d.ClusterID + "; it comes back when an administrator adds it: " + c.joinCommand()
	}
	if d.ClusterID != "" && c.inConfiguration(c.cfg.ServerID) {
		return true, ""
	}
	if r := c.refusal.Load(); r != nil && time.Since(r.at) < refusalFor {
		return false, "the cluster does not take this node in: " + r.reason
	}
	if d.ClusterID != "" {
		return false, "this node belongs to cluster " + d.ClusterID + " and waits for its leader"
	}
	if p, formed := c.form.view().formed(); formed && d.Promise == nil {
		return false, "this node sees cluster " + p.ClusterID + " (" + p.Name + ") and waits for its leader to take it in"
	}
	if s := c.form.detail(); s != "" {
		return false, s
	}
	if len(c.cfg.Join) > 0 {
		return false, "nobody of a cluster is seen at " + strings.Join(c.cfg.Join, ", ") + " yet; trying on: check join, cluster-name and gossip-key"
	}
	return false, "this node belongs to no cluster: start it with bootstrap-expect or join, or send to a member of a running cluster: " + c.joinCommand()
}

// joinCommand is what takes this node in.
func (c *Cluster) joinCommand() string {
	cmd := "sett join --id " + c.cfg.Name + " --raft-addr " + c.cfg.RaftAddr + " --http-addr " + c.cfg.HTTPAddr
	if c.cfg.Nonvoter {
		cmd += " --nonvoter"
	}
	return cmd
}
