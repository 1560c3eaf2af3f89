package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/settkv/sett/kv"
)

// Envelope turns client commands into the payload of Raft entries. The state
// machine implements it, because it decodes them. Both methods must be safe for
// concurrent use and must not keep their arguments.
type Envelope interface {
	// Batch makes the entry that carries cmds, in order. The state machine answers
	// it with a []any of one result per command. It may add at most
	// batchOverheadBytes and perCommandBytes for each command.
	Batch(cmds [][]byte) []byte
	// Chunk makes the entry that carries one part of a command too big for one
	// entry. Parts come with seq 0, 1, … of one random id; last marks the one that
	// commits the command, which the state machine answers with a []any of one
	// result; it answers the others with an empty []any.
	Chunk(id uint64, seq int, last bool, part []byte) []byte
}

// Config says how to open a Consensus. Required: ServerID, Stream, Logs, Stable,
// Snapshots, FSM, Envelope, LeaderCommand, ClusterID. Zero values of the rest take
// the defaults named.
type Config struct {
	// ServerID is this server's row in the Raft configuration.
	ServerID string
	// Stream carries the bytes between servers; Open takes it over and Shutdown
	// closes it.
	Stream Stream
	Logs   raft.LogStore
	Stable raft.StableStore
	// Snapshots must list the snapshot that the state machine covers.
	Snapshots raft.SnapshotStore
	FSM       raft.FSM
	Envelope  Envelope
	// LeaderCommand makes the command that a new leader proposes first; once it is
	// applied the term is ready. An error is retried while the node leads.
	LeaderCommand func(ctx context.Context, term uint64) ([]byte, error)
	// Resolve tells where a server is now; without an answer the address in the
	// Raft configuration is used. nil: always the latter.
	Resolve func(serverID string) (addr string, ok bool)
	// ClusterID names the cluster; "" while this node belongs to none, and then it
	// neither dials nor accepts.
	ClusterID func() string

	HeartbeatTimeout time.Duration // default 1 s
	ElectionTimeout  time.Duration // default HeartbeatTimeout
	LeaseTimeout     time.Duration // default half of HeartbeatTimeout
	// RPCTimeout bounds one message and its answer, snapshots apart; default twice
	// HeartbeatTimeout, at least 1 s.
	RPCTimeout time.Duration

	// A snapshot is taken every SnapshotInterval (default 30 s) if SnapshotThreshold
	// entries (default 65536) came since the last one, and at any time once
	// SnapshotThresholdBytes (default 256 MiB) of log did. TrailingLogs entries
	// (default 65536, fewer if they exceed half of SnapshotThresholdBytes) stay.
	SnapshotInterval       time.Duration
	SnapshotThreshold      uint64
	SnapshotThresholdBytes uint64
	TrailingLogs           uint64
	// NoSnapshotRestoreOnStart says that the state machine's database already
	// covers the newest snapshot. It is decided anew at each start.
	NoSnapshotRestoreOnStart bool

	// MaxInflightBytes bounds the commands between Propose and their results;
	// default 64 MiB.
	MaxInflightBytes int64

	Logger *slog.Logger // default: discard
	// OnLeadership is called with true once this node leads a term that is ready,
	// and with false when it stops leading; in order, never concurrently, and true
	// only once in between. It must return soon and not call Shutdown.
	OnLeadership func(leader bool, term uint64)
	// OnFatal is called at most once, when this process can't go on correctly and
	// must exit. nil: only logged.
	OnFatal func(error)
	// Registerer receives the metrics; nil: none.
	Registerer prometheus.Registerer
}

const (
	defaultHeartbeatTimeout       = time.Second
	defaultSnapshotInterval       = 30 * time.Second
	defaultSnapshotThreshold      = 65536
	defaultSnapshotThresholdBytes = 256 << 20
	defaultTrailingLogs           = 65536
	defaultMaxInflightBytes       = 64 << 20

	// maxAppendEntries bounds raft's group commit, AppendEntries and FSM batches.
	maxAppendEntries = 64
	// commitTimeout is how long a follower of an idle leader may wait to learn the
	// newest commit index (it comes sooner with heartbeats, see transport.go).
	commitTimeout = 10 * time.Millisecond
)

