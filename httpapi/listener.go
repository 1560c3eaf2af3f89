package httpapi

import (
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// refusal is what a connection too many is told. Its request is not read, so that
// nothing was applied is a promise.
const refusal = `{"type":"urn:sett:problem:not-ready","title":"Not ready","status":503,"code":"not-ready","outcome":"not-applied",` +
	`"detail":"too many connections are open on this node; close some or use another node"}` + "\n"

const refusalHead = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n" +
	"Connection: close\r\nRetry-After: 1\r\nContent-Length: "

// maxRefusing bounds the goroutines that say so politely; beyond it a connection is
// closed without a word.
const maxRefusing = 32

// limitListener bounds the open connections. One too many is answered and closed at
// once instead of waiting in the backlog behind idle ones.
type limitListener struct {
	net.Listener
	max      int
	open     prometheus.Gauge
	refused  prometheus.Counter
	refusing sync.WaitGroup

	mu      sync.Mutex
	conns   int
	waiting int // refusals under way
}

func newLimitListener(l net.Listener, limit int, open prometheus.Gauge, refused prometheus.Counter) *limitListener {
	return &limitListener{Listener: l, max: limit, open: open, refused: refused}
}

// Accept implements net.Listener.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		ok := l.conns < l.max
		polite := !ok && l.waiting < maxRefusing
		switch {
		case ok:
			l.conns++
		case polite:
			l.waiting++
			l.refusing.Add(1)
		}
		l.mu.Unlock()
		if ok {
			l.open.Inc()
			return &limitedConn{Conn: c, release: l.release}, nil
		}
		l.refused.Inc()
		if polite {
			go l.refuse(c)
		} else {
			_ = c.Close()
		}
	}
}

// refuse answers, and then reads for a moment: closing a socket with unread bytes
// resets it, and a reset can overtake the answer.
func (l *limitListener) refuse(c net.Conn) {
	defer l.refusing.Done()
	defer func() {
		l.mu.Lock()
		l.waiting--
		l.mu.Unlock()
	}()
	defer func() { _ = c.Close() }()
	if c.SetDeadline(time.Now().Add(500*time.Millisecond)) != nil {
		return
	}
	if _, err := io.WriteString(c, refusalHead+strconv.Itoa(len(refusal))+"\r\n\r\n"+refusal); err != nil {
		return
	}
	if t, ok := c.(*net.TCPConn); ok && t.CloseWrite() != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c, 64<<10)
}

func (l *limitListener) release() {
	l.mu.Lock()
	l.conns--
	l.mu.Unlock()
	l.open.Dec()
}

// wait returns once no refusal is under way.
func (l *limitListener) wait() { l.refusing.Wait() }

type limitedConn struct {
	net.Conn
	once    sync.Once
	release func()
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.release)
	return err
}

// CloseWrite half-closes the connection: the server uses it to let a client that is
// still sending see the answer that refused it.
func (c *limitedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
