package httpapi

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/settkv/sett/kv"
)

// Store is the data as the handlers need it. All methods may be called
// concurrently and return when their context ends.
type Store interface {
	// Txn proposes t and waits for the state machine's decision. On a node that does
	// not lead it fails with no-leader, outcome not-applied. With an error, a Revision
	// other than zero in the result is the one at which it was decided. timing is
	// never nil.
	Txn(ctx context.Context, t kv.Txn, timing *kv.Timing) (kv.TxnResult, error)
	// Get reads one key. The revision is the one that the answer is valid at, and is
	// valid with kv.ErrNotFound too. A read with kv.Leader consistency is served on the
	// leader only, elsewhere it fails with no-leader. timing is never nil.
	Get(ctx context.Context, key string, o kv.ReadOptions, timing *kv.Timing) (kv.Item, kv.Revision, error)
	// Scan reads a range at one revision. The scanner must be closed. ctx bounds the start
	// only. Consistency levels are as for Get. timing is never nil.
	Scan(ctx context.Context, q kv.Scan, o kv.ReadOptions, timing *kv.Timing) (Scanner, error)
	// Watch follows changes, on any node. The watcher must be closed. ctx bounds the
	// start only.
	Watch(ctx context.Context, w kv.Watch) (Watcher, error)
	// Compact lets history below rev go, as far as no pin holds it; leader only. Of it, Pin, Unpin and
	// SetSettings: a once with a key has the cluster remember what it decided, and replayed says that
	// this was done before and nothing was changed now; with an error, too.
	Compact(ctx context.Context, rev kv.Revision, once kv.Once) (c kv.Compaction, replayed bool, err error)
	// Pin holds history from rev on for ttl; leader only. Unpin ends it: not-found if
	// there is no such pin.
	Pin(ctx context.Context, rev kv.Revision, ttl time.Duration, once kv.Once) (p kv.Pin, replayed bool, err error)
	Unpin(ctx context.Context, id string, once kv.Once) (replayed bool, err error)
	// Begin notes that this node, which leads, begins something that is none of the state machine's, before it does, and
	// whether the member it is about is one. op
	// says what is known of it: how many tries there were with this one, and the answer. End notes the answer, on any
	// node, unless there is one already; with status 0 nothing was done, and the key is free if there was one try.
	Begin(ctx context.Context, once kv.Once, member bool) (op kv.Operation, err error)
	End(ctx context.Context, end kv.Ending) error
	// Settings returns the cluster settings in force on this node.
	Settings() kv.ClusterSettings
	// SetSettings replaces the cluster settings and returns what they were set to; leader only,
	// elsewhere no-leader.
	SetSettings(ctx context.Context, s kv.ClusterSettings, once kv.Once) (now kv.ClusterSettings, replayed bool, err error)
	// Revision is the newest revision this node has applied.
	Revision() kv.Revision
	// Now is the cluster's time, as far as this node knows it.
	Now() time.Time
	// Snapshot makes this node take its Raft snapshot and returns the log index it covers.
	Snapshot(ctx context.Context) (index uint64, err error)
}

// Relay sends transactions to the leader without the request around them.
type Relay interface {
	// Relay has the leader at addr do t, whose command and result must be small, and
	// answers as Store.Txn there does. It fails with no-leader, outcome not-applied, if
	// nothing was sent, and with outcome-unknown if the answer was lost.
	Relay(ctx context.Context, addr string, t kv.Txn, timing *kv.Timing) (kv.TxnResult, error)
}

// Scanner walks the results of a scan. It is for one goroutine.
type Scanner interface {
	// Revision is the one that all results are of.
	Revision() kv.Revision
	// Next moves to the next result and says whether there is one.
	Next() bool
	// Entry is the current result; its value is valid until the next call of Next.
	Entry() *kv.ScanEntry
	// Err is why Next returned false, nil at the end of the range. It is kv.ErrCompacted
	// if the results so far took so long that their revision is no longer kept.
	Err() error
	Close()
}

// Watcher is a watch under way. It is for one goroutine.
type Watcher interface {
	// Revision is the store's when the watch began, at least the cluster's when it was
	// asked for; if kv.Watch.From was 0, everything after it will come.
	Revision() kv.Revision
	// Next waits for changes, or for kv.Watch.Progress to pass, or for ctx to end. A
	// batch is bounded in size. An error ends the watch; its
	// code tells the watcher why: compacted if it fell behind the kept history,
	// no-leader if this node has had none for long, not-ready if it is stopping or was
	// removed.
	Next(ctx context.Context) (kv.WatchBatch, error)
	Close()
}

