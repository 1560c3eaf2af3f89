package config

import (
	"log/slog"
	"math"
	"os"
	"strings"
	"time"

	"github.com/settkv/sett/kv"
)

// setting is one row of the table.
type setting struct {
	// name is the YAML key; a dot is one level of nesting.
	name string
	// def is the default, parsed by the same code as everything else.
	def string
	// defDoc replaces def in help and manual where the default is found at start.
	defDoc string
	help   string
	// cluster marks a setting whose value is replicated once the cluster is formed.
	cluster bool
	// secret keeps the value out of error messages.
	secret  bool
	binding binding
}

// flag returns the name on the command line, without dashes.
func (s *setting) flag() string {
	return strings.NewReplacer(".", "-", "_", "-").Replace(s.name)
}

// env returns the name in the environment.
func (s *setting) env() string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(s.name))
}

const (
	envPrefix = "SETT_"
	// badgerPrefix is what the nested YAML mapping of the same name expands to.
	badgerPrefix = "badger."
)

// ClientVariables are the environment variables of the client commands; a node
// ignores them.
var ClientVariables = []string{
	"SETT_ENDPOINTS", "SETT_OUTPUT", "SETT_TIMEOUT", "SETT_TOKEN", "SETT_CACERT", "SETT_CERT", "SETT_KEY",
}

// kubernetesPrefixes begin the variables that Kubernetes sets in every container for
// a service named "sett".
var kubernetesPrefixes = []string{"SETT_PORT", "SETT_SERVICE_"}

// eventPrefix begins the variables that sett watch sets for the commands that it runs;
// a node may be one of them.
const eventPrefix = "SETT_EVENT_"

// Limits that are properties of the store, not choices; those of the cluster settings
// are kv's.
const (
	// minMemTableBytes: one part of a command must fit a Badger transaction, which is
	// 15 % of a memtable (invariant 10a).
	minMemTableBytes = 8 << 20
)

// table lists every setting, in the order of the manual.
func table() []setting {
	return append(nodeSettings(), badgerSettings()...)
}

