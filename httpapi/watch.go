package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/settkv/sett/kv"
)

const (
	eventStream = "text/event-stream"
	// watchPieceBytes is about how much of what a watch has to tell is made at once. The
	// slowest of ten thousand watchers may each hold that much.
	watchPieceBytes = 16 << 10
)

// watchCount bounds the watches at work.
type watchCount struct {
	limit int64
	gauge prometheus.Gauge
	n     atomic.Int64
}

// enter reports whether there is room for one more watch, which leaves by leave.
func (c *watchCount) enter() bool {
	if c.n.Add(1) > c.limit {
		c.n.Add(-1)
		return false
	}
	c.gauge.Inc()
	return true
}

func (c *watchCount) leave() {
	c.n.Add(-1)
	c.gauge.Dec()
}

// getWatch serves GET /v1/watch.
func (s *Server) getWatch(ctx context.Context, x *exchange) error {
	q, err := x.parseWatch()
	if err != nil {
		return err
	}
	if err := x.noBody(); err != nil {
		return err
	}
	if !s.watches.enter() {
		e := kv.Errorf(kv.CodeOverloaded, "this node has as many watches as it takes; try another one")
		e.RetryAfter = retryAfterDefault
		return e
	}
	defer s.watches.leave()
	var w Watcher
	if err := x.whenLed(ctx, kv.Linearizable, func(ctx context.Context) (err error) {
		w, err = s.cfg.Store.Watch(ctx, q)
		return err
	}); err != nil {
		return err
	}
	defer w.Close()
	x.setRevision(w.Revision())

	f := feed{x: x, w: w, sse: accepts(x.r.Header, eventStream), previous: q.Previous}
	h := x.Header()
	h.Set("Content-Type", ndjson)
	if f.sse {
		h.Set("Content-Type", eventStream)
	}
	h.Set("Vary", "Accept")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a proxy in between is to pass events on as they come
	x.WriteHeader(http.StatusOK)
	if x.r.Method == http.MethodHead {
		return nil
	}
	x.paused = true
	if x.flush() != nil {
		return nil // the client is gone
	}
	wctx, stop := x.streamContext()
	defer stop()
	f.run(wctx)
	return nil
}

// parseWatch reads the query and the header of a watch.
func (x *exchange) parseWatch() (q kv.Watch, err error) {
	p := x.params
	q = kv.Watch{Previous: p.flag("previous"), Progress: x.s.cfg.WatchProgress}
	if p.has("key") {
		for _, name := range rangeParams() {
			if p.has(name) {
				return q, badParam(name, "it does not go with key; watch a key or a range")
			}
		}
		key, err := x.key()
		if err != nil {
			return q, err
		}
		q.Range = kv.Range{Start: key, End: key + "\x00"}
	} else if q.Range, err = p.rangeOf(); err != nil {
		return q, err
	}
	if q.From, err = p.revision("from"); err != nil {
		return q, err
	}
	if p.has("from") && q.From == 0 {
		return q, badParam("from", "revisions begin at 1; leave it out to watch from now on")
	}
	last, ok, err := singleHeader(x.r.Header, "Last-Event-ID")
	if err != nil || !ok || last == "" {
		return q, err
	}
	n, err := strconv.ParseUint(last, 10, 64)
	if err != nil || n == ^uint64(0) {
		return q, kv.Errorf(kv.CodeInvalidArgument, "Last-Event-ID %s is no revision; it is what the last event had as its id", quote(last))
	}
	q.From = kv.Revision(n) + 1
	return q, nil
}

// feed tells one client what a watch tells.
type feed struct {
	x        *exchange
	w        Watcher
	sse      bool
	previous bool
	buf      []byte // from the pool, while there is something to tell
	err      error  // of the first write that failed: the client is gone
}

// run goes on until the watch, the client or the server ends it.
func (f *feed) run(ctx context.Context) {
	marked := time.Now()
	for f.err == nil {
		b, err := f.w.Next(ctx)
		if err != nil {
			if f.x.r.Context().Err() == nil {
				f.fail(err)
			}
			return
		}
		pooled := f.x.s.eventBuffers.get()
		f.buf = *pooled
		for i, e := range b.Events {
			last := i == len(b.Events)-1
			f.event(e, last && !b.Partial || !last && b.Events[i+1].Revision != e.Revision)
		}
		// A watch that always has something to tell marks its progress, too.
		if now := time.Now(); !b.Partial && (len(b.Events) == 0 || now.Sub(marked) >= f.x.s.cfg.WatchProgress) {
			f.progress(b.Revision)
			marked = now
		}
		f.flush()
		*pooled, f.buf = f.buf, nil
		f.x.s.eventBuffers.put(pooled)
	}
}

