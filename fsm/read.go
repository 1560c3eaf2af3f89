package fsm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

// readRecord returns the key's record at the reader's revision, nil if absent. A
// value beside its header is loaded.
func readRecord(r *engine.Reader, key string) (*record, error) {
	var rec *record
	found, err := r.GetFunc(dataKey(key), func(b []byte, mod uint64) error {
		var err error
		if rec, err = decodeRecord(b, mod); err != nil {
			return damaged(err, "a key's record cannot be read")
		}
		if rec.loaded {
			rec.value = append([]byte(nil), rec.value...)
		}
		return nil
	})
	if err != nil || !found {
		return nil, err
	}
	return rec, nil
}

// readValue returns a record's value: the one it holds, the one beside its header, or
// one put together from its pieces.
func readValue(r *engine.Reader, key string, rec *record) ([]byte, error) {
	if rec.loaded {
		return rec.value, nil
	}
	if rec.pieces() == 0 {
		again, err := readRecord(r, key)
		if err != nil {
			return nil, err
		}
		if again == nil || again.mod != rec.mod || !again.loaded {
			return nil, kv.Errorf(kv.CodeCorruption, "a key's record is not there any more")
		}
		return again.value, nil
	}
	v, err := readPieces(r, rec.size, func(i uint32) []byte { return pieceKey(key, i) })
	if err != nil {
		return nil, err
	}
	// Invariant B3: what is read is what was written, or an error.
	if sha256.Sum256(v) != rec.valueHash {
		return nil, kv.Errorf(kv.CodeCorruption, "the pieces of a value do not add up to it")
	}
	return v, nil
}

// readPieces puts together what was stored in pieces under the keys that key names.
func readPieces(r *engine.Reader, size uint64, key func(i uint32) []byte) ([]byte, error) {
	v := make([]byte, 0, size)
	for i := range piecesOf(size) {
		found, err := r.GetFunc(key(i), func(b []byte, _ uint64) error {
			v = append(v, b...)
			return nil
		})
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, kv.Errorf(kv.CodeCorruption, "piece %d of %d bytes is missing", i, size)
		}
	}
	if uint64(len(v)) != size {
		return nil, kv.Errorf(kv.CodeCorruption, "the pieces of %d bytes have %d", size, len(v))
	}
	return v, nil
}

