package faultnet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// windowBytes is how much may be written but not read in one direction.
const windowBytes = 1 << 20

// half is one direction of a connection.
type half struct {
	net      *Network
	from, to string

	mu      sync.Mutex
	queue   []segment
	size    int
	lastAt  time.Time // delivery of the newest segment: nothing overtakes
	eof     bool      // the writer closed
	gone    bool      // the reader closed
	broken  bool      // reset
	changed chan struct{}
}

type segment struct {
	at   time.Time
	data []byte
}

func newHalf(n *Network, from, to string) *half {
	return &half{net: n, from: from, to: to, changed: make(chan struct{})}
}

func (h *half) wakeLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wakeLocked()
}

func (h *half) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = true
	h.wakeLocked()
}

// read copies what has arrived into b, or says when and on what to look again.
func (h *half) read(b []byte) (n int, changed <-chan struct{}, wait time.Duration, err error) {
	h.mu.Lock()
	changed = h.changed // before the link is looked at, or a change of it could be missed
	h.mu.Unlock()
	blocked := h.net.Blocked(h.from, h.to) // not under mu: the network wakes halves under its own
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.broken:
		return 0, nil, 0, syscall.ECONNRESET
	case blocked:
		return 0, changed, 0, nil
	case len(h.queue) == 0 && h.eof:
		return 0, nil, 0, io.EOF
	case len(h.queue) == 0:
		return 0, changed, 0, nil
	}
	first := &h.queue[0]
	if d := time.Until(first.at); d > 0 {
		return 0, changed, d, nil
	}
	n = copy(b, first.data)
	h.size -= n
	if n == len(first.data) {
		h.queue = h.queue[1:]
	} else {
		first.data = first.data[n:]
	}
	h.wakeLocked()
	return n, nil, 0, nil
}

// write queues as much of b as the window takes.
func (h *half) write(b []byte, at time.Time) (n int, changed <-chan struct{}, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.broken:
		return 0, nil, syscall.ECONNRESET
	case h.gone:
		return 0, nil, syscall.EPIPE
	case h.size >= windowBytes:
		return 0, h.changed, nil
	}
	n = min(len(b), windowBytes-h.size)
	if at.Before(h.lastAt) {
		at = h.lastAt
	}
	h.lastAt = at
	h.queue = append(h.queue, segment{at: at, data: append([]byte(nil), b[:n]...)})
	h.size += n
	h.wakeLocked()
	return n, nil, nil
}

// conn is one end of a connection.
type conn struct {
	net           *Network
	stream        *Stream
	self, peer    string
	local, remote string
	in, out       *half
	first         *conn // the end that Network.conns holds

	once          sync.Once
	closed        chan struct{}
	readDeadline  deadline
	writeDeadline deadline
}

var _ net.Conn = (*conn)(nil)

func (c *conn) init() {
	c.closed = make(chan struct{})
	c.readDeadline.init()
	c.writeDeadline.init()
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		expired := c.readDeadline.wait()
		select {
		case <-c.closed:
			return 0, net.ErrClosed
		case <-expired:
			return 0, os.ErrDeadlineExceeded
		default:
		}
		n, changed, wait, err := c.in.read(b)
		if n > 0 || err != nil {
			return n, err
		}
		if err := c.sleep(expired, changed, wait); err != nil {
			return 0, err
		}
	}
}

// sleep waits until there may be something new.
func (c *conn) sleep(expired, changed <-chan struct{}, wait time.Duration) error {
	var later <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		later = t.C
	}
	select {
	case <-changed:
	case <-later:
	case <-expired:
		return os.ErrDeadlineExceeded
	case <-c.closed:
		return net.ErrClosed
	}
	return nil
}

// Write implements net.Conn. It returns once the bytes are under way, not when
// they arrived.
func (c *conn) Write(b []byte) (int, error) {
	at, reset := c.net.fate(c.self, c.peer)
	if reset {
		c.in.reset()
		c.out.reset()
		return 0, syscall.ECONNRESET
	}
	done := 0
	for done < len(b) {
		expired := c.writeDeadline.wait()
		select {
		case <-c.closed:
			return done, net.ErrClosed
		case <-expired:
			return done, os.ErrDeadlineExceeded
		default:
		}
		n, changed, err := c.out.write(b[done:], at)
		done += n
		if err != nil {
			return done, err
		}
		if n > 0 {
			continue
		}
		if err := c.sleep(expired, changed, 0); err != nil {
			return done, err
		}
	}
	return done, nil
}

// fate decides when a write arrives and whether it breaks its connection.
func (n *Network) fate(from, to string) (at time.Time, reset bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.linkLocked(from, to)
	d := l.delay
	if l.jitter > 0 {
		d += time.Duration(n.rng.Int64N(int64(l.jitter)))
	}
	return time.Now().Add(d), n.resetRate > 0 && n.rng.Float64() < n.resetRate
}

// Close implements net.Conn. The peer reads what was written before, then EOF.
func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.out.mu.Lock()
		c.out.eof = true
		c.out.wakeLocked()
		c.out.mu.Unlock()
		c.in.mu.Lock()
		c.in.gone = true
		c.in.wakeLocked()
		c.in.mu.Unlock()
		c.stream.drop(c)
		c.net.mu.Lock()
		if c.net.conns[c.first]--; c.net.conns[c.first] <= 0 {
			delete(c.net.conns, c.first)
		}
		c.net.mu.Unlock()
	})
	return nil
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return address(c.local) }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return address(c.remote) }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	c.readDeadline.set(t)
	c.writeDeadline.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error { c.readDeadline.set(t); return nil }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error { c.writeDeadline.set(t); return nil }

// deadline is a channel that is closed when a changeable time has come.
type deadline struct {
	mu      sync.Mutex
	timer   *time.Timer
	expired chan struct{}
	epoch   int // counts sets, so that a timer that was too late to stop does nothing
}

func (d *deadline) init() { d.expired = make(chan struct{}) }

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.expired
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.epoch++
	select {
	case <-d.expired:
		d.expired = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		close(d.expired)
		return
	}
	epoch, expired := d.epoch, d.expired
	d.timer = time.AfterFunc(wait, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.epoch == epoch {
			close(expired)
		}
	})
}
