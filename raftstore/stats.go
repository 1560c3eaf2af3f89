package raftstore

import (
	"time"

	"github.com/settkv/sett/internal/badgerkit"
)

// Stats is a snapshot of the counters of a Store, since it was opened.
type Stats struct {
	First, Last  uint64 // bounds of the log
	CacheEntries int
	CacheBytes   int64
	CacheHits    uint64
	CacheMisses  uint64
	FreeBytes    uint64 // of the disk, at the last look
	Full         bool   // see Store.Full
	Failed       bool   // the store has latched
	Log, Stable  DatabaseStats
}

// DatabaseStats are those of one of the two databases.
type DatabaseStats struct {
	LSMBytes       uint64        // table files on disk
	ValueLogBytes  uint64        // value-log files on disk
	Reads          uint64        // entries or values read, from memory not counted
	Writes         uint64        // transactions written
	WriteTime      time.Duration // spent in them, in total
	MaxWriteTime   time.Duration // spent in the slowest
	PendingWrites  int           // 0 or 1
	PendingFor     time.Duration // how long the pending write has taken so far
	CollectedFiles uint64        // value-log files given back
}

// Stats reads all counters and measures the folders.
func (s *Store) Stats() Stats {
	st := Stats{
		CacheHits:   s.logs.cache.hits.Load(),
		CacheMisses: s.logs.cache.misses.Load(),
		FreeBytes:   s.free.Load(),
		Full:        s.Full(),
		Failed:      s.latch.err() != nil,
		Log:         s.logDB.stats(),
		Stable:      s.stabDB.stats(),
	}
	st.First, st.Last = s.Bounds()
	st.CacheEntries, st.CacheBytes = s.logs.cache.size()
	return st
}

func (d *database) stats() DatabaseStats {
	st := DatabaseStats{
		Reads:          d.reads.Load(),
		Writes:         d.writes.Load(),
		WriteTime:      time.Duration(d.writeNanos.Load()),
		MaxWriteTime:   time.Duration(d.maxWriteNanos.Load()),
		PendingFor:     d.pendingFor(),
		CollectedFiles: d.collected.Load(),
	}
	if st.PendingFor > 0 {
		st.PendingWrites = 1
	}
	// A folder that cannot be measured counts as empty; the watchdog reports the disk.
	st.LSMBytes, _ = badgerkit.DirBytes(d.opt.Dir, ".sst")
	st.ValueLogBytes, _ = badgerkit.DirBytes(d.opt.Dir, ".vlog")
	return st
}
