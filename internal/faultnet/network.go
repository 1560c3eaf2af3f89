package faultnet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Network connects the Streams of one test. Make it with New.
type Network struct {
	mu        sync.Mutex
	rng       *rand.Rand
	links     map[pair]*link
	listeners map[string]*Stream // by address
	conns     map[*conn]int      // the dialer's end of each connection → how many ends are open
	resetRate float64
	changed   chan struct{} // closed and replaced when a block is lifted or a listener comes
}

type pair struct{ from, to string }

// link is one direction between two nodes. Guarded by Network.mu.
type link struct {
	blocked       bool
	delay, jitter time.Duration
}

// New makes a network without faults. Print the seed when a test fails.
func New(seed uint64) *Network {
	return &Network{
		rng:       rand.New(rand.NewPCG(seed, 0)),
		links:     make(map[pair]*link),
		listeners: make(map[string]*Stream),
		conns:     make(map[*conn]int),
		changed:   make(chan struct{}),
	}
}

func (n *Network) linkLocked(from, to string) *link {
	p := pair{from, to}
	l := n.links[p]
	if l == nil {
		l = &link{}
		n.links[p] = l
	}
	return l
}

// announceLocked wakes dials and reads, which then look at the links again.
func (n *Network) announceLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
	for c := range n.conns {
		c.in.wake()
		c.out.wake()
	}
}

// Block stops what node from sends to node to. The other direction stays as it is.
func (n *Network) Block(from, to string) { n.set(from, to, true) }

// Unblock undoes Block.
func (n *Network) Unblock(from, to string) { n.set(from, to, false) }

func (n *Network) set(from, to string, blocked bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.linkLocked(from, to).blocked = blocked
	n.announceLocked()
}

// Blocked says whether what from sends to to is stopped. A request with an answer
// needs both directions: see Reachable.
func (n *Network) Blocked(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[pair{from, to}]
	return l != nil && l.blocked
}

// Reachable says whether a and b can talk to each other, both ways.
func (n *Network) Reachable(a, b string) bool { return !n.Blocked(a, b) && !n.Blocked(b, a) }

// Partition lets nodes talk only within their group, and lifts all other blocks.
// Nodes that are in no group are not touched by it.
func (n *Network) Partition(groups ...[]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.links {
		l.blocked = false
	}
	for i, g := range groups {
		for j, h := range groups {
			if i == j {
				continue
			}
			for _, from := range g {
				for _, to := range h {
					n.linkLocked(from, to).blocked = true
				}
			}
		}
	}
	n.announceLocked()
}

// Isolate cuts node id off from the others, both ways.
func (n *Network) Isolate(id string, others ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, o := range others {
		if o != id {
			n.linkLocked(id, o).blocked = true
			n.linkLocked(o, id).blocked = true
		}
	}
	n.announceLocked()
}

// Heal lifts all blocks and delays, and sets the reset rate to 0.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.links {
		*l = link{}
	}
	n.resetRate = 0
	n.announceLocked()
}

// SetDelay makes everything that from writes to to from now on arrive after delay
// and a random part of jitter, in order.
func (n *Network) SetDelay(from, to string, delay, jitter time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.linkLocked(from, to)
	l.delay, l.jitter = delay, jitter
}

// SetResetRate makes each write reset its connection with probability p.
func (n *Network) SetResetRate(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.resetRate = p
}

// Drop resets all connections between a and b and returns how many there were.
func (n *Network) Drop(a, b string) int {
	n.mu.Lock()
	var hit []*conn
	for c := range n.conns {
		if (c.self == a && c.peer == b) || (c.self == b && c.peer == a) {
			hit = append(hit, c)
		}
	}
	n.mu.Unlock()
	for _, c := range hit {
		c.in.reset()
		c.out.reset()
	}
	return len(hit)
}

// Connections returns the number of open connections between a and b.
func (n *Network) Connections(a, b string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for c := range n.conns {
		if (c.self == a && c.peer == b) || (c.self == b && c.peer == a) {
			count++
		}
	}
	return count
}

