package fsm

import (
	"fmt"
	"slices"
	"time"

	"github.com/settkv/sett/kv"
)

// maxPins bounds the pins that live at once.
const maxPins = 1000

// pin holds history from a revision on. What is decided about pins depends on the small
// state alone, which every start rebuilds from the log in the same way.
type pin struct {
	ID       string      `json:"id"`
	Revision kv.Revision `json:"revision"`
	Expires  uint64      `json:"expires"` // cluster milliseconds
}

// dropPins takes away the pins whose time is over by the cluster clock.
func (s *small) dropPins() {
	over := func(p pin) bool { return p.Expires < s.clock }
	if slices.ContainsFunc(s.pins, over) {
		s.pins = slices.DeleteFunc(slices.Clone(s.pins), over)
	}
}

// pin makes one, named after its command's place in the log.
func (s *small) pin(pos position, rev kv.Revision, ttl uint64) (kv.Pin, *kv.Error) {
	switch {
	case rev < s.compact:
		e := kv.NotApplied(kv.CodeCompacted, "revision %d is no longer kept; the oldest is %d", rev, s.compact)
		e.OldestRevision = s.compact
		return kv.Pin{}, e
	case len(s.pins) >= maxPins:
		e := kv.NotApplied(kv.CodeOverloaded, "there are %d pins already; delete some, or wait until they end", maxPins)
		e.RetryAfter = time.Second
		return kv.Pin{}, e
	}
	p := pin{ID: fmt.Sprintf("pin-%d-%d", pos.index, pos.sub), Revision: rev, Expires: s.clock + min(ttl, uint64(kv.MaxPinTTL/time.Millisecond))}
	s.pins = append(slices.Clip(s.pins), p)
	return kv.Pin{ID: p.ID, Revision: p.Revision, ExpiresAt: timeOf(p.Expires)}, nil
}

func (s *small) unpin(id string) bool {
	i := slices.IndexFunc(s.pins, func(p pin) bool { return p.ID == id })
	if i < 0 {
		return false
	}
	s.pins = slices.Delete(slices.Clone(s.pins), i, i+1)
	return true
}

// compactTo lets history below rev go, as far as no pin holds it.
func (s *small) compactTo(rev kv.Revision) kv.Compaction {
	var c kv.Compaction
	for _, p := range s.pins {
		if p.Revision < rev && p.Revision >= s.compact {
			c.HeldBy = append(c.HeldBy, p.ID)
		}
	}
	for _, p := range s.pins {
		rev = min(rev, p.Revision)
	}
	s.compact = max(s.compact, rev)
	c.To = s.compact
	return c
}
