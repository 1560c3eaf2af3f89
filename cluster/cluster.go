package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/settkv/sett/kv"
)

// Consensus is what this package needs of the consensus layer. All methods are safe
// for concurrent use. The changing ones are the leader's: anywhere else they return
// a kv no-leader error.
type Consensus interface {
	IsLeader() bool
	// Ready returns the current term and whether an entry of it was applied here
	// while this node leads.
	Ready() (term uint64, ok bool)
	// Leader returns the server id of the leader, "" if none is known.
	Leader() string
	Configuration() []kv.Server
	AddNonvoter(ctx context.Context, id, addr string) error
	AddVoter(ctx context.Context, id, addr string) error
	Demote(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	// Transfer hands leadership to a server, "" for any, and returns once it is handed over.
	Transfer(ctx context.Context, id string) error
	// LastContact returns when the leader last sent something to the server that was
	// answered; false if it never was in this term.
	LastContact(id string) (time.Time, bool)
	// Match returns the last log index known to be stored at the server.
	Match(id string) (index uint64, ok bool)
	CommitIndex() uint64
	Bootstrap(servers []kv.Server) error
	// HasState says whether there is any Raft state on this node's disk.
	HasState() bool
}

// Directory is the replicated table of member records.
type Directory interface {
	Record(serverID string) (kv.MemberRecord, bool)
	Records() []kv.MemberRecord
	// PutRecord proposes the record; leader only. It returns once it is applied here.
	PutRecord(ctx context.Context, r kv.MemberRecord) error
	// PutEnding proposes how an operation ended; leader only. Once more does no harm.
	PutEnding(ctx context.Context, end kv.Ending) error
}

// Status is what a node tells its peers about itself.
type Status struct {
	AppliedIndex uint64 `json:"applied_index"`
	Role         string `json:"role"`
	Version      string `json:"version"`
	// DiskFull says that the node refuses growth.
	DiskFull bool `json:"disk_full,omitempty"`
}

// Timing holds the paces of gossip and of this package's loops. The zero value of
// each means its default.
type Timing struct {
	Probe       time.Duration // failure detection; default 1 s
	Gossip      time.Duration // spreading of news; default 200 ms
	PushPull    time.Duration // full exchange with a random peer; default 10 s
	JoinMin     time.Duration // first pause between tries to reach the join list; default 250 ms
	JoinMax     time.Duration // last one; default 15 s
	Formation   time.Duration // one step of formation; default 100 ms
	Reconcile   time.Duration // one step of the reconciler; default 500 ms
	LeaderPoll  time.Duration // how often a change of leader is looked for without a Poke; default 250 ms
	Call        time.Duration // longest peer call; default 3 s
	Stabilize   time.Duration // how long a newcomer must stay caught up; default 2 s
	LiveWithin  time.Duration // a server with Raft contact this recent is live; default 3 s
	WarnEvery   time.Duration // the same warning at most this often; default 30 s
	LeaveWithin time.Duration // longest wait for the farewell at Close; default 1 s
}

// Config is what Open needs. State, Consensus, Directory and Logger are required.
type Config struct {
	// ServerID is the node's Raft identity, a UUID; Name its id, for people.
	ServerID, Name string
	Version        string
	// ClusterName is the gossip label: nodes of another name are refused. At most
	// 255 bytes.
	ClusterName string
	// RaftAddr and HTTPAddr are the addresses at which other nodes reach this one.
	RaftAddr, HTTPAddr string
	// GossipAddr is listened on, TCP and UDP (port 0 picks one); GossipAdvertise, if
	// set, is what others are told. A host name in it is resolved once, at Open.
	GossipAddr, GossipAdvertise string
	// GossipKeys encrypt gossip (16, 24 or 32 bytes each): the first encrypts, all
	// decrypt. Empty: plain text.
	GossipKeys [][]byte
	// Join lists gossip addresses, tried for ever.
	Join []string
	// BootstrapExpect is the number of servers that form a new cluster; 0 never does.
	BootstrapExpect int
	Nonvoter        bool
	// ReplaceAfter is how long a server must be silent before a new one of its name
	// replaces it; default 30 s.
	ReplaceAfter time.Duration
	// CatchUpEntries is how far behind the commit index a caught-up server may be;
	// default 256.
	CatchUpEntries uint64
	Timing         Timing

	State     *State
	Consensus Consensus
	Directory Directory
	// HTTPClient makes the peer calls; default one of its own without proxy. Scheme
	// is "http" (default) or "https".
	HTTPClient *http.Client
	Scheme     string
	// ReadIndex answers peers' read-index calls; it must fail with a kv error on a
	// node that doesn't lead.
	ReadIndex func(ctx context.Context) (uint64, error)
	// Status tells peers about this node; nil reports nothing but the version.
	Status func() Status
	// WallClock is what this node tells the leader; default time.Now.
	WallClock func() time.Time
	Logger    *slog.Logger
}

// Cluster is one node's part in membership. Its methods are safe for concurrent use.
type Cluster struct {
	cfg    Config
	log    *slog.Logger
	state  *State
	warn   *limiter
	gossip *gossip
	form   *former
	recon  *reconciler
	client *peerClient

	// change serializes membership changes on this node: one at a time.
	change chan struct{}
	poke   chan struct{} // wakes the reconciler
	cancel context.CancelFunc
	wg     sync.WaitGroup
	closed sync.Once

	leaderMu sync.Mutex
	leader   leaderView
	leaderCh chan struct{} // closed at the next change of leader

	refusal atomic.Pointer[refusal] // why a leader refuses this node
}

type leaderView struct{ serverID, name, httpAddr string }

type refusal struct {
	reason string
	at     time.Time
}

// Open starts gossip, formation and the reconciler. ctx bounds only the start. The
// peer protocol is served by Handler, which the caller mounts; formation waits for
// it by retrying.
func Open(ctx context.Context, cfg Config) (*Cluster, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.defaults()
	c := &Cluster{
		cfg: cfg, log: cfg.Logger, state: cfg.State, warn: newLimiter(cfg.Timing.WarnEvery),
		change: make(chan struct{}, 1), poke: make(chan struct{}, 1), leaderCh: make(chan struct{}),
	}
	if err := c.checkDisk(); err != nil {
		return nil, err
	}
	c.client = &peerClient{c: c, http: cfg.HTTPClient}
	c.form = newFormer(c)
	c.recon = newReconciler(c)
	g, err := openGossip(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	c.gossip = g

	var run context.Context
	run, c.cancel = context.WithCancel(context.Background())
	for _, loop := range []func(context.Context){g.runJoin, g.runUpdates, c.form.run, c.recon.run, c.runLeader, c.runRemovalCheck} {
		c.wg.Go(func() { loop(run) })
	}
	return c, nil
}

func (cfg *Config) check() error {
	switch {
	case cfg.State == nil || cfg.Consensus == nil || cfg.Directory == nil || cfg.Logger == nil:
		return errors.New("cluster: State, Consensus, Directory and Logger are required")
	case cfg.ServerID == "" || cfg.Name == "":
		return errors.New("cluster: ServerID and Name are required")
	case cfg.BootstrapExpect < 0 || cfg.BootstrapExpect > maxFounders:
		return fmt.Errorf("bootstrap-expect is %d; it must be 0 to %d", cfg.BootstrapExpect, maxFounders)
	case cfg.BootstrapExpect > 0 && cfg.Nonvoter:
		return errors.New("a nonvoter can't take part in formation: leave out bootstrap-expect or nonvoter")
	case len(cfg.ClusterName) > maxClusterName:
		return fmt.Errorf("cluster-name has %d bytes; at most %d fit", len(cfg.ClusterName), maxClusterName)
	}
	return nil
}

func (cfg *Config) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	t := &cfg.Timing
	set(&t.Probe, time.Second)
	set(&t.Gossip, 200*time.Millisecond)
	set(&t.PushPull, 10*time.Second)
	set(&t.JoinMin, 250*time.Millisecond)
	set(&t.JoinMax, 15*time.Second)
	set(&t.Formation, 100*time.Millisecond)
	set(&t.Reconcile, 500*time.Millisecond)
	set(&t.LeaderPoll, 250*time.Millisecond)
	set(&t.Call, 3*time.Second)
	set(&t.Stabilize, 2*time.Second)
	set(&t.LiveWithin, 3*time.Second)
	set(&t.WarnEvery, 30*time.Second)
	set(&t.LeaveWithin, time.Second)
	set(&cfg.ReplaceAfter, 30*time.Second)
	if cfg.CatchUpEntries == 0 {
		cfg.CatchUpEntries = 256
	}
	if cfg.HTTPClient == nil {
		cfg.HTTPClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute}}
	}
	if cfg.Scheme == "" {
		cfg.Scheme = "http"
	}
	if cfg.WallClock == nil {
		cfg.WallClock = time.Now
	}
	if cfg.Status == nil {
		cfg.Status = func() Status { return Status{} }
	}
	if cfg.ReadIndex == nil {
		cfg.ReadIndex = func(context.Context) (uint64, error) {
			return 0, kv.Errorf(kv.CodeNotReady, "this node does not serve the read index")
		}
	}
}

