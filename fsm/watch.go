package fsm

import (
	"context"
	"errors"
	"time"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

const (
	// A batch ends with the revision that reaches one of these.
	batchEvents = 1000
	batchBytes  = 256 << 10
	crowdBytes  = 32 << 10 // in a crowd
	// batchRevisions is how many revisions are looked at for one batch.
	batchRevisions = 4096
)

// What a watcher watches, as the hub sorts it.
const (
	watchRange = iota
	watchKey
	watchPrefix
)

// Watcher is a position in the change index that moves on. It is for one goroutine, but
// for Close. Events come from memory if they are recent, else from disk: a watcher that
// is slow costs nobody anything until history is compacted under it.
type Watcher struct {
	f     *FSM
	watch kv.Watch
	kind  int
	begun kv.Revision
	wake  chan struct{} // one token
	// debt is what the last batch cost and the watcher has not waited for. See pacer.
	debt int
	// within is how many changes of revision next have been told or passed over: one that is
	// too big for memory is told in parts.
	within int

	// next is the first revision that the watcher has not been told of, as far as is
	// known; idle says that the hub knows of none that concerns it. Guarded by f.hub.mu.
	next   kv.Revision
	idle   bool
	closed bool
}

// Watch begins to follow changes. A start after the revision that follows the newest is
// invalid-argument, one before the oldest that is kept is compacted. The watcher must be
// closed.
func (f *FSM) Watch(watch kv.Watch) (*Watcher, error) {
	if err := f.err(); err != nil {
		return nil, err
	}
	w := &Watcher{f: f, watch: watch, wake: make(chan struct{}, 1)}
	if watch.Range.End == watch.Range.Start+"\x00" {
		w.kind = watchKey
	} else if _, ok := watch.Range.Prefix(); ok {
		w.kind = watchPrefix
	}
	h := f.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.stop:
		return nil, f.watchEnd()
	default:
	}
	w.begun, w.next = h.newest, watch.From
	p := f.pub.Load()
	switch {
	case watch.From == 0:
		w.next = h.newest + 1
	case watch.From > h.newest+1:
		return nil, kv.Errorf(kv.CodeInvalidArgument, "revision %d is in the future: a watch begins at %d at the latest", watch.From, h.newest+1)
	case watch.From < p.oldestReadable():
		return nil, compacted(p)
	}
	// From here on the hub collects what is committed. What is committed and not published
	// by now is a gap to it.
	h.watching.Add(1)
	if !h.started {
		h.started = true
		h.running.Go(h.run)
	}
	if w.next > h.newest {
		h.restLocked(w)
	}
	return w, nil
}

// watchEnd says why no watch can go on any more.
func (f *FSM) watchEnd() error {
	if err := f.err(); err != nil {
		return err
	}
	return &kv.Error{Code: kv.CodeNotReady, Msg: "this node is stopping; watch on another node", RetryAfter: time.Second}
}

// Revision returns the store's revision when the watch began.
func (w *Watcher) Revision() kv.Revision { return w.begun }

// Close ends the watch. It is idempotent.
func (w *Watcher) Close() {
	h := w.f.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.closed {
		return
	}
	w.closed = true
	h.leaveLocked(w)
	select {
	case w.wake <- struct{}{}: // a Next that waits
	default:
	}
	if h.watching.Add(-1) == 0 {
		h.clearRing()
		h.seen = h.newest
	}
}

