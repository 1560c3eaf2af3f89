package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	badger "github.com/dgraph-io/badger/v2"

	"github.com/settkv/sett/internal/badgerkit"
)

const (
	// MaxEntryBytes is the most that the data and extensions of one log entry may hold. Entries are far
	// smaller in this system; the limit keeps a mistake from reaching Badger.
	MaxEntryBytes = 16 << 20

	minMemTableBytes    = 8 << 20
	stableMemTableBytes = 1 << 20
	stableVlogBytes     = 2 << 20
	maxStableValueBytes = 64 << 10

	// deleteChunk is how many entries one deletion transaction holds: about a quarter of a millisecond for
	// an append that waits behind it.
	deleteChunk = 256

	// deletePause lets appends through between the chunks of a prefix deletion.
	deletePause = time.Millisecond

	// maxChunkEntries and maxChunkBytes bound one append transaction beside Badger's own limits; the bytes
	// count what goes to the value log too.
	maxChunkEntries = 4096
	maxChunkBytes   = 4 << 20

	// verifyTail is how many of the newest entries are read back at Open.
	verifyTail = 64
)

// Config is what a Store is opened with. Only Dir and OnFatal are required.
type Config struct {
	// Dir is the folder of the store; log/ and stable/ are made in it.
	Dir string

	// OnFatal is called once, when the store latches, with the cause. The process has to end then: the
	// store serves nothing any more. It is called on the goroutine that noticed, maybe with locks held, so
	// it must return at once and must not call the store.
	OnFatal func(error)

	// MemTableBytes is the size of a memtable and of a table file of the log's Badger. Default 16 MiB, at
	// least 8 MiB. Up to four memtables of 1.3 times this size are in memory.
	MemTableBytes int64

	// ValueLogFileBytes is the size of a value-log file, the unit in which disk is given back. Default
	// 64 MiB.
	ValueLogFileBytes int64

	// CacheBytes bounds the cache of the newest entries. Default 32 MiB; negative turns it off.
	CacheBytes int64

	// StallTimeout is how long one write may take until the disk counts as hung and the store latches.
	// Default 10 s.
	StallTimeout time.Duration

	// MinFreeBytes is the free disk space below which Full answers true and the caller should refuse
	// growth. Below half of it the store latches, and does not open. Default 512 MiB.
	MinFreeBytes uint64

	// GCInterval is how often the value logs are looked at. Default 30 s.
	GCInterval time.Duration

	// Logger may be nil.
	Logger *slog.Logger

	// Phase, if not nil, is told when an append to the log begins and ends. It is called with locks held,
	// so it must return at once.
	Phase func(phase string, begin bool)

	seams seams
}

// seams are the places where tests put faults between this layer and what is below it. All may be nil.
type seams struct {
	wrap func(name string, in inner) inner                  // around each BadgerStore
	tune func(name string, o badger.Options) badger.Options // the options of the real open
	free func(dir string) (uint64, error)                   // instead of statfs

	fileWritten func() error // between the file of votes and Badger, in each stable write
}

// withDefaults checks c and fills in what is zero.
func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("the folder is missing")
	}
	if c.OnFatal == nil {
		return c, errors.New("OnFatal is missing")
	}
	setDefault(&c.MemTableBytes, 16<<20)
	setDefault(&c.ValueLogFileBytes, 64<<20)
	setDefault(&c.CacheBytes, 32<<20)
	setDefault(&c.StallTimeout, 10*time.Second)
	setDefault(&c.MinFreeBytes, 512<<20)
	setDefault(&c.GCInterval, 30*time.Second)
	if c.MemTableBytes < minMemTableBytes {
		return c, fmt.Errorf("MemTableBytes is %d, at least %d are needed", c.MemTableBytes, minMemTableBytes)
	}
	if c.ValueLogFileBytes < 1<<20 || c.ValueLogFileBytes > 1<<30 {
		return c, fmt.Errorf("ValueLogFileBytes is %d, must be from 1 MiB to 1 GiB", c.ValueLogFileBytes)
	}
	if c.StallTimeout < 0 || c.GCInterval < 0 {
		return c, errors.New("StallTimeout and GCInterval must not be negative")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Phase == nil {
		c.Phase = func(string, bool) {}
	}
	if c.seams.free == nil {
		c.seams.free = badgerkit.FreeBytes
	}
	return c, nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// hardFloor is the free space below which the store latches. A compaction needs room for the tables it
// merges; the half of MinFreeBytes that is left is for those that are already running (Invariant B2).
func (c Config) hardFloor() uint64 { return c.MinFreeBytes / 2 }

func (c Config) logOptions() badger.Options {
	o := badgerkit.BaseOptions(filepath.Join(c.Dir, "log"), c.MemTableBytes, badgerkit.Logger(c.Logger, "raft-log"))
	// Invariant B9: big entries stay in the value log, which is safe here because it is synced. The
	// threshold keeps a full batch of 64 entries well inside one transaction.
	return o.WithSyncWrites(true).
		WithValueThreshold(int(c.MemTableBytes / 512)).
		WithValueLogFileSize(c.ValueLogFileBytes)
}

func (c Config) stableOptions() badger.Options {
	o := badgerkit.BaseOptions(filepath.Join(c.Dir, "stable"), stableMemTableBytes, badgerkit.Logger(c.Logger, "raft-stable"))
	return o.WithSyncWrites(true).
		WithValueThreshold(1 << 10).
		WithLevelOneSize(4 * stableMemTableBytes).
		WithValueLogFileSize(stableVlogBytes)
}
