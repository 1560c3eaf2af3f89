package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/settkv/sett/kv"
)

const (
	// scanIdle is how long a scan may be silent before its connection counts as lost.
	scanIdle = time.Minute
	// scanTries is how many connections in a row may break without a line.
	scanTries = 5
)

// ScanOptions say what a scan returns.
type ScanOptions struct {
	kv.ReadOptions
	// Reverse goes from the last key to the first.
	Reverse bool
	// KeysOnly leaves the values out.
	KeysOnly bool
}

// Scanner walks a range of any size at one revision, in memory bounded by the largest
// key. When a connection breaks it goes on behind the last key at another endpoint. It is
// for one goroutine and must be closed.
//
//	for s.Next(ctx) {
//		use(s.Item())
//	}
//	return s.Err()
type Scanner struct {
	c    *Client
	scan kv.Scan
	opts kv.ReadOptions

	revision kv.Revision
	stream   *lineStream
	// lines is how many came of the stream at hand, count of all.
	lines, count uint64
	broken       int
	line         []byte
	item         kv.Item
	err          error
	done         bool
}

// Scan begins a scan of r. ctx, or Config.Timeout if that is shorter, bounds the start
// only. History at the scan's revision has to be kept until its end: kv.ErrCompacted if
// it is not, for which there is Pin.
func (c *Client) Scan(ctx context.Context, r kv.Range, o ScanOptions) (*Scanner, error) {
	s := &Scanner{c: c, scan: kv.Scan{Range: r, Reverse: o.Reverse, KeysOnly: o.KeysOnly}, opts: o.ReadOptions}
	return s, s.start(ctx)
}

// Revision is the one that all items are of.
func (s *Scanner) Revision() kv.Revision { return s.revision }

// Next moves to the next item and reports whether there is one.
func (s *Scanner) Next(ctx context.Context) bool {
	if !s.nextLine(ctx) {
		return false
	}
	var f form
	if err := json.Unmarshal(s.line, &f); err != nil || !f.named() {
		return s.fail(errNotAKey(s.stream, err))
	}
	s.item = f.item()
	return true
}

// nextLine is Next without reading what the line says, as far as a resumption allows.
func (s *Scanner) nextLine(ctx context.Context) bool {
	for s.err == nil && !s.done {
		if s.stream == nil {
			if err := s.resume(ctx); err != nil {
				return s.fail(err)
			}
			continue
		}
		line, err := s.stream.next(ctx, scanIdle)
		switch {
		case ctx.Err() != nil:
			return s.fail(endOfContext(ctx))
		case errors.Is(err, kv.ErrTooLarge):
			return s.fail(err)
		case err != nil:
			// A line that was cut off is dropped with the rest.
			s.drop(s.stream.broken(err))
		case bytes.HasPrefix(line, []byte(`{"key`)):
			// A copy: it tells where to go on when the stream breaks.
			s.line = append(s.line[:0], line...)
			s.lines++
			s.count++
			s.broken = 0
			return true
		default:
			s.last(line)
		}
	}
	return false
}

// last takes a line that is no item.
func (s *Scanner) last(line []byte) {
	var end struct {
		End   bool     `json:"end"`
		Count uint64   `json:"count"`
		Error *problem `json:"error"`
	}
	err := json.Unmarshal(line, &end)
	switch {
	case err == nil && end.Error != nil:
		e := end.Error.problemError()
		if e.Code == kv.CodeNotReady || e.Code == kv.CodeNoLeader {
			s.drop(e)
			return
		}
		s.fail(e)
	case err == nil && end.End && end.Count == s.lines:
		s.done = true
	case err == nil && end.End:
		s.fail(kv.Errorf(kv.CodeInternal, "%s sent %d keys and says that it sent %d: what came cannot be trusted", s.stream.endpoint, s.lines, end.Count))
	default:
		s.fail(errNotAKey(s.stream, err))
	}
}

// drop gives the stream up because of e.
func (s *Scanner) drop(e *kv.Error) {
	s.remember()
	s.c.forget(s.stream.index)
	s.stream.close()
	s.stream = nil
	if s.broken++; s.broken == scanTries {
		s.fail(e)
	}
}

// remember narrows the scan to what comes after the last line.
func (s *Scanner) remember() {
	if s.lines == 0 {
		return
	}
	s.lines = 0
	var f form
	if err := json.Unmarshal(s.line, &f); err != nil || !f.named() {
		s.fail(errNotAKey(s.stream, err))
		return
	}
	rest, ok := s.scan.Rest(kv.ScanEntry{Item: f.item()})
	s.scan, s.done = rest, !ok
}

// resume goes on elsewhere, at the revision at which the scan began.
func (s *Scanner) resume(ctx context.Context) error {
	s.opts.Revision, s.opts.MaxStaleness = s.revision, 0
	return s.start(ctx)
}

func (s *Scanner) start(ctx context.Context) error {
	req := rangeRequest(http.MethodGet, s.scan.Range)
	req.forwarded = s.opts.Consistency == kv.Leader
	req.header.Set("Accept", ndjson)
	setReadOptions(req.query, s.opts)
	setFlag(req.query, "reverse", s.scan.Reverse)
	setFlag(req.query, "keys_only", s.scan.KeysOnly)
	a, err := s.c.open(ctx, req)
	if err != nil {
		return err
	}
	s.stream = a.stream
	if rev := revisionOf(a); s.revision == 0 {
		s.revision = rev
	}
	return nil
}

const ndjson = "application/x-ndjson"

// Item is the current one. It stays valid.
func (s *Scanner) Item() kv.Item { return s.item }

// Count is how many items there were so far.
func (s *Scanner) Count() uint64 { return s.count }

// Err is why Next returned false, nil at the end of the range.
func (s *Scanner) Err() error { return s.err }

// Close ends the scan. It may be called twice.
func (s *Scanner) Close() {
	s.done = true
	if s.stream != nil {
		s.stream.close()
	}
}

func (s *Scanner) fail(err error) bool {
	s.err = err
	return false
}

func errNotAKey(s *lineStream, cause error) *kv.Error {
	e := kv.Errorf(kv.CodeInternal, "%s sent a line that is no key: is it a Sett node of another version?", s.endpoint)
	e.Err = cause
	return e
}

// endOfContext is the error of a stream whose context ended.
func endOfContext(ctx context.Context) *kv.Error {
	e := kv.Errorf(kv.CodeTimeout, "out of time: allow more")
	if errors.Is(ctx.Err(), context.Canceled) {
		e.Msg = "canceled by the caller"
	}
	e.Err = ctx.Err()
	return e
}
