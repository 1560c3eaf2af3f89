package httpapi

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// directBodyBytes is up to which size a forwarded body takes the direct way: it fits
	// the socket's buffers, so an answer that comes before the body was read, and closes
	// the connection, is still read.
	directBodyBytes = 64 << 10
	// forwardIdle is how long a connection to the leader is kept unused. Shorter than any
	// server's patience: a request must not meet a connection that the leader is just
	// closing, because then its fate would be unknown.
	forwardIdle       = 30 * time.Second
	forwardBufferSize = 16 << 10
)

var errForwardsClosed = errors.New("this node is shutting down")

// direct sends small requests to the leader over plain HTTP/1.1 on the goroutine that
// serves the client. net/http's transport hands each request to one goroutine and its
// answer to another, which costs a busy node more than the request itself.
//
// A request is written once and never repeated here. All methods are safe for
// concurrent use.
type direct struct {
	dial  func(ctx context.Context, network, addr string) (net.Conn, error)
	slots chan struct{} // one for each connection in use

	mu     sync.Mutex
	idle   []*directConn // the newest last
	sweep  *time.Timer   // set while something is idle
	closed bool
}

// directConn is a connection and what is buffered of it.
type directConn struct {
	net.Conn
	addr string
	used time.Time
	r    *bufio.Reader
	w    *bufio.Writer
}

func newDirect(conns int, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *direct {
	return &direct{dial: dial, slots: make(chan struct{}, conns)}
}

// roundTrip sends req and returns the answer; its body must be closed. sent is set
// once bytes may have reached the other side. req's context bounds everything, the
// reading of the body included.
func (d *direct) roundTrip(req *http.Request, sent *atomic.Bool) (*http.Response, error) {
	ctx := req.Context()
	select {
	case d.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c, err := d.conn(ctx, req.URL.Host)
	if err != nil {
		<-d.slots
		return nil, err
	}
	b := &directBody{d: d, c: c}
	b.watch = context.AfterFunc(ctx, func() { _ = c.Close() }) // ends what waits for it
	sent.Store(true)
	resp, err := exchangeOn(c, req)
	if err != nil {
		b.end(false)
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	b.from, b.keep = resp.Body, !resp.Close
	if resp.Body == http.NoBody || resp.ContentLength == 0 {
		b.end(b.keep)
		return resp, nil
	}
	resp.Body = b
	return resp, nil
}

func exchangeOn(c *directConn, req *http.Request) (*http.Response, error) {
	if err := req.Write(c.w); err != nil {
		return nil, err
	}
	if err := c.w.Flush(); err != nil {
		return nil, err
	}
	for {
		resp, err := http.ReadResponse(c.r, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 200 {
			return resp, nil
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			return nil, errors.New("the leader switches protocols unasked")
		}
	}
}

// conn returns an idle connection to addr that is good, or a new one.
func (d *direct) conn(ctx context.Context, addr string) (*directConn, error) {
	for {
		c, err := d.take(addr)
		if err != nil {
			return nil, err
		}
		if c == nil {
			break
		}
		if time.Since(c.used) < forwardIdle && c.r.Buffered() == 0 && silent(c.Conn) {
			return c, nil
		}
		_ = c.Close() // nothing of it is wanted
	}
	raw, err := d.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &directConn{
		Conn: raw, addr: addr,
		r: bufio.NewReaderSize(raw, forwardBufferSize), w: bufio.NewWriterSize(raw, forwardBufferSize),
	}, nil
}

func (d *direct) take(addr string) (*directConn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errForwardsClosed
	}
	for i, c := range slices.Backward(d.idle) {
		if c.addr == addr {
			d.idle = slices.Delete(d.idle, i, i+1)
			return c, nil
		}
	}
	return nil, nil
}

// silent says that c can take another request: the other side has neither closed it
// nor sent anything unasked.
func silent(c net.Conn) bool {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Read(func(fd uintptr) bool {
		quiet = nothingToRead(fd)
		return true
	})
	return err == nil && quiet
}

// put keeps c for the next request.
func (d *direct) put(c *directConn) {
	c.used = time.Now()
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		_ = c.Close() // nothing of it is wanted
		return
	}
	d.idle = append(d.idle, c)
	if d.sweep == nil {
		d.sweep = time.AfterFunc(forwardIdle, d.sweepIdle)
	}
	d.mu.Unlock()
}

// sweepIdle closes what nobody used for long, as the connections to a former leader.
func (d *direct) sweepIdle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.idle = slices.DeleteFunc(d.idle, func(c *directConn) bool {
		old := time.Since(c.used) >= forwardIdle
		if old {
			_ = c.Close() // nothing of it is wanted
		}
		return old
	})
	d.sweep = nil
	if len(d.idle) > 0 && !d.closed {
		d.sweep = time.AfterFunc(forwardIdle, d.sweepIdle)
	}
}

// close closes what is idle, and lets nothing become idle again.
func (d *direct) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.sweep != nil {
		d.sweep.Stop()
	}
	for _, c := range d.idle {
		_ = c.Close() // nothing of it is wanted
	}
	d.idle = nil
}

// directBody is the body of an answer; it holds the connection until its end.
type directBody struct {
	d     *direct
	c     *directConn
	from  io.ReadCloser
	watch func() bool // stops the watch over the context
	keep  bool        // the connection may be used again after the body
	ended bool
}

// Read implements io.Reader.
func (b *directBody) Read(p []byte) (int, error) {
	if b.ended {
		return 0, io.EOF
	}
	n, err := b.from.Read(p)
	if err != nil {
		b.end(errors.Is(err, io.EOF) && b.keep)
	}
	return n, err
}

// Close implements io.Closer.
func (b *directBody) Close() error {
	if !b.ended {
		b.end(false) // what is left of the body is not worth reading
	}
	return nil
}

// end gives the connection back, or closes it.
func (b *directBody) end(reuse bool) {
	b.ended = true
	// A watch that can't be stopped closes the connection.
	if b.watch() && reuse {
		b.d.put(b.c)
	} else {
		_ = b.c.Close() // nothing of it is wanted
	}
	<-b.d.slots
}
