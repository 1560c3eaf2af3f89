package fsm

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/settkv/sett/kv"
)

const (
	// ringBytes bounds the newest revisions that are kept in memory for watchers, and
	// revisionBytes one of them: a bigger one is read from the change index.
	ringBytes     = 16 << 20
	revisionBytes = 4 << 20
	// eventOverheadBytes is what an event takes besides keys and values.
	eventOverheadBytes = 256

	// matchBudget is how many watchers and events are looked at under one hold of the
	// lock, which Apply takes for a moment at the end of each batch.
	matchBudget = 2000
	// wakePause is how long the dispatcher rests for each watcher that it woke, beyond the
	// first wakeFree: many watchers then get more at once, and leave the processor to
	// writes meanwhile.
	wakePause = 50 * time.Microsecond
	wakeFree  = 16
)

// revisionEvents is one revision as watchers see it.
type revisionEvents struct {
	rev    kv.Revision
	events []*kv.Event
	bytes  int
	// noValue and noPrevious say that some event lacks what is only on disk.
	noValue, noPrevious bool
}

// hub keeps the newest revisions in memory and wakes the watchers that they concern
// (ADR 0012). It is told of each batch when that is published; nothing ever waits for a
// watcher.
type hub struct {
	watching atomic.Int64 // watchers, read by Apply without the lock
	ringMax  int
	crowd    int64 // how many watchers are not paced
	pacer    *pacer

	stop     chan struct{} // closed when no watch can go on
	stopOnce sync.Once
	wake     chan struct{} // one token
	running  sync.WaitGroup

	mu      sync.Mutex
	started bool
	ring    []*revisionEvents // consecutive revisions, the last is newest
	bytes   int
	newest  kv.Revision // published
	seen    kv.Revision // the dispatcher has looked at all up to here
	// Idle watchers, those that have been told everything that concerns them, by what
	// they watch. A watcher that something concerns is taken out until it has caught up.
	idle    int
	keys    map[string]map[*Watcher]struct{}
	prefix  map[string]map[*Watcher]struct{}
	lengths map[int]int // of the prefixes, and how many there are of each
	ranges  map[*Watcher]struct{}
}

func newHub() *hub {
	return &hub{
		ringMax: ringBytes, crowd: crowd, pacer: newPacer(), stop: make(chan struct{}), wake: make(chan struct{}, 1),
		keys: map[string]map[*Watcher]struct{}{}, prefix: map[string]map[*Watcher]struct{}{}, lengths: map[int]int{}, ranges: map[*Watcher]struct{}{},
	}
}

// close ends all watches and waits for the dispatcher. It is idempotent.
func (h *hub) close() {
	h.end()
	h.running.Wait()
}

func (h *hub) end() { h.stopOnce.Do(func() { close(h.stop) }) }

// batchBytes is how big a batch may be.
func (h *hub) batchBytes() int {
	if h.watching.Load() > h.crowd {
		return crowdBytes
	}
	return batchBytes
}

// collect makes the events of a transaction that has just been committed.
func (h *hub) collect(t *txn, keys []string) *revisionEvents {
	re := &revisionEvents{rev: t.rev, events: make([]*kv.Event, 0, len(keys))}
	for _, key := range keys {
		p := t.keys[key]
		e := &kv.Event{Type: kv.EventPut, Revision: t.rev, Item: kv.Item{Key: key}}
		re.bytes += eventOverheadBytes + 2*len(key)
		switch {
		case p.cur != nil && p.cur.loaded:
			e.Item = *p.cur.item(key)
			re.bytes += 3 * len(p.cur.value) // with what it is rendered to
		case p.cur != nil:
			re.noValue = true
		case p.expire:
			e.Type = kv.EventExpire
		default:
			e.Type = kv.EventDelete
		}
		switch {
		case p.old != nil && p.old.loaded:
			e.Previous = p.old.item(key)
			re.bytes += 3 * len(p.old.value)
		case p.old != nil:
			re.noPrevious = true
		}
		re.events = append(re.events, e)
		if re.bytes > revisionBytes {
			return nil
		}
	}
	return re
}

// publish tells of the revisions up to rev. fresh has those since the last call, as far
// as they are at hand; a nil one is not.
func (h *hub) publish(rev kv.Revision, fresh []*revisionEvents) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if rev == h.newest {
		return
	}
	for _, re := range fresh {
		if re == nil || len(h.ring) > 0 && h.ring[len(h.ring)-1].rev+1 != re.rev {
			h.clearRing()
		}
		if re == nil {
			continue
		}
		h.ring = append(h.ring, re)
		h.bytes += re.bytes
	}
	if n := len(h.ring); n > 0 && h.ring[n-1].rev != rev {
		h.clearRing()
	}
	drop := 0
	for h.bytes > h.ringMax && drop < len(h.ring) {
		h.bytes -= h.ring[drop].bytes
		h.ring[drop] = nil
		drop++
	}
	h.ring = h.ring[drop:]
	h.newest = rev
	if h.watching.Load() == 0 {
		h.clearRing()
		h.seen = rev
		return
	}
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *hub) clearRing() { h.ring, h.bytes = nil, 0 }

