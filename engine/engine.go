package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	badger "github.com/dgraph-io/badger/v2"
)

// Errors for errors.Is.
var (
	// ErrClosed: the engine, or the reader, is closed.
	ErrClosed = errors.New("engine is closed")
	// ErrDiscarded: the history that was asked for may be gone. A read never returns
	// partly discarded data; it returns this.
	ErrDiscarded = errors.New("history is discarded")
	// ErrUnpublished: the revision is above the published one.
	ErrUnpublished = errors.New("revision is not published")
	// ErrHeld: a reader or an export still needs what is to be removed. Try again later.
	ErrHeld = errors.New("held by an export")
	// ErrInvalid: the caller broke a limit or an order; nothing was written.
	ErrInvalid = errors.New("invalid write")
	// ErrCorrupt: files of the database are damaged or missing. What is in the folder
	// cannot be relied on any more; an I/O error is never this.
	ErrCorrupt = errors.New("data store is corrupt")
	// ErrFatal: an earlier error was final; the process must exit.
	ErrFatal = errors.New("engine failed")
)

// Engine is one open data store. Commit, Flush, Publish and SetDiscard are for one
// goroutine at a time, and serialized if they are not; everything else is safe for
// concurrent use.
type Engine struct {
	cfg Config
	db  *badger.DB
	log *slog.Logger

	closing atomic.Bool
	// inUse is held for reading by calls that work on db and are no readers, and for
	// writing by Close.
	inUse     sync.RWMutex
	closeOnce sync.Once
	closeErr  error
	cancel    context.CancelFunc
	tasks     sync.WaitGroup

	fatalMu  sync.Mutex
	fatalErr error // the first, wrapped; guarded by fatalMu
	failed   atomic.Bool

	commitMu sync.Mutex // serializes Commit; taken before pipe.mu
	lastTS   uint64     // of the last Commit; guarded by commitMu
	pipe     pipeline

	// published is the highest revision readers may see, unpublished before the
	// first Publish.
	published atomic.Uint64

	pins pins

	// gate is held for reading while a Badger iterator is opened, and for writing
	// while all are closed. Order: gate, Reader.mu, pins.mu.
	gate sync.RWMutex

	// trimMu makes DeleteAt and the start of an export exclude each other.
	trimMu sync.Mutex

	upkeep upkeep
}

const unpublished = math.MaxUint64

// Open opens the database in cfg.Dir, creating it if there is none: it checks free
// space and table files, does the recovery open, and starts the upkeep. It blocks
// for as long as the replay of a few memtables takes. Until the first Publish a
// reader may be opened at any revision, so that the caller can look what is there;
// until the first SetDiscard nothing is discarded. Damaged files are ErrCorrupt.
func Open(cfg Config) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	db, err := openDB(cfg)
	if err != nil {
		return nil, fmt.Errorf("open data store: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	e := &Engine{cfg: cfg, db: db, log: cfg.Logger, cancel: cancel}
	e.published.Store(unpublished)
	e.pipe.init()
	e.pins.init()
	e.upkeep.init()
	e.checkSpace()
	e.checkSpace()
	e.tasks.Go(func() { e.watch(ctx) })
	if cfg.GCEnabled {
		e.tasks.Go(func() { e.collect(ctx) })
	}
	return e, nil
}

// Publish lets readers read up to ts. It waits for the commits that are queued, and
// does nothing if one of them failed.
func (e *Engine) Publish(ts uint64) {
	if e.Flush() != nil {
		return
	}
	e.published.Store(ts)
}

// Published returns the highest revision that readers may read, 0 before the first
// Publish.
func (e *Engine) Published() uint64 {
	ts := e.published.Load()
	if ts == unpublished {
		return 0
	}
	return ts
}

// Sync makes everything committed so far durable, a power cut included. An error is
// fatal.
func (e *Engine) Sync() error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.inUse.RUnlock()
	if err := e.Flush(); err != nil {
		return err
	}
	if err := e.db.Sync(); err != nil {
		return e.fail(fmt.Errorf("sync: %w", err))
	}
	return nil
}

// Err returns the fatal error, wrapped in ErrFatal, or nil.
func (e *Engine) Err() error {
	if !e.failed.Load() {
		return nil
	}
	e.fatalMu.Lock()
	defer e.fatalMu.Unlock()
	return e.fatalErr
}

// fail latches the first error (Invariant B2) and returns what every caller from now
// on gets.
func (e *Engine) fail(cause error) error {
	e.fatalMu.Lock()
	first := e.fatalErr == nil
	if first {
		e.fatalErr = fmt.Errorf("%w: %w", ErrFatal, cause)
		e.failed.Store(true)
	}
	err := e.fatalErr
	e.fatalMu.Unlock()
	if first {
		e.log.Error("data store failed; the process must exit", slog.Any("error", cause))
		e.pipe.wake()
		if e.cfg.OnFatal != nil {
			// Not waited for by Close: the callback may call Close.
			go e.cfg.OnFatal(err)
		}
	}
	return err
}

// latch is fail for callers that have nobody to return the error to.
func (e *Engine) latch(cause error) { _ = e.fail(cause) }

// Close stops the upkeep, waits for readers up to Config.CloseGrace and takes the
// rest away (their next call returns ErrClosed), syncs and closes. It is idempotent
// and waits for a close under way. After a fatal error, or with the disk full, the
// files are left as a crash would leave them and the error says so: the next start
// recovers, and the folder stays locked until the process exits.
func (e *Engine) Close() error {
	e.closeOnce.Do(func() { e.closeErr = e.close() })
	return e.closeErr
}

func (e *Engine) close() error {
	e.closing.Store(true)
	e.cancel()
	e.pipe.wake()
	e.tasks.Wait()
	e.inUse.Lock()
	defer e.inUse.Unlock()

	// Invariant B8: Badger panics under readers that outlive it.
	e.evictReaders()

	if !e.failed.Load() && e.pipe.drain(e.cfg.StallTimeout) != nil {
		return e.fail(errors.New("close: queued commits do not end"))
	}
	if err := e.Err(); err != nil {
		// A clean close would record a replay position behind entries that are
		// not where Badger believes them to be (Invariant B2).
		return err
	}
	if err := e.db.Sync(); err != nil {
		return e.fail(fmt.Errorf("close: sync: %w", err))
	}
	free, err := e.cfg.freeBytes(e.cfg.Dir)
	if err != nil {
		return e.fail(fmt.Errorf("close: %w", err))
	}
	if need := 2 * uint64(e.cfg.MemTableBytes) * uint64(e.cfg.NumMemTables+1); free < need {
		// Badger would try for ever to write its memtables out.
		return fmt.Errorf("close data store: %d MiB free, %d MiB needed to close in order; all data is synced and the next start recovers it", free>>20, need>>20)
	}
	if err := e.db.Close(); err != nil {
		return fmt.Errorf("close data store: %w", err)
	}
	return nil
}

// usable says whether the engine is open and has not failed.
func (e *Engine) usable() error {
	if e.closing.Load() {
		return ErrClosed
	}
	return e.Err()
}

// begin keeps the database open until inUse is released, unless it returns an error.
func (e *Engine) begin() error {
	if err := e.usable(); err != nil {
		return err
	}
	e.inUse.RLock()
	if err := e.usable(); err != nil {
		e.inUse.RUnlock()
		return err
	}
	return nil
}

// wait is a context-aware wait; it returns false when ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
