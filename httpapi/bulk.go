package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/settkv/sett/kv"
)

const (
	// A batch of a bulk load ends at the first of these. Bigger ones are not faster, and
	// make the writes of others wait.
	batchBytes = 1 << 20
	batchLines = 5000
)

// batchResult is what became of a batch of a bulk load, and of all before it.
type batchResult struct {
	Applied  uint64      `json:"applied"`
	Revision kv.Revision `json:"revision"`
	// Ended says that the batch had the line that ends a load.
	Ended bool `json:"ended,omitempty"`
}

// postBulk serves POST /v1/kv without a key: a bulk load.
func (s *Server) postBulk(ctx context.Context, x *exchange) error {
	kind, _, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if err != nil || kind != ndjson {
		return kv.Errorf(kv.CodeInvalidArgument, "name a key (/v1/kv/{key}?op=… or /v1/kv?key=K&op=…), or load in bulk with Content-Type: %s", ndjson)
	}
	if x.onceKey != "" {
		return kv.Errorf(kv.CodeInvalidArgument, "a bulk load takes no Idempotency-Key: it survives changes of leader by itself, and what it says of an error tells where to go on")
	}
	if err := x.refuseHeaders("If-Match", "If-None-Match", "Content-Range"); err != nil {
		return err
	}
	if err := x.refuseEncoding(); err != nil {
		return err
	}
	if x.forwardedBy != "" {
		return s.postBatch(x)
	}
	if redirected, err := x.redirect(ctx); redirected || err != nil {
		return err
	}
	// Two batches are at work at once, one being read and one being done, and what is done
	// is a copy of what was read.
	weight := int64(4 * batchBytes)
	if n := x.r.ContentLength; n >= 0 {
		weight = min(weight, 4*n)
	}
	if err := x.grant.grow(requestWeight + weight); err != nil {
		return err
	}
	x.deadline = time.Time{} // the timeout bounds a batch; the pace bounds the body
	res, err := x.load()
	if err != nil {
		return err
	}
	x.setRevision(res.Revision)
	return x.writeJSON(http.StatusOK, &struct {
		Applied  uint64      `json:"applied"`
		Revision kv.Revision `json:"revision"`
	}{res.Applied, res.Revision})
}

// load reads the body and has its batches done, one while the next is read.
func (x *exchange) load() (res batchResult, err error) {
	stop := make(chan struct{})
	in := &batchReader{x: x, limit: x.s.limits().MaxRequestBytes, stop: stop, out: make(chan batch)}
	x.body.stop = stop
	done := make(chan struct{})
	go func() {
		defer close(done)
		in.run()
	}()
	given := false
	for b := range in.out {
		given = true
		if res, err = x.giveBatch(b, res); err != nil {
			break
		}
	}
	if !given && in.err == nil {
		res, err = x.giveBatch(batch{}, res)
	}
	if err != nil {
		close(stop)
		_ = x.ctl.SetReadDeadline(time.Now()) // wakes the reader; a recorder in a test has none
	}
	<-done
	x.body.stop = nil
	if err == nil && in.err != nil {
		err = &loadError{err: in.err, line: in.errLine, applied: res.Applied}
	}
	return res, err
}

// giveBatch has the leader do b after what was done before.
func (x *exchange) giveBatch(b batch, before batchResult) (batchResult, error) {
	fail := func(err error, line uint64) (batchResult, error) {
		return before, &loadError{err: err, line: line, applied: before.Applied}
	}
	if before.Ended {
		for i, line := range bytes.Split(b.data, []byte{'\n'}) {
			if len(bytes.TrimSpace(line)) > 0 {
				n := b.lines + uint64(i) + 1
				return fail(errLine(n, errAfterEnd()), n)
			}
		}
		return before, nil
	}
	if x.s.isStopping() {
		return fail(errStopping(), 0)
	}
	ctx, cancel := x.batchContext()
	defer cancel()
	id := batchID{key: newBatchKey(), lines: b.lines, applied: before.Applied}
	res := batchResult{Applied: before.Applied}
	call := leaderCall{
		body: b.data, repeat: true, patient: true,
		header: id.header(),
		local: func(ctx context.Context) (err error) {
			res, err = x.doBatch(ctx, id, b.data)
			return err
		},
		answer: func(body []byte, _ http.Header) error { return readBatchAnswer(body, &res) },
	}
	_, err := x.onLeader(ctx, &call)
	if err == nil {
		if res.Revision == 0 {
			res.Revision = before.Revision
		}
		return res, nil
	}
	var load *loadError
	if errors.As(err, &load) && load.line != 0 {
		return before, err // what comes before a bad line is decided
	}
	return fail(call.settleBatch(err), 0)
}

// postBatch does one batch for the node that was asked.
func (s *Server) postBatch(x *exchange) error {
	id, err := x.forwardedBatch()
	if err != nil {
		return err
	}
	body, err := x.readBody("batch", s.limits().MaxRequestBytes+2*batchBytes)
	if err != nil {
		return err
	}
	if err := x.grant.grow(requestWeight + int64(len(body))); err != nil {
		return err
	}
	ctx, cancel := x.batchContext()
	defer cancel()
	var res batchResult
	if _, err := x.onLeader(ctx, &leaderCall{local: func(ctx context.Context) (err error) {
		res, err = x.doBatch(ctx, id, body)
		return err
	}}); err != nil {
		return err
	}
	return x.writeJSON(http.StatusOK, &res)
}

