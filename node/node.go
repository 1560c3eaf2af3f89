package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/settkv/sett/cluster"
	"github.com/settkv/sett/config"
	"github.com/settkv/sett/consensus"
	"github.com/settkv/sett/fsm"
	"github.com/settkv/sett/httpapi"
	"github.com/settkv/sett/raftstore"
	"github.com/settkv/sett/relay"
	"github.com/settkv/sett/snapshot"
)

// Options are what a node gets beside its configuration. Only Logger is required.
type Options struct {
	Logger  *slog.Logger
	Version string
	// Exit, if not nil, is called when the node can't go on, before anything else can
	// happen in the process; it should end it. The damage is noted on disk by then.
	Exit func(error)

	// For in-process clusters in tests: the Raft timeouts (0: the defaults), the
	// paces of membership, the network (nil: TCP), and the wall clock.
	HeartbeatTimeout time.Duration
	Timing           cluster.Timing
	Network          Network
	WallClock        func() time.Time
}

// Network is what a node speaks Raft and HTTP over. Gossip has its own.
type Network interface {
	ListenRaft(bind, advertise string) (consensus.Stream, error)
	ListenHTTP(bind string) (net.Listener, error)
	// Dial opens a connection for HTTP between nodes.
	Dial(ctx context.Context, network, addr string) (net.Conn, error)
}

type tcpNetwork struct{ net.Dialer }

func (tcpNetwork) ListenRaft(bind, advertise string) (consensus.Stream, error) {
	return consensus.ListenTCP(bind, advertise)
}

func (tcpNetwork) ListenHTTP(bind string) (net.Listener, error) { return net.Listen("tcp", bind) }

func (t tcpNetwork) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return t.DialContext(ctx, network, addr)
}

// Node is a running node. Its methods are safe for concurrent use.
type Node struct {
	cfg   config.Config
	opts  Options
	log   *slog.Logger
	start time.Time

	folder   *folder
	identity identity

	state     *cluster.State
	logs      *raftstore.Store
	store     *snapshot.Store
	fsm       *fsm.FSM
	consensus *consensus.Consensus
	cluster   *cluster.Cluster
	http      *httpapi.Server
	metrics   *metrics
	relays    *relay.Client // of the proposals that this node forwards
	relayed   *relay.Server // of those that it is asked for

	rounds   rounds
	watches  atomic.Pointer[context.Context] // see watchLife
	caughtUp atomic.Pointer[time.Time]
	chores   chores
	draining atomic.Bool
	started  atomic.Bool // all parts are there
	work     gatekeeper
	crowded  atomic.Bool // on the leader: too few voters have disk space to grow

	// serve ends when Shutdown begins: reads that wait for something give up. life ends
	// when it takes things down.
	serve, life         context.Context
	stopServing, cancel context.CancelFunc
	wg                  sync.WaitGroup

	fatalOnce sync.Once
	fatalErr  atomic.Pointer[error]
	done      chan struct{}

	stopOnce sync.Once
	stopErr  error

	httpAddr string
}

// Open starts a node and returns once it listens; it may not be ready yet. ctx bounds
// only the start. On error everything is stopped again.
func Open(ctx context.Context, cfg config.Config, opts Options) (*Node, error) {
	n := &Node{cfg: cfg, opts: opts, log: opts.Logger.With("id", cfg.ID), start: time.Now(), done: make(chan struct{})}
	n.life, n.cancel = context.WithCancel(context.Background())
	n.serve, n.stopServing = context.WithCancel(n.life)
	if err := n.open(ctx); err != nil {
		n.abort()
		return nil, err
	}
	return n, nil
}