// checkDisk compares cluster.json with the Raft state. They are written by different
// hands, so one of them may have been lost.
func (c *Cluster) checkDisk() error {
	d, has := c.state.load(), c.cfg.Consensus.HasState()
	// A founder may hold a term before it learns that the cluster was formed.
	if has && d.ClusterID == "" && d.Promise == nil {
		return kv.Errorf(kv.CodeCorruption, "the data folder holds Raft state but its cluster.json does not name a cluster: restore that file, or move the data folder away and start again as a new server")
	}
	// A server whose Raft state is gone has forgotten its votes: under its old identity
	// it could help to elect two leaders of one term.
	if !has && d.Started {
		return kv.Errorf(kv.CodeCorruption, "cluster.json says that this server had Raft state, and there is none: move the data folder away and start again; the node comes back by itself as a new server")
	}
	return nil
}

// Close says farewell to gossip (a restart, not a removal), stops all loops and waits
// for them. It is idempotent.
func (c *Cluster) Close() error {
	var err error
	c.closed.Do(func() {
		c.cancel()
		err = c.gossip.close(c.cfg.Timing.LeaveWithin)
		c.wg.Wait()
		c.form.wait()
		c.recon.wait()
		c.cfg.HTTPClient.CloseIdleConnections()
	})
	return err
}

