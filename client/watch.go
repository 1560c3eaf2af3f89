package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/settkv/sett/kv"
)

// watchIdle is how long a watch may be silent before its connection counts as lost:
// three times what a node takes at most between two marks of progress.
const watchIdle = 30 * time.Second

// WatchOptions say which changes a watch tells of.
type WatchOptions struct {
	// From is the first revision wanted; 0 is the one after the cluster's newest when the
	// watch begins.
	From kv.Revision
	// Previous asks for the item before each change.
	Previous bool
	// Progress makes Next return, too, when only the revision up to which all was told has
	// moved: at least every 10 s.
	Progress bool
}

// Watcher follows the changes of a range: every change once, in order, the events of a
// revision together. When a connection breaks, or its node can't go on, it resumes at
// another endpoint, behind the last whole revision. It is for one goroutine and must be
// closed. It holds no more than one revision in memory.
type Watcher struct {
	c    *Client
	rng  kv.Range
	opts WatchOptions

	// next is the first revision that was not told.
	next   kv.Revision
	stream *lineStream
	// pending are the events of a revision whose last one has not come.
	pending []*kv.Event
	// fresh says that nothing was told so far, so that a restore at next is no surprise.
	fresh bool
	// stuck counts resumptions since something whole was told. The first one is made at
	// once.
	stuck int
	pause *backoff.ExponentialBackOff
	err   error
}

// Watch begins a watch of r. ctx, or Config.Timeout if that is shorter, bounds the start
// only. It fails with kv.ErrCompacted if history at From is no longer kept.
func (c *Client) Watch(ctx context.Context, r kv.Range, o WatchOptions) (*Watcher, error) {
	w := &Watcher{c: c, rng: r, opts: o, next: o.From, fresh: true, pause: backoff.NewExponentialBackOff()}
	w.pause.InitialInterval, w.pause.MaxInterval = firstPause, longestPause
	if err := w.start(ctx); err != nil {
		return nil, err
	}
	return w, nil
}

// Revision is the one up to which all was told.
func (w *Watcher) Revision() kv.Revision { return w.next - 1 }

// Next waits for the next revision and returns its events, or none, with
// WatchOptions.Progress, and the revision up to which all was told now. It goes on
// through failures until ctx ends; another call may then take it up again. Every other
// error is final: kv.ErrCompacted if the watch fell behind the kept history or the data
// was replaced by a restore (kv.Error.OldestRevision is where to begin anew, having
// read everything), or what says that no node will serve it.
func (w *Watcher) Next(ctx context.Context) (kv.WatchBatch, error) {
	for w.err == nil {
		if ctx.Err() != nil {
			// Nothing is lost: what came of an unfinished revision will come again.
			w.drop()
			return kv.WatchBatch{}, endOfContext(ctx)
		}
		if w.stream == nil {
			if err := w.resume(ctx); err != nil {
				return kv.WatchBatch{}, err
			}
			continue
		}
		line, err := w.stream.next(ctx, watchIdle)
		if errors.Is(err, kv.ErrTooLarge) {
			w.err = err
			break
		}
		if err != nil {
			if ctx.Err() == nil {
				w.fail()
			}
			continue
		}
		b, told := w.take(line)
		if told && (len(b.Events) > 0 || w.opts.Progress) {
			return b, nil
		}
	}
	return kv.WatchBatch{}, w.err
}

// take reads a line. told says that b is to be told.
func (w *Watcher) take(line []byte) (b kv.WatchBatch, told bool) {
	l, err := decodeWatchLine(line)
	if err != nil {
		w.err = kv.Errorf(kv.CodeInternal, "%s sent a line that is no event: is it a Sett node of another version?", w.stream.endpoint)
		return b, false
	}
	fresh := w.fresh
	w.fresh = false
	switch l.kind {
	case lineEvent:
		return w.event(l)
	case lineProgress:
		w.stuck = 0
		if len(w.pending) > 0 {
			// It contradicts itself; what is whole will come again.
			w.fail()
			return b, false
		}
		if l.revision < w.next {
			return b, false
		}
		w.next = l.revision + 1
		return kv.WatchBatch{Revision: l.revision}, true
	case lineRestored:
		if fresh && w.opts.From == l.revision {
			w.next = l.revision + 1
			return b, false
		}
		w.err = &kv.Error{
			Code: kv.CodeCompacted, OldestRevision: l.revision,
			Msg: "the data was replaced by a restore; read it anew, then watch from the revision after the one that was read",
		}
	case lineError:
		if final(l.err) {
			w.err = l.err
			break
		}
		w.fail()
	}
	return b, false
}

// event takes an event. The revision is told once it is whole.
func (w *Watcher) event(l watchLine) (b kv.WatchBatch, told bool) {
	e := l.event
	if n := len(w.pending); n > 0 && w.pending[n-1].Revision != e.Revision {
		// The revision before never ended; it will come again, whole.
		w.fail()
		return b, false
	}
	if e.Revision >= w.next {
		w.pending = append(w.pending, e)
	}
	if !l.last && !mutantTornRevision {
		return b, false
	}
	w.stuck = 0
	if e.Revision < w.next {
		return b, false
	}
	b = kv.WatchBatch{Events: w.pending, Revision: e.Revision}
	w.pending, w.next = nil, e.Revision+1
	return b, true
}

// fail gives the stream up as drop does, and its endpoint for the time being.
func (w *Watcher) fail() {
	w.c.forget(w.stream.index)
	w.drop()
}

// drop gives the stream up, and what is not whole of what it told.
func (w *Watcher) drop() {
	if w.stream != nil {
		w.stream.close()
		w.stream = nil
	}
	w.pending = nil
}

// resume goes on behind the last whole revision, at another endpoint if the last one
// gave up. It returns at the end of ctx and at a final error only.
func (w *Watcher) resume(ctx context.Context) error {
	if w.stuck++; w.stuck == 1 {
		w.pause.Reset()
	} else {
		timer := time.NewTimer(w.pause.NextBackOff())
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return endOfContext(ctx)
		}
	}
	err := w.start(ctx)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return endOfContext(ctx)
	case final(kv.AsError(err)):
		w.err = err
		return err
	}
	return nil
}

// final reports whether no other node, at no other time, would serve a watch that was
// refused with e.
func final(e *kv.Error) bool {
	switch e.Code {
	case kv.CodeNoLeader, kv.CodeNotReady, kv.CodeOverloaded, kv.CodeTimeout, kv.CodeInternal, kv.CodeCorruption:
		return false
	}
	return true
}

func (w *Watcher) start(ctx context.Context) error {
	r := request{method: http.MethodGet, path: "/v1/watch", query: url.Values{}, header: http.Header{"Accept": {ndjson}}}
	if key, ok := onlyKey(w.rng); ok {
		r.query.Set("key", key)
	} else {
		setRange(r.query, w.rng)
	}
	if w.next != 0 {
		r.query.Set("from", formatRevision(w.next))
	}
	setFlag(r.query, "previous", w.opts.Previous)
	a, err := w.c.open(ctx, r)
	if err != nil {
		return err
	}
	w.stream = a.stream
	if w.next == 0 {
		rev := revisionOf(a)
		if a.header.Get("Sett-Revision") == "" {
			w.drop()
			return kv.Errorf(kv.CodeInternal, "%s does not say at which revision the watch began: is it a Sett node?", a.endpoint)
		}
		w.next = rev + 1
	}
	return nil
}

// Close ends the watch. It may be called twice.
func (w *Watcher) Close() {
	w.drop()
	if w.err == nil {
		w.err = kv.Errorf(kv.CodeInvalidArgument, "the watch is closed")
	}
}