func (c *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	defU := func(d *uint64, v uint64) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.HeartbeatTimeout, defaultHeartbeatTimeout)
	def(&c.ElectionTimeout, c.HeartbeatTimeout)
	def(&c.LeaseTimeout, c.HeartbeatTimeout/2)
	def(&c.RPCTimeout, max(2*c.HeartbeatTimeout, time.Second))
	def(&c.SnapshotInterval, defaultSnapshotInterval)
	defU(&c.SnapshotThreshold, defaultSnapshotThreshold)
	defU(&c.SnapshotThresholdBytes, defaultSnapshotThresholdBytes)
	defU(&c.TrailingLogs, defaultTrailingLogs)
	if c.MaxInflightBytes == 0 {
		c.MaxInflightBytes = defaultMaxInflightBytes
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func (c *Config) validate() error {
	switch {
	case c.ServerID == "" || len(c.ServerID) > maxNameBytes:
		return fmt.Errorf("the server id must have 1 to %d bytes", maxNameBytes)
	case c.Stream == nil, c.Logs == nil, c.Stable == nil, c.Snapshots == nil, c.FSM == nil:
		return errors.New("Stream, Logs, Stable, Snapshots and FSM are required")
	case c.Envelope == nil, c.LeaderCommand == nil, c.ClusterID == nil:
		return errors.New("Envelope, LeaderCommand and ClusterID are required")
	}
	return nil
}

// Consensus is one server's part in the Raft cluster. Make it with Open.
type Consensus struct {
	cfg     Config
	log     *slog.Logger
	raft    *raft.Raft
	trans   *transport
	stream  *streamLayer
	acks    *ackTable
	logs    *meteredLogs
	metrics *metrics

	leadership leadership
	queue      queue
	gate       gate
	keep       logKeeper

	transferMu   sync.Mutex    // held while a leadership transfer runs
	leaseVoid    atomic.Uint64 // the lease counts for nothing up to this term
	blockedSince atomic.Int64  // UnixNano of the first of a row of ErrLeadershipTransferInProgress

	fatalOnce sync.Once
	ctx       context.Context // ends when Shutdown begins to stop the goroutines
	cancel    context.CancelFunc
	runMu     sync.Mutex // orders starting a goroutine against cancel
	wg        sync.WaitGroup
	stopOnce  sync.Once
	stopped   chan struct{} // closed when Shutdown is done
	stopErr   error
}

// Open starts this server: it recovers what the stores hold and takes part in the
// cluster from then on. On error everything that Open started is stopped again; the
// stores stay open and are the caller's.
func Open(cfg Config) (*Consensus, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("open consensus: %w", err)
	}
	cfg.setDefaults()
	if err := healBootstrap(cfg.Logs, cfg.Stable, cfg.Snapshots); err != nil {
		return nil, fmt.Errorf("open consensus: %w", err)
	}
	restarted, err := raft.HasExistingState(cfg.Logs, cfg.Stable, cfg.Snapshots)
	if err != nil {
		return nil, fmt.Errorf("open consensus: %w", err)
	}
	c := &Consensus{
		cfg:     cfg,
		log:     cfg.Logger.With("component", "consensus"),
		acks:    newAckTable(),
		logs:    newMeteredLogs(cfg.Logs),
		stopped: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.metrics = newMetrics(c)
	c.leadership.changed = make(chan struct{})
	c.leadership.leaderChanged = make(chan struct{})
	c.queue.init(cfg.MaxInflightBytes)
	c.gate.kick = make(chan struct{}, 1)

	bridge := newLogBridge(c.log)
	sl := &streamLayer{
		under: cfg.Stream, log: c.log, clusterID: cfg.ClusterID, serverID: cfg.ServerID, ioTimeout: cfg.RPCTimeout,
	}
	if restarted {
		// A voter that restarts has forgotten that it follows a leader and might vote
		// at once, while that leader still counts on its last answer (LeaseIndex).
		sl.openAfter = cfg.LeaseTimeout
	}
	sl.start()
	c.stream = sl
	c.trans = newTransport(c, bridge.Named("net"))

	notify := make(chan bool, 64)
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(cfg.ServerID)
	rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaseTimeout
	rc.CommitTimeout = commitTimeout
	rc.MaxAppendEntries = maxAppendEntries
	rc.BatchApplyCh = false // buffered futures would never resolve at shutdown
	rc.ShutdownOnRemove = false
	rc.SnapshotInterval, rc.SnapshotThreshold, rc.TrailingLogs = cfg.SnapshotInterval, cfg.SnapshotThreshold, cfg.TrailingLogs
	rc.NoSnapshotRestoreOnStart = cfg.NoSnapshotRestoreOnStart
	rc.NoLegacyTelemetry = true
	rc.NotifyCh = notify
	rc.Logger = bridge
	// rc.RestoreCommittedLogs stays off: it deadlocks and loses the configuration.

	c.raft, err = raft.NewRaft(rc, cfg.FSM, c.logs, cfg.Stable, &keepingSnapshots{cfg.Snapshots, c}, c.trans)
	if err != nil {
		c.cancel()
		_ = c.trans.Close()
		return nil, fmt.Errorf("open consensus: %w", err)
	}
	close(c.trans.ready)
	if err := c.metrics.register(cfg.Registerer); err != nil {
		c.cancel()
		_ = c.raft.Shutdown().Error()
		return nil, fmt.Errorf("open consensus: %w", err)
	}

	observed := make(chan raft.Observation, 16)
	observer := raft.NewObserver(observed, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	})
	c.raft.RegisterObserver(observer)
	c.goRun(func() { c.runObserver(observer, observed) })
	c.goRun(func() { c.runLeadership(notify) })
	c.goRun(c.runKicker)
	c.goRun(c.runLogKeeper)
	for range proposeWindow {
		c.goRun(c.runSealer)
	}
	return c, nil
}

