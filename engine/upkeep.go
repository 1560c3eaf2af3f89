package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	badger "github.com/dgraph-io/badger/v2"

	"github.com/settkv/sett/internal/badgerkit"
)

const (
	// hardFloorDivisor: below MinFreeBytes divided by it the engine stops.
	hardFloorDivisor = 4
	// flattenMinBytes is how much must have become history before flattening pays.
	flattenMinBytes = 16 << 20
	// flattenMaxBytes is the biggest tree that is flattened by itself: it takes
	// seconds, during which level 0 is compacted by nobody else. Bigger ones lose
	// their history by ordinary compaction, at a few per cent of extra space.
	flattenMaxBytes = 512 << 20
	// collectFiles is how many log files written make collection due at once.
	collectFiles = 2
	// calmFiles is how many log files may be there while collection takes a quarter of a core; up to
	// twice as many it takes half of one, and with more it does not rest.
	calmFiles = 6
	// maxSamples bounds the memory of what was written when.
	maxSamples = 2048
	// sampleBytes is the distance of samples at first.
	sampleBytes = 1 << 20
)

// upkeep is what the background work knows and counts.
type upkeep struct {
	due   chan struct{} // asks for a collection
	turn  chan struct{} // holds one token: who has it compacts
	haste chan struct{} // tells the collection under way to rest no more

	reads, commits, bytes atomic.Uint64
	gcRuns, flattens      atomic.Uint64
	full                  atomic.Bool
	free                  atomic.Uint64
	collectedAt           atomic.Uint64 // bytes at the last collection

	mu        sync.Mutex
	samples   []sample
	flattened uint64 // bytes written up to the discard timestamp of the last flatten
}

// sample says that bytes were written up to revision ts.
type sample struct{ ts, bytes uint64 }

func (u *upkeep) init() {
	u.due = make(chan struct{}, 1)
	u.turn = make(chan struct{}, 1)
	u.turn <- struct{}{}
	u.haste = make(chan struct{}, 1)
}

// committed accounts for a commit of size bytes; ts 0 is a trim.
func (u *upkeep) committed(ts uint64, size int) {
	total := u.bytes.Add(uint64(size))
	if ts == 0 {
		return
	}
	u.commits.Add(1)
	u.mu.Lock()
	defer u.mu.Unlock()
	if n := len(u.samples); n > 0 && total < u.samples[n-1].bytes+sampleBytes {
		return
	}
	if len(u.samples) >= maxSamples {
		kept := u.samples[:0]
		for i := 0; i < len(u.samples); i += 2 {
			kept = append(kept, u.samples[i])
		}
		u.samples = kept
	}
	u.samples = append(u.samples, sample{ts, total})
}

// writtenUpTo estimates how many bytes were written up to revision ts.
func (u *upkeep) writtenUpTo(ts uint64) uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	var n uint64
	for _, s := range u.samples {
		if s.ts > ts {
			break
		}
		n = s.bytes
	}
	return n
}

// watch looks after free space, stalled commits and old readers. Open has looked at the
// space already.
func (e *Engine) watch(ctx context.Context) {
	for wait(ctx, e.cfg.pollInterval) {
		e.checkSpace()
		if d := e.pipe.stalled(); d > e.cfg.StallTimeout {
			e.latch(fmt.Errorf("a commit has made no progress for %v: the disk hangs or is full", d.Round(time.Second)))
		}
		e.revokeOld()
		if e.upkeep.bytes.Load()-e.upkeep.collectedAt.Load() > collectFiles*uint64(e.cfg.ValueLogFileBytes) {
			select {
			case e.upkeep.due <- struct{}{}:
			default:
			}
		}
	}
}

