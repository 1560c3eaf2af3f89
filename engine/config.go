package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	badger "github.com/dgraph-io/badger/v2"
	"github.com/dgraph-io/badger/v2/options"

	"github.com/settkv/sett/internal/badgerkit"
)

// Limits of the format, equal on every node whatever its settings (Invariant 10a):
// what one node can store, all can.
const (
	// MaxKeyBytes is the longest key.
	MaxKeyBytes = 60_000
	// MaxValueBytes is the longest value (Invariant B3). Bigger ones are the
	// caller's to cut in pieces.
	MaxValueBytes = 256 << 10
	// MaxPartBytes and MaxPartEntries bound one Badger transaction. They fit into
	// 15 % of MinMemTableBytes, which is Badger's own bound.
	MaxPartBytes   = 512 << 10
	MaxPartEntries = 4000
	// MinMemTableBytes is the smallest memtable that holds a part.
	MinMemTableBytes = 8 << 20
)

// entryOverheadBytes is what an entry costs in a transaction besides key and value,
// generously.
const entryOverheadBytes = 32

// Bounds on commits that are queued and not yet acknowledged.
const (
	maxPendingCommits = 1024
	maxPendingBytes   = 8 << 20
)

// packedBlockBytes is the size of a table's block that is compressed or encrypted, and so unpacked whole for
// every key that is read from it and not in the block cache.
const packedBlockBytes = 16 << 10