func (n *Node) open(ctx context.Context) error {
	var err error
	if n.folder, err = openFolder(n.cfg.DataDir); err != nil {
		return err
	}
	if n.identity, err = n.folder.identify(n.cfg.ID); err != nil {
		return err
	}
	crashed, machineCrashed, err := n.folder.lastRun()
	if err != nil {
		return err
	}
	if crashed {
		n.log.Warn("the last run of this node did not end in order; recovering", "machine_crashed", machineCrashed)
	}
	registry := prometheus.NewRegistry()
	n.metrics = newMetrics(n, registry)

	// The ports first: a busy one is found out before anything is changed.
	network := n.opts.Network
	if network == nil {
		network = tcpNetwork{net.Dialer{Timeout: 2 * time.Second, KeepAlive: 15 * time.Second}}
	}
	httpListener, err := network.ListenHTTP(n.cfg.HTTPAddr)
	if err != nil {
		return fmt.Errorf("listen on http-addr: %w: free the port, or choose another http-addr", err)
	}
	n.httpAddr = withPort(n.cfg.HTTPAdvertise, httpListener.Addr())
	stream, err := network.ListenRaft(n.cfg.RaftAddr, n.cfg.RaftAdvertise)
	if err != nil {
		_ = httpListener.Close()
		return fmt.Errorf("%w: free the port, or choose another raft-addr", err)
	}
	if err := n.openStores(); err != nil {
		_ = httpListener.Close()
		_ = stream.Close()
		return err
	}
	if err := n.folder.markRunning(); err != nil {
		_ = httpListener.Close()
		_ = stream.Close()
		return err
	}
	n.rounds.ask = n.askLeader
	n.watches.Store(&n.serve)
	n.consensus, err = consensus.Open(consensus.Config{
		ServerID: n.identity.ServerID, Stream: stream,
		Logs: n.logs.Logs(), Stable: n.logs.Stable(), Snapshots: n.store.Raft(), FSM: fsm.RaftFSM{FSM: n.fsm},
		Envelope: n.fsm, LeaderCommand: n.leaderCommandWhenReady, Resolve: n.resolve, ClusterID: n.state.ClusterID,
		HeartbeatTimeout: n.opts.HeartbeatTimeout,
		SnapshotInterval: n.cfg.SnapshotInterval, SnapshotThreshold: n.cfg.SnapshotThreshold,
		SnapshotThresholdBytes: n.cfg.SnapshotThresholdBytes, TrailingLogs: n.cfg.TrailingLogs,
		// The label and the data live in one folder, so the data always covers the
		// newest snapshot (Invariant 12); fsm.Open has checked it for this start.
		NoSnapshotRestoreOnStart: n.covered(),
		MaxInflightBytes:         n.cfg.MaxInflightBytes, Logger: n.log,
		OnLeadership: n.leadership, OnFatal: n.fatal, Registerer: registry,
	})
	if err != nil {
		_ = httpListener.Close()
		_ = stream.Close()
		return err
	}
	c, err := cluster.Open(ctx, cluster.Config{
		ServerID: n.identity.ServerID, Name: n.cfg.ID, Version: n.opts.Version, ClusterName: n.cfg.ClusterName,
		RaftAddr: stream.Addr().String(), HTTPAddr: n.httpAddr,
		GossipAddr: n.cfg.GossipAddr, GossipAdvertise: n.cfg.GossipAdvertise, GossipKeys: n.cfg.GossipKeys,
		Join: n.cfg.Join, BootstrapExpect: n.cfg.BootstrapExpect, Nonvoter: n.cfg.Nonvoter, ReplaceAfter: n.cfg.ReplaceAfter,
		Timing: n.opts.Timing, State: n.state, Consensus: n.consensus, Directory: n,
		HTTPClient: &http.Client{Transport: &http.Transport{DialContext: network.Dial, MaxIdleConnsPerHost: 16, IdleConnTimeout: 30 * time.Second}},
		ReadIndex:  n.consensus.ReadIndex, Status: n.peerStatus, WallClock: n.opts.WallClock,
		Logger: n.log.With("component", "cluster"),
	})
	if err != nil {
		_ = httpListener.Close()
		return err
	}
	n.cluster = c
	n.started.Store(true)
	n.relays = relay.NewClient(relayPath, network.Dial, n.relayHeader)
	n.relayed = relay.NewServer(n.onRelayed)
	n.http = httpapi.New(httpapi.Config{
		Store: n, Relay: n, Cluster: clusterView{n}, Health: n, Peer: n.peers(c), Metrics: registry,
		Logger: n.log.With("component", "http"), Version: n.opts.Version, MaxInflightBytes: n.cfg.MaxInflightBytes,
		Dial: network.Dial,
	})
	n.wg.Go(func() {
		if err := n.http.Serve(httpListener); err != nil && !errors.Is(err, http.ErrServerClosed) {
			n.fatal(fmt.Errorf("serve http: %w", err))
		}
	})
	n.wg.Go(n.runFreshness)
	n.wg.Go(n.runTrim)
	n.wg.Go(n.runWatchGuard)
	n.wg.Go(n.runPoke)
	n.wg.Go(n.runRelays)
	n.log.Info("node started", "version", n.opts.Version, "server_id", n.identity.ServerID, "http", n.httpAddr,
		"raft", stream.Addr().String(), "gossip", c.GossipAddr(), "data_dir", n.cfg.DataDir, "revision", n.fsm.Info().Revision)
	return nil
}