// checkSpace keeps Full up to date and stops the node before compaction can meet a
// full disk, where it deletes data without an error (Invariant B2).
func (e *Engine) checkSpace() {
	free, err := e.cfg.freeBytes(e.cfg.Dir)
	if err != nil {
		e.latch(fmt.Errorf("measure free space: %w", err))
		return
	}
	e.upkeep.free.Store(free)
	need := e.compactionBytes()
	hard := max(e.cfg.MinFreeBytes/hardFloorDivisor, need)
	soft := max(e.cfg.MinFreeBytes, 2*need)
	switch {
	case free < hard:
		e.upkeep.full.Store(true)
		e.latch(fmt.Errorf("%w: %s has %d MiB free, compaction may need %d MiB; free some space or grow the volume, then start again",
			badgerkit.ErrNoSpace, e.cfg.Dir, free>>20, hard>>20))
	case free < soft:
		if !e.upkeep.full.Swap(true) {
			e.log.Error("disk nearly full: growth is refused until space is freed",
				slog.Uint64("free_bytes", free), slog.Uint64("min_free_bytes", soft))
		}
	case free > soft+soft/4:
		// Not at soft itself, or it would flip with every file that comes and goes.
		if e.upkeep.full.Swap(false) {
			e.log.Info("disk has room again", slog.Uint64("free_bytes", free))
		}
	}
}

// compactionBytes bounds what a compaction under way may still write: level 0 with
// all of level 1, or a table with its share of the next level.
func (e *Engine) compactionBytes() uint64 {
	var n uint64
	for _, t := range e.db.Tables(false) {
		if t.Level <= 1 {
			n += t.EstimatedSz
		}
	}
	return n
}

// Full says that free disk space is below the floor: the caller must refuse what
// makes the store grow. Deletes may go on. It turns false again only when there is a
// quarter more.
func (e *Engine) Full() bool { return e.upkeep.full.Load() }

// collect frees disk space every GCInterval, and when much was written.
func (e *Engine) collect(ctx context.Context) {
	ticker := time.NewTicker(e.cfg.GCInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-e.upkeep.due:
		}
		// A failure is latched and reported there.
		if err := e.compact(ctx, e.flattenPays(), true); err != nil && ctx.Err() == nil {
			return
		}
	}
}

// flattenPays says whether enough history may go to be worth rewriting the tree.
func (e *Engine) flattenPays() bool {
	lsm, _ := e.Sizes()
	_, effective, _ := e.pins.state()
	garbage := e.upkeep.writtenUpTo(effective)
	e.upkeep.mu.Lock()
	garbage -= min(garbage, e.upkeep.flattened)
	e.upkeep.mu.Unlock()
	return lsm <= flattenMaxBytes && garbage >= max(flattenMinBytes, lsm/2)
}

// Compact discards the history that may go and frees the disk space behind it. It
// blocks for as long as that takes, which with much data is minutes; ctx can end it
// between steps. Reads and commits go on.
func (e *Engine) Compact(ctx context.Context) error {
	select {
	case e.upkeep.haste <- struct{}{}:
	default:
	}
	return e.compact(ctx, true, false)
}

