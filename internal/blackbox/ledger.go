package blackbox

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Outcome is what became of one write.
type Outcome byte

// The outcomes; the letters stand in the ledger's file.
const (
	Acked      Outcome = 'A' // answered 2xx
	NotApplied Outcome = 'N' // answered "not-applied", or never sent
	InDoubt    Outcome = 'U' // everything else
)

// Record is one finished write. SizeBytes is -1 for a delete. Revision is the
// write's own and is meaningful for Acked only; 0 there means that the write
// changed nothing (a delete of an absent key).
type Record struct {
	Outcome   Outcome
	Key       string
	Seq       uint64
	SizeBytes int
	Revision  uint64
}

// Counts tells how many writes ended how, and how many reads checked them.
type Counts struct {
	Acked, NotApplied, InDoubt, Reads int
}

// String is one line for people.
func (c Counts) String() string {
	return fmt.Sprintf("%d acknowledged, %d not applied, %d in doubt, %d checked reads", c.Acked, c.NotApplied, c.InDoubt, c.Reads)
}

// history is what one key may be. last is the newest acknowledged write; doubts
// are all writes in doubt, each of which may take effect at any time after it was
// sent, a later acknowledged write notwithstanding.
type history struct {
	last    *Record
	doubts  []Record
	acked   int
	deletes bool
}

// Ledger remembers the outcome of every write of a Load. It is safe for
// concurrent use.
type Ledger struct {
	mu         sync.Mutex
	keys       map[string]*history
	byRevision map[uint64]string
	counts     Counts
	maxRev     uint64
	violations []string
	sink       io.Writer
}

// NewLedger makes an empty ledger. Each record is also written to sink, one line,
// before the writer goes on; nil means nowhere.
func NewLedger(sink io.Writer) *Ledger {
	return &Ledger{keys: map[string]*history{}, byRevision: map[uint64]string{}, sink: sink}
}

// ReadLedger reads what another ledger wrote to its sink. A last line that was cut
// short by the end of that process is an error: its write has no known outcome.
func ReadLedger(r io.Reader) (*Ledger, error) {
	l := NewLedger(nil)
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		text := sc.Text()
		if bad, ok := strings.CutPrefix(text, "! "); ok {
			l.violations = append(l.violations, bad)
			continue
		}
		var rec Record
		if _, err := fmt.Sscanf(text, "%c %s %d %d %d .", &rec.Outcome, &rec.Key, &rec.Seq, &rec.SizeBytes, &rec.Revision); err != nil {
			return nil, fmt.Errorf("read ledger, line %d %q: %w", n, text, err)
		}
		l.Add(rec)
	}
	return l, sc.Err()
}

// Add enters a finished write.
func (l *Ledger) Add(rec Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sink != nil {
		// A dot ends the line so that a cut one is noticed.
		if _, err := fmt.Fprintf(l.sink, "%c %s %d %d %d .\n", rec.Outcome, rec.Key, rec.Seq, rec.SizeBytes, rec.Revision); err != nil {
			l.violateLocked("write the ledger's file: %v", err)
		}
	}
	h := l.keys[rec.Key]
	if h == nil {
		h = &history{}
		l.keys[rec.Key] = h
	}
	h.deletes = h.deletes || rec.SizeBytes < 0
	switch rec.Outcome {
	case Acked:
		l.counts.Acked++
		h.acked++
		l.checkRevisionLocked(rec, h)
		h.last = &rec
	case InDoubt:
		l.counts.InDoubt++
		h.doubts = append(h.doubts, rec)
	default:
		l.counts.NotApplied++
	}
}

func (l *Ledger) checkRevisionLocked(rec Record, h *history) {
	if rec.Revision == 0 {
		return
	}
	if other, taken := l.byRevision[rec.Revision]; taken {
		l.violateLocked("revision %d was given to two acknowledged writes, of %s and of %s", rec.Revision, other, rec.Key)
	}
	l.byRevision[rec.Revision] = rec.Key
	if h.last != nil && rec.Revision <= h.last.Revision {
		l.violateLocked("%s: write %d has revision %d, an earlier one has %d", rec.Key, rec.Seq, rec.Revision, h.last.Revision)
	}
	l.maxRev = max(l.maxRev, rec.Revision)
}

