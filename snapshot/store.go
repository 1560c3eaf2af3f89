package snapshot

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

const (
	// DefaultStallTimeout is how long a live stream waits for its consumer.
	DefaultStallTimeout = time.Minute
	// DefaultHoldTimeout is how long a stream that was read to its end keeps local
	// snapshots off while its consumer hasn't closed it.
	DefaultHoldTimeout = 10 * time.Minute
	// maxHold bounds how long installs, one after the other, keep local snapshots off:
	// a follower that never gets done must not make the log grow without end.
	maxHold = time.Hour
)

// Errors of the store that callers tell apart.
var (
	// ErrSwitched ends work that was based on a generation that is no longer current.
	ErrSwitched = errors.New("the database was replaced by an installed snapshot")
	// ErrClosed is returned by a store that is closed or has failed.
	ErrClosed = errors.New("snapshot store is closed")
	// ErrStreaming refuses a local snapshot while a follower installs one.
	ErrStreaming = errors.New("a follower is installing a snapshot; the log it needs next is kept until it is done")
	// ErrStalled ends a live stream whose consumer stopped reading.
	ErrStalled = errors.New("the consumer of the snapshot stream stopped reading")
)

// Source is the state machine, as far as a live stream needs it.
type Source interface {
	// Capture returns a reader at the newest revision and the label of exactly that
	// content, with the raft index, term and configuration that it stands for. The
	// caller closes the reader. Capture is called from any goroutine. It must not wait
	// for a running Switch while it holds a reader.
	Capture() (Label, *engine.Reader, error)
}

// StoreConfig says where and how the generations are kept.
type StoreConfig struct {
	// Dir holds CURRENT and the generations; it is created if missing, its parent is not.
	Dir string
	// Engine is used for every generation's database; its Dir and OnFatal
	// are ignored. Its MinFreeBytes is also the floor that an install must leave free.
	Engine engine.Config
	Logger *slog.Logger
	// OnFatal is called at most once, when the process must end: the store can no
	// longer vouch for its state. It may be nil.
	OnFatal func(error)
	// StallTimeout and HoldTimeout; 0 means the defaults.
	StallTimeout time.Duration
	HoldTimeout  time.Duration

	// step, if set, is called at each point of an install where a crash is interesting.
	step func(name string)
	// freeBytes replaces the look at the file system in tests.
	freeBytes func(dir string) (uint64, error)
}

// generation is a folder with an open database.
type generation struct {
	name    string
	dir     string
	eng     *engine.Engine
	label   Label
	labeled bool
}

// Store holds the current generation and its open database. All methods may be
// called from any goroutine.
type Store struct {
	cfg       StoreConfig
	log       *slog.Logger
	fatalOnce sync.Once

	// handle keeps the current database open: held for reading while it is synced, for
	// writing while it is replaced or closed.
	handle sync.RWMutex

	mu        sync.Mutex
	current   *generation
	source    Source
	streams   map[*liveStream]struct{}
	installs  map[*install]struct{}
	pending   *generation // verified, waiting for Switch
	heldSince time.Time   // when a local snapshot was first held off; zero if none is
	switching bool
	closed    bool
	failed    error
}