// fromLocked returns some of the revisions from rev on, if that is in memory.
func (h *hub) fromLocked(rev kv.Revision) []*revisionEvents {
	if len(h.ring) == 0 || rev < h.ring[0].rev || rev > h.newest {
		return nil
	}
	i := int(rev - h.ring[0].rev)
	return slices.Clone(h.ring[i:min(len(h.ring), i+batchRevisions)])
}

// run is the dispatcher.
func (h *hub) run() {
	for {
		select {
		case <-h.wake:
		case <-h.stop:
			return
		}
		woken := 0
		for {
			n, more := h.dispatch()
			woken += n
			if !more {
				break
			}
		}
		if woken <= wakeFree {
			continue
		}
		timer := time.NewTimer(time.Duration(woken-wakeFree) * wakePause)
		select {
		case <-timer.C:
		case <-h.stop:
			timer.Stop()
			return
		}
	}
}

// dispatch looks at some of the revisions that are new and wakes the idle watchers that
// they concern. It returns how many it woke, and whether there is more to look at.
func (h *hub) dispatch() (woken int, more bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.seen >= h.newest {
		return 0, false
	}
	next := h.seen + 1
	if len(h.ring) == 0 || h.ring[0].rev > next {
		// Some have left the memory, or never were in it: they may concern everybody.
		if !mutantWatchGap {
			woken = h.wakeAllLocked(next)
		}
		h.seen = h.newest
		if len(h.ring) > 0 {
			h.seen = h.ring[0].rev - 1
		}
		return woken, h.seen < h.newest
	}
	cost := 0
	for h.seen < h.newest && cost < matchBudget {
		re := h.ring[int(h.seen+1-h.ring[0].rev)]
		if h.idle > 0 {
			for _, e := range re.events {
				n := h.matchLocked(e.Item.Key, re.rev)
				woken += n
				cost += 1 + n + len(h.ranges) + len(h.lengths)
			}
		}
		cost++
		h.seen = re.rev
	}
	return woken, h.seen < h.newest
}

func (h *hub) matchLocked(key string, rev kv.Revision) (woken int) {
	woken += h.wakeSetLocked(h.keys[key], rev)
	for n := range h.lengths {
		if n <= len(key) {
			woken += h.wakeSetLocked(h.prefix[key[:n]], rev)
		}
	}
	for w := range h.ranges {
		if w.watch.Range.Contains(key) {
			woken += h.wakeLocked(w, rev)
		}
	}
	return woken
}

func (h *hub) wakeSetLocked(set map[*Watcher]struct{}, rev kv.Revision) (woken int) {
	for w := range set {
		woken += h.wakeLocked(w, rev)
	}
	return woken
}

// wakeAllLocked makes every idle watcher read from rev on, or from where it is.
func (h *hub) wakeAllLocked(rev kv.Revision) (woken int) {
	all := func(set map[*Watcher]struct{}) {
		for w := range set {
			if at := max(rev, w.next); at <= h.newest {
				woken += h.wakeLocked(w, at)
			}
		}
	}
	for _, sets := range []map[string]map[*Watcher]struct{}{h.keys, h.prefix} {
		for _, set := range sets {
			all(set)
		}
	}
	all(h.ranges)
	return woken
}

// wakeLocked makes an idle watcher read from rev on, unless it has been told of it.
func (h *hub) wakeLocked(w *Watcher, rev kv.Revision) int {
	if rev < w.next {
		return 0
	}
	h.leaveLocked(w)
	w.next = rev
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return 1
}

// restLocked makes w idle: it has been told all that concerns it below w.next.
func (h *hub) restLocked(w *Watcher) {
	w.idle = true
	h.idle++
	set := h.ranges
	switch w.kind {
	case watchKey:
		set = joined(h.keys, w.watch.Range.Start)
	case watchPrefix:
		set = joined(h.prefix, w.watch.Range.Start)
		if len(set) == 0 {
			h.lengths[len(w.watch.Range.Start)]++
		}
	}
	set[w] = struct{}{}
}

func joined(sets map[string]map[*Watcher]struct{}, key string) map[*Watcher]struct{} {
	set := sets[key]
	if set == nil {
		set = map[*Watcher]struct{}{}
		sets[key] = set
	}
	return set
}

// leaveLocked takes w out of the idle ones.
func (h *hub) leaveLocked(w *Watcher) {
	if !w.idle {
		return
	}
	w.idle = false
	h.idle--
	key := w.watch.Range.Start
	switch w.kind {
	case watchKey:
		delete(h.keys[key], w)
		if len(h.keys[key]) == 0 {
			delete(h.keys, key)
		}
	case watchPrefix:
		delete(h.prefix[key], w)
		if len(h.prefix[key]) == 0 {
			delete(h.prefix, key)
			if h.lengths[len(key)]--; h.lengths[len(key)] == 0 {
				delete(h.lengths, len(key))
			}
		}
	default:
		delete(h.ranges, w)
	}
}
