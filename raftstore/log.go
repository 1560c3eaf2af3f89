package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	badger "github.com/dgraph-io/badger/v2"
	"github.com/hashicorp/raft"
)

// bounds are the first and last index of the log; both 0 if it is empty.
type bounds struct{ first, last uint64 }

// logStore implements raft.LogStore and raft.MonotonicLogStore.
type logStore struct {
	db    *database
	cache *cache
	room  func(bytes int64) error
	phase func(string, bool)
	stop  <-chan struct{}

	txnBytes  int64 // how much one append transaction may put into the memtable
	threshold int   // entries from this encoded size on go to the value log

	// bounds always names what is on disk, or less while entries are being deleted: a deletion publishes
	// first and deletes then, so that a reader that misses an entry can tell deletion from loss. Written
	// under db.writeMu.
	bounds atomic.Pointer[bounds]
}

// IsMonotonic tells raft that there are no gaps in this log. Invariant 6: so an installed snapshot clears
// the old entries, which may never have been committed and differ from everyone else's.
func (l *logStore) IsMonotonic() bool { return true }

// FirstIndex is the lowest index in the log, 0 if it is empty. Invariant 3: from memory.
func (l *logStore) FirstIndex() (uint64, error) {
	if err := l.db.alive(); err != nil {
		return 0, err
	}
	return l.bounds.Load().first, nil
}

// LastIndex is the highest index in the log, 0 if it is empty. Invariant 3: from memory.
func (l *logStore) LastIndex() (uint64, error) {
	if err := l.db.alive(); err != nil {
		return 0, err
	}
	return l.bounds.Load().last, nil
}

// GetLog reads the entry at index into out. Data and extensions may be shared with other readers and must
// not be changed. raft.ErrLogNotFound means that index is outside the log. An entry that should be there
// and is not, or cannot be read, latches the store with an error that matches ErrCorrupt.
func (l *logStore) GetLog(index uint64, out *raft.Log) error {
	if err := l.db.alive(); err != nil {
		return err
	}
	if !l.has(index) {
		return raft.ErrLogNotFound
	}
	if l.cache.get(index, out) {
		return nil
	}
	// raft-badger's decoder reuses the buffers of the entry it is given, which may still be read by
	// someone who got them from an earlier call.
	var fresh raft.Log
	err := l.db.read(func(in inner) error { return in.GetLog(index, &fresh) })
	switch {
	case err == nil && fresh.Index == index:
		*out = fresh
		return nil
	case errors.Is(err, ErrClosed), errors.Is(err, ErrFailed):
		return err
	case !l.has(index):
		return raft.ErrLogNotFound // deleted meanwhile
	case errors.Is(err, raft.ErrLogNotFound):
		// A damaged block of a table can look like this too.
		return l.db.latch.trip(fmt.Errorf("%w: %w: no entry %d", ErrHole, ErrCorrupt, index))
	case err == nil:
		return l.db.latch.trip(fmt.Errorf("%w: entry %d reads as entry %d", ErrCorrupt, index, fresh.Index))
	default:
		return l.db.latch.trip(fmt.Errorf("%w: read entry %d: %w", ErrCorrupt, index, err))
	}
}

func (l *logStore) has(index uint64) bool {
	b := l.bounds.Load()
	return index != 0 && index >= b.first && index <= b.last
}