// readChanges returns the change list of one revision.
func readChanges(r *engine.Reader, rev kv.Revision) ([]change, error) {
	var ev *event
	found, err := r.GetFunc(eventKey(rev, finalPart), func(b []byte, _ uint64) error {
		var err error
		ev, err = decodeEvent(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("%w: the change record of revision %d is missing", ErrLostData, rev)
	}
	return listChanges(r, rev, ev)
}

// listChanges returns the whole change list of the revision whose record ev is. A list
// that lacks something is corruption, and says so.
func listChanges(r *engine.Reader, rev kv.Revision, ev *event) ([]change, error) {
	if ev.parts == 0 {
		return ev.inline, nil
	}
	out := make([]change, 0, ev.changes)
	for i := range ev.parts {
		found, err := r.GetFunc(eventKey(rev, i), func(b []byte, _ uint64) error {
			d := decoder{b: b}
			n := d.count(2)
			out = append(out, decodeChanges(&d, n)...)
			return d.end()
		})
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, damaged(ErrLostData, "part %d of the change record of revision %d is missing", i, rev)
		}
	}
	if uint64(len(out)) != ev.changes {
		return nil, kv.Errorf(kv.CodeCorruption, "revision %d lists %d of %d changes", rev, len(out), ev.changes)
	}
	return out, nil
}

// readAt opens a reader at rev, 0 meaning the newest, and returns the revision read.
// A revision that is gone is compacted; one not yet reached is invalid-argument.
func (f *FSM) readAt(rev kv.Revision) (*engine.Reader, kv.Revision, error) {
	if err := f.err(); err != nil {
		return nil, 0, err
	}
	for {
		p := f.pub.Load()
		if p.switching {
			return nil, 0, errSwitching()
		}
		at := rev
		if at == 0 {
			at = p.rev
		}
		if at > p.rev {
			return nil, 0, kv.Errorf(kv.CodeInvalidArgument, "revision %d is in the future, the newest is %d", at, p.rev)
		}
		if at < p.oldest {
			return nil, 0, compacted(p)
		}
		r, err := f.store.Engine().ReadAt(uint64(at))
		switch {
		case err == nil:
			if f.pub.Load().generation != p.generation {
				r.Close()
				return nil, 0, errSwitching()
			}
			return r, at, nil
		case errors.Is(err, engine.ErrDiscarded):
			// Newest moved on between the two steps: try again with what it is now.
			if rev == 0 {
				continue
			}
			return nil, 0, compacted(f.pub.Load())
		case errors.Is(err, engine.ErrClosed):
			return nil, 0, errSwitching()
		default:
			return nil, 0, fmt.Errorf("read revision %d: %w", at, err)
		}
	}
}

// errSwitching answers a read while an installed snapshot takes the database's place.
func errSwitching() error {
	return &kv.Error{Code: kv.CodeNotReady, Msg: "this node is switching to a newer copy of the data; try again", RetryAfter: time.Second}
}

func compacted(p *published) error {
	e := kv.Errorf(kv.CodeCompacted, "that revision is no longer kept; the oldest is %d", p.oldestReadable())
	e.OldestRevision = p.oldestReadable()
	return e
}

// checkRead closes a read: if history went past it meanwhile, what was read may be
// incomplete (invariant 15: such a read returns no error by itself).
func (f *FSM) checkRead(at kv.Revision, err error) error {
	if errors.Is(err, engine.ErrDiscarded) {
		return compacted(f.pub.Load())
	}
	return err
}

// Get returns the key at revision rev, 0 meaning the newest, and the revision that
// the answer is valid at; that is returned with a not-found error too. The value
// belongs to the caller.
func (f *FSM) Get(_ context.Context, key string, rev kv.Revision) (kv.Item, kv.Revision, error) {
	r, at, err := f.readAt(rev)
	if err != nil {
		return kv.Item{}, 0, err
	}
	defer r.Close()
	rec, err := readRecord(r, key)
	if err = f.checkRead(at, err); err != nil {
		return kv.Item{}, at, err
	}
	if rec == nil {
		return kv.Item{}, at, kv.Errorf(kv.CodeNotFound, "there is no such key at revision %d", at)
	}
	rec.value, err = readValue(r, key, rec)
	if err = f.checkRead(at, err); err != nil {
		return kv.Item{}, at, err
	}
	return *rec.item(key), at, nil
}

// NextExpiry returns the cluster time at which the next key falls due; ok is false
// if none does.
func (f *FSM) NextExpiry() (ms uint64, ok bool, err error) {
	// What is written after this look falls due after its clock.
	low := expiryKey(f.pub.Load().clock+1, "")
	r, at, err := f.readAt(0)
	if err != nil {
		return 0, false, err
	}
	defer r.Close()
	it := r.Scan(engine.ScanOptions{Start: f.expiryStart(), End: []byte{prefixExpiry + 1}, KeysOnly: true})
	defer it.Close()
	var first []byte
	if it.Next() {
		first = bytes.Clone(it.Key())
		ms, _, ok = decodeExpiryKey(first)
		if !ok {
			return 0, false, kv.Errorf(kv.CodeCorruption, "the expiry index has a malformed key")
		}
	}
	if err := f.checkRead(at, it.Err()); err != nil {
		return 0, false, err
	}
	if ok && bytes.Compare(first, low) < 0 {
		low = first
	}
	f.raiseExpiryLow(low)
	return ms, ok, nil
}

// Retained returns the oldest revision that a retention keeps: the state at cluster
// time ms and all that came after it is kept, but of that no more than most bytes (0: no
// bound) of changed keys and values.
func (f *FSM) Retained(ms, most uint64) (kv.Revision, error) {
	r, at, err := f.readAt(0)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	var newest *event
	load := func(rev kv.Revision) (ev *event, err error) {
		found, err := r.GetFunc(eventKey(rev, finalPart), func(b []byte, _ uint64) error {
			ev, err = decodeEvent(b)
			return err
		})
		if err == nil && !found {
			err = kv.Errorf(kv.CodeCorruption, "the change record of revision %d is missing", rev)
		}
		return ev, f.checkRead(at, err)
	}
	if at == 0 {
		return 0, nil
	}
	if newest, err = load(at); err != nil {
		return 0, err
	}
	// Neither stamps nor totals go back, so the records are sorted by both. Every
	// revision in (oldest, at] has its record. The search keeps: lo may be the answer
	// (or is the oldest that is left), hi+1 is kept.
	lo, hi := f.pub.Load().oldest, at
	for lo < hi {
		mid := lo + (hi-lo+1)/2
		ev, err := load(mid)
		if err != nil {
			return 0, err
		}
		if ev.stamp < ms || (most > 0 && newest.written-ev.written > most) {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	return lo, nil
}

// Recompute reads every key at the newest revision and returns the digest and the
// number of keys found there. It holds no lock that a write needs.
func (f *FSM) Recompute(ctx context.Context) (kv.Digest, uint64, error) {
	r, at, err := f.readAt(0)
	if err != nil {
		return kv.Digest{}, 0, err
	}
	defer r.Close()
	it := r.Scan(engine.ScanOptions{Start: []byte{prefixData}, End: []byte{prefixData + 1}})
	defer it.Close()
	var g digest
	var keys uint64
	for it.Next() {
		if err := ctx.Err(); err != nil {
			return kv.Digest{}, 0, err
		}
		rec, err := decodeRecord(it.Value(), it.Version())
		if err != nil {
			return kv.Digest{}, 0, damaged(err, "a key's record cannot be read")
		}
		key := string(it.Key()[1:])
		v, err := readValue(r, key, rec)
		if err != nil {
			return kv.Digest{}, 0, f.checkRead(at, err)
		}
		if sha256.Sum256(v) != rec.valueHash {
			return kv.Digest{}, 0, kv.Errorf(kv.CodeCorruption, "a value does not match its hash")
		}
		g.add(key, rec)
		keys++
	}
	if err := f.checkRead(at, it.Err()); err != nil {
		return kv.Digest{}, 0, err
	}
	return g.report(at), keys, nil
}