// Violate enters a broken promise that was seen while the load ran.
func (l *Ledger) Violate(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.violateLocked(format, args...)
}

// maxViolations bounds what is remembered: one bug can break a promise per request.
const maxViolations = 50

func (l *Ledger) violateLocked(format string, args ...any) {
	if len(l.violations) > maxViolations {
		return
	}
	text := fmt.Sprintf(format, args...)
	if len(l.violations) == maxViolations {
		text = "and more, which are not listed"
	}
	l.violations = append(l.violations, text)
	if l.sink != nil {
		// The violation stands in memory too; a sink that fails is reported by Add.
		_, _ = fmt.Fprintf(l.sink, "! %s\n", strings.ReplaceAll(text, "\n", " "))
	}
}

// Violations returns the broken promises seen so far.
func (l *Ledger) Violations() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.violations...)
}

// Counts returns the tally so far.
func (l *Ledger) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// MaxRevision returns the highest revision of an acknowledged write.
func (l *Ledger) MaxRevision() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.maxRev
}

// Keys returns every key that was ever written to, in no order.
func (l *Ledger) Keys() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	keys := make([]string, 0, len(l.keys))
	for k := range l.keys {
		keys = append(keys, k)
	}
	return keys
}

// Seen is what a read of a key found.
type Seen struct {
	Exists   bool
	Value    []byte
	Revision uint64 // mod revision
	Version  uint64
}

// Check compares what a read found with what it may find. The key's writer must
// have no write at work. An empty string means that all is well.
func (l *Ledger) Check(key string, seen Seen) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.keys[key]
	if h == nil {
		if seen.Exists {
			return key + ": exists, and nobody wrote it"
		}
		return ""
	}
	if bad := h.checkValue(key, seen); bad != "" {
		return bad
	}
	if seen.Exists && !h.deletes {
		least, most := uint64(h.acked), uint64(h.acked+len(h.doubts))
		if seen.Version < least || seen.Version > most {
			return fmt.Sprintf("%s: version %d after %d acknowledged puts and %d in doubt", key, seen.Version, h.acked, len(h.doubts))
		}
	}
	return ""
}

func (h *history) checkValue(key string, seen Seen) string {
	switch {
	case h.last == nil && !seen.Exists:
		return ""
	case h.last != nil && h.last.matches(seen):
		// A delete's revision is not to be seen in an absent key.
		if seen.Exists && seen.Revision != h.last.Revision {
			return fmt.Sprintf("%s: mod revision %d, acknowledged with %d", key, seen.Revision, h.last.Revision)
		}
		return ""
	}
	for i := range h.doubts {
		if h.doubts[i].matches(seen) {
			return ""
		}
	}
	want := "nothing"
	if h.last != nil {
		want = h.last.describe()
	}
	return fmt.Sprintf("%s: want %s, or one of %d in doubt; found %s", key, want, len(h.doubts), describeSeen(seen))
}

func (r *Record) matches(seen Seen) bool {
	if r.SizeBytes < 0 {
		return !seen.Exists
	}
	return seen.Exists && matchesValue(r, seen.Value)
}

func (r *Record) describe() string {
	if r.SizeBytes < 0 {
		return fmt.Sprintf("absence (deleted by write %d at revision %d)", r.Seq, r.Revision)
	}
	return fmt.Sprintf("write %d (%d bytes, revision %d)", r.Seq, r.SizeBytes, r.Revision)
}

func describeSeen(s Seen) string {
	if !s.Exists {
		return "absence"
	}
	head := s.Value
	if len(head) > 48 {
		head = head[:48]
	}
	return fmt.Sprintf("%d bytes %q… at revision %d", len(s.Value), head, s.Revision)
}
