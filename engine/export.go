package engine

import (
	"bytes"
	"math"
)

// Record is one version of a key. A tombstone has Delete set and no value.
type Record struct {
	Key, Value []byte
	Version    uint64
	Delete     bool
}

// Export calls fn with the reader's content and the history above floor: for each
// key in order, versions newest first, all with floor < version ≤ TS, then the
// newest one ≤ floor unless it is a tombstone. The sequence is a function of what
// was committed, floor and TS alone: two passes of one reader are equal, whatever is
// written, trimmed or compacted meanwhile.
//
// The history above floor must not be discarded yet (ErrDiscarded); from the first
// call until the reader is closed it is kept. A record's slices are valid during the
// call. fn may take its time: nothing of Badger is locked. An error of fn ends the
// export and is returned.
func (r *Reader) Export(floor uint64, fn func(Record) error) error {
	floor = min(floor, r.ts)
	if err := r.Hold(floor); err != nil {
		return err
	}
	// Invariant 16: the content is exactly one read timestamp.
	txn, top := r.txn, r.ts
	if mutantTornExport {
		txn, top = r.e.db.NewTransactionAt(math.MaxUint64, false), math.MaxUint64
		defer txn.Discard()
	}
	it := r.iterate(txn, ScanOptions{}, true)
	defer it.Close()
	var key []byte
	based := false // the version that stands for all at or below floor was seen
	for it.Next() {
		if !bytes.Equal(it.Key(), key) {
			key = append(key[:0], it.Key()...)
			based = false
		}
		v := it.Version()
		dead := it.item.IsDeletedOrExpired()
		switch {
		case v > top || based:
			continue
		case v <= floor:
			based = true
			if dead {
				continue
			}
		}
		rec := Record{Key: key, Version: v, Delete: dead}
		if !dead {
			rec.Value = it.Value()
		}
		if err := fn(rec); err != nil {
			return err
		}
	}
	return it.Err()
}