// Listen gives node id a Stream at addr, any text that no other Stream uses. A node
// may have several over time: after Close its address is free again.
func (n *Network) Listen(id, addr string) (*Stream, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, syscall.EADDRINUSE)
	}
	s := &Stream{net: n, id: id, addr: addr, backlog: make(chan *conn, 64), closed: make(chan struct{})}
	n.listeners[addr] = s
	n.announceLocked()
	return s, nil
}

// Stream is one node's access to the network.
type Stream struct {
	net     *Network
	id      string
	addr    string
	backlog chan *conn
	once    sync.Once
	closed  chan struct{}

	mu   sync.Mutex
	open map[*conn]struct{} // this node's ends
}

type address string

func (address) Network() string  { return "faultnet" }
func (a address) String() string { return string(a) }

// Addr returns the address given to Listen.
func (s *Stream) Addr() net.Addr { return address(s.addr) }

// Accept waits for the next connection.
func (s *Stream) Accept() (net.Conn, error) {
	select {
	case c := <-s.backlog:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Close frees the address and closes all connections of this node that were made
// through this Stream, as the end of a process does.
func (s *Stream) Close() error {
	s.once.Do(func() {
		close(s.closed)
		s.net.mu.Lock()
		delete(s.net.listeners, s.addr)
		s.net.mu.Unlock()
		s.mu.Lock()
		open := s.open
		s.open = nil
		s.mu.Unlock()
		for c := range open {
			_ = c.Close()
		}
	})
	return nil
}

// adopt remembers an end of a connection, unless the Stream was closed.
func (s *Stream) adopt(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
		return false
	default:
	}
	if s.open == nil {
		s.open = make(map[*conn]struct{})
	}
	s.open[c] = struct{}{}
	return true
}

func (s *Stream) drop(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// Dial connects to addr. Over a blocked link it waits for the block to be lifted,
// up to timeout (0: for ever), as a TCP connect does. Nobody there: refused at once.
func (s *Stream) Dial(addr string, timeout time.Duration) (net.Conn, error) {
	var expired <-chan time.Time
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		expired = t.C
	}
	for {
		c, changed, err := s.tryDial(addr)
		if c != nil || err != nil {
			if err != nil {
				err = &net.OpError{Op: "dial", Net: "faultnet", Addr: address(addr), Err: err}
				return nil, err
			}
			return c, nil
		}
		select {
		case <-changed:
		case <-s.closed:
			return nil, net.ErrClosed
		case <-expired:
			return nil, &net.OpError{Op: "dial", Net: "faultnet", Addr: address(addr), Err: os.ErrDeadlineExceeded}
		}
	}
}

var errBacklog = errors.New("the listener's backlog is full")

// tryDial returns neither a connection nor an error if a link is blocked.
func (s *Stream) tryDial(addr string) (*conn, <-chan struct{}, error) {
	n := s.net
	n.mu.Lock()
	defer n.mu.Unlock()
	target := n.listeners[addr]
	if target == nil {
		return nil, nil, syscall.ECONNREFUSED
	}
	if n.linkLocked(s.id, target.id).blocked || n.linkLocked(target.id, s.id).blocked {
		return nil, n.changed, nil
	}
	there, back := newHalf(n, s.id, target.id), newHalf(n, target.id, s.id)
	near := &conn{net: n, stream: s, self: s.id, peer: target.id, local: s.addr, remote: target.addr, in: back, out: there}
	far := &conn{net: n, stream: target, self: target.id, peer: s.id, local: target.addr, remote: s.addr, in: there, out: back}
	near.init()
	far.init()
	near.first = near
	far.first = near
	if !target.adopt(far) {
		return nil, nil, syscall.ECONNREFUSED
	}
	if !s.adopt(near) {
		target.drop(far)
		return nil, nil, net.ErrClosed
	}
	select {
	case target.backlog <- far:
	default:
		target.drop(far)
		s.drop(near)
		return nil, nil, errBacklog
	}
	n.conns[near] = 2
	return near, nil, nil
}
