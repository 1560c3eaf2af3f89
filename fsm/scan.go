package fsm

import (
	"errors"
	"strings"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

// Scanner walks a range at one revision. It is for one goroutine, uses constant memory
// whatever the range's size, and must be closed. It holds history for a bounded time
// only: a scan that takes longer ends with kv.ErrCompacted, never with keys missing.
type Scanner struct {
	f   *FSM
	q   kv.Scan
	rev kv.Revision

	r     *engine.Reader
	it    *engine.Iterator
	entry kv.ScanEntry
	// rolled is the last common prefix: keys that begin with it are skipped.
	rolled string
	err    error
	done   bool
}

// Scan begins a walk over q at revision rev, 0 meaning the newest. A revision that is
// gone is compacted, one not yet reached invalid-argument. It is bounded by the steps
// that its caller makes: keys that are rolled up are jumped over.
func (f *FSM) Scan(q kv.Scan, rev kv.Revision) (*Scanner, error) {
	r, at, err := f.readAt(rev)
	if err != nil {
		return nil, err
	}
	start, end := dataRange(q.Range)
	it := r.Scan(engine.ScanOptions{Start: start, End: end, Reverse: q.Reverse})
	return &Scanner{f: f, q: q, rev: at, r: r, it: it}, nil
}

// Revision returns the revision that all results are of.
func (s *Scanner) Revision() kv.Revision { return s.rev }

// Entry returns the current result. Its value is valid until the next call of Next.
func (s *Scanner) Entry() *kv.ScanEntry { return &s.entry }

// Err returns why Next returned false, nil at the end of the range.
func (s *Scanner) Err() error { return s.err }

// Close releases the scan. It is idempotent.
func (s *Scanner) Close() {
	s.done = true
	s.r.Close()
}

// Next moves to the next result and says whether there is one.
func (s *Scanner) Next() bool {
	if s.done {
		return false
	}
	ok, err := s.next()
	if err != nil {
		s.err = s.f.checkRead(s.rev, err)
		if errors.Is(err, engine.ErrClosed) {
			s.err = errSwitching()
		}
	}
	if !ok || err != nil {
		s.Close()
		return false
	}
	return true
}

func (s *Scanner) next() (bool, error) {
	for s.it.Next() {
		key := string(s.it.Key()[1:])
		if s.rolled != "" && strings.HasPrefix(key, s.rolled) {
			if !s.skipRolled() {
				return false, nil
			}
			continue
		}
		if s.q.Delimiter != "" && len(key) > len(s.q.Prefix) {
			if i := strings.Index(key[len(s.q.Prefix):], s.q.Delimiter); i >= 0 {
				s.rolled = key[:len(s.q.Prefix)+i+len(s.q.Delimiter)]
				s.entry = kv.ScanEntry{CommonPrefix: s.rolled}
				return true, nil
			}
		}
		return s.item(key)
	}
	return false, s.it.Err()
}

// skipRolled moves past the keys that were rolled up; false means that nothing can come
// after them.
func (s *Scanner) skipRolled() bool {
	if s.q.Reverse {
		s.it.Seek(dataKey(s.rolled))
		return true
	}
	end := kv.PrefixEnd(s.rolled)
	if end == "" {
		return false
	}
	s.it.Seek(dataKey(end))
	return true
}

func (s *Scanner) item(key string) (bool, error) {
	rec, err := decodeRecord(s.it.Value(), s.it.Version())
	if err != nil {
		return false, damaged(err, "a key's record cannot be read")
	}
	if s.q.KeysOnly {
		rec.value, rec.loaded = nil, true
	} else if !rec.loaded {
		if rec.value, err = readValue(s.r, key, rec); err != nil {
			return false, err
		}
	}
	s.entry = kv.ScanEntry{Item: *rec.item(key)}
	if s.q.KeysOnly {
		s.entry.Item.Value = nil
	}
	return true, nil
}
