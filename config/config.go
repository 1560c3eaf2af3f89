package config

import (
	"log/slog"
	"time"
)

// Log formats. LogAuto is text on a terminal, else JSON.
const (
	LogAuto = "auto"
	LogText = "text"
	LogJSON = "json"
)

// Config is every setting of one node, checked and with defaults filled in. Sizes
// are in bytes. It is a value: copies share only slices that nobody changes.
type Config struct {
	// ID is the name of the node for people and for the API.
	ID string
	// DataDir holds everything durable of the node.
	DataDir string

	// HTTPAddr, RaftAddr and GossipAddr are the addresses to listen on, host:port;
	// an empty host is every interface, port 0 a free one. The Advertise twins are
	// what others are told: never empty, never a wildcard. Their port is 0 where the
	// listening port is, and then means "the port that was bound".
	HTTPAddr, HTTPAdvertise     string
	RaftAddr, RaftAdvertise     string
	GossipAddr, GossipAdvertise string

	// BootstrapExpect forms a new cluster once so many servers see each other;
	// 0 never, 1 alone. It means nothing to a node that holds Raft state.
	BootstrapExpect int
	// Join lists gossip addresses, host:port, to contact until one answers.
	Join []string
	// Nonvoter keeps the node a read replica.
	Nonvoter bool
	// ClusterName is the gossip label; nodes of another name are refused.
	ClusterName string
	// GossipKeys are the decoded gossip keys (16, 24 or 32 bytes each), the first
	// one used to send; empty means plain gossip.
	GossipKeys [][]byte

	// SnapshotInterval is how often the thresholds are looked at. A Raft snapshot is
	// taken after SnapshotThreshold entries or SnapshotThresholdBytes of log,
	// whichever comes first; TrailingLogs entries are kept behind it.
	SnapshotInterval       time.Duration
	SnapshotThreshold      uint64
	SnapshotThresholdBytes uint64
	TrailingLogs           uint64

	// Cluster settings: they seed the replicated ones when the cluster is formed.
	// HistoryRetentionBytes 0 means no bound.
	MaxKeyBytes           uint64
	MaxValueBytes         uint64
	MaxRequestBytes       uint64
	HistoryRetention      time.Duration
	HistoryRetentionBytes uint64

	// MaxInflightBytes bounds bodies and proposals at work at once in this node.
	MaxInflightBytes int64
	// ReplaceAfter is how long a server must be gone before a new one of its name
	// replaces it.
	ReplaceAfter time.Duration

	// Badger tunes the data store.
	Badger Badger

	LogLevel slog.Level
	// LogFormat is LogAuto, LogText or LogJSON.
	LogFormat string
}

// Badger is the tuning of the data store's Badger. Sizes are in bytes.
type Badger struct {
	// SyncWrites makes every commit of the data store durable by itself. It is not
	// needed for durability, which the Raft log gives.
	SyncWrites bool
	// MemTableBytes is the size of a memtable, and of a level 0 table.
	MemTableBytes           int64
	NumMemTables            int
	NumLevelZeroTables      int
	NumLevelZeroTablesStall int
	ValueLogFileBytes       int64
	ValueLogMaxEntries      uint32
	// ValueThreshold is never below MinValueThreshold: see there.
	ValueThreshold int64
	// Compression is "none", "snappy" or "zstd".
	Compression string
	// BlockCacheBytes 0 is no cache; never 0 with Compression.
	BlockCacheBytes int64
	// IndexCacheBytes 0 keeps all table indices in memory.
	IndexCacheBytes int64
	GCEnabled       bool
	// GCDiscardRatio is the share of a value-log file that must be garbage before it
	// is rewritten, between 0 and 1.
	GCDiscardRatio float64
	GCInterval     time.Duration
}

// MinValueThreshold is the least value threshold in force, in bytes. A lower one
// that the operator asks for is raised to it, with a warning.
//
// Invariant B3: values stay inside the LSM tree, so no value that the engine sees (at
// most 256 KiB) may reach the threshold.
const MinValueThreshold = 264 << 10

// Default returns the configuration of a node that was given no setting at all.
// Its ID is the host name.
func Default() (Config, error) {
	l, err := Load(Sources{})
	if err != nil {
		return Config{}, err
	}
	return l.Config, nil
}