// OpenStore opens the current generation and its database, or creates the first one
// in an empty folder, and deletes what an interrupted install has left behind. Only
// one process may have it open. A pointer, label, folder or database that doesn't check
// out is a corruption error, and no generation is deleted then.
func OpenStore(cfg StoreConfig) (*Store, error) {
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = DefaultStallTimeout
	}
	if cfg.HoldTimeout <= 0 {
		cfg.HoldTimeout = DefaultHoldTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.step == nil {
		cfg.step = func(string) {}
	}
	if cfg.freeBytes == nil {
		cfg.freeBytes = freeBytes
	}
	s := &Store{
		cfg: cfg, log: cfg.Logger,
		streams: map[*liveStream]struct{}{}, installs: map[*install]struct{}{},
	}
	if err := os.Mkdir(cfg.Dir, dirMode); err == nil {
		if err := syncDir(filepath.Dir(cfg.Dir)); err != nil {
			return nil, fmt.Errorf("open snapshot store: %w", err)
		}
	} else if !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	name, err := s.settle()
	if err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	g := &generation{name: name, dir: filepath.Join(cfg.Dir, name)}
	if g.label, g.labeled, err = ReadLabel(g.dir); err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	if g.labeled {
		// A label is written only beside a synced database: without one, the data is lost,
		// and an empty database in its place would vote on nothing.
		if ok, err := hasDatabase(g.dir); err != nil || !ok {
			e := corrupt("the database in %s is gone; wipe the data folder so that the server rejoins as a new one", g.dir)
			e.Err = err
			return nil, fmt.Errorf("open snapshot store: %w", e)
		}
	}
	if g.eng, err = engine.Open(s.engineConfig(g.dir)); err != nil {
		if errors.Is(err, engine.ErrCorrupt) {
			e := corrupt("the database in %s is damaged; wipe the data folder so that the server rejoins as a new one", g.dir)
			e.Err = err
			err = e
		}
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	s.current = g
	return s, nil
}

// settle finds the current generation, or makes the first, and removes the rest.
func (s *Store) settle() (name string, err error) {
	dir := s.cfg.Dir
	name, found, err := readCurrent(dir)
	if err != nil {
		return "", err
	}
	all, err := generations(dir)
	if err != nil {
		return "", err
	}
	if !found {
		// CURRENT is written before the first database is created, so a database without
		// it means that the pointer was lost, not that nothing was ever there.
		for _, g := range all {
			if ok, err := hasDatabase(filepath.Join(dir, g)); err != nil || ok {
				e := corrupt("%s holds a database but no %s; wipe the data folder so that the server rejoins as a new one", dir, currentName)
				e.Err = err
				return "", e
			}
		}
		name = newGenerationName()
		if _, err := createGeneration(dir, name); err != nil {
			return "", err
		}
		if err := writeCurrent(dir, name); err != nil {
			return "", err
		}
	} else if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
		e := corrupt("%s names %s, which is not there; wipe the data folder so that the server rejoins as a new one", currentName, name)
		e.Err = err
		return "", e
	}
	leftovers := []string{filepath.Join(dir, currentName+tmpSuffix), filepath.Join(dir, name, labelName+tmpSuffix)}
	for _, g := range all {
		if g != name {
			s.log.Warn("removing the leftover of an interrupted install", "generation", g)
			leftovers = append(leftovers, filepath.Join(dir, g))
		}
	}
	for _, path := range leftovers {
		if err := os.RemoveAll(path); err != nil {
			return "", fmt.Errorf("remove leftover: %w", err)
		}
	}
	return name, nil
}

func (s *Store) engineConfig(generationDir string) engine.Config {
	cfg := s.cfg.Engine
	cfg.Dir = filepath.Join(generationDir, dbName)
	if cfg.Logger == nil {
		cfg.Logger = s.log
	}
	cfg.OnFatal = s.fatal
	return cfg
}

// fatal records that the store can no longer be trusted and says so once.
func (s *Store) fatal(err error) {
	s.fatalOnce.Do(func() {
		s.mu.Lock()
		s.failed = err
		s.mu.Unlock()
		if s.cfg.OnFatal != nil {
			s.cfg.OnFatal(err)
		}
	})
}

// usableLocked returns why the store can't serve, or nil.
func (s *Store) usableLocked() error {
	switch {
	case s.closed:
		return ErrClosed
	case s.failed != nil:
		return fmt.Errorf("%w: %w", ErrClosed, s.failed)
	case s.switching:
		return ErrSwitched
	}
	return nil
}

// SetSource names the state machine that live streams are taken from. Without one,
// Open of the current snapshot fails.
func (s *Store) SetSource(src Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.source = src
}

// Engine returns the database of the current generation. It is closed by Switch and
// by Close; the caller must have let go of it by then (see Switch).
func (s *Store) Engine() *engine.Engine {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current.eng
}

// Label returns the label of the newest Raft snapshot that the current generation
// includes; ok is false if none was taken yet. Its slices must not be modified.
func (s *Store) Label() (l Label, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current.label, s.current.labeled
}

// Streaming says whether a follower is installing a snapshot from this store, so
// that taking a local one has to wait: Commit would return ErrStreaming.
//
// Invariant 20: raft cuts its log behind each local snapshot, and the follower will
// need the log from its stream's index on.
func (s *Store) Streaming() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streamingLocked()
}

func (s *Store) streamingLocked() bool {
	for st := range s.streams {
		if st.holds() {
			if s.heldSince.IsZero() {
				s.heldSince = time.Now()
			}
			return time.Since(s.heldSince) < maxHold
		}
	}
	s.heldSince = time.Time{}
	return false
}

// prepareLabel makes the database durable up to everything it has applied, so that
// l may be written. It fails unless eng is still the current database.
func (s *Store) prepareLabel(l Label, eng *engine.Engine) error {
	s.handle.RLock()
	defer s.handle.RUnlock()
	if _, err := s.labelTarget(l, eng); err != nil {
		return err
	}
	// Invariant 13: no entry may leave the log before its effects are on stable storage.
	if err := eng.Sync(); err != nil {
		return fmt.Errorf("sync database: %w", err)
	}
	return nil
}