func nodeSettings() []setting {
	return []setting{
		{name: "id", defDoc: "host name", binding: bind(name(), func(c *Config) *string { return &c.ID }),
			help: "name of the node, for people and for the API; kept in the data folder, where a different one is refused later"},
		{name: "data-dir", def: "./sett-data", binding: bind(path(), func(c *Config) *string { return &c.DataDir }),
			help: "folder of everything durable; locked, one process at a time"},
		{name: "http-addr", def: "127.0.0.1:8080", binding: bind(address(), func(c *Config) *string { return &c.HTTPAddr }),
			help: "where to listen for clients and for requests that other nodes forward"},
		{name: "http-advertise", defDoc: "from http-addr", binding: bind(peer(true), func(c *Config) *string { return &c.HTTPAdvertise }),
			help: "http-addr as others reach it"},
		{name: "raft-addr", def: "127.0.0.1:7000", binding: bind(address(), func(c *Config) *string { return &c.RaftAddr }),
			help: "where to listen for Raft, between nodes"},
		{name: "raft-advertise", defDoc: "from raft-addr", binding: bind(peer(true), func(c *Config) *string { return &c.RaftAdvertise }),
			help: "raft-addr as others reach it"},
		{name: "gossip-addr", def: "127.0.0.1:7946", binding: bind(address(), func(c *Config) *string { return &c.GossipAddr }),
			help: "where to listen for gossip, TCP and UDP, between nodes"},
		{name: "gossip-advertise", defDoc: "from gossip-addr", binding: bind(peer(true), func(c *Config) *string { return &c.GossipAdvertise }),
			help: "gossip-addr as others reach it"},
		{name: "bootstrap-expect", def: "0", binding: bind(integer(0, 99), func(c *Config) *int { return &c.BootstrapExpect }),
			help: "form a new cluster once this many servers see each other; 1 is alone, 0 never; ignored for ever once the node holds Raft state"},
		{name: "join", defDoc: "none", binding: bindList(peer(false), func(c *Config) *[]string { return &c.Join }),
			help: "gossip addresses to contact, retried for ever"},
		{name: "nonvoter", def: "false", binding: bind(boolean(), func(c *Config) *bool { return &c.Nonvoter }),
			help: "stay a read replica"},
		{name: "cluster-name", def: "sett", binding: bind(name(), func(c *Config) *string { return &c.ClusterName }),
			help: "label of the cluster's gossip; nodes of another name are refused"},
		{name: "gossip-key", defDoc: "none", secret: true, binding: bindList(gossipKey(), func(c *Config) *[][]byte { return &c.GossipKeys }),
			help: "key that encrypts gossip, base64 of 16, 24 or 32 bytes; more than one for rotation, the first one sends"},
		{name: "snapshot-interval", def: "30s", binding: bind(duration(time.Second, 24*time.Hour), func(c *Config) *time.Duration { return &c.SnapshotInterval }),
			help: "how often to look whether a Raft snapshot is due"},
		{name: "snapshot-threshold", def: "16384", binding: bind(integer[uint64](16, math.MaxInt32), func(c *Config) *uint64 { return &c.SnapshotThreshold }),
			help: "entries of log after which a Raft snapshot is due"},
		{name: "snapshot-threshold-bytes", def: "64MiB", binding: bind(size[uint64](1<<20, 1<<40), func(c *Config) *uint64 { return &c.SnapshotThresholdBytes }),
			help: "bytes of log after which a Raft snapshot is due"},
		{name: "trailing-logs", def: "8192", binding: bind(integer[uint64](0, math.MaxInt32), func(c *Config) *uint64 { return &c.TrailingLogs }),
			help: "entries of log kept behind a Raft snapshot, for followers that lag"},
		{name: "max-key-bytes", def: "4096", cluster: true, binding: bind(size[uint64](1, kv.MaxKeyBytesBound), func(c *Config) *uint64 { return &c.MaxKeyBytes }),
			help: "longest key"},
		{name: "max-value-bytes", def: "8MiB", cluster: true, binding: bind(size[uint64](1, kv.MaxValueBytesBound), func(c *Config) *uint64 { return &c.MaxValueBytes }),
			help: "biggest value"},
		{name: "max-request-bytes", def: "32MiB", cluster: true, binding: bind(size[uint64](1, kv.MaxRequestBytesBound), func(c *Config) *uint64 { return &c.MaxRequestBytes }),
			help: "biggest request body"},
		{name: "history-retention", def: "1h", cluster: true, binding: bind(duration(0, kv.HistoryRetentionBound), func(c *Config) *time.Duration { return &c.HistoryRetention }),
			help: "how long old revisions stay readable"},
		{name: "history-retention-bytes", def: "0", defDoc: "none", cluster: true,
			binding: bind(size[uint64](0, kv.HistoryBytesBound), func(c *Config) *uint64 { return &c.HistoryRetentionBytes }),
			help:    "how many bytes of old revisions stay readable; 0 is no bound"},
		{name: "max-inflight-bytes", def: "64MiB", binding: bind(size[int64](1<<10, 1<<40), func(c *Config) *int64 { return &c.MaxInflightBytes }),
			help: "bodies and proposals at work at once in this node; beyond it the answer is 429"},
		{name: "replace-after", def: "30s", binding: bind(duration(time.Second, 24*time.Hour), func(c *Config) *time.Duration { return &c.ReplaceAfter }),
			help: "how long a server must be gone before a new one of its name replaces it"},
		{name: "log-level", def: "info", binding: bind(level(), func(c *Config) *slog.Level { return &c.LogLevel }),
			help: "least important message that is logged"},
		{name: "log-format", def: LogAuto, binding: bind(oneOf(LogAuto, LogText, LogJSON), func(c *Config) *string { return &c.LogFormat }),
			help: "auto is text on a terminal, else json"},
	}
}

