package engine

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	badger "github.com/dgraph-io/badger/v2"
)

// pins is the registry of live readers, and what they let be discarded. In managed
// mode Badger's own readers hold nothing back (Invariant B5).
type pins struct {
	mu        sync.Mutex
	readers   map[*Reader]struct{}
	requested uint64 // by SetDiscard
	effective uint64 // what Badger was told: min(requested, oldest pin)
	holds     int    // readers that export
	idle      *sync.Cond
	revoked   uint64
}

func (p *pins) init() {
	p.readers = make(map[*Reader]struct{})
	p.idle = sync.NewCond(&p.mu)
}

func (p *pins) state() (requested, effective uint64, holds int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requested, p.effective, p.holds
}

func (p *pins) all() []*Reader {
	p.mu.Lock()
	defer p.mu.Unlock()
	rs := make([]*Reader, 0, len(p.readers))
	for r := range p.readers {
		rs = append(rs, r)
	}
	return rs
}

// advanceLocked moves the effective discard timestamp as far as the pins allow.
func (p *pins) advanceLocked(db *badger.DB) {
	ts := p.requested
	if ts <= p.effective {
		return
	}
	for r := range p.readers {
		ts = min(ts, r.pin)
	}
	if ts > p.effective {
		p.effective = ts
		db.SetDiscardTs(ts)
	}
}

// SetDiscard lets history below ts be discarded: afterwards reads at ts and above
// are served, and of older versions only what they need is kept. It only moves
// forwards; a lower ts than before changes nothing. Live readers hold it back, each
// for a bounded time. Discarding itself happens in later compactions. It does not
// block and must be called again after each Open (Invariant B5).
func (e *Engine) SetDiscard(ts uint64) {
	if e.begin() != nil {
		return
	}
	defer e.inUse.RUnlock()
	e.pins.mu.Lock()
	defer e.pins.mu.Unlock()
	if ts > e.pins.requested {
		e.pins.requested = ts
		e.pins.advanceLocked(e.db)
	}
}

// Reader reads the store as it was at one revision, whatever is written meanwhile.
// It is safe for concurrent use, but its calls exclude each other. It must be
// closed. A reader that holds back discarding for longer than Config.MaxReaderAge is
// revoked: its next call, and those of its iterators, return ErrDiscarded.
type Reader struct {
	e      *Engine
	ts     uint64
	opened time.Time

	// pin and held are guarded by e.pins.mu: the oldest revision whose history
	// must stay, and whether that was lowered for an export.
	pin    uint64
	held   bool
	maxAge time.Duration

	// doomed is set, with the reason, before the reader is taken away.
	doomed atomic.Pointer[error]

	mu    sync.Mutex
	err   error // once closed or taken away; guarded by mu
	txn   *badger.Txn
	iters map[*Iterator]struct{}
}

// ReadAt opens a reader at revision ts, which must be published (ErrUnpublished) and
// not below the timestamp of SetDiscard (ErrDiscarded). It does not block.
func (e *Engine) ReadAt(ts uint64) (*Reader, error) {
	if err := e.usable(); err != nil {
		return nil, err
	}
	if ts > e.published.Load() {
		return nil, fmt.Errorf("%w: %d", ErrUnpublished, ts)
	}
	r := &Reader{e: e, ts: ts, pin: ts, opened: time.Now(), maxAge: e.cfg.MaxReaderAge}
	r.txn = e.db.NewTransactionAt(ts, false)
	e.pins.mu.Lock()
	defer e.pins.mu.Unlock()
	switch {
	case e.closing.Load():
		// Checked again under the lock that evictReaders takes.
		return nil, ErrClosed
	case ts < e.pins.requested:
		// A new reader must not prolong what an old one holds back.
		return nil, fmt.Errorf("%w: revision %d, oldest is %d", ErrDiscarded, ts, e.pins.requested)
	}
	e.pins.readers[r] = struct{}{}
	return r, nil
}

// TS returns the reader's revision.
func (r *Reader) TS() uint64 { return r.ts }

// Extend sets how long after its opening the reader may hold back discarding,
// instead of Config.MaxReaderAge: a stream to another node takes its time.
func (r *Reader) Extend(maxAge time.Duration) {
	r.e.pins.mu.Lock()
	defer r.e.pins.mu.Unlock()
	r.maxAge = maxAge
}

// Close releases the reader and its iterators. It is idempotent.
func (r *Reader) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endLocked(ErrClosed)
}

