package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Stream carries bytes between servers. Implementations: ListenTCP here, and the
// fault-injecting network of the tests.
type Stream interface {
	// Listener accepts connections. Addr is the address that other servers are told.
	net.Listener
	// Dial connects to an address as the Raft configuration or Config.Resolve names it.
	Dial(addr string, timeout time.Duration) (net.Conn, error)
}

// ListenTCP listens on bind and tells others to connect to advertise ("": to the
// address it really listens on).
func ListenTCP(bind, advertise string) (Stream, error) {
	l, err := net.Listen("tcp", bind)
	if err != nil {
		return nil, fmt.Errorf("listen for raft: %w", err)
	}
	t := &tcpStream{Listener: l, addr: l.Addr()}
	if advertise != "" {
		t.addr = namedAddr(advertise)
	}
	return t, nil
}

type tcpStream struct {
	net.Listener
	addr net.Addr
}

func (t *tcpStream) Addr() net.Addr { return t.addr }

func (t *tcpStream) Dial(addr string, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", addr, timeout)
}

// namedAddr is an address as people wrote it; a host name stays one, so that it is
// resolved anew at each dial.
type namedAddr string

func (namedAddr) Network() string  { return "tcp" }
func (a namedAddr) String() string { return string(a) }

const (
	handshakeTimeout = 3 * time.Second
	// maxHandshakes bounds the connections whose peer has not said who it is,
	// maxInbound those that have.
	maxHandshakes = 64
	maxInbound    = 256
)

// streamLayer is raft's StreamLayer: under it a Stream, on it the handshake.
type streamLayer struct {
	under     Stream
	log       *slog.Logger
	clusterID func() string
	serverID  string
	ioTimeout time.Duration // of one message
	openAfter time.Duration // connections are accepted only this long after start

	accepted chan net.Conn
	closing  chan struct{}
	close    sync.Once
	wg       sync.WaitGroup
	tokens   chan struct{} // one for each handshake at work
	refusals refusalLog

	mu     sync.Mutex
	conns  map[*conn]struct{} // every open connection, so that Close ends them
	closed bool
	inward int
}

var _ raft.StreamLayer = (*streamLayer)(nil)

func (s *streamLayer) start() {
	s.accepted = make(chan net.Conn)
	s.closing = make(chan struct{})
	s.tokens = make(chan struct{}, maxHandshakes)
	s.conns = make(map[*conn]struct{})
	s.refusals.log = s.log
	s.wg.Add(1)
	go s.run()
}

// run accepts and shakes hands, apart from raft's accepting, which must not wait
// for a peer that says nothing.
func (s *streamLayer) run() {
	defer s.wg.Done()
	if s.openAfter > 0 {
		select {
		case <-time.After(s.openAfter):
		case <-s.closing:
			return
		}
	}
	wait := newBackoff(5*time.Millisecond, time.Second)
	for {
		nc, err := s.under.Accept()
		if err != nil {
			select {
			case <-s.closing:
				return
			default:
			}
			s.log.Warn("can't accept raft connections", "error", err)
			select {
			case <-time.After(wait.next()):
			case <-s.closing:
				return
			}
			continue
		}
		wait.reset()
		select {
		case s.tokens <- struct{}{}:
		default:
			s.refusals.warn("too many raft connections that don't say who they are", "remote", nc.RemoteAddr().String())
			_ = nc.Close()
			continue
		}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			defer func() { <-s.tokens }()
			s.welcome(nc)
		}()
	}
}

// welcome shakes hands with a dialer and passes the connection on to raft.
func (s *streamLayer) welcome(nc net.Conn) {
	c := s.track(nc)
	if c == nil {
		return
	}
	keep := false
	defer func() {
		if !keep {
			_ = c.Close()
		}
	}()
	_ = nc.SetDeadline(time.Now().Add(handshakeTimeout))
	h, err := readHello(nc)
	remote := nc.RemoteAddr().String()
	if errors.Is(err, errVersion) {
		s.refusals.warn("refused a raft connection of another protocol version; run the same version of sett on all nodes", "remote", remote)
		_, _ = nc.Write(encodeAnswer(statusVersion, s.serverID))
		return
	}
	if err != nil {
		s.refusals.warn("refused a raft connection that did not begin with Sett's handshake", "remote", remote, "error", err)
		return
	}
	status := statusOK
	switch own := s.clusterID(); {
	case own == "":
		status = statusForeignCluster
		s.refusals.warn("refused a raft connection: this node belongs to no cluster yet", "remote", remote, "from", h.From, "cluster", h.Cluster)
	case h.Cluster != own:
		status = statusForeignCluster
		s.refusals.warn("refused a raft connection from another cluster; check the addresses both clusters use",
			"remote", remote, "from", h.From, "their_cluster", h.Cluster, "our_cluster", own)
	case h.To != s.serverID:
		status = statusWrongServer
		s.refusals.warn("refused a raft connection meant for another server; an address was probably reused",
			"remote", remote, "from", h.From, "meant_for", h.To, "we_are", s.serverID)
	}
	if _, err := nc.Write(encodeAnswer(status, s.serverID)); err != nil || status != statusOK {
		return
	}
	_ = nc.SetDeadline(time.Time{})
	if !s.countInward(c) {
		s.refusals.warn("too many raft connections", "remote", remote, "from", h.From)
		return
	}
	select {
	case s.accepted <- c:
		keep = true
	case <-s.closing:
	}
}

