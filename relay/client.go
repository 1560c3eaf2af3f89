package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/settkv/sett/kv"
)

const (
	// handshakeTimeout bounds the beginning of a stream.
	handshakeTimeout = 2 * time.Second
	// deposedGrace is how long a stream still waits for its leader's answers once another
	// one leads: a leader that hands over in order answers within it, one that is frozen
	// or cut off would keep the clients for their whole timeouts.
	deposedGrace = 500 * time.Millisecond
)

var (
	errClosed  = errors.New("this node is shutting down")
	errDeposed = errors.New("another node leads now")
)

// Client is a follower's side. It is made by NewClient and is safe for concurrent use.
type Client struct {
	path   string
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	header func() http.Header

	mu     sync.Mutex
	stream *stream // to the newest leader asked; nil before
	closed bool
	wg     sync.WaitGroup // of the goroutines of streams
}

// NewClient makes a client whose streams begin with a request for path, with what header
// returns. It opens nothing.
func NewClient(path string, dial func(ctx context.Context, network, addr string) (net.Conn, error), header func() http.Header) *Client {
	return &Client{path: path, dial: dial, header: header}
}

// stream is one connection to a leader. ready is closed once it is open, or can't be.
type stream struct {
	addr   string
	ready  chan struct{}
	opened error // why it can't be opened; valid once ready is closed
	w      writer

	mu     sync.Mutex
	calls  map[uint64]chan reply
	next   uint64
	broken error // nothing is taken any more
}

// reply is what came of a call: an answer, or an error of the leader or of the stream.
type reply struct {
	Answer
	err *kv.Error
}

// Propose has the leader at addr (host:port) propose a command of at most MaxCommandBytes.
// The leader is told to end a little before ctx does. The error, a *kv.Error, says
// exactly what became of it: the leader's own word, no-leader if nothing was sent, or
// unknown.
func (c *Client) Propose(ctx context.Context, addr string, cmd []byte) (Answer, error) {
	s, err := c.to(addr)
	if err != nil {
		return Answer{}, notSent(err)
	}
	select {
	case <-s.ready:
	case <-ctx.Done():
		return Answer{}, notSent(context.Cause(ctx))
	}
	if s.opened != nil {
		return Answer{}, notSent(s.opened)
	}
	budget := maxBudget
	if d, ok := ctx.Deadline(); ok {
		budget = min(budget, time.Until(d))
		budget -= min(budget/10, 100*time.Millisecond)
	}
	id, done, err := s.begin()
	if err != nil {
		return Answer{}, notSent(err)
	}
	if err := s.w.send(func(b []byte) []byte { return appendProposal(b, id, budget, cmd) }); err != nil {
		s.forget(id)
		return Answer{}, notSent(err)
	}
	select {
	case r := <-done:
		if r.err != nil {
			return Answer{}, r.err
		}
		return r.Answer, nil
	case <-ctx.Done():
		s.forget(id)
		return Answer{}, lost(context.Cause(ctx))
	}
}

func notSent(err error) *kv.Error {
	e := kv.NotApplied(kv.CodeNoLeader, "the leader can't be reached; if this lasts, look at /readyz of the nodes: a majority of voters must be up and in touch")
	e.Err = err
	return e
}

func lost(err error) *kv.Error {
	return kv.Unknown(err, "the write was sent to the leader and its answer was lost; read the key before trying again, or repeat it with its idempotency key")
}

// to returns the stream to addr, a new one if there is none that works.
func (c *Client) to(addr string) (*stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if c.stream != nil && c.stream.addr == addr && c.stream.usable() {
		return c.stream, nil
	}
	c.retireLocked()
	s := &stream{addr: addr, ready: make(chan struct{}), calls: make(map[uint64]chan reply)}
	c.stream = s
	c.wg.Go(func() { c.run(s) })
	return s, nil
}

// LeaderIs tells who leads: a stream to another one ends soon.
func (c *Client) LeaderIs(addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stream != nil && c.stream.addr != addr {
		c.retireLocked()
	}
}

func (c *Client) retireLocked() {
	if s := c.stream; s != nil {
		c.stream = nil
		time.AfterFunc(deposedGrace, func() { s.end(errDeposed) })
	}
}

// Close ends all streams: calls under way end with what is known of them, at once.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	s := c.stream
	c.mu.Unlock()
	if s != nil {
		s.end(errClosed)
	}
	c.wg.Wait()
}

// run opens a stream and hands out its answers until it breaks.
func (c *Client) run(s *stream) {
	conn, r, err := c.open(s.addr)
	if err != nil {
		s.opened = err
		s.end(err)
		close(s.ready)
		return
	}
	s.mu.Lock()
	s.w.conn = conn
	ended := s.broken
	s.mu.Unlock()
	if ended != nil {
		s.opened = ended
		_ = conn.Close()
		close(s.ready)
		return
	}
	close(s.ready)
	s.end(s.receive(r))
}

// open connects and asks for the upgrade.
func (c *Client) open(addr string) (net.Conn, *bufio.Reader, error) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	conn, err := c.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	r := bufio.NewReaderSize(conn, bufferBytes)
	if err := c.shakeHands(conn, r, addr); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return conn, r, nil
}

func (c *Client) shakeHands(conn net.Conn, r *bufio.Reader, addr string) error {
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodGet, "http://"+addr+c.path, nil)
	if err != nil {
		return err
	}
	if c.header != nil {
		req.Header = c.header()
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != protocol {
		_ = resp.Body.Close()
		return fmt.Errorf("%s takes no stream of proposals: %s", addr, resp.Status)
	}
	return conn.SetDeadline(time.Time{})
}

// receive hands out answers until the connection breaks.
func (s *stream) receive(r *bufio.Reader) error {
	for {
		b, err := readFrame(r, maxAnswerBytes)
		if err != nil {
			return err
		}
		id, a, refusal, err := parseAnswer(b)
		if err != nil {
			return err
		}
		s.mu.Lock()
		done := s.calls[id]
		delete(s.calls, id)
		s.mu.Unlock()
		if done != nil {
			done <- reply{a, refusal}
		}
	}
}

func (s *stream) usable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken == nil
}

// begin registers a call.
func (s *stream) begin() (uint64, chan reply, error) {
	done := make(chan reply, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return 0, nil, s.broken
	}
	s.next++
	s.calls[s.next] = done
	return s.next, done, nil
}

func (s *stream) forget(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.calls, id)
}

// end breaks the stream: what is under way is of unknown fate. Only the first end counts.
func (s *stream) end(err error) {
	s.mu.Lock()
	if s.broken != nil {
		s.mu.Unlock()
		return
	}
	s.broken = err
	calls := s.calls
	s.calls = nil
	conn := s.w.conn
	s.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
	for _, done := range calls {
		done <- reply{err: lost(err)}
	}
}