// endLocked takes everything of Badger's out of the reader, then the pin. What
// iterators have returned stays valid: it is not in Badger's memory.
func (r *Reader) endLocked(reason error) {
	if r.err != nil {
		return
	}
	r.err = reason
	for it := range r.iters {
		it.parkLocked()
	}
	r.iters = nil
	r.txn.Discard()
	p := &r.e.pins
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.readers, r)
	if r.held {
		p.holds--
	}
	p.advanceLocked(r.e.db)
	if len(p.readers) == 0 {
		p.idle.Broadcast()
	}
}

// enter begins a call: it takes mu unless the reader is at its end.
func (r *Reader) enter() error {
	r.mu.Lock()
	if d := r.doomed.Load(); d != nil {
		r.endLocked(*d)
	}
	if r.err != nil {
		err := r.err
		r.mu.Unlock()
		return err
	}
	return nil
}

// take ends the reader from outside. A call in progress finishes first; what it
// reads is still whole, because the pin goes after it.
func (r *Reader) take(reason error) {
	r.doomed.CompareAndSwap(nil, &reason)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endLocked(*r.doomed.Load())
}

// Get returns a copy of key's value at the reader's revision and the revision that
// wrote it.
func (r *Reader) Get(key []byte) (value []byte, version uint64, found bool, err error) {
	found, err = r.GetFunc(key, func(v []byte, ver uint64) error {
		value, version = v, ver
		return nil
	})
	return value, version, found, err
}

// GetFunc calls fn with key's value at the reader's revision and the revision that
// wrote it, and returns its error. The value is fn's to keep. fn may use the reader.
func (r *Reader) GetFunc(key []byte, fn func(value []byte, version uint64) error) (found bool, err error) {
	if len(key) == 0 {
		return false, fmt.Errorf("%w: empty key", ErrInvalid)
	}
	value, version, found, err := r.get(key)
	if err != nil || !found {
		return false, err
	}
	return true, fn(value, version)
}

func (r *Reader) get(key []byte) (value []byte, version uint64, found bool, err error) {
	if err := r.enter(); err != nil {
		return nil, 0, false, err
	}
	defer r.mu.Unlock()
	r.e.upkeep.reads.Add(1)
	item, err := r.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, 0, false, nil
	}
	if err != nil {
		return nil, 0, false, fmt.Errorf("read: %w", err)
	}
	value, err = item.ValueCopy(nil)
	if err != nil {
		return nil, 0, false, fmt.Errorf("read: %w", err)
	}
	return value, item.Version(), true, nil
}

// Hold makes the reader keep all history above floor, which must not be discarded
// yet, until it is closed, and holds off DeleteAt. Export does it by itself; calling
// it earlier makes sure that a later Export cannot fail for that reason.
func (r *Reader) Hold(floor uint64) error {
	// A trim that is being written would show in one pass and not in the next.
	r.e.trimMu.Lock()
	defer r.e.trimMu.Unlock()
	if err := r.enter(); err != nil {
		return err
	}
	defer r.mu.Unlock()
	p := &r.e.pins
	p.mu.Lock()
	defer p.mu.Unlock()
	floor = min(floor, r.ts)
	if floor < p.effective {
		return fmt.Errorf("%w: history above %d, oldest is %d", ErrDiscarded, floor, p.effective)
	}
	r.pin = min(r.pin, floor)
	if !r.held {
		r.held = true
		p.holds++
	}
	return nil
}

// revokeOld takes away the readers that have held back discarding for too long.
func (e *Engine) revokeOld() {
	p := &e.pins
	p.mu.Lock()
	var old []*Reader
	for r := range p.readers {
		if r.pin < p.requested && time.Since(r.opened) > r.maxAge {
			old = append(old, r)
		}
	}
	p.revoked += uint64(len(old))
	p.mu.Unlock()
	for _, r := range old {
		r.take(ErrDiscarded)
	}
}

// evictReaders waits for readers to be closed and takes the rest away.
func (e *Engine) evictReaders() {
	p := &e.pins
	deadline := time.Now().Add(e.cfg.CloseGrace)
	late := time.AfterFunc(e.cfg.CloseGrace, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.idle.Broadcast()
	})
	defer late.Stop()
	p.mu.Lock()
	for len(p.readers) > 0 && time.Now().Before(deadline) {
		p.idle.Wait()
	}
	p.mu.Unlock()
	for _, r := range p.all() {
		r.take(ErrClosed)
	}
}

// parkAll closes every Badger iterator for a moment; they go on where they were at
// their next call. Badger deletes collected log files only when no iterator is open
// anywhere, which under overlapping scans is never (Invariant B4).
func (e *Engine) parkAll() {
	e.gate.Lock()
	defer e.gate.Unlock()
	for _, r := range e.pins.all() {
		r.mu.Lock()
		for it := range r.iters {
			it.parkLocked()
		}
		r.mu.Unlock()
	}
}