// event tells one event; last says that it is the last of its revision.
func (f *feed) event(e *kv.Event, last bool) {
	slot, render := 0, renderEvent
	if f.previous {
		slot, render = 1, renderEventAndPrevious
	}
	line := e.Memo(slot, render)
	end := "}\n"
	if last {
		end = `,"last":true}` + "\n"
	}
	if f.sse {
		f.buf = append(f.buf, "event: "...)
		f.buf = append(f.buf, e.Type.String()...)
		if last {
			f.buf = append(f.buf, "\nid: "...)
			f.buf = strconv.AppendUint(f.buf, uint64(e.Revision), 10)
		}
		f.buf = append(f.buf, "\ndata: "...)
		end += "\n"
	}
	if len(line) > watchPieceBytes {
		f.write()
		f.send(line)
	} else {
		f.buf = append(f.buf, line...)
	}
	f.buf = append(f.buf, end...)
	if len(f.buf) >= watchPieceBytes {
		f.write()
	}
}

// renderEvent makes the line of an event but for its end.
func renderEvent(e *kv.Event) []byte {
	b := make([]byte, 0, 160+len(e.Item.Key)+len(e.Item.Value)+len(e.Item.Value)/8)
	b = append(b, `{"type":"`...)
	b = append(b, e.Type.String()...)
	b = append(b, `","revision":`...)
	b = strconv.AppendUint(b, uint64(e.Revision), 10)
	b = append(b, ',')
	b = appendKey(b, e.Item.Key)
	if e.Type == kv.EventPut {
		b = appendValue(append(b, ','), e.Item.Value)
		return appendItemRest(b, &e.Item)
	}
	b = append(b, `,"mod_revision":`...)
	return strconv.AppendUint(b, uint64(e.Revision), 10)
}

func renderEventAndPrevious(e *kv.Event) []byte {
	return appendItemOrNull(append(renderEvent(e), `,"previous":`...), e.Previous)
}

// progress tells that all up to rev has been told.
func (f *feed) progress(rev kv.Revision) {
	if f.sse {
		f.buf = append(f.buf, "event: progress\nid: "...)
		f.buf = strconv.AppendUint(f.buf, uint64(rev), 10)
		f.buf = append(f.buf, "\ndata: "...)
	}
	f.buf = append(f.buf, `{"type":"progress","revision":`...)
	f.buf = strconv.AppendUint(f.buf, uint64(rev), 10)
	f.buf = append(f.buf, "}\n"...)
	if f.sse {
		f.buf = append(f.buf, '\n')
	}
}

// watchFailure is the last line of a watch that ends.
type watchFailure struct {
	Type           string       `json:"type"`
	Code           kv.Code      `json:"code"`
	Detail         string       `json:"detail,omitempty"`
	OldestRevision *kv.Revision `json:"oldest_revision,omitempty"`
}

// fail tells why the watch ends.
func (f *feed) fail(err error) {
	if f.x.s.isStopping() {
		err = errStopping()
	}
	p, e := f.x.problemOf(err)
	f.x.logProblem(e, http.StatusOK)
	text, jsonErr := json.Marshal(watchFailure{Type: "error", Code: p.Code, Detail: p.Detail, OldestRevision: p.OldestRevision})
	if jsonErr != nil { // strings and numbers always marshal
		return
	}
	if f.sse {
		f.buf = append(f.buf, "event: error\ndata: "...)
	}
	f.buf = append(append(f.buf, text...), '\n')
	if f.sse {
		f.buf = append(f.buf, '\n')
	}
	f.flush()
}

// send writes b, unless the client is gone.
func (f *feed) send(b []byte) {
	if f.err == nil {
		_, f.err = f.x.Write(b)
	}
}

func (f *feed) write() {
	f.send(f.buf)
	f.buf = f.buf[:0]
}

// flush sends everything that was told.
func (f *feed) flush() {
	f.write()
	if f.err == nil {
		f.err = f.x.flush()
	}
}
