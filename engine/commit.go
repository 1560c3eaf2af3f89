package engine

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"time"

	badger "github.com/dgraph-io/badger/v2"
)

// Entry is one change of a revision. With Delete set it writes a tombstone and Value
// must be empty. The slices belong to the engine until the next Flush returns.
type Entry struct {
	Key, Value []byte
	Delete     bool
}

var reservedPrefix = []byte("!badger!")

func checkKey(key []byte) error {
	switch {
	case len(key) == 0:
		return fmt.Errorf("%w: empty key", ErrInvalid)
	case len(key) > MaxKeyBytes:
		return fmt.Errorf("%w: a key of %d bytes is longer than %d", ErrInvalid, len(key), MaxKeyBytes)
	case bytes.HasPrefix(key, reservedPrefix):
		return fmt.Errorf("%w: the key prefix %q is Badger's own", ErrInvalid, reservedPrefix)
	}
	return nil
}

func (en *Entry) check() error {
	if err := checkKey(en.Key); err != nil {
		return err
	}
	// Invariant B3: a value at the threshold would leave the tree, and could then be
	// moved, lost and read as empty.
	if len(en.Value) > MaxValueBytes {
		return fmt.Errorf("%w: a value of %d bytes is longer than %d; store it in pieces", ErrInvalid, len(en.Value), MaxValueBytes)
	}
	if en.Delete && len(en.Value) > 0 {
		return fmt.Errorf("%w: a tombstone with a value", ErrInvalid)
	}
	return nil
}

func (en *Entry) bytes() int { return len(en.Key) + len(en.Value) + entryOverheadBytes }

// Commit queues entries and final as revision ts and returns, usually before they
// are written: Flush waits. ts must be above that of every earlier call since Open,
// and keys must be unique within the call. A revision that was cut off by a crash is
// committed again with the same entries at the same ts.
//
// All is written as one Badger transaction if it fits. Otherwise all but the last
// part are written, one transaction each, and acknowledged before the last one,
// which holds final, is queued: whoever finds final finds everything. Nothing of it
// is visible to readers before Publish.
//
// An error that matches ErrInvalid means that nothing was queued. Any other one
// means that the engine failed or is closed.
func (e *Engine) Commit(ts uint64, entries []Entry, final Entry) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.inUse.RUnlock()
	e.commitMu.Lock()
	defer e.commitMu.Unlock()
	// Invariant 15 (G1): Badger's point reads trust that the versions of a key were
	// written in ascending order.
	if ts == 0 || ts == unpublished || ts <= e.lastTS {
		return fmt.Errorf("%w: revision %d after %d", ErrInvalid, ts, e.lastTS)
	}
	for i := range entries {
		if err := entries[i].check(); err != nil {
			return err
		}
	}
	if err := final.check(); err != nil {
		return err
	}
	e.lastTS = ts
	parts := 0
	for {
		n, size, whole := partOf(entries, &final)
		if whole {
			break
		}
		if err := e.queue(ts, entries[:n], nil, size); err != nil {
			return err
		}
		entries = entries[n:]
		parts++
	}
	if parts > 0 {
		// What is queued behind a failed write may still be written (G12), so the
		// final part must not be.
		if err := e.Flush(); err != nil {
			return err
		}
	}
	return e.queue(ts, entries, &final, 0)
}

// partOf says how many of entries the next part takes and how big they are; whole
// says that final fits too, which ends the revision.
func partOf(entries []Entry, final *Entry) (n, size int, whole bool) {
	for n < len(entries) && n < MaxPartEntries-1 {
		b := entries[n].bytes()
		if n > 0 && size+b > MaxPartBytes {
			return n, size, false
		}
		size += b
		n++
	}
	return n, size, n == len(entries) && (n == 0 || size+final.bytes() <= MaxPartBytes)
}

// queue hands one part to Badger and returns. With final it is its revision's last.
func (e *Engine) queue(ts uint64, entries []Entry, final *Entry, size int) error {
	for i := range entries {
		size += entries[i].bytes()
	}
	if err := e.pipe.acquire(e, size); err != nil {
		return err
	}
	txn := e.db.NewTransactionAt(ts, true)
	// Invariant B5: every transaction is discarded on every path.
	defer txn.Discard()
	for i := range entries {
		if err := set(txn, &entries[i]); err != nil {
			return e.abandonPart(size, err)
		}
	}
	if final != nil {
		if err := set(txn, final); err != nil {
			return e.abandonPart(size, err)
		}
	}
	written := func(err error) {
		if err == nil && e.cfg.commitFault != nil {
			err = e.cfg.commitFault(ts)
		}
		if err != nil {
			// Invariant B2: latched before the acknowledgement, so that no Flush
			// that this commit ends can return without the error.
			e.latch(fmt.Errorf("commit revision %d: %w", ts, err))
		}
		e.pipe.release(size)
	}
	if err := txn.CommitAt(ts, written); err != nil {
		return e.abandonPart(size, err)
	}
	e.upkeep.committed(ts, size)
	return nil
}