// Accept returns the next connection whose handshake succeeded.
func (s *streamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-s.accepted:
		return c, nil
	case <-s.closing:
		return nil, net.ErrClosed
	}
}

// Addr is the address that others are told.
func (s *streamLayer) Addr() net.Addr { return s.under.Addr() }

// Close closes the listener and every connection, and waits for the handshakes.
func (s *streamLayer) Close() error {
	var err error
	s.close.Do(func() {
		close(s.closing)
		err = s.under.Close()
		s.mu.Lock()
		s.closed = true
		open := make([]*conn, 0, len(s.conns))
		for c := range s.conns {
			open = append(open, c)
		}
		s.mu.Unlock()
		for _, c := range open {
			_ = c.Close()
		}
	})
	s.wg.Wait()
	return err
}

// joinTarget makes the address that transport hands to Dial through raft, so that
// Dial knows whom to expect there.
func joinTarget(id, addr string) raft.ServerAddress { return raft.ServerAddress(id + "@" + addr) }

// dialError tells a connection that could not be made from one that broke.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// Dial connects to a target made by joinTarget and shakes hands with it.
func (s *streamLayer) Dial(target raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	c, err := s.dial(target, timeout)
	if err != nil {
		return nil, &dialError{err}
	}
	return c, nil
}

func (s *streamLayer) dial(target raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, addr, ok := strings.Cut(string(target), "@")
	if !ok || id == "" || addr == "" {
		return nil, fmt.Errorf("dial %q: no server id or no address", target)
	}
	cluster := s.clusterID()
	if cluster == "" {
		return nil, errors.New("dial: this node belongs to no cluster yet")
	}
	greeting, err := hello{Cluster: cluster, From: s.serverID, To: id}.encode()
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", id, err)
	}
	nc, err := s.under.Dial(addr, timeout)
	if err != nil {
		return nil, err
	}
	c := s.track(nc)
	if c == nil {
		return nil, net.ErrClosed
	}
	c.outbound = true
	if err := s.greet(nc, greeting, id); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("dial server %s at %s: %w", id, addr, err)
	}
	return c, nil
}

func (s *streamLayer) greet(nc net.Conn, greeting []byte, id string) error {
	_ = nc.SetDeadline(time.Now().Add(min(handshakeTimeout, s.ioTimeout)))
	if _, err := nc.Write(greeting); err != nil {
		return err
	}
	status, from, err := readAnswer(nc)
	switch {
	case err != nil:
		return err
	case status == statusForeignCluster:
		err = fmt.Errorf("server %s there belongs to another cluster, or to none", from)
	case status == statusWrongServer || from != id:
		err = fmt.Errorf("server %s answers there", from)
	case status == statusVersion:
		err = errVersion
	case status != statusOK:
		err = fmt.Errorf("refused with status %d", status)
	default:
		return nc.SetDeadline(time.Time{})
	}
	s.refusals.warn("a raft peer refused this node", "peer", id, "address", nc.RemoteAddr().String(), "error", err)
	return err
}

// track wraps a connection and remembers it; nil, and nc closed, after Close.
func (s *streamLayer) track(nc net.Conn) *conn {
	c := &conn{Conn: nc, layer: s, ioTimeout: s.ioTimeout}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = nc.Close()
		return nil
	}
	s.conns[c] = struct{}{}
	return c
}

func (s *streamLayer) countInward(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inward >= maxInbound {
		return false
	}
	s.inward++
	c.counted = true
	return true
}

func (s *streamLayer) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.conns[c]; ok && c.counted {
		s.inward--
	}
	delete(s.conns, c)
}

// refusalLog logs each kind of refusal at most once in refusalEvery, with the
// number of those it kept silent: loud, but no flood for whoever knocks often.
type refusalLog struct {
	log  *slog.Logger
	mu   sync.Mutex
	last map[string]refusal // by message, of which there are few
}

type refusal struct {
	at     time.Time
	silent int
}

const refusalEvery = 10 * time.Second

func (r *refusalLog) warn(msg string, args ...any) {
	r.mu.Lock()
	if r.last == nil {
		r.last = make(map[string]refusal)
	}
	last, now := r.last[msg], time.Now()
	if !last.at.IsZero() && now.Sub(last.at) < refusalEvery {
		last.silent++
		r.last[msg] = last
		r.mu.Unlock()
		return
	}
	r.last[msg] = refusal{at: now}
	r.mu.Unlock()
	if last.silent > 0 {
		args = append(args, "same_before", last.silent)
	}
	r.log.Warn(msg, args...)
}

// backoff doubles a wait up to a bound.
type backoff struct{ base, limit, cur time.Duration }

func newBackoff(base, limit time.Duration) *backoff { return &backoff{base, limit, base} }

func (b *backoff) next() time.Duration {
	d := b.cur
	b.cur = min(2*b.cur, b.limit)
	return d
}

func (b *backoff) reset() { b.cur = b.base }
