package httpapi

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/settkv/sett/kv"
)

// firstReadBytes is what is taken from the admission and allocated before the first
// byte of a big or unsized body has come: memory grows with what arrives, never with
// what is announced.
const firstReadBytes = 64 << 10

// bodyState is the request's body under a minimum pace: the client has
// Config.ProgressTimeout for each ProgressBytes, and the request's deadline for all.
// The server takes the last read deadline back at the end of the body.
type bodyState struct {
	x    *exchange
	src  io.ReadCloser
	left int  // bytes until the read deadline moves
	eof  bool // the whole body has been read
	slow bool // reading ended at a deadline
	// stop, if not nil, ends reading once it is closed and the read deadline has passed.
	stop <-chan struct{}
}

var errBodyStopped = errors.New("reading of the body was stopped")

func (b *bodyState) init(x *exchange) {
	b.x, b.src = x, x.r.Body
	b.eof = x.r.Body == nil || x.r.Body == http.NoBody || x.r.ContentLength == 0
}

// unread reports whether some of the body has not been read.
func (b *bodyState) unread() bool { return !b.eof }

// Read implements io.Reader.
func (b *bodyState) Read(p []byte) (int, error) {
	if b.eof {
		return 0, io.EOF
	}
	if b.left <= 0 {
		d := time.Now().Add(b.x.s.cfg.ProgressTimeout)
		if !b.x.deadline.IsZero() && b.x.deadline.Before(d) {
			d = b.x.deadline
		}
		_ = b.x.ctl.SetReadDeadline(d) // a recorder in a test has none
		b.left = ProgressBytes
		// Whoever stops closes stop first and moves the deadline into the past then: either
		// the read ends at that deadline, or this sees it.
		select {
		case <-b.stop:
			return 0, errBodyStopped
		default:
		}
	}
	n, err := b.src.Read(p)
	b.left -= n
	if err != nil {
		b.eof = errors.Is(err, io.EOF)
		b.slow = errors.Is(err, os.ErrDeadlineExceeded)
	}
	return n, err
}

// Close implements io.Closer. The server closes the body itself.
func (b *bodyState) Close() error { return nil }

const (
	// lingerBytes and lingerTime bound what is still taken, and thrown away, of a body that
	// was refused.
	lingerBytes = 16 << 20
	lingerTime  = 2 * time.Second
)

// refuseBody prepares an answer that is given before the body was read: the
// connection ends with it, and the server's attempt to read the rest ends soon.
func (x *exchange) refuseBody() {
	if x.r.ProtoMajor == 1 {
		x.Header().Set("Connection", "close")
		_ = x.ctl.SetReadDeadline(time.Now().Add(lingerTime)) // a recorder in a test has none
	}
	x.refused = true
}

// linger takes some more of a refused body once the answer is out. A client that writes
// all of it before it reads anything would otherwise find its connection broken, and
// never see the answer.
func (x *exchange) linger() {
	if x.r.Header.Get("Expect") != "" { // the client waits for the answer and sends nothing
		return
	}
	if err := x.flush(); err != nil {
		return
	}
	if err := x.ctl.SetReadDeadline(time.Now().Add(lingerTime)); err != nil {
		return // without a deadline it could take for ever
	}
	_, _ = io.CopyN(io.Discard, x.body.src, lingerBytes) // whatever ends it: the answer is out
}

func errTooLarge(what string, limit uint64) *kv.Error {
	return kv.NotApplied(kv.CodeTooLarge, "the %s is bigger than the cluster's limit of %d bytes (settings max_key_bytes, max_value_bytes, max_request_bytes)", what, limit)
}

// checkBody refuses, before a byte is read and so before a client that asked with
// Expect: 100-continue sends it, a body that is announced too big or finds no room.
func (x *exchange) checkBody(what string, limit uint64) error {
	n := x.r.ContentLength
	if n > 0 && uint64(n) > limit {
		return errTooLarge(what, limit)
	}
	if n > 0 && !x.s.admission.room(n, x.grant.held) {
		return errOverloaded()
	}
	return nil
}

// readBody reads the whole body, at most limit bytes. The bytes stay admitted until
// the request is over.
func (x *exchange) readBody(what string, limit uint64) ([]byte, error) {
	if err := x.checkBody(what, limit); err != nil {
		return nil, err
	}
	if !x.body.unread() {
		return nil, nil
	}
	total := x.r.ContentLength // the most that can come
	if total < 0 || uint64(total) > limit {
		total = int64(limit)
	}
	size := min(total, firstReadBytes)
	if err := x.grant.grow(size); err != nil {
		return nil, err
	}
	// MaxBytesReader gets the server's own writer, which it tells to close the
	// connection; our wrapper would hide it.
	src := http.MaxBytesReader(x.ResponseWriter, &x.body, int64(limit))
	buf := make([]byte, 0, size)
	var probe [1]byte // for the end of a body that fills its buffer exactly
	for {
		room := buf[len(buf):cap(buf)]
		if len(room) == 0 {
			if int64(cap(buf)) < total {
				size = min(total, 2*int64(cap(buf)))
				if err := x.grant.grow(size - int64(cap(buf))); err != nil {
					return nil, err
				}
				buf = append(make([]byte, 0, size), buf...)
				continue
			}
			room = probe[:]
		}
		n, err := src.Read(room)
		if n > 0 && len(buf) == cap(buf) {
			return nil, kv.NotApplied(kv.CodeInvalidArgument, "the body is longer than its Content-Length")
		}
		buf = buf[:len(buf)+n]
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			return buf, nil
		}
		return nil, x.bodyError(err, what, limit)
	}
}

func (x *exchange) bodyError(err error, what string, limit uint64) error {
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &tooBig):
		return errTooLarge(what, limit)
	case x.body.slow:
		e := kv.NotApplied(kv.CodeTimeout, "the body came too slowly, or not within the request's timeout; send it faster or give a longer timeout parameter")
		e.Err = err
		return e
	}
	e := kv.NotApplied(kv.CodeInvalidArgument, "the body could not be read: it ended early or is badly framed")
	e.Err = err
	return e
}

// noBody refuses a body where none belongs.
func (x *exchange) noBody() error {
	if !x.body.unread() {
		return nil
	}
	if x.r.ContentLength < 0 {
		// Neither a length nor, yet, an end: an empty chunked body is none.
		var b [1]byte
		n, err := io.ReadFull(&x.body, b[:])
		if n == 0 && errors.Is(err, io.EOF) {
			return nil
		}
		if n == 0 {
			return x.bodyError(err, "body", 0)
		}
	}
	return kv.Errorf(kv.CodeInvalidArgument, "this request takes no body")
}
