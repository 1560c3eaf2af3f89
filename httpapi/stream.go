package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"unicode/utf8"

	"github.com/settkv/sett/kv"
)

// streamContext is the context of an answer that goes on for longer than the request's
// timeout: it ends when the client is gone or the server stops. stop frees it.
func (x *exchange) streamContext() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(x.r.Context())
	unhook := context.AfterFunc(x.s.stopped, cancel)
	return ctx, func() {
		unhook()
		cancel()
	}
}

// isStopping reports whether the server stops.
func (s *Server) isStopping() bool { return s.stopped.Err() != nil }

func errStopping() *kv.Error {
	return kv.Errorf(kv.CodeNotReady, "this node is stopping; go on at another one")
}

// streamRange answers with a whole range, a line of JSON a result. The request's
// timeout bounds the start; after it the client has to keep the minimum pace.
func (s *Server) streamRange(ctx context.Context, x *exchange, l *listing) error {
	var sc Scanner
	relayed, err := x.read(ctx, l.opts.Consistency, &leaderCall{stream: true, local: func(ctx context.Context) error {
		var err error
		sc, err = s.cfg.Store.Scan(ctx, l.scan, l.opts, &x.timing)
		return err
	}})
	if relayed || err != nil {
		return err
	}
	defer sc.Close()
	x.setRevision(sc.Revision())
	if err := x.grant.grow(2 * pieceBytes); err != nil {
		return err
	}
	x.Header().Set("Content-Type", ndjson)
	if x.r.Method == http.MethodHead {
		x.WriteHeader(http.StatusOK)
		return nil
	}
	buf := s.buffers.get()
	defer s.buffers.put(buf)
	out := &pieces{x: x, status: http.StatusOK, kind: ndjson, buf: *buf, begun: true}
	x.paused = true
	x.WriteHeader(http.StatusOK)
	count, err := out.lines(sc, l.scan.KeysOnly)
	*buf = out.buf
	switch {
	case out.err != nil:
		return nil // the client is gone
	case err != nil:
		out.breakOff(err)
	}
	out.buf = append(out.buf, `{"end":true,"count":`...)
	out.buf = strconv.AppendUint(out.buf, count, 10)
	out.buf = append(out.buf, `,"revision":`...)
	out.buf = strconv.AppendUint(out.buf, uint64(sc.Revision()), 10)
	out.buf = append(out.buf, "}\n"...)
	out.send()
	*buf = out.buf
	return nil
}

// lines writes the results of sc and returns how many there were.
func (p *pieces) lines(sc Scanner, bare bool) (count uint64, err error) {
	for sc.Next() {
		e := sc.Entry()
		switch {
		case e.CommonPrefix != "":
			p.buf = append(p.buf, '{')
			p.buf = appendNamed(p.buf, "common_prefix", e.CommonPrefix, utf8.ValidString(e.CommonPrefix))
			p.buf = append(p.buf, '}')
		case !bare && len(e.Item.Value) > pieceBytes:
			p.bigItem(&e.Item)
		default:
			p.buf = appendItem(p.buf, &e.Item, bare)
		}
		p.buf = append(p.buf, '\n')
		count++
		if len(p.buf) < pieceBytes {
			continue
		}
		p.send()
		if p.err != nil {
			return count, p.err
		}
		if p.x.s.isStopping() {
			return count, errStopping()
		}
	}
	return count, sc.Err()
}

// bigItem writes the form of an item whose value is sent in pieces: escaped as a whole
// it could be six times as big.
func (p *pieces) bigItem(it *kv.Item) {
	p.buf = append(appendKey(append(p.buf, '{'), it.Key), ',')
	v := it.Value
	text := utf8.Valid(v)
	if text {
		p.buf = append(p.buf, `"value":"`...)
	} else {
		p.buf = append(p.buf, `"value_base64":"`...)
	}
	const part = 3 * (pieceBytes / 4) // base64 without padding in between
	for len(v) > 0 && p.err == nil {
		n := min(part, len(v))
		if text {
			p.buf = appendEscaped(p.buf, v[:n]) // what is cut in two is no byte that is escaped
		} else {
			p.buf = appendBase64(p.buf, v[:n])
		}
		v = v[n:]
		p.next()
	}
	p.buf = append(appendItemRest(append(p.buf, '"'), it), '}')
}

// breakOff ends an answer that is not whole: with a line that says why, and with a
// broken connection, so that nobody takes it for whole.
func (p *pieces) breakOff(err error) {
	body, _ := p.x.problemOf(err)
	text, jsonErr := json.Marshal(body)
	if jsonErr == nil { // strings and numbers always marshal
		p.buf = append(append(append(p.buf, `{"error":`...), text...), "}\n"...)
		p.send()
		_ = p.x.flush() // a client that is gone needs no reason
	}
	panic(http.ErrAbortHandler)
}