// Next waits for changes and returns the next events, whole revisions in order; or, if
// there is none for Watch.Progress, how far all has been told. It fails with compacted
// if history was compacted before the watcher got there.
func (w *Watcher) Next(ctx context.Context) (kv.WatchBatch, error) {
	var progress <-chan time.Time
	if w.watch.Progress > 0 {
		timer := time.NewTimer(w.watch.Progress)
		defer timer.Stop()
		progress = timer.C
	}
	due := false // progress has passed
	if w.debt > 0 && w.f.hub.watching.Load() > w.f.hub.crowd && !w.f.hub.pacer.wait(ctx, w.debt, progress, w.f.hub.stop) {
		select {
		case <-ctx.Done():
			return kv.WatchBatch{}, ctx.Err()
		case <-w.f.hub.stop:
			return kv.WatchBatch{}, w.f.watchEnd()
		default:
			if w.within == 0 { // within a revision no progress may be told
				return kv.WatchBatch{Revision: w.told()}, nil
			}
		}
	}
	w.debt = 0
	for {
		revs, at, told, err := w.look()
		if err != nil {
			return kv.WatchBatch{}, err
		}
		if told {
			if due {
				return kv.WatchBatch{Revision: w.told()}, nil
			}
			select {
			case <-w.wake:
				continue
			case <-progress:
				due = true
				continue
			case <-ctx.Done():
				return kv.WatchBatch{}, ctx.Err()
			case <-w.f.hub.stop:
				return kv.WatchBatch{}, w.f.watchEnd()
			}
		}
		var batch []*kv.Event
		next, ok := at, false
		if w.within == 0 {
			batch, next, ok = w.fromMemory(revs, at)
		}
		fromDisk := !ok
		if !ok {
			before := w.f.pub.Load()
			if batch, next, w.within, err = w.f.history(&w.watch, at, w.within); err != nil {
				if err = w.pause(ctx, before, err); err != nil {
					return kv.WatchBatch{}, err
				}
				continue
			}
		}
		w.moveTo(next)
		if len(batch) > 0 {
			w.debt = batchPrice(batch, fromDisk)
			return kv.WatchBatch{Events: batch, Revision: next - 1, Partial: w.within > 0}, nil
		}
		select {
		case <-progress:
			due = true
		default:
		}
		if due {
			return kv.WatchBatch{Revision: next - 1}, nil
		}
		if err := ctx.Err(); err != nil {
			return kv.WatchBatch{}, err
		}
	}
}

// look says where the watcher is to read on, and what of that is in memory; told says
// that there is nothing to read and the watcher rests.
func (w *Watcher) look() (revs []*revisionEvents, at kv.Revision, told bool, err error) {
	h := w.f.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case w.closed:
		// It must not come to rest in the hub, which nothing would take it out of.
		return nil, 0, false, kv.Errorf(kv.CodeNotReady, "the watch was closed")
	case w.idle:
		return nil, 0, true, nil
	case w.next > h.newest:
		h.restLocked(w)
		return nil, 0, true, nil
	}
	return h.fromLocked(w.next), w.next, false, nil
}

// told returns up to where the watcher has been told everything: while it rests, that is
// how far the hub has looked.
func (w *Watcher) told() kv.Revision {
	h := w.f.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.idle {
		return max(w.next-1, h.seen)
	}
	return w.next - 1
}

func (w *Watcher) moveTo(next kv.Revision) {
	h := w.f.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	w.next = next
}

// fromMemory picks the watcher's events out of revisions that begin at at; ok is false
// if they do not, or lack what is needed.
func (w *Watcher) fromMemory(revs []*revisionEvents, at kv.Revision) (batch []*kv.Event, next kv.Revision, ok bool) {
	next = at
	size, most := 0, w.f.hub.batchBytes()
	for _, re := range revs {
		mine := 0
		for _, e := range re.events {
			if !w.watch.Range.Contains(e.Item.Key) {
				continue
			}
			if re.noValue || re.noPrevious && w.watch.Previous {
				// The rest is read from disk, after what is there already.
				return batch[:len(batch)-mine], next, next > at
			}
			batch = append(batch, e)
			mine++
			size += eventBytes(e)
		}
		next = re.rev + 1
		if len(batch) >= batchEvents || size >= most {
			break
		}
	}
	return batch, next, next > at
}

func eventBytes(e *kv.Event) int {
	n := len(e.Item.Key) + len(e.Item.Value) + 100
	if e.Previous != nil {
		n += len(e.Previous.Value)
	}
	return n
}

