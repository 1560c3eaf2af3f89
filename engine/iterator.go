package engine

import (
	"bytes"
	"fmt"

	badger "github.com/dgraph-io/badger/v2"
)

// ScanOptions is a range of keys: from Start (inclusive; empty is the first key) to
// End (exclusive; empty is beyond the last key), upwards, or downwards with Reverse.
// With KeysOnly values are not loaded. The iterator keeps the slices.
type ScanOptions struct {
	Start, End []byte
	Reverse    bool
	KeysOnly   bool
}

// Iterator walks the keys that exist at its reader's revision. It is for one
// goroutine at a time. It must be closed, or its reader.
type Iterator struct {
	r     *Reader
	txn   *badger.Txn
	opt   ScanOptions
	bopt  badger.IteratorOptions
	ended bool
	err   error

	// target is where Next goes if seeking.
	target  []byte
	seeking bool

	// it is Badger's iterator, nil while parked; guarded by r.mu.
	it *badger.Iterator
	// item is the current one. Its memory is its own and survives it.
	item  *badger.Item
	value []byte
}

// Scan returns an iterator that stands before the first key of the range. Errors
// show in Err, after Next has returned false.
func (r *Reader) Scan(opt ScanOptions) *Iterator {
	return r.iterate(r.txn, opt, false)
}

func (r *Reader) iterate(txn *badger.Txn, opt ScanOptions, allVersions bool) *Iterator {
	return &Iterator{r: r, txn: txn, opt: opt, bopt: badger.IteratorOptions{
		// Invariant B9: prefetching starts a goroutine for each item.
		PrefetchValues: false,
		Reverse:        opt.Reverse,
		AllVersions:    allVersions,
		Prefix:         commonPrefix(opt),
	}}
}

// commonPrefix returns what all keys of the range begin with, so that Badger can
// leave tables out.
func commonPrefix(opt ScanOptions) []byte {
	n := 0
	for n < len(opt.Start) && n < len(opt.End) && opt.Start[n] == opt.End[n] {
		n++
	}
	// [ab1, ab2) is all of prefix ab1. Downwards, Badger is to find End itself.
	if !opt.Reverse && len(opt.End) == n+1 && len(opt.Start) > n && opt.Start[n]+1 == opt.End[n] {
		n++
	}
	return opt.Start[:n]
}

// Next moves to the next key and says whether there is one.
func (it *Iterator) Next() bool {
	if it.ended {
		return false
	}
	if err := it.next(); err != nil {
		it.err = err
		it.ended = true
		it.Close()
	}
	return !it.ended
}

// Seek makes the next call of Next go to the first key at or after key; in a reverse
// scan to the first one before key. It only moves ahead: a key that the iterator has
// passed, that an earlier Seek goes beyond, or that lies in front of the range, changes
// nothing.
func (it *Iterator) Seek(key []byte) {
	switch {
	case it.opt.Reverse && len(it.opt.End) > 0 && bytes.Compare(key, it.opt.End) >= 0:
	case !it.opt.Reverse && bytes.Compare(key, it.opt.Start) <= 0:
	case it.seeking && !it.further(key, it.target):
	case it.item != nil && !it.further(key, it.item.Key()):
	default:
		it.target, it.seeking = append(it.target[:0], key...), true
	}
}

// further says that a scan comes to a only behind b.
func (it *Iterator) further(a, b []byte) bool {
	if it.opt.Reverse {
		return bytes.Compare(a, b) < 0
	}
	return bytes.Compare(a, b) > 0
}

// seekLocked carries out a Seek.
func (it *Iterator) seekLocked() {
	it.seeking = false
	it.it.Seek(it.target)
	for it.opt.Reverse && it.it.Valid() && bytes.Compare(it.it.Item().Key(), it.target) >= 0 {
		it.it.Next()
	}
}

func (it *Iterator) next() error {
	r := it.r
	if err := r.enter(); err != nil {
		return err
	}
	if it.it == nil {
		// Order of locks: the gate comes first.
		r.mu.Unlock()
		r.e.gate.RLock()
		defer r.e.gate.RUnlock()
		if err := r.enter(); err != nil {
			return err
		}
		defer r.mu.Unlock()
		it.openLocked()
	} else {
		defer r.mu.Unlock()
		if !it.seeking {
			it.it.Next()
		}
	}
	if it.seeking {
		it.seekLocked()
	}
	if !it.it.Valid() {
		it.endLocked()
		return nil
	}
	item := it.it.Item()
	if it.outside(item.Key()) {
		it.endLocked()
		return nil
	}
	it.item, it.value = item, nil
	if it.opt.KeysOnly {
		return nil
	}
	err := item.Value(func(v []byte) error { it.value = v; return nil })
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	return nil
}

// outside says that key is behind the end of the range.
func (it *Iterator) outside(key []byte) bool {
	if it.opt.Reverse {
		return bytes.Compare(key, it.opt.Start) < 0
	}
	return len(it.opt.End) > 0 && bytes.Compare(key, it.opt.End) >= 0
}

// openLocked opens Badger's iterator on the item after the current one, or on the
// first of the range.
func (it *Iterator) openLocked() {
	b := it.txn.NewIterator(it.bopt)
	it.it = b
	if it.r.iters == nil {
		it.r.iters = make(map[*Iterator]struct{})
	}
	it.r.iters[it] = struct{}{}
	switch {
	case it.item != nil:
		key, version := it.item.KeyCopy(nil), it.item.Version()
		b.Seek(key)
		for b.Valid() && bytes.Equal(b.Item().Key(), key) && (!it.bopt.AllVersions || b.Item().Version() >= version) {
			b.Next()
		}
	case it.opt.Reverse && len(it.opt.End) > 0:
		b.Seek(it.opt.End)
		for b.Valid() && bytes.Compare(b.Item().Key(), it.opt.End) >= 0 {
			b.Next()
		}
	case !it.opt.Reverse && len(it.opt.Start) > 0:
		b.Seek(it.opt.Start)
	default:
		b.Rewind()
	}
}

// parkLocked closes Badger's iterator; Next opens it again.
func (it *Iterator) parkLocked() {
	if it.it != nil {
		it.it.Close()
		it.it = nil
	}
	delete(it.r.iters, it)
}

func (it *Iterator) endLocked() {
	it.ended = true
	it.item, it.value = nil, nil
	it.parkLocked()
}

// Key returns the current key, valid until the next call of Next. Like Value and
// Version it may only be called after Next has returned true.
func (it *Iterator) Key() []byte { return it.item.Key() }

// Value returns the current value, nil with KeysOnly, valid until the next call of
// Next.
func (it *Iterator) Value() []byte { return it.value }

// Version returns the revision that wrote the current value.
func (it *Iterator) Version() uint64 { return it.item.Version() }

// Err returns why Next returned false, nil at the end of the range.
func (it *Iterator) Err() error { return it.err }

// Close releases the iterator. It is idempotent.
func (it *Iterator) Close() {
	it.r.mu.Lock()
	defer it.r.mu.Unlock()
	it.ended = true
	it.parkLocked()
}