func badgerSettings() []setting {
	return []setting{
		{name: "badger.sync_writes", def: "false", binding: bind(boolean(), func(c *Config) *bool { return &c.Badger.SyncWrites }),
			help: "fsync each commit of the data store as well; acknowledged writes are on disk either way, in the Raft log"},
		{name: "badger.memory_mode", def: "false",
			binding: fixed("bool", "false", "memory mode is not supported in this version: leave the setting out, or set it to false"),
			help:    "keep the data in memory only; not supported in this version, only false is accepted"},
		{name: "badger.mem_table_size", def: "8MiB", binding: bind(size[int64](minMemTableBytes, 1<<30), func(c *Config) *int64 { return &c.Badger.MemTableBytes }),
			help: "size of a memtable and of a level 0 table; 16MiB or 32MiB suit nodes with 2 GiB of memory and more"},
		{name: "badger.num_mem_tables", def: "2", binding: bind(integer(1, 32), func(c *Config) *int { return &c.Badger.NumMemTables }),
			help: "memtables in memory before writes wait"},
		{name: "badger.value_log_file_size", def: "64MiB", binding: bind(size[int64](1<<20, 2<<30-1), func(c *Config) *int64 { return &c.Badger.ValueLogFileBytes }),
			help: "size of a file of the data store's write-ahead log"},
		{name: "badger.value_log_max_entries", def: "1000000", binding: bind(integer[uint32](1000, math.MaxInt32), func(c *Config) *uint32 { return &c.Badger.ValueLogMaxEntries }),
			help: "entries of a file of the data store's write-ahead log"},
		{name: "badger.value_threshold", def: "1MiB", binding: bind(size[int64](1, 1<<20), func(c *Config) *int64 { return &c.Badger.ValueThreshold }),
			help: "values of this size and more would leave the LSM tree; none may, so less than 264KiB is raised to it with a warning"},
		{name: "badger.num_level0_tables", def: "3", binding: bind(integer(1, 100), func(c *Config) *int { return &c.Badger.NumLevelZeroTables }),
			help: "level 0 tables at which compaction starts"},
		{name: "badger.num_level0_tables_stall", def: "8", binding: bind(integer(2, 200), func(c *Config) *int { return &c.Badger.NumLevelZeroTablesStall }),
			help: "level 0 tables at which writes wait; more than num_level0_tables"},
		{name: "badger.compression", def: "none", binding: bind(oneOf("none", "snappy", "zstd"), func(c *Config) *string { return &c.Badger.Compression }),
			help: "compression of table blocks; needs block_cache_size"},
		{name: "badger.block_cache_size", def: "0", binding: bind(size[int64](0, 1<<40), func(c *Config) *int64 { return &c.Badger.BlockCacheBytes }),
			help: "cache of uncompressed blocks; 0 is none, which is right without compression, 32MiB with it"},
		{name: "badger.index_cache_size", def: "0", binding: bind(size[int64](0, 1<<40), func(c *Config) *int64 { return &c.Badger.IndexCacheBytes }),
			help: "cache of table indices; 0 keeps all of them in memory (8 bytes a key) and is right: one that is too small makes scans take minutes"},
		{name: "badger.encryption_key_file", defDoc: "none",
			binding: fixed("path", "", "encryption at rest is not supported in this version (the Raft log would stay plain): leave the setting out and use an encrypted volume"),
			help:    "encryption at rest; not supported in this version"},
		{name: "badger.value_log_gc_enabled", def: "true", binding: bind(boolean(), func(c *Config) *bool { return &c.Badger.GCEnabled }),
			help: "give back the space of the data store's write-ahead log; without it the log grows for ever"},
		{name: "badger.value_log_gc_discard_ratio", def: "0.5", binding: bind(fraction(), func(c *Config) *float64 { return &c.Badger.GCDiscardRatio }),
			help: "share of a file that must be garbage before it is collected"},
		{name: "badger.value_log_gc_interval_in_seconds", def: "60",
			binding: bind(seconds(duration(time.Second, 24*time.Hour)), func(c *Config) *time.Duration { return &c.Badger.GCInterval }),
			help:    "how often to collect"},
	}
}

// defaultID is the host name, where that is a valid name.
func defaultID() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	return name().parse(host)
}