// compact does one round of collection, in which it rests if it is to be calm.
func (e *Engine) compact(ctx context.Context, flatten, calm bool) error {
	select {
	case <-e.upkeep.turn:
		if !calm { // haste was for the round before
			select {
			case <-e.upkeep.haste:
			default:
			}
		}
		defer func() { e.upkeep.turn <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := e.begin(); err != nil {
		return err
	}
	defer e.inUse.RUnlock()
	if flatten {
		if err := e.flatten(); err != nil {
			return err
		}
	}
	e.upkeep.collectedAt.Store(e.upkeep.bytes.Load())
	e.cfg.Phase("gc", true)
	defer e.cfg.Phase("gc", false)
	// Every entry is in the tree, so every file that the tree no longer needs for
	// recovery can go; Badger picks one at random at each call.
	for misses := 0; misses <= e.logFiles(); {
		if err := e.usable(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		began := time.Now()
		err := e.db.RunValueLogGC(e.cfg.GCDiscardRatio)
		switch {
		case err == nil:
			e.upkeep.gcRuns.Add(1)
			misses = 0
			calm = calm && e.rest(ctx, time.Since(began))
		case errors.Is(err, badger.ErrNoRewrite), errors.Is(err, badger.ErrRejected):
			misses++
		default:
			return e.fail(fmt.Errorf("collect value log: %w", err))
		}
	}
	e.parkAll()
	return nil
}

// rest pauses after a log file whose collection took that long: Badger looks every entry of it up in the tree,
// which at the speed of a core takes too much of a small machine from reads and writes. It returns false if the rest
// of the round is to be done in haste.
func (e *Engine) rest(ctx context.Context, took time.Duration) bool {
	pause := took * time.Duration(restFactor(e.logFiles()))
	if pause == 0 || e.upkeep.free.Load() < e.cfg.MinFreeBytes+calmFiles*uint64(e.cfg.ValueLogFileBytes) {
		return true
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-e.upkeep.haste:
		return false
	}
	return true
}

// restFactor is how many times as long as its work collection rests while there are so many log files.
func restFactor(files int) int {
	switch {
	case files <= calmFiles:
		return 3
	case files <= 2*calmFiles:
		return 1
	}
	return 0
}

// flatten merges all levels into one, which is what drops discarded history.
func (e *Engine) flatten() error {
	if e.upkeep.free.Load() < 2*e.compactionBytes() {
		return nil // Invariant B2: not near the wall
	}
	_, effective, _ := e.pins.state()
	written := e.upkeep.writtenUpTo(effective)
	// Invariant B2: what a failed flatten has done to the tables is not known.
	if err := e.db.Flatten(1); err != nil {
		return e.fail(fmt.Errorf("flatten: %w", err))
	}
	e.upkeep.mu.Lock()
	e.upkeep.flattened = written
	e.upkeep.mu.Unlock()
	e.upkeep.flattens.Add(1)
	return nil
}

func (e *Engine) logFiles() int {
	names, err := filepath.Glob(filepath.Join(e.cfg.Dir, "*.vlog"))
	if err != nil {
		return 0
	}
	return len(names)
}

// Sizes returns what tables and write-ahead log take on disk, in bytes, measured
// now.
func (e *Engine) Sizes() (lsm, vlog uint64) {
	entries, err := os.ReadDir(e.cfg.Dir)
	if err != nil {
		return 0, 0
	}
	for _, d := range entries {
		ext := filepath.Ext(d.Name())
		if ext != ".sst" && ext != ".vlog" {
			continue
		}
		info, err := d.Info()
		if err != nil {
			continue // deleted meanwhile
		}
		if ext == ".sst" {
			lsm += uint64(info.Size())
		} else {
			vlog += uint64(info.Size())
		}
	}
	return lsm, vlog
}

// Stats is a look at the engine. Counters count since Open.
type Stats struct {
	Tables        int    `json:"tables"`
	LSMBytes      uint64 `json:"lsm_size"`
	ValueLogBytes uint64 `json:"vlog_size"`
	FreeBytes     uint64 `json:"free_bytes"`
	Full          bool   `json:"full"`

	Published        uint64 `json:"published"`
	RequestedDiscard uint64 `json:"requested_discard"`
	EffectiveDiscard uint64 `json:"effective_discard"`
	Readers          int    `json:"readers"`
	OldestPin        uint64 `json:"oldest_pin"` // 0 without readers
	RevokedReaders   uint64 `json:"revoked_readers"`

	PendingCommits int    `json:"pending_writes"`
	PendingBytes   int    `json:"pending_bytes"`
	Reads          uint64 `json:"num_reads"`  // point reads
	Commits        uint64 `json:"num_writes"` // Badger transactions
	CommittedBytes uint64 `json:"committed_bytes"`
	GCRuns         uint64 `json:"gc_runs"` // log files freed
	Flattens       uint64 `json:"flattens"`
}

// Stats returns the engine's figures. It reads the folder; it is for people and
// metrics, not for hot paths. Zero after Close or
// a fatal error.
func (e *Engine) Stats() Stats {
	if e.begin() != nil {
		return Stats{}
	}
	defer e.inUse.RUnlock()
	s := Stats{
		Tables: len(e.db.Tables(false)), FreeBytes: e.upkeep.free.Load(), Full: e.Full(), Published: e.Published(),
		Reads: e.upkeep.reads.Load(), Commits: e.upkeep.commits.Load(), CommittedBytes: e.upkeep.bytes.Load(),
		GCRuns: e.upkeep.gcRuns.Load(), Flattens: e.upkeep.flattens.Load(),
	}
	s.LSMBytes, s.ValueLogBytes = e.Sizes()
	s.PendingCommits, s.PendingBytes = e.pipe.pending()
	p := &e.pins
	p.mu.Lock()
	defer p.mu.Unlock()
	s.RequestedDiscard, s.EffectiveDiscard = p.requested, p.effective
	s.Readers, s.RevokedReaders = len(p.readers), p.revoked
	for r := range p.readers {
		if s.OldestPin == 0 || r.pin < s.OldestPin {
			s.OldestPin = r.pin
		}
	}
	return s
}
