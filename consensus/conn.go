package consensus

import (
	"errors"
	"net"
	"sync"
	"time"
)

const (
	// rpcInstallSnapshot is the first byte of raft's message that carries a snapshot.
	rpcInstallSnapshot = 2
	// snapshotStall bounds one read or write of a snapshot's stream. raft's own
	// bound grows with the size (eleven hours for 1 GiB), and the receiver, whose
	// main loop waits for the stream, has none at all.
	snapshotStall = 30 * time.Second
	// snapshotAnswer bounds the receiver's verifying and switching after the last byte.
	snapshotAnswer = 10 * time.Minute
	// maxMessageBytes bounds what a peer may send in one message that is no
	// snapshot: maxBodyBytes of entries and generous room for one that exceeds it,
	// and for what encloses them.
	maxMessageBytes = 8 << 20
	// minRate, in bytes a second, is how slow a link may be: a message may take the
	// RPC timeout and besides as long as its bytes take at this rate.
	minRate = 64 << 10
)

// conn is a connection after its handshake. raft sends one request at a time and
// then its answer (no pipelining), so the first byte read or written after the
// direction turned is the first of a message and tells its kind.
type conn struct {
	net.Conn
	layer     *streamLayer
	ioTimeout time.Duration
	outbound  bool // we dialed: we send requests
	counted   bool // counts as inward; guarded by layer.mu
	once      sync.Once

	// The rest belongs to the one goroutine that uses the connection at a time.
	inMessage bool      // within a request
	snapshot  bool      // the request is an InstallSnapshot
	seen      int       // bytes of the request
	began     time.Time // when its first byte came or went
}

var errMessageTooBig = errors.New("a raft message exceeds its limit")

// begin notes that a request begins with first.
func (c *conn) begin(first byte) {
	c.inMessage, c.snapshot, c.seen, c.began = true, first == rpcInstallSnapshot, 0, time.Now()
}

// deadline is when the request, as far as it was seen, must be through.
func (c *conn) deadline() time.Time {
	return c.began.Add(c.ioTimeout + time.Duration(c.seen)*time.Second/minRate)
}

// Close closes the connection; safe to call again and from any goroutine.
func (c *conn) Close() error {
	var err error
	c.once.Do(func() {
		c.layer.forget(c)
		err = c.Conn.Close()
	})
	return err
}

// Write sends bytes of a request (outbound) or of an answer (inbound).
func (c *conn) Write(b []byte) (int, error) {
	if c.outbound {
		if !c.inMessage && len(b) > 0 {
			c.begin(b[0])
		}
		c.seen += len(b)
		if c.snapshot {
			_ = c.Conn.SetWriteDeadline(time.Now().Add(snapshotStall))
		} else {
			_ = c.Conn.SetDeadline(c.deadline())
		}
		return c.Conn.Write(b)
	}
	c.inMessage = false
	_ = c.Conn.SetWriteDeadline(time.Now().Add(c.ioTimeout))
	return c.Conn.Write(b)
}

// Read receives bytes of a request (inbound) or of an answer (outbound).
func (c *conn) Read(b []byte) (int, error) {
	if c.outbound {
		if c.inMessage {
			c.inMessage = false
			if c.snapshot {
				_ = c.Conn.SetReadDeadline(time.Now().Add(snapshotAnswer))
			}
		}
		return c.Conn.Read(b)
	}
	switch {
	case !c.inMessage:
		// An idle peer may be silent for as long as it likes.
		_ = c.Conn.SetReadDeadline(time.Time{})
	case c.snapshot:
		_ = c.Conn.SetReadDeadline(time.Now().Add(snapshotStall))
	default:
		_ = c.Conn.SetReadDeadline(c.deadline())
	}
	n, err := c.Conn.Read(b)
	if n == 0 {
		return n, err
	}
	if !c.inMessage {
		c.begin(b[0])
	}
	c.seen += n
	if !c.snapshot && c.seen > maxMessageBytes {
		return 0, errMessageTooBig
	}
	return n, err
}
