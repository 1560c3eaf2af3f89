package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	badger "github.com/dgraph-io/badger/v2"
	"github.com/hashicorp/raft"

	"github.com/settkv/sett/internal/badgerkit"
)

// Store is the durable memory of one raft server. All methods may be called concurrently, also after
// Close.
type Store struct {
	cfg    Config
	latch  *latch
	logDB  *database
	stabDB *database
	logs   *logStore
	stable *stableStore
	free   atomic.Uint64 // bytes free at the last look

	stop      chan struct{} // closed by Close
	running   sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
}

// Open opens the store in cfg.Dir, making it if there is none, and brings it in order after whatever
// happened: it blocks for the replay of both databases (well below a second) and a walk over the keys of
// the log (about four million a second).
//
// Errors matching ErrHole or ErrCorrupt mean that acknowledged entries or votes are lost, or that files are
// damaged, so that they may be: the node must come back as a new server. I/O errors never match them. ErrDiskFull means that space has to be freed first.
func Open(cfg Config) (*Store, error) {
	s, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("open raft store: %w", err)
	}
	return s, nil
}

func open(cfg Config) (*Store, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg:   cfg,
		latch: &latch{log: cfg.Logger, onFatal: cfg.OnFatal},
		stop:  make(chan struct{}),
	}
	s.logDB = s.newDatabase("log", cfg.logOptions())
	s.stabDB = s.newDatabase("stable", cfg.stableOptions())
	s.logs = &logStore{
		db:        s.logDB,
		cache:     &cache{limit: cfg.CacheBytes},
		phase:     cfg.Phase,
		room:      s.room,
		stop:      s.stop,
		txnBytes:  cfg.MemTableBytes * 15 / 100 * 6 / 10, // Badger takes up to 15 % of a memtable
		threshold: s.logDB.opt.ValueThreshold,
	}
	s.logs.bounds.Store(&bounds{})
	s.stable = &stableStore{db: s.stabDB, file: votesFile{dir: cfg.Dir}, log: cfg.Logger, fileWritten: cfg.seams.fileWritten}
	s.stable.current.Store(&votes{})

	if err := makeDir(cfg.Dir); err != nil {
		return nil, err
	}
	// Invariant B2: not even the recovery open runs on a full disk.
	free, err := cfg.seams.free(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s.free.Store(free)
	if free < cfg.hardFloor() {
		return nil, s.diskFull(free)
	}

	var found scan
	if err := s.logDB.recover(func(db *badger.DB) (err error) {
		found, err = scanLog(db)
		return err
	}); err != nil {
		return nil, err
	}
	if err := s.stable.open(); err != nil {
		return nil, err
	}
	if err := s.logDB.open(); err != nil {
		return nil, errors.Join(err, s.stabDB.close())
	}
	if err := s.logs.load(found); err != nil {
		return nil, errors.Join(err, s.logDB.close(), s.stabDB.close())
	}
	s.running.Go(s.watch)
	s.running.Go(s.collect)
	return s, nil
}

func (s *Store) newDatabase(name string, opt badger.Options) *database {
	return &database{name: name, opt: opt, seams: s.cfg.seams, latch: s.latch, start: time.Now()}
}

// Logs is the log for raft. It implements raft.MonotonicLogStore too. It caches by itself: no
// raft.LogCache belongs around it.
func (s *Store) Logs() raft.LogStore { return s.logs }

// Stable is the stable store for raft.
func (s *Store) Stable() raft.StableStore { return s.stable }

// Bounds are the first and last index of the log, both 0 if it is empty.
func (s *Store) Bounds() (first, last uint64) {
	b := s.logs.bounds.Load()
	return b.first, b.last
}

// Term is the term of the entry at index, or raft.ErrLogNotFound.
func (s *Store) Term(index uint64) (uint64, error) {
	var l raft.Log
	if err := s.logs.GetLog(index, &l); err != nil {
		return 0, err
	}
	return l.Term, nil
}