// Self returns this node's id.
func (c *Cluster) Self() string { return c.cfg.Name }

// ClusterID returns the id of the cluster that this node belongs to, "" if none yet.
func (c *Cluster) ClusterID() string { return c.state.ClusterID() }

// ClusterName returns the configured name.
func (c *Cluster) ClusterName() string { return c.cfg.ClusterName }

// Removed says whether this node was removed from its cluster. It is durable, and
// cleared only when an administrator adds the node again.
func (c *Cluster) Removed() bool { return c.state.Removed() }

// GossipAddr returns the gossip address that others are told.
func (c *Cluster) GossipAddr() string { return c.gossip.addr }

// IsLeader says whether this node leads.
func (c *Cluster) IsLeader() bool { return c.cfg.Consensus.IsLeader() }

// Resolve returns the Raft address of a server: from gossip, if it is seen, for it
// may have moved; else what the Raft configuration says.
func (c *Cluster) Resolve(serverID string) (addr string, ok bool) {
	if p, ok := c.gossip.peer(serverID); ok && p.RaftAddr != "" {
		return p.RaftAddr, true
	}
	for _, s := range c.cfg.Consensus.Configuration() {
		if s.ID == serverID && s.Addr != "" {
			return s.Addr, true
		}
	}
	return "", false
}

// Leader returns the id and the HTTP address of the leader; ok is false if none is
// known. The address may be empty if nothing is known of that server but its place
// in the Raft configuration.
func (c *Cluster) Leader() (id, httpAddr string, ok bool) {
	v := c.viewLeader()
	return v.name, v.httpAddr, v.serverID != ""
}

func (c *Cluster) viewLeader() leaderView {
	id := c.cfg.Consensus.Leader()
	if id == "" {
		return leaderView{}
	}
	r := c.describe(id)
	return leaderView{serverID: id, name: r.ID, httpAddr: r.HTTPAddr}
}

// LeaderChanged returns a channel that is closed at the next change of what Leader
// returns. Take it before asking Leader.
func (c *Cluster) LeaderChanged() <-chan struct{} {
	c.leaderMu.Lock()
	defer c.leaderMu.Unlock()
	return c.leaderCh
}

// Poke makes the package look at once for a changed leader and for membership work;
// the consensus layer's notices are fed to it. It never blocks.
func (c *Cluster) Poke() {
	c.noticeLeader()
	c.wakeReconciler()
}

func (c *Cluster) wakeReconciler() {
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

func (c *Cluster) noticeLeader() {
	v := c.viewLeader()
	c.leaderMu.Lock()
	defer c.leaderMu.Unlock()
	if v == c.leader {
		return
	}
	c.leader = v
	close(c.leaderCh)
	c.leaderCh = make(chan struct{})
}

func (c *Cluster) runLeader(ctx context.Context) {
	t := time.NewTicker(c.cfg.Timing.LeaderPoll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			c.noticeLeader()
		}
	}
}

// describe collects what is known of a server: gossip first, for it is newest, then
// the replicated record, then what formation knew. Name and HTTPAddr may be empty.
func (c *Cluster) describe(serverID string) kv.MemberRecord {
	r, recorded := c.cfg.Directory.Record(serverID)
	r.ServerID = serverID
	if serverID == c.cfg.ServerID {
		r.ID, r.HTTPAddr = c.cfg.Name, c.cfg.HTTPAddr
		if c.gossip != nil {
			r.GossipAddr = c.gossip.addr
		}
		return r
	}
	if c.gossip != nil {
		if p, ok := c.gossip.peer(serverID); ok {
			r.ID, r.HTTPAddr, r.GossipAddr = p.Name, p.HTTPAddr, p.GossipAddr
			if !recorded {
				r.Nonvoter = p.Nonvoter
			}
			return r
		}
	}
	if !recorded {
		d := c.state.load()
		for _, f := range d.founders() {
			if f.ID == serverID {
				r.ID, r.HTTPAddr = f.Name, f.HTTPAddr
			}
		}
	}
	return r
}

// jitter returns d ± 25 %.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}