// doBatch does a batch on this node: all its lines up to the first bad one, in one
// transaction.
func (x *exchange) doBatch(ctx context.Context, id batchID, data []byte) (res batchResult, err error) {
	p := lineParser{
		txnParser: txnParser{j: newJSONReader(nil), limits: x.s.limits()},
		now:       x.s.cfg.Store.Now(), lines: id.lines, applied: id.applied,
	}
	badLine := p.parse(data)
	res = batchResult{Applied: id.applied, Ended: p.ended}
	if len(p.ops) > 0 || badLine == nil {
		// One that changes nothing is proposed too: its revision is that of the decision.
		t := kv.Txn{Then: p.ops, Once: kv.Once{Key: id.key, Request: digest([]byte("batch"), data)}}
		result, err := x.s.cfg.Store.Txn(ctx, t, &x.timing)
		if err != nil {
			return res, err
		}
		res.Revision = result.Revision
		x.setRevision(result.Revision)
	}
	res.Applied = p.applied
	if badLine != nil {
		return res, &loadError{err: errLine(p.lines, badLine), line: p.lines, applied: res.Applied}
	}
	return res, nil
}

// batch is some whole lines of a bulk load.
type batch struct {
	data  []byte
	lines uint64 // before it
}

// batchReader cuts the body into batches. It hands one over when it is full, or as soon
// as somebody waits for it: a fast client's lines come together, and those of one that
// sends without end, now and then, are not kept waiting. A body of a known and small
// length is one batch.
type batchReader struct {
	x     *exchange
	limit uint64 // of a line, in bytes
	stop  <-chan struct{}
	out   chan batch
	// err is why the body was not read to its end, errLine the line that is to blame, if one
	// is. They are set before out is closed.
	err     error
	errLine uint64

	buf     []byte
	end     int    // of the last whole line in buf
	scanned int    // up to where buf was searched for line ends
	lines   uint64 // whole lines in buf
	before  uint64 // lines that were handed over
}

func (r *batchReader) run() {
	defer close(r.out)
	r.buf = make([]byte, 0, firstReadBytes)
	for {
		if len(r.buf) == cap(r.buf) && !r.room() {
			return
		}
		n, err := r.x.body.Read(r.buf[len(r.buf):cap(r.buf)])
		r.buf = r.buf[:len(r.buf)+n]
		if !r.scan() {
			return
		}
		switch {
		case errors.Is(err, io.EOF):
			if len(r.buf) > r.end {
				r.lines++
				r.end = len(r.buf)
			}
			r.handOver(true)
			return
		case errors.Is(err, errBodyStopped):
			return
		case err != nil:
			if r.handOver(true) {
				r.err = r.x.bodyError(err, "line", r.limit)
			}
			return
		}
		if (r.x.r.ContentLength < 0 || r.end >= firstReadBytes) && !r.handOver(false) {
			return
		}
	}
}

// room makes room in buf: by handing over what is whole, or for a long line.
func (r *batchReader) room() bool {
	if r.end > 0 && cap(r.buf) >= batchBytes {
		return r.handOver(true)
	}
	size := 2 * cap(r.buf)
	if size > batchBytes {
		if err := r.x.grant.grow(2 * int64(size-cap(r.buf))); err != nil {
			r.err = err
			return false
		}
	}
	r.buf = append(make([]byte, 0, size), r.buf...)
	return true
}

// scan finds the lines in what was read.
func (r *batchReader) scan() bool {
	for {
		i := bytes.IndexByte(r.buf[r.scanned:], '\n')
		next := len(r.buf)
		if i >= 0 {
			next = r.scanned + i
		}
		if uint64(next-r.end) > r.limit {
			line := r.before + r.lines + 1
			if r.handOver(true) {
				r.err, r.errLine = errLine(line, errTooLarge("line", r.limit)), line
			}
			return false
		}
		r.scanned = next
		if i < 0 {
			return true
		}
		r.scanned++
		r.end = r.scanned
		if r.lines++; (r.lines == batchLines || r.end >= batchBytes) && !r.handOver(true) {
			return false
		}
	}
}

// handOver gives the whole lines to whoever does them; if nobody waits for them it
// waits, or leaves it. It reports whether reading goes on.
func (r *batchReader) handOver(wait bool) bool {
	if r.end == 0 {
		return true
	}
	b := batch{data: r.buf[:r.end:r.end], lines: r.before}
	if wait {
		select {
		case r.out <- b:
		case <-r.stop:
			return false
		}
		r.x.body.left = 0 // while it waited, the read deadline may have passed
	} else {
		select {
		case r.out <- b:
		default:
			return true
		}
	}
	rest := r.buf[r.end:]
	r.buf = append(make([]byte, 0, max(cap(r.buf), len(rest)+firstReadBytes)), rest...)
	r.scanned -= r.end
	r.before += r.lines
	r.end, r.lines = 0, 0
	return true
}