// Reset drops all entries of the log, atomically also across a crash, and leaves the stable values. It is
// for the start, before raft runs, when a snapshot has replaced the log.
func (s *Store) Reset() error {
	s.logDB.writeMu.Lock()
	defer s.logDB.writeMu.Unlock()
	if err := s.logs.dropAllLocked(); err != nil {
		return fmt.Errorf("reset raft log: %w", err)
	}
	return nil
}

// Full says that less than Config.MinFreeBytes of disk were free at the last look (a second ago at
// most): growth should be refused before it is proposed. raft's own appends still work, down to half of
// it.
func (s *Store) Full() bool { return s.free.Load() < s.cfg.MinFreeBytes }

// Err is nil, or why the store has latched.
func (s *Store) Err() error { return s.latch.err() }

// DiskBytes is what the files of both databases take up. It walks the folders.
func (s *Store) DiskBytes() uint64 {
	n, err := badgerkit.DirBytes(s.cfg.Dir)
	if err != nil {
		s.cfg.Logger.Warn("measure raft store", slog.Any("error", err))
	}
	return n
}

// Close waits for the calls under way, stops collection and closes both databases; raft must have been
// shut down. It is idempotent. Later calls get ErrClosed. After a latch it leaves the databases as they
// are, for the next start to recover, and returns the error that latched.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.stop)
		// The databases go first: the watchdog has to notice when a write hangs while Close waits for it.
		s.closeErr = errors.Join(s.logDB.close(), s.stabDB.close())
		s.running.Wait()
		s.logs.cache.clear()
		if err := s.latch.err(); err != nil {
			s.closeErr = err
		}
	})
	return s.closeErr
}

// watch is the watchdog: it latches the store when a write hangs or the disk runs full, because raft
// keeps leading without noticing either (its heartbeats do not touch the disk).
func (s *Store) watch() {
	every := min(time.Second, max(s.cfg.StallTimeout/8, time.Millisecond))
	tick := time.NewTicker(every)
	defer tick.Stop()
	stop := s.stop
	for {
		select {
		case <-stop:
			if s.logDB.pendingFor() == 0 && s.stabDB.pendingFor() == 0 {
				return
			}
			stop = nil // stay until the last write has ended or is found to hang
		case <-tick.C:
			if stop == nil && s.logDB.pendingFor() == 0 && s.stabDB.pendingFor() == 0 {
				return
			}
		}
		for _, d := range []*database{s.logDB, s.stabDB} {
			if p := d.pendingFor(); p > s.cfg.StallTimeout {
				_ = s.latch.trip(fmt.Errorf("%w: %s has been writing for %v", ErrStalled, d.name, p.Round(time.Millisecond)))
			}
		}
		if s.latch.err() != nil {
			return
		}
		if err := s.room(0); err != nil && !errors.Is(err, ErrFailed) {
			s.cfg.Logger.Warn("measure free disk space", slog.Any("error", err))
		}
	}
}

// room looks at the free space and latches the store if what is left after bytes more is below the hard
// floor (Invariant B2).
func (s *Store) room(bytes int64) error {
	free, err := s.cfg.seams.free(s.cfg.Dir)
	if err != nil {
		return err
	}
	s.free.Store(free)
	if free < s.cfg.hardFloor()+uint64(bytes) {
		return s.latch.trip(s.diskFull(free))
	}
	return nil
}

func (s *Store) diskFull(free uint64) error {
	return fmt.Errorf("%w: %s has %d MiB free, the node stops below %d MiB: free some space or grow the volume",
		ErrDiskFull, s.cfg.Dir, free>>20, s.cfg.hardFloor()>>20)
}

// collect runs the value-log collection of both databases for as long as the store is open, but only
// after writes: without them there is nothing new to give back (Invariant 9).
func (s *Store) collect() {
	tick := time.NewTicker(s.cfg.GCInterval)
	defer tick.Stop()
	var seen [2]uint64
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		for i, d := range []*database{s.logDB, s.stabDB} {
			if w := d.writes.Load(); w != seen[i] {
				seen[i] = w
				d.collect(s.stop)
			}
		}
	}
}

func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(filepath.Clean(dir)))
}