// abandonPart ends a part that Badger refused. Earlier parts of its revision may be
// on disk and it cannot be evaluated differently elsewhere, so that is final.
func (e *Engine) abandonPart(size int, err error) error {
	e.pipe.release(size)
	return e.fail(fmt.Errorf("queue commit: %w", err))
}

func set(txn *badger.Txn, en *Entry) error {
	if en.Delete {
		return txn.Delete(en.Key)
	}
	return txn.Set(en.Key, en.Value)
}

// Flush waits until every queued commit is written: from then on a crash of the
// process does not lose it. It returns the fatal error if there is one.
func (e *Engine) Flush() error {
	e.pipe.mu.Lock()
	defer e.pipe.mu.Unlock()
	for e.pipe.count > 0 && !e.failed.Load() {
		e.pipe.cond.Wait()
	}
	return e.Err()
}

// DeleteAt removes the records of keys at exactly the given versions, one version a
// key, as if they had never been written. It is for records that are theirs alone:
// one version each, at or below the discard timestamp. It waits until it is written.
// While a reader needs one of them, or an export is under way, it changes nothing
// and returns ErrHeld.
func (e *Engine) DeleteAt(keys [][]byte, versions []uint64) error {
	if len(keys) != len(versions) {
		return fmt.Errorf("%w: %d keys and %d versions", ErrInvalid, len(keys), len(versions))
	}
	if err := e.begin(); err != nil {
		return err
	}
	defer e.inUse.RUnlock()
	e.trimMu.Lock()
	defer e.trimMu.Unlock()
	requested, effective, holds := e.pins.state()
	for i := range keys {
		if err := checkKey(keys[i]); err != nil {
			return err
		}
		if versions[i] == 0 || versions[i] > requested {
			return fmt.Errorf("%w: version %d is above the discard timestamp %d", ErrInvalid, versions[i], requested)
		}
		if versions[i] > effective {
			return ErrHeld
		}
	}
	if holds > 0 {
		return ErrHeld
	}
	for len(keys) > 0 {
		n, size := 0, 0
		for n < len(keys) && n < MaxPartEntries-1 && size < MaxPartBytes/2 {
			size += len(keys[n]) + entryOverheadBytes
			n++
		}
		if err := e.deleteBatch(keys[:n], versions[:n]); err != nil {
			return err
		}
		e.upkeep.committed(0, size)
		keys, versions = keys[n:], versions[n:]
	}
	return nil
}

// deleteBatch overwrites records at their own versions: the newer write of a version
// wins everywhere in Badger (G10), so no version is written out of order.
func (e *Engine) deleteBatch(keys [][]byte, versions []uint64) error {
	wb := e.db.NewManagedWriteBatch()
	defer wb.Cancel()
	for i := range keys {
		if err := wb.DeleteAt(keys[i], versions[i]); err != nil {
			return e.fail(fmt.Errorf("trim: %w", err))
		}
	}
	if err := wb.Flush(); err != nil {
		return e.fail(fmt.Errorf("trim: %w", err))
	}
	return nil
}

// pipeline counts the commits that are queued and not acknowledged.
type pipeline struct {
	mu    sync.Mutex
	cond  *sync.Cond
	count int
	bytes int
	moved time.Time // when count last changed
}

func (p *pipeline) init() { p.cond = sync.NewCond(&p.mu) }

// acquire waits for room for a commit of size bytes.
func (p *pipeline) acquire(e *Engine, size int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !e.failed.Load() && p.count > 0 && (p.count >= maxPendingCommits || p.bytes+size > maxPendingBytes) {
		p.cond.Wait()
	}
	if err := e.Err(); err != nil {
		return err
	}
	if p.count == 0 {
		p.moved = time.Now()
	}
	p.count++
	p.bytes += size
	return nil
}

func (p *pipeline) release(size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count--
	p.bytes -= size
	p.moved = time.Now()
	p.cond.Broadcast()
}

func (p *pipeline) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cond.Broadcast()
}

// stalled says for how long queued commits have made no progress.
func (p *pipeline) stalled() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count == 0 {
		return 0
	}
	return time.Since(p.moved)
}

func (p *pipeline) pending() (count, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count, p.bytes
}

// drain waits until nothing is queued, at most for timeout.
func (p *pipeline) drain(timeout time.Duration) error {
	late := time.AfterFunc(timeout, p.wake)
	defer late.Stop()
	deadline := time.Now().Add(timeout)
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.count > 0 {
		if !time.Now().Before(deadline) {
			return errors.New("timed out")
		}
		p.cond.Wait()
	}
	return nil
}