// covered says whether the data includes the newest snapshot, so that raft need not
// restore it.
func (n *Node) covered() bool {
	label, ok := n.store.Label()
	if !ok {
		return true
	}
	applied, _ := n.fsm.Applied()
	return applied >= label.Index
}

// resolve tells consensus where a server is; gossip starts after consensus.
func (n *Node) resolve(serverID string) (string, bool) {
	if !n.started.Load() {
		return "", false
	}
	return n.cluster.Resolve(serverID)
}

var errStarting = errors.New("this node is still starting")

func (n *Node) leaderCommandWhenReady(ctx context.Context, term uint64) ([]byte, error) {
	if !n.started.Load() {
		return nil, errStarting
	}
	return n.leaderCommand(ctx, term)
}

func (n *Node) askLeader(ctx context.Context) (uint64, time.Time, error) {
	return n.cluster.AskReadIndex(ctx)
}

// runPoke passes the consensus layer's notices of a new leader on.
func (n *Node) runPoke() {
	for {
		changed := n.consensus.LeaderChanged()
		n.cluster.Poke()
		select {
		case <-n.life.Done():
			return
		case <-changed:
		}
	}
}

// fatal ends the node: nothing is acknowledged after it. The process must exit. Damage
// is noted on disk, so that the next start does not run into it again.
func (n *Node) fatal(err error) {
	n.fatalOnce.Do(func() {
		n.fatalErr.Store(&err)
		n.log.Error("this node stops", "error", err)
		if isDamage(err) {
			n.logErr("note the damage", writeFile(n.folder.path(damagedName), []byte(err.Error()+"\n")))
		}
		if n.opts.Exit != nil {
			n.opts.Exit(err)
		}
		close(n.done)
	})
}

// Done is closed when the node can't go on; Err then says why, and the process should
// exit at once, without Shutdown.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err returns why the node can't go on, nil if it can.
func (n *Node) Err() error {
	if e := n.fatalErr.Load(); e != nil {
		return *e
	}
	return nil
}

// HTTPAddr returns the address of the API that others are told.
func (n *Node) HTTPAddr() string { return n.httpAddr }

// ServerID returns this server's identity in the Raft configuration.
func (n *Node) ServerID() string { return n.identity.ServerID }

// GossipAddr returns the gossip address that others are told.
func (n *Node) GossipAddr() string { return n.cluster.GossipAddr() }

// FSM returns the node's state machine, for tests and tools in this process.
func (n *Node) FSM() *fsm.FSM { return n.fsm }

// Consensus returns the node's consensus layer, for tests and tools in this process.
func (n *Node) Consensus() *consensus.Consensus { return n.consensus }

// Shutdown stops the node in order: not ready, no new proposals, finish those in
// flight, hand leadership over, drain HTTP, raft, gossip, state machine, log store
// (Invariant 30). Each step is bounded by ctx. It is idempotent.
//
// Leadership goes before the HTTP server: the followers forward over connections that
// the server closes, and a request that met a closing one would have an unknown fate.
func (n *Node) Shutdown(ctx context.Context) error {
	n.stopOnce.Do(func() { n.stopErr = n.shutdown(ctx) })
	return n.stopErr
}

