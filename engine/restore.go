package engine

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	badger "github.com/dgraph-io/badger/v2"
	"github.com/dgraph-io/badger/v2/pb"

	"github.com/settkv/sett/internal/badgerkit"
)

// RestoreWriter fills a fresh database from records in the order of an export. It is
// for one goroutine. It must be closed or aborted.
type RestoreWriter struct {
	cfg   Config
	db    *badger.DB
	sw    *badger.StreamWriter
	err   error // the first failure, or ErrClosed
	ended bool

	key     []byte // of the last record
	version uint64 // of the last record
	count   uint64
	batch   pb.KVList
	size    int
}

// restoreBatchBytes is how much is handed to Badger at once.
const restoreBatchBytes = 1 << 20

// CreateRestore starts a restore into cfg.Dir, which must be missing or empty. The
// result becomes a database only with Close.
func CreateRestore(cfg Config) (*RestoreWriter, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	entries, err := os.ReadDir(cfg.Dir)
	switch {
	case err == nil && len(entries) > 0:
		// Invariant 17: never over live data.
		return nil, fmt.Errorf("create restore: %s is not empty", cfg.Dir)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("create restore: %w", err)
	}
	db, err := openDB(cfg)
	if err != nil {
		return nil, fmt.Errorf("create restore: %w", err)
	}
	w := &RestoreWriter{cfg: cfg, db: db, sw: db.NewStreamWriter()}
	if err := w.sw.Prepare(); err != nil {
		w.Abort()
		return nil, fmt.Errorf("create restore: %w", err)
	}
	return w, nil
}

// Write adds records: keys ascending, versions of a key descending, over all calls
// together. It keeps no reference to them. After an error the restore can only be
// aborted.
func (w *RestoreWriter) Write(records []Record) error {
	if w.err != nil {
		return w.err
	}
	for i := range records {
		if err := w.add(&records[i]); err != nil {
			w.err = fmt.Errorf("restore: %w", err)
			return w.err
		}
	}
	return nil
}

func (w *RestoreWriter) add(r *Record) error {
	// Badger panics, in a goroutine of its own, on keys out of order.
	en := Entry{Key: r.Key, Value: r.Value, Delete: r.Delete}
	if err := en.check(); err != nil {
		return err
	}
	if r.Version == 0 || r.Version == math.MaxUint64 {
		return fmt.Errorf("%w: version %d", ErrInvalid, r.Version)
	}
	if w.count > 0 {
		if c := bytes.Compare(r.Key, w.key); c < 0 || c == 0 && r.Version >= w.version {
			return fmt.Errorf("%w: records out of order", ErrInvalid)
		}
	}
	w.key, w.version = append(w.key[:0], r.Key...), r.Version
	w.count++
	// Badger refers to the value until its table is built.
	kv := &pb.KV{Key: bytes.Clone(r.Key), Value: bytes.Clone(r.Value), Version: r.Version, StreamId: 1}
	if r.Delete {
		kv.Meta = []byte{metaTombstone}
	}
	w.batch.Kv = append(w.batch.Kv, kv)
	w.size += en.bytes()
	if w.size >= restoreBatchBytes {
		return w.send()
	}
	return nil
}

func (w *RestoreWriter) send() error {
	if w.size == 0 {
		return nil
	}
	// Invariant B2: Badger panics when a table cannot be written.
	free, err := w.cfg.freeBytes(w.cfg.Dir)
	if err != nil {
		return err
	}
	if free < w.cfg.MinFreeBytes {
		return fmt.Errorf("%w: %s has %d MiB free", badgerkit.ErrNoSpace, w.cfg.Dir, free>>20)
	}
	err = w.sw.Write(&w.batch)
	w.batch.Kv, w.size = nil, 0
	return err
}

// Close writes out the rest, syncs, closes, and opens the result once to see that
// all of it is there. Only when it returns nil is there a database in the folder.
// After an error everything is removed, as by Abort.
func (w *RestoreWriter) Close() error {
	if w.ended {
		return w.err
	}
	if w.err == nil {
		w.err = w.finish()
	}
	if w.err != nil {
		err := w.err
		w.Abort()
		return err
	}
	w.ended, w.err = true, ErrClosed
	return nil
}

func (w *RestoreWriter) finish() error {
	if err := w.send(); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if err := w.sw.Flush(); err != nil {
		return fmt.Errorf("restore: flush: %w", err)
	}
	if err := w.db.Sync(); err != nil {
		return fmt.Errorf("restore: sync: %w", err)
	}
	db := w.db
	w.db = nil
	if err := db.Close(); err != nil {
		return fmt.Errorf("restore: close: %w", err)
	}
	if err := w.check(); err != nil {
		return fmt.Errorf("restore: check: %w", err)
	}
	return syncDir(filepath.Dir(w.cfg.Dir))
}

// check reopens the database, which verifies the checksum of every table, and counts
// what is in it. The reopening also gives Badger its clock back, which a stream
// writer does not set in managed mode (G13).
func (w *RestoreWriter) check() error {
	db, err := openDB(w.cfg)
	if err != nil {
		return err
	}
	txn := db.NewTransactionAt(math.MaxUint64, false)
	it := txn.NewIterator(badger.IteratorOptions{AllVersions: true})
	var n uint64
	for it.Rewind(); it.Valid(); it.Next() {
		n++
	}
	it.Close()
	txn.Discard()
	if err := db.Close(); err != nil {
		return err
	}
	if n != w.count {
		return fmt.Errorf("%w: %d records were written and %d are there", ErrCorrupt, w.count, n)
	}
	return nil
}

// Abort gives the restore up and removes what was written. It is idempotent, and
// after Close it does nothing.
func (w *RestoreWriter) Abort() {
	if w.ended {
		return
	}
	w.ended = true
	if w.err == nil {
		w.err = ErrClosed
	}
	if w.db != nil {
		// The stream writer's goroutines end only with a flush.
		if err := w.sw.Flush(); err != nil {
			w.cfg.Logger.Warn("abort restore: flush", "error", err)
		}
		if err := w.db.Close(); err != nil {
			w.cfg.Logger.Warn("abort restore: close", "error", err)
		}
		w.db = nil
	}
	if err := os.RemoveAll(w.cfg.Dir); err != nil {
		w.cfg.Logger.Warn("abort restore: remove", "error", err)
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