// healBootstrap undoes a bootstrap that a crash cut between its two writes: term 1
// stored, but no first entry. raft would then neither elect nor bootstrap again.
func healBootstrap(logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore) error {
	term, err := stable.GetUint64([]byte("CurrentTerm"))
	if err != nil || term != 1 {
		return ignoreNotFound(err)
	}
	if vote, err := stable.GetUint64([]byte("LastVoteTerm")); err != nil && ignoreNotFound(err) != nil {
		return err
	} else if vote != 0 {
		return nil
	}
	last, err := logs.LastIndex()
	if err != nil || last != 0 {
		return err
	}
	if list, err := snaps.List(); err != nil || len(list) != 0 {
		return err
	}
	return stable.SetUint64([]byte("CurrentTerm"), 0)
}

// ignoreNotFound drops the one error that raft's stable stores tell by its text.
func ignoreNotFound(err error) error {
	if err != nil && err.Error() == "not found" {
		return nil
	}
	return err
}

// goRun starts a goroutine that Shutdown waits for. It must end soon after c.ctx.
// Once Shutdown waits, nothing is started.
func (c *Consensus) goRun(fn func()) {
	c.runMu.Lock()
	defer c.runMu.Unlock()
	if c.ctx.Err() != nil {
		return
	}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		fn()
	}()
}

// fatal reports, once, that the process must exit.
func (c *Consensus) fatal(err error) {
	c.fatalOnce.Do(func() {
		c.log.Error("consensus can't go on; the process must be restarted", "error", err)
		if c.cfg.OnFatal != nil {
			c.cfg.OnFatal(err)
		}
	})
}

// Leader returns the server id of the leader as this server knows it, "" if none.
func (c *Consensus) Leader() string {
	_, id := c.raft.LeaderWithID()
	return string(id)
}

// IsLeader says whether this server believes that it leads. Only ReadIndex proves it.
func (c *Consensus) IsLeader() bool { return c.raft.State() == raft.Leader }

// Term returns the current term.
func (c *Consensus) Term() uint64 { return c.raft.CurrentTerm() }

// State returns this server's role: kv.RoleLeader, kv.RoleCandidate, or
// kv.RoleFollower (also after Shutdown).
func (c *Consensus) State() string {
	switch c.raft.State() {
	case raft.Leader:
		return kv.RoleLeader
	case raft.Candidate:
		return kv.RoleCandidate
	}
	return kv.RoleFollower
}

// CommitIndex returns the commit index as this server knows it.
func (c *Consensus) CommitIndex() uint64 { return c.raft.CommitIndex() }

// LastIndex returns the index of the last entry in this server's log or snapshot.
func (c *Consensus) LastIndex() uint64 { return c.raft.LastIndex() }

// AppliedIndex returns how far raft has handed entries to the state machine; the
// state machine itself may be behind.
func (c *Consensus) AppliedIndex() uint64 { return c.raft.AppliedIndex() }

// SnapshotIndex returns the index of the newest snapshot, 0 if there is none.
func (c *Consensus) SnapshotIndex() uint64 {
	list, err := c.cfg.Snapshots.List()
	if err != nil || len(list) == 0 {
		return 0
	}
	return list[0].Index
}

// LeaderContact returns when this server last heard from a leader; meaningful on a
// server that does not lead.
func (c *Consensus) LeaderContact() time.Time { return c.raft.LastContact() }

// LastContact returns when the newest message that server id answered with success
// in this leader's term was sent. ok is false on a server that does not lead, and
// for a server that never answered in this term.
func (c *Consensus) LastContact(id string) (sent time.Time, ok bool) {
	if !c.IsLeader() {
		return time.Time{}, false
	}
	a, ok := c.acks.get(id, c.raft.CurrentTerm())
	return a.sent, ok
}

// Match returns the highest index up to which server id's log is known to equal
// this leader's, in this leader's term. ok is false on a server that does not lead,
// and for a server that has not confirmed anything in this term.
func (c *Consensus) Match(id string) (index uint64, ok bool) {
	if !c.IsLeader() {
		return 0, false
	}
	if id == c.cfg.ServerID {
		return c.raft.LastIndex(), true
	}
	a, ok := c.acks.get(id, c.raft.CurrentTerm())
	return a.match, ok && a.match > 0
}

// Configuration returns the newest configuration this server knows, committed or
// not. It never blocks.
func (c *Consensus) Configuration() []kv.Server {
	servers := c.raft.GetConfiguration().Configuration().Servers
	out := make([]kv.Server, len(servers))
	for i, s := range servers {
		out[i] = kv.Server{ID: string(s.ID), Addr: string(s.Address), Voter: s.Suffrage == raft.Voter}
	}
	return out
}

// HasState says whether this server holds Raft state: it was bootstrapped or taken
// into a cluster once.
func (c *Consensus) HasState() bool {
	return c.raft.LastIndex() > 0 || c.raft.CurrentTerm() > 0
}