// pause decides whether a watch goes on after an error of reading history: it does, once
// another copy of the data is in place, if a snapshot was being installed. before is the
// state that was published when the read began.
func (w *Watcher) pause(ctx context.Context, before *published, err error) error {
	if !errors.Is(err, kv.ErrNotReady) && !errors.Is(err, engine.ErrClosed) {
		return err
	}
	for {
		p := w.f.pub.Load()
		if err := w.f.err(); err != nil {
			return err
		}
		if !p.switching && (before.switching || p.generation != before.generation) {
			return nil
		}
		select {
		case <-p.changed:
		case <-w.f.hub.stop:
			return w.f.watchEnd()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// history reads the events of a watch from the change index, from revision from on,
// without its first passed changes. It returns the first revision that it did not read to
// its end, and how many changes of that it has passed. On an error passed is as it was.
func (f *FSM) history(watch *kv.Watch, from kv.Revision, passed int) (batch []*kv.Event, next kv.Revision, within int, err error) {
	fail := func(err error) ([]*kv.Event, kv.Revision, int, error) { return nil, 0, passed, err }
	if p := f.pub.Load(); from < p.oldestReadable() {
		return fail(compacted(p))
	}
	r, at, err := f.readAt(0)
	if err != nil {
		return fail(err)
	}
	defer r.Close()
	it := r.Scan(engine.ScanOptions{Start: eventKey(from, 0), End: eventKey(at+1, 0)})
	defer it.Close()
	size, most := 0, f.hub.batchBytes()
	next = from
	for it.Next() {
		rev, part, ok := decodeEventKey(it.Key())
		if !ok {
			return fail(kv.Errorf(kv.CodeCorruption, "a change record has a malformed key"))
		}
		if rev != next {
			return fail(compacted(f.pub.Load())) // trimmed meanwhile
		}
		if part != finalPart {
			continue // listChanges reads it
		}
		ev, err := decodeEvent(it.Value())
		if err != nil {
			return fail(damaged(err, "revision %d cannot be read", rev))
		}
		changes, err := listChanges(r, rev, ev)
		if err != nil {
			// Parts go before the record that counts them: trimmed meanwhile, or lost.
			if p := f.pub.Load(); rev < p.oldestReadable() {
				return fail(compacted(p))
			}
			return fail(f.checkRead(rev, err))
		}
		skip := 0
		if rev == from {
			skip = passed
		}
		events, rest, err := f.readEvents(watch, rev, changes, skip)
		if err = f.checkRead(rev, err); err != nil {
			return fail(err)
		}
		for _, e := range events {
			size += eventBytes(e)
		}
		batch = append(batch, events...)
		if rest > 0 {
			return batch, rev, rest, nil
		}
		next = rev + 1
		if len(batch) >= batchEvents || size >= most || next-from >= batchRevisions {
			break
		}
	}
	if err := it.Err(); err != nil {
		return fail(f.checkRead(at, err))
	}
	if next == from {
		return fail(compacted(f.pub.Load()))
	}
	return batch, next, 0, nil
}

// readEvents makes the events of one revision that concern a watch, but for its first
// passed changes. It stops when there is enough for memory and something is left: it then
// returns how many changes it has passed, else 0.
func (f *FSM) readEvents(watch *kv.Watch, rev kv.Revision, changes []change, passed int) (events []*kv.Event, within int, err error) {
	var after, before *engine.Reader
	defer func() {
		for _, r := range []*engine.Reader{after, before} {
			if r != nil {
				r.Close()
			}
		}
	}()
	item := func(r **engine.Reader, at kv.Revision, key string) (*kv.Item, error) {
		if *r == nil {
			if *r, err = f.store.Engine().ReadAt(uint64(at)); err != nil {
				return nil, err
			}
		}
		rec, err := readRecord(*r, key)
		if err != nil || rec == nil {
			return nil, err
		}
		if rec.value, err = readValue(*r, key, rec); err != nil {
			return nil, err
		}
		return rec.item(key), nil
	}
	size := 0
	for i, c := range changes[min(passed, len(changes)):] {
		if !watch.Range.Contains(c.key) {
			continue
		}
		if size > revisionBytes {
			return events, passed + i, nil
		}
		e := &kv.Event{Type: kv.EventType(c.kind), Revision: rev, Item: kv.Item{Key: c.key}}
		if c.kind == changePut {
			it, err := item(&after, rev, c.key)
			if err != nil {
				return nil, 0, err
			}
			if it == nil || it.ModRevision != rev {
				return nil, 0, kv.Errorf(kv.CodeCorruption, "revision %d changed a key that is not there", rev)
			}
			e.Item = *it
		}
		if watch.Previous && rev > 1 {
			// Setting the discard timestamp leaves one revision below the oldest for this.
			if e.Previous, err = item(&before, rev-1, c.key); err != nil {
				return nil, 0, err
			}
		}
		events = append(events, e)
		size += eventBytes(e)
	}
	return events, 0, nil
}