const (
	drainTimeout    = 2 * time.Second
	handOverTimeout = 3 * time.Second
	httpTimeout     = 5 * time.Second
	raftTimeout     = 8 * time.Second
	// handOverGrace is for the news of the new leader to reach the followers.
	handOverGrace = 100 * time.Millisecond
)

func (n *Node) shutdown(ctx context.Context) error {
	n.draining.Store(true)
	n.stopServing()
	n.log.Info("node stops")
	var errs []error
	dctx, cancel := context.WithTimeout(ctx, drainTimeout)
	n.work.close(dctx)
	cancel()
	if n.consensus.IsLeader() && n.voters() > 1 {
		tctx, cancel := context.WithTimeout(ctx, handOverTimeout)
		n.logErr("hand leadership over", n.consensus.Transfer(tctx, ""))
		cancel()
		timer := time.NewTimer(handOverGrace)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	hctx, cancel := context.WithTimeout(ctx, httpTimeout)
	n.logErr("finish all requests in time", n.http.Shutdown(hctx))
	cancel()
	errs = append(errs, n.http.Close())
	n.relays.Close()
	n.cancel()
	// A budget of its own: whatever came before, raft must be down before its stores.
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), raftTimeout)
	defer cancel()
	if err := n.consensus.Shutdown(rctx); err != nil {
		// Invariant 30: databases close after raft, always. The process ends instead; the
		// next start recovers.
		return fmt.Errorf("raft did not stop, so the stores stay open: %w", err)
	}
	n.relayed.Close()
	errs = append(errs, n.cluster.Close())
	n.stopChores()
	n.wg.Wait()
	n.rounds.wg.Wait()
	n.fsm.Close()
	errs = append(errs, n.store.Close(), n.logs.Close())
	err := errors.Join(errs...)
	if err == nil && n.Err() == nil {
		err = n.folder.unmarkRunning()
	}
	return errors.Join(err, n.folder.close())
}

func (n *Node) voters() int {
	v := 0
	for _, s := range n.consensus.Configuration() {
		if s.Voter {
			v++
		}
	}
	return v
}

// gatekeeper counts work in flight and lets no more in once it is closed.
type gatekeeper struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

func (g *gatekeeper) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Add(1)
	return true
}

func (g *gatekeeper) leave() { g.wg.Done() }

// close lets nobody in any more and waits for those inside, or for ctx.
func (g *gatekeeper) close(ctx context.Context) {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	empty := make(chan struct{})
	go func() {
		g.wg.Wait()
		close(empty)
	}()
	select {
	case <-empty:
	case <-ctx.Done():
	}
}

func (n *Node) stopChores() {
	n.chores.mu.Lock()
	if n.chores.cancel != nil {
		n.chores.cancel()
	}
	n.chores.mu.Unlock()
	n.chores.wg.Wait()
}

// abort takes down what a failed Open left.
func (n *Node) abort() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	n.cancel()
	if n.http != nil {
		n.http.Close()
		n.relays.Close()
	}
	if n.consensus != nil {
		n.logErr("stop consensus", n.consensus.Shutdown(ctx))
	}
	if n.relayed != nil {
		n.relayed.Close()
	}
	if n.cluster != nil {
		n.logErr("stop gossip", n.cluster.Close())
	}
	n.stopChores()
	n.wg.Wait()
	n.closeStores()
	if n.folder != nil {
		// The marker stays if it stands: only an orderly stop takes it away.
		n.logErr("unlock the data folder", n.folder.close())
	}
}

func (n *Node) logErr(what string, err error) {
	if err != nil {
		n.log.Warn("could not "+what, "error", err)
	}
}

// withPort fills in the port that was bound where the configuration says 0.
func withPort(advertise string, bound net.Addr) string {
	host, ok := strings.CutSuffix(advertise, ":0")
	if !ok {
		return advertise
	}
	_, port, err := net.SplitHostPort(bound.String())
	if err != nil {
		return advertise
	}
	return host + ":" + port
}
