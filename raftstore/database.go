package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	badger "github.com/dgraph-io/badger/v2"

	"github.com/settkv/sett/internal/badgerkit"
)

// database is one of the two BadgerStores with what is needed around each of its calls: one write at a
// time, the latch, the time of the pending write for the watchdog, and a life that ends with Close.
type database struct {
	name  string
	opt   badger.Options
	seams seams
	latch *latch

	start   time.Time    // base of pending
	pending atomic.Int64 // nanoseconds after start at which the write under way began, 0 for none

	reads, writes atomic.Uint64
	writeNanos    atomic.Uint64
	maxWriteNanos atomic.Uint64
	collected     atomic.Uint64 // value-log files given back
	closing       atomic.Bool
	writeMu       sync.Mutex // one write or range deletion at a time

	// life guards the handles: calls hold it shared, Close and replace hold it alone.
	life sync.RWMutex
	in   inner
	db   *badger.DB
}

// recover brings the folder in order: leftovers removed, tables checked, everything replayed.
func (d *database) recover(inspect func(*badger.DB) error) error {
	if err := d.removeDeleted(); err != nil {
		return err
	}
	err := badgerkit.CheckTables(d.opt.Dir, badgerkit.WasCleanClose(d.opt.Dir))
	if err == nil {
		err = badgerkit.RecoverInspect(d.opt, inspect) // Invariant B1
	}
	return damage(err)
}

// damage makes an error about damaged files match ErrCorrupt.
func damage(err error) error {
	if errors.Is(err, badgerkit.ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// open opens the BadgerStore; recover has to have run.
func (d *database) open() error {
	// The folder must be as durable as what will be acknowledged in it.
	if err := makeDir(d.opt.Dir); err != nil {
		return err
	}
	opt := d.opt
	if d.seams.tune != nil {
		opt = d.seams.tune(d.name, opt)
	}
	var in inner
	var db *badger.DB
	if err := badgerkit.Guard(opt, func() (err error) {
		in, db, err = openInner(opt)
		return err
	}); err != nil {
		return damage(fmt.Errorf("open %s: %w", d.name, err))
	}
	if d.seams.wrap != nil {
		in = d.seams.wrap(d.name, in)
	}
	d.in, d.db = in, db
	return nil
}

// alive is nil unless the store was closed or has latched. It takes no lock.
func (d *database) alive() error {
	if err := d.latch.err(); err != nil {
		return err
	}
	if d.closing.Load() {
		return ErrClosed
	}
	return nil
}

// usable says whether calls may reach Badger. The caller holds life.
func (d *database) usable() error {
	if err := d.latch.err(); err != nil {
		return err
	}
	if d.in == nil || d.closing.Load() {
		return ErrClosed
	}
	return nil
}

// write runs f as the pending write. The caller holds writeMu. Every error of f latches the store, except
// that Badger refused a transaction as too big, which writes nothing.
func (d *database) write(what string, f func(inner) error) error {
	d.life.RLock()
	defer d.life.RUnlock()
	if err := d.usable(); err != nil {
		return err
	}
	began := time.Now()
	d.pending.Store(max(1, int64(began.Sub(d.start))))
	err := f(d.in)
	d.pending.Store(0)
	took := uint64(time.Since(began))
	d.writes.Add(1)
	d.writeNanos.Add(took)
	for m := d.maxWriteNanos.Load(); took > m && !d.maxWriteNanos.CompareAndSwap(m, took); m = d.maxWriteNanos.Load() {
	}
	if errors.Is(err, badger.ErrTxnTooBig) {
		return err
	}
	if err != nil {
		return d.latch.trip(fmt.Errorf("%s %s: %w", d.name, what, err))
	}
	// Invariant 7: also a write that was under way when the store latched is not acknowledged.
	return d.latch.err()
}

// read runs f. Its errors are the caller's to judge; a panic over what is read is one that matches
// ErrCorrupt.
func (d *database) read(f func(inner) error) (err error) {
	d.life.RLock()
	defer d.life.RUnlock()
	if err := d.usable(); err != nil {
		return err
	}
	d.reads.Add(1)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s: reading panics: %v", ErrCorrupt, d.name, p)
		}
	}()
	return f(d.in)
}