// Config says how to open an Engine. Zero values mean the defaults given here, which
// fit a container of 512 MiB. Sizes are in bytes.
type Config struct {
	// Dir is the database's folder; required. It is created if missing.
	Dir string
	// MemTableBytes is the size of memtables and tables, 8 MiB by default and at least.
	MemTableBytes int64
	// NumMemTables is how many full memtables may wait to be written, 2 by default.
	NumMemTables int
	// NumLevelZeroTables starts a compaction (3), NumLevelZeroTablesStall stops
	// writes until there are fewer (8).
	NumLevelZeroTables      int
	NumLevelZeroTablesStall int
	// ValueLogFileBytes is the size of a file of the write-ahead log, 64 MiB;
	// ValueLogMaxEntries its number of entries, a million.
	ValueLogFileBytes  int64
	ValueLogMaxEntries uint32
	// ValueThreshold is the size from which Badger would move a value out of its
	// tree, 1 MiB; above MaxValueBytes, so that it never does.
	ValueThreshold int64
	// SyncWrites makes every commit durable by itself. Off by default: the Raft log
	// is, and Sync is called before it is cut.
	SyncWrites bool
	// Compression is "none" (default), "snappy" or "zstd".
	Compression string
	// BlockCacheBytes caches decompressed and decrypted blocks: 0 is none, or 16 MiB
	// with compression or encryption. IndexCacheBytes 0 keeps all indexes in memory,
	// which is right for nearly everybody; at least 16 MiB otherwise.
	BlockCacheBytes int64
	IndexCacheBytes int64
	// EncryptionKey encrypts the files if not empty: 16, 24 or 32 bytes.
	EncryptionKey []byte
	// GCEnabled makes the engine free disk space by itself, every GCInterval (one
	// minute) and when much was written. GCDiscardRatio (0.5) is how much of a log
	// file must be free for it to go.
	GCEnabled      bool
	GCDiscardRatio float64
	GCInterval     time.Duration
	// MinFreeBytes is how much disk space must stay free before Full turns true, 64
	// MiB by default; with much data on the upper levels the bound is higher, since
	// their compaction needs room.
	MinFreeBytes uint64
	// MaxReaderAge is how long a reader may hold back discarding, 10 minutes.
	MaxReaderAge time.Duration
	// CloseGrace is how long Close waits for readers before it takes them away, 5 s.
	CloseGrace time.Duration
	// StallTimeout is how long a queued commit may make no progress before that is
	// fatal, one minute.
	StallTimeout time.Duration
	// Logger gets events; nil logs nothing.
	Logger *slog.Logger
	// OnFatal is called at most once, in a goroutine of its own, with the first
	// error of a write, a sync or a flatten, or when the disk is nearly full. The
	// process must exit. It may be nil.
	OnFatal func(error)

	// Phase, if not nil, is told when a collection ("gc") of the write-ahead log begins
	// and ends. It must return at once.
	Phase func(phase string, begin bool)

	// pollInterval is how often space, stalls and reader ages are looked at.
	pollInterval time.Duration
	// commitFault, if set, may fail the acknowledgement of a commit, for tests.
	commitFault func(ts uint64) error
	// tune changes Badger's options last, for tests.
	tune func(badger.Options) badger.Options
	// freeBytes measures free disk space.
	freeBytes func(dir string) (uint64, error)
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (c Config) withDefaults() Config {
	setDefault(&c.MemTableBytes, MinMemTableBytes)
	setDefault(&c.NumMemTables, 2)
	setDefault(&c.NumLevelZeroTables, 3)
	setDefault(&c.NumLevelZeroTablesStall, 8)
	setDefault(&c.ValueLogFileBytes, 64<<20)
	setDefault(&c.ValueLogMaxEntries, 1_000_000)
	setDefault(&c.ValueThreshold, 1<<20)
	setDefault(&c.Compression, "none")
	if c.Compression != "none" || len(c.EncryptionKey) > 0 {
		setDefault(&c.BlockCacheBytes, 16<<20)
	}
	setDefault(&c.GCDiscardRatio, 0.5)
	setDefault(&c.GCInterval, time.Minute)
	setDefault(&c.MinFreeBytes, 64<<20)
	setDefault(&c.MaxReaderAge, 10*time.Minute)
	setDefault(&c.CloseGrace, 5*time.Second)
	setDefault(&c.StallTimeout, time.Minute)
	setDefault(&c.pollInterval, time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Phase == nil {
		c.Phase = func(string, bool) {}
	}
	if c.freeBytes == nil {
		c.freeBytes = badgerkit.FreeBytes
	}
	return c
}

// Validate says what is wrong with c, naming the setting as users know it; nil means
// that Open can work with it. Zero values count as their defaults.
func (c Config) Validate() error {
	c = c.withDefaults()
	switch {
	case c.Dir == "":
		return fmt.Errorf("engine: no folder given")
	case c.MemTableBytes < MinMemTableBytes:
		// Invariant 10a: what fits into a transaction here must fit on every node.
		return fmt.Errorf("badger.mem_table_size is %d, but must be at least %d (8 MiB): a smaller one cannot hold every command that the cluster may commit", c.MemTableBytes, MinMemTableBytes)
	case c.MemTableBytes > 1<<30:
		return fmt.Errorf("badger.mem_table_size is %d, but must be at most 1 GiB", c.MemTableBytes)
	case c.NumMemTables < 1:
		return fmt.Errorf("badger.num_mem_tables is %d, but must be at least 1", c.NumMemTables)
	case c.NumLevelZeroTables < 1:
		return fmt.Errorf("badger.num_level0_tables is %d, but must be at least 1", c.NumLevelZeroTables)
	case c.NumLevelZeroTablesStall <= c.NumLevelZeroTables:
		return fmt.Errorf("badger.num_level0_tables_stall is %d, but must be more than badger.num_level0_tables (%d)", c.NumLevelZeroTablesStall, c.NumLevelZeroTables)
	case c.ValueLogFileBytes < 1<<20 || c.ValueLogFileBytes > 2<<30:
		return fmt.Errorf("badger.value_log_file_size is %d, but must be between 1 MiB and 2 GiB", c.ValueLogFileBytes)
	case c.ValueLogMaxEntries < 1000:
		return fmt.Errorf("badger.value_log_max_entries is %d, but must be at least 1000", c.ValueLogMaxEntries)
	case c.ValueThreshold <= MaxValueBytes || c.ValueThreshold > 1<<20:
		// Invariant B3: no value may leave the tree.
		return fmt.Errorf("badger.value_threshold is %d, but must be more than %d (256 KiB) and at most 1 MiB: every stored piece has to stay inside the tree", c.ValueThreshold, MaxValueBytes)
	case c.BlockCacheBytes != 0 && c.BlockCacheBytes < 1<<20:
		return fmt.Errorf("badger.block_cache_size is %d, but must be 0 or at least 1 MiB", c.BlockCacheBytes)
	case c.IndexCacheBytes != 0 && c.IndexCacheBytes < 16<<20:
		return fmt.Errorf("badger.index_cache_size is %d, but must be 0 (all indexes in memory) or at least 16 MiB: a small one makes scans take minutes", c.IndexCacheBytes)
	case c.GCDiscardRatio <= 0 || c.GCDiscardRatio >= 1:
		return fmt.Errorf("badger.value_log_gc_discard_ratio is %v, but must be between 0 and 1", c.GCDiscardRatio)
	case c.GCInterval < 0 || c.MaxReaderAge < 0 || c.CloseGrace < 0 || c.StallTimeout < 0:
		return fmt.Errorf("engine: a duration is negative")
	}
	switch c.Compression {
	case "none", "snappy", "zstd":
	default:
		return fmt.Errorf("badger.compression is %q, but must be none, snappy or zstd", c.Compression)
	}
	switch len(c.EncryptionKey) {
	case 0, 16, 24, 32:
	default:
		return fmt.Errorf("badger.encryption_key_file holds %d bytes, but must hold 16, 24 or 32", len(c.EncryptionKey))
	}
	return nil
}

// options translates c, which has its defaults, into Badger's terms.
func (c Config) options() badger.Options {
	o := badgerkit.BaseOptions(c.Dir, c.MemTableBytes, badgerkit.Logger(c.Logger, "data")).
		WithNumMemtables(c.NumMemTables).
		WithNumLevelZeroTables(c.NumLevelZeroTables).
		WithNumLevelZeroTablesStall(c.NumLevelZeroTablesStall).
		WithLevelOneSize(4 * c.MemTableBytes).
		WithValueLogFileSize(c.ValueLogFileBytes).
		WithValueLogMaxEntries(c.ValueLogMaxEntries).
		WithValueThreshold(int(c.ValueThreshold)).
		WithSyncWrites(c.SyncWrites).
		WithBlockCacheSize(c.BlockCacheBytes).
		WithIndexCacheSize(c.IndexCacheBytes)
	if c.Compression != "none" || len(c.EncryptionKey) > 0 {
		o = o.WithBlockSize(packedBlockBytes)
	}
	switch c.Compression {
	case "snappy":
		o = o.WithCompression(options.Snappy)
	case "zstd":
		o = o.WithCompression(options.ZSTD)
	}
	if len(c.EncryptionKey) > 0 {
		o = o.WithEncryptionKey(c.EncryptionKey)
	}
	if c.tune != nil {
		o = c.tune(o)
	}
	return o
}

// openDB does everything between a folder and an open Badger: space, table check,
// recovery open, real open. Errors about what is in the files match ErrCorrupt.
func openDB(c Config) (*badger.DB, error) {
	db, err := openFiles(c)
	if errors.Is(err, badgerkit.ErrCorrupt) {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return db, err
}

func openFiles(c Config) (*badger.DB, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	free, err := c.freeBytes(c.Dir)
	if err != nil {
		return nil, err
	}
	// Invariant B2: a compaction at the wall of a full disk deletes data, so that the
	// database is not even opened there.
	if need := c.MinFreeBytes / hardFloorDivisor; free < need {
		return nil, fmt.Errorf("%w: %s has %d MiB free and needs %d MiB; free some space or grow the volume, then start again",
			badgerkit.ErrNoSpace, c.Dir, free>>20, need>>20)
	}
	if err := badgerkit.CheckTables(c.Dir, badgerkit.WasCleanClose(c.Dir)); err != nil {
		return nil, err
	}
	o := c.options()
	// Invariant B1: two crashes in a row lose data unless the replay is done by an
	// open that cannot flush in its middle. It verifies the tables too, so that the
	// real open need not read everything once more.
	if err := badgerkit.Recover(o); err != nil {
		return nil, err
	}
	var db *badger.DB
	err = badgerkit.Guard(o, func() (err error) {
		db, err = badger.OpenManaged(o.WithChecksumVerificationMode(options.NoVerification))
		return err
	})
	return db, err
}