// publishLabel writes l, which prepareLabel has accepted, and returns the name of the
// generation that it labels.
func (s *Store) publishLabel(l Label, eng *engine.Engine) (string, error) {
	s.handle.RLock()
	defer s.handle.RUnlock()
	g, err := s.labelTarget(l, eng)
	if err != nil {
		return "", err
	}
	if err := writeLabel(g.dir, l); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// handle keeps g current; only the comparison with a second local snapshot is open.
	if !g.labeled || g.label.Index <= l.Index {
		g.label, g.labeled = l, true
	}
	s.heldSince = time.Time{}
	return g.name, nil
}

func (s *Store) labelTarget(l Label, eng *engine.Engine) (*generation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(); err != nil {
		return nil, err
	}
	g := s.current
	switch {
	case g.eng != eng:
		return nil, ErrSwitched
	case g.labeled && l.Index < g.label.Index:
		return nil, fmt.Errorf("snapshot at index %d is older than the current one at %d", l.Index, g.label.Index)
	case s.streamingLocked():
		return nil, ErrStreaming
	}
	return g, nil
}

// Switch makes the installed generation called pending the current one and returns
// its label. quiesce is called once the new database is known to be good and before
// the old one is closed: it must make sure that nothing uses the old database any
// more (its readers are closed). Live streams are ended by Switch itself. Afterwards
// Engine returns the new database.
//
// An error leaves the old generation in use if quiesce was not called; after it,
// any error ends the process through OnFatal: the state on disk is then entirely
// the old one or entirely the new one.
func (s *Store) Switch(pending string, quiesce func()) (Label, error) {
	s.handle.Lock()
	defer s.handle.Unlock()
	s.mu.Lock()
	if err := s.usableLocked(); err != nil {
		s.mu.Unlock()
		return Label{}, fmt.Errorf("switch generation: %w", err)
	}
	if s.pending == nil || s.pending.name != pending {
		s.mu.Unlock()
		return Label{}, kv.Errorf(kv.CodeInternal, "no installed snapshot %q is waiting", pending)
	}
	old, next := s.current, s.pending
	s.pending = nil
	if old.labeled && next.label.Index < old.label.Index {
		// A local snapshot was taken while the stream came in: the log may be cut up to
		// there already.
		s.mu.Unlock()
		err := kv.Errorf(kv.CodeConflict, "installed snapshot at index %d is older than the current one at %d", next.label.Index, old.label.Index)
		return Label{}, errors.Join(err, discardGeneration(next))
	}
	s.switching = true
	s.mu.Unlock()

	s.endStreams(ErrSwitched)
	s.cfg.step("switch: before quiesce")
	quiesce()
	if err := s.replace(old, next); err != nil {
		err = fmt.Errorf("switch generation: %w", err)
		s.fatal(err)
		// Closed but kept: the pointer may name it already.
		_ = next.eng.Close()
		return Label{}, err
	}
	s.cfg.step("switch: before deletion")
	if err := os.RemoveAll(old.dir); err != nil {
		// The next start tries again.
		s.log.Warn("could not delete the replaced generation", "generation", old.name, "error", err)
	}
	s.cfg.step("switch: done")
	s.log.Info("installed snapshot is in use", "generation", next.name, "index", next.label.Index, "revision", next.label.Revision)
	return next.label, nil
}

// replace closes old and moves the pointer to next.
func (s *Store) replace(old, next *generation) error {
	s.cfg.step("switch: before close")
	if err := old.eng.Close(); err != nil {
		return fmt.Errorf("close replaced database: %w", err)
	}
	s.cfg.step("switch: before rename")
	// Invariant 17: this rename is the switch; all before it can be thrown away, and
	// all after it only catches up with it.
	if err := writeCurrent(s.cfg.Dir, next.name); err != nil {
		return err
	}
	s.cfg.step("switch: after rename")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = next
	s.switching = false
	return nil
}

// Close ends streams and installs, waits for them, and closes the database. It is
// idempotent. The users of the engine must be gone.
func (s *Store) Close() error {
	s.handle.Lock()
	defer s.handle.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	var installs []*install
	for in := range s.installs {
		installs = append(installs, in)
	}
	s.mu.Unlock()

	s.endStreams(ErrClosed)
	for _, in := range installs {
		in.abort(ErrClosed)
	}
	s.mu.Lock()
	pending := s.pending
	s.pending = nil
	s.mu.Unlock()
	var errs []error
	if pending != nil {
		errs = append(errs, discardGeneration(pending))
	}
	if err := s.current.eng.Close(); err != nil {
		errs = append(errs, fmt.Errorf("close database: %w", err))
	}
	return errors.Join(errs...)
}

// discardGeneration closes and deletes a generation that isn't current.
func discardGeneration(g *generation) error {
	err := g.eng.Close()
	if rerr := os.RemoveAll(g.dir); err == nil {
		err = rerr
	}
	if err != nil {
		return fmt.Errorf("discard generation %s: %w", g.name, err)
	}
	return nil
}