// Cluster is the membership as the handlers need it. AddMember, RemoveMember,
// Promote, Demote and Transfer work on the leader only and fail with no-leader,
// outcome not-applied, elsewhere.
type Cluster interface {
	// Self is this node's id.
	Self() string
	// ClusterID is the id of the cluster, empty until the node belongs to one.
	ClusterID() string
	// Leader returns the leader's id and HTTP address (host:port, or a URL without a
	// path); ok is false while no leader with a known address is known.
	Leader() (id, httpAddr string, ok bool)
	IsLeader() bool
	// LeaderChanged returns a channel that is closed at the next change of what Leader says.
	LeaderChanged() <-chan struct{}
	Info(ctx context.Context) (kv.ClusterInfo, error)
	// HasMember says whether a server of that id or name is in the configuration that this node knows.
	HasMember(id string) bool
	// AddMember adds a server, or returns the member as it is if it is one already
	// under the same id and addresses.
	AddMember(ctx context.Context, m kv.MemberSpec) (kv.Member, error)
	// RemoveMember removes a server; force overrides the guard of the quorum.
	RemoveMember(ctx context.Context, id string, force bool) error
	Promote(ctx context.Context, id string) (kv.Member, error)
	// Demote makes a voter a nonvoter; force overrides the guard of the quorum.
	Demote(ctx context.Context, id string, force bool) (kv.Member, error)
	// Transfer hands leadership to the member of that id ("" is any) and returns the
	// id of the new leader once it leads.
	Transfer(ctx context.Context, to string) (leader string, err error)
}

// Health is what the probes report.
type Health interface {
	Status(ctx context.Context) (kv.Status, error)
	// Live returns why the process should be restarted, or nil.
	Live() error
	// Ready returns the readiness checks in the order they are shown; the node is
	// ready if all are OK.
	Ready() []kv.Check
}

// Config is what a Server is made of. Store, Cluster and Health are required; every
// other field has a default.
type Config struct {
	Store   Store
	Cluster Cluster
	Health  Health

	// Relay, if not nil, takes small transactions to the leader; without it all requests
	// are forwarded as they are.
	Relay Relay
	// Peer, if not nil, serves everything under /internal/ (the protocol of nodes among
	// themselves). Its request bodies are cut off at MaxPeerBodyBytes.
	Peer http.Handler
	// Metrics is served at /metrics and gets this package's own metrics registered; nil
	// makes a registry of its own.
	Metrics *prometheus.Registry
	// Logger defaults to discarding.
	Logger *slog.Logger
	// Version goes into the Server header ("sett/VERSION").
	Version string

	// MaxInflightBytes bounds the bodies and proposals at work at once; beyond it a
	// request is answered 429. Default 64 MiB.
	MaxInflightBytes int64
	// MaxConns bounds the open client connections; one more is turned away. Default 16384.
	MaxConns int
	// MaxWatches bounds the watches at work at once; beyond it a request is answered 429.
	// Default 16384.
	MaxWatches int
	// WatchProgress is how often a watch tells how far it is. Default 5 s.
	WatchProgress time.Duration
	// MaxHeaderBytes bounds a request's line and headers. Default 256 KiB: room for the
	// longest key Sett can store, percent-encoded.
	MaxHeaderBytes int
	// DefaultTimeout bounds a request that has no timeout parameter. Default 10 s.
	DefaultTimeout time.Duration
	// HeaderTimeout is how long a client may take to send its headers. Default 5 s.
	HeaderTimeout time.Duration
	// IdleTimeout is how long a connection may be idle. Default 2 min.
	IdleTimeout time.Duration
	// ProgressTimeout is the longest a client may take to send, or to take, the next
	// ProgressBytes of a body. Default 10 s.
	ProgressTimeout time.Duration
	// Dial opens connections to the leader; default a net.Dialer of 2 s.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// ForwardConns bounds the connections to the leader that forwards share. Default 512.
	ForwardConns int
}

// Constants of the HTTP API.
const (
	// ProgressBytes per Config.ProgressTimeout is the slowest body that is tolerated.
	ProgressBytes = 32 << 10
	// MaxPeerBodyBytes bounds a request body under /internal/.
	MaxPeerBodyBytes = 4 << 20
	// MaxAdminBodyBytes bounds the JSON body of cluster operations.
	MaxAdminBodyBytes = 64 << 10
	// MaxTimeout bounds the timeout parameter.
	MaxTimeout = 10 * time.Minute
	minTimeout = time.Millisecond
)

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.MaxInflightBytes <= 0 {
		c.MaxInflightBytes = 64 << 20
	}
	if c.MaxConns <= 0 {
		c.MaxConns = 16384
	}
	if c.MaxWatches <= 0 {
		c.MaxWatches = 16384
	}
	if c.WatchProgress <= 0 {
		c.WatchProgress = 5 * time.Second
	}
	if c.MaxHeaderBytes <= 0 {
		c.MaxHeaderBytes = 256 << 10
	}
	if c.DefaultTimeout <= 0 {
		c.DefaultTimeout = 10 * time.Second
	}
	if c.HeaderTimeout <= 0 {
		c.HeaderTimeout = 5 * time.Second
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = 2 * time.Minute
	}
	if c.ProgressTimeout <= 0 {
		c.ProgressTimeout = 10 * time.Second
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	if c.ForwardConns <= 0 {
		c.ForwardConns = 512
	}
	return c
}