// StoreLog is StoreLogs of one entry.
func (l *logStore) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs appends logs, durably, before it returns nil. It refuses what does not continue the log
// (ErrNotContiguous) or is too big (ErrEntryTooBig) without writing anything. A batch that does not fit
// one Badger transaction is written as several, in order, so a crash leaves a prefix of it. The entries
// are kept in the cache: their bytes must not be changed afterwards. Every other error is final.
func (l *logStore) StoreLogs(logs []*raft.Log) error {
	if err := l.db.alive(); err != nil {
		return err
	}
	if len(logs) == 0 {
		return nil
	}
	l.db.writeMu.Lock()
	defer l.db.writeMu.Unlock()
	l.phase("append", true)
	defer l.phase("append", false)

	// Invariant 5.
	next, total := logs[0].Index, int64(0)
	if b := l.bounds.Load(); b.last != 0 {
		next = b.last + 1
	}
	for _, log := range logs {
		if log.Index == 0 || log.Index != next {
			return fmt.Errorf("%w: got entry %d, want %d", ErrNotContiguous, log.Index, next)
		}
		n := len(log.Data) + len(log.Extensions)
		if n > MaxEntryBytes {
			return fmt.Errorf("%w: entry %d has %d bytes, at most %d are possible", ErrEntryTooBig, log.Index, n, MaxEntryBytes)
		}
		total += encodedBytes(log)
		next++
	}
	if err := l.room(total); err != nil {
		return err
	}
	for len(logs) > 0 {
		n := l.fit(logs)
		err := l.storeChunkLocked(logs[:n])
		for errors.Is(err, badger.ErrTxnTooBig) && n > 1 { // an estimate was too low; nothing was written
			n /= 2
			err = l.storeChunkLocked(logs[:n])
		}
		if errors.Is(err, badger.ErrTxnTooBig) {
			return fmt.Errorf("%w: entry %d: %w", ErrEntryTooBig, logs[0].Index, err)
		}
		if err != nil {
			return err
		}
		logs = logs[n:]
	}
	return nil
}

// storeChunkLocked writes one transaction.
func (l *logStore) storeChunkLocked(logs []*raft.Log) error {
	if err := l.db.write("append", func(in inner) error { return in.StoreLogs(logs) }); err != nil {
		return err
	}
	b := *l.bounds.Load()
	if b.last == 0 {
		b.first = logs[0].Index
	}
	b.last = logs[len(logs)-1].Index
	l.cache.append(logs)
	l.bounds.Store(&b)
	return nil
}

// encodedBytes is an upper bound of the encoded size of an entry: field names, numbers and time take less
// than what is added here.
func encodedBytes(l *raft.Log) int64 {
	return int64(len(l.Data)+len(l.Extensions)) + 192
}

// pointerBytes is what an entry that goes to the value log leaves in the transaction: key and pointer.
const pointerBytes = 64

// fit is how many of logs go into one transaction, at least one.
func (l *logStore) fit(logs []*raft.Log) int {
	var inTable, all int64
	for i, log := range logs {
		n := encodedBytes(log)
		all += n
		if len(log.Data)+len(log.Extensions) >= l.threshold { // surely encoded to at least as much
			inTable += pointerBytes
		} else {
			inTable += n
		}
		if i > 0 && (i >= maxChunkEntries || all > maxChunkBytes || inTable > l.txnBytes) {
			return i
		}
	}
	return len(logs)
}

// DeleteRange deletes the entries from lo to hi, as far as they exist. They must be a prefix or a suffix
// of the log, or all of it, else ErrMiddle. Whatever moment a crash hits, a contiguous log is left
// (Invariant 4). Appends wait for one chunk of a prefix deletion at most.
func (l *logStore) DeleteRange(lo, hi uint64) error {
	for {
		more, err := l.deleteSome(lo, hi)
		if err != nil || !more {
			return err
		}
		// A prefix deletion comes from raft's snapshot goroutine and has time.
		pause := time.NewTimer(deletePause)
		select {
		case <-pause.C:
		case <-l.stop:
			pause.Stop()
			return ErrClosed
		}
	}
}

// deleteSome deletes all of [lo, hi], or one chunk of it if it is a prefix, and says whether there is more
// to do.
func (l *logStore) deleteSome(lo, hi uint64) (more bool, err error) {
	l.db.writeMu.Lock()
	defer l.db.writeMu.Unlock()
	if err := l.db.alive(); err != nil {
		return false, err
	}
	b := *l.bounds.Load()
	lo, hi = max(lo, b.first), min(hi, b.last)
	switch {
	case b.last == 0 || lo > hi:
		return false, nil
	case lo == b.first && hi == b.last:
		return false, l.dropAllLocked()
	case lo == b.first:
		if hi-lo >= deleteChunk {
			hi, more = lo+deleteChunk-1, true
		}
		l.publish(bounds{hi + 1, b.last})
		return more, l.deleteChunkLocked(lo, hi)
	case hi == b.last:
		return false, l.deleteSuffixLocked(lo)
	}
	return false, fmt.Errorf("%w: %d to %d of %d to %d", ErrMiddle, lo, hi, b.first, b.last)
}