// pendingFor is how long the write under way has taken so far, 0 without one.
func (d *database) pendingFor() time.Duration {
	p := d.pending.Load()
	if p == 0 {
		return 0
	}
	return time.Since(d.start) - time.Duration(p)
}

// collect gives back value-log files that hold little of use, until stop or until some looks in a row
// found none. An error other than "nothing to do" latches: collection writes through the value log.
func (d *database) collect(stop <-chan struct{}) {
	const ratio, misses = 0.7, 4
	for missed := 0; missed < misses; {
		select {
		case <-stop:
			return
		default:
		}
		err := d.collectOnce(ratio)
		switch {
		case err == nil:
			d.collected.Add(1)
			missed = 0
		case errors.Is(err, badger.ErrNoRewrite):
			missed++ // Badger looks at one file by its statistics and one at random
		case errors.Is(err, ErrClosed), errors.Is(err, ErrFailed), errors.Is(err, badger.ErrRejected):
			return
		default:
			_ = d.latch.trip(fmt.Errorf("%s: collect value log: %w", d.name, err))
			return
		}
	}
}

func (d *database) collectOnce(ratio float64) error {
	d.life.RLock()
	defer d.life.RUnlock()
	if err := d.usable(); err != nil {
		return err
	}
	return d.db.RunValueLogGC(ratio)
}

// replace drops the whole content: the database is closed, its folder renamed away, a new one opened.
// The rename is the moment at which it happens, so a crash leaves all or nothing. The caller holds
// writeMu. Every error latches.
func (d *database) replace() error {
	d.life.Lock()
	defer d.life.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	d.pending.Store(max(1, int64(time.Since(d.start))))
	defer d.pending.Store(0)
	err := d.in.Close()
	d.in, d.db = nil, nil
	if err == nil {
		err = d.renameAway()
	}
	if err == nil {
		err = d.open()
	}
	if err == nil {
		err = d.removeDeleted()
	}
	if err != nil {
		return d.latch.trip(fmt.Errorf("%s: drop everything: %w", d.name, err))
	}
	return nil
}

// discard drops the folder of a database that is not open, so that open makes a new one. A crash leaves all
// of it or nothing.
func (d *database) discard() error {
	if _, err := os.Lstat(d.opt.Dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := d.renameAway(); err != nil {
		return fmt.Errorf("discard %s: %w", d.name, err)
	}
	return d.removeDeleted()
}

// deletedName is the pattern of folders on their way out.
const deletedName = ".deleted-"

func (d *database) renameAway() error {
	dir := d.opt.Dir
	for n := 1; ; n++ {
		to := dir + deletedName + strconv.Itoa(n)
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		if err := os.Rename(dir, to); err != nil {
			return err
		}
		return syncDir(filepath.Dir(dir))
	}
}

func (d *database) removeDeleted() error {
	parent, base := filepath.Split(d.opt.Dir)
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), base+deletedName) {
			if err := os.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// close ends the database, once the calls under way have returned. After a latch Badger is left as it is
// and nothing is waited for: closing it would flush and could wait for ever on a disk that is full or
// hangs, and the next start recovers what was acknowledged.
func (d *database) close() error {
	d.closing.Store(true)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !d.life.TryLock() {
		if d.latch.err() != nil {
			return nil
		}
		<-tick.C
	}
	defer d.life.Unlock()
	if d.in == nil || d.latch.err() != nil {
		return nil
	}
	in := d.in
	d.in, d.db = nil, nil
	if err := in.Close(); err != nil {
		return fmt.Errorf("close %s: %w", d.name, err)
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