// deleteSuffixLocked deletes the entries from lo on, the newest first: were the oldest deleted first, a
// crash in between would leave a hole, and with it a node that can never start again.
func (l *logStore) deleteSuffixLocked(lo uint64) error {
	b := *l.bounds.Load()
	if mutantAscendingSuffix {
		l.publish(bounds{b.first, lo - 1})
		for ; lo <= b.last; lo += deleteChunk {
			if err := l.deleteChunkLocked(lo, min(b.last, lo+deleteChunk-1)); err != nil {
				return err
			}
		}
		return nil
	}
	for last := b.last; last >= lo; {
		from := lo
		if last-lo >= deleteChunk {
			from = last - deleteChunk + 1
		}
		l.publish(bounds{b.first, from - 1})
		if err := l.deleteChunkLocked(from, last); err != nil {
			return err
		}
		last = from - 1
	}
	return nil
}

// dropAllLocked empties the log: in one transaction if it is short, else by putting a new database in its
// place, which takes no longer for a long log, leaves no tombstones, and frees the disk.
func (l *logStore) dropAllLocked() error {
	b := *l.bounds.Load()
	if b.last == 0 {
		return l.db.alive()
	}
	if b.last-b.first < deleteChunk {
		l.publish(bounds{})
		return l.deleteChunkLocked(b.first, b.last)
	}
	l.publish(bounds{})
	return l.db.replace()
}

// publish makes b the bounds for all readers, before what lies outside is deleted.
func (l *logStore) publish(b bounds) {
	l.bounds.Store(&b)
	if b.last == 0 {
		l.cache.clear()
		return
	}
	l.cache.dropBefore(b.first)
	l.cache.dropAfter(b.last)
}

// deleteChunkLocked deletes at most deleteChunk entries, which fit one transaction.
func (l *logStore) deleteChunkLocked(lo, hi uint64) error {
	return l.db.write("delete", func(in inner) error { return in.DeleteRange(lo, hi) })
}

// load takes over the bounds at Open and reads the newest entries back.
func (l *logStore) load(found scan) error {
	var b bounds
	if err := l.db.read(func(in inner) (err error) {
		if b.first, err = in.FirstIndex(); err == nil {
			b.last, err = in.LastIndex()
		}
		return err
	}); err != nil {
		return fmt.Errorf("read bounds of the log: %w", err)
	}
	if found.done && (found.first != b.first || found.last != b.last) {
		return fmt.Errorf("%w: recovery found entries %d to %d, the open log has %d to %d",
			ErrCorrupt, found.first, found.last, b.first, b.last)
	}
	l.bounds.Store(&b)
	if b.last == 0 {
		return nil
	}
	from := b.first
	if b.last-b.first >= verifyTail {
		from = b.last - verifyTail + 1
	}
	for i := from; i <= b.last; i++ {
		var log raft.Log
		err := l.db.read(func(in inner) error { return in.GetLog(i, &log) })
		switch {
		case errors.Is(err, raft.ErrLogNotFound):
			return fmt.Errorf("%w: no entry %d in %d to %d", ErrHole, i, b.first, b.last)
		case err != nil:
			return fmt.Errorf("%w: read entry %d: %w", ErrCorrupt, i, err)
		case log.Index != i:
			return fmt.Errorf("%w: entry %d reads as entry %d", ErrCorrupt, i, log.Index)
		}
		l.cache.append([]*raft.Log{&log})
	}
	return nil
}

// scan is what a walk over the keys of a log found.
type scan struct {
	done        bool
	first, last uint64
}

// logPrefix is the first byte of raft-badger's log keys.
const logPrefix = 0x00

// scanLog walks over the keys of the log, without their values, and fails at the first hole.
func scanLog(db *badger.DB) (scan, error) {
	s := scan{done: true}
	err := db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{logPrefix}})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			key := it.Item().Key()
			if len(key) != 9 {
				return fmt.Errorf("%w: log key of %d bytes", ErrCorrupt, len(key))
			}
			index := binary.BigEndian.Uint64(key[1:])
			switch {
			case s.first == 0:
				s.first = index
			case index != s.last+1:
				return fmt.Errorf("%w: entry %d follows entry %d", ErrHole, index, s.last)
			}
			s.last = index
		}
		return nil
	})
	return s, err
}
