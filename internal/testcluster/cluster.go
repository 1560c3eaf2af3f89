package testcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/settkv/sett/cluster"
	"github.com/settkv/sett/config"
	"github.com/settkv/sett/consensus"
	"github.com/settkv/sett/internal/faultnet"
	"github.com/settkv/sett/internal/histories"
	"github.com/settkv/sett/node"
)

// Client is the name under which the test itself sits in the network.
const Client = "client"

// Cluster is a cluster under test.
type Cluster struct {
	Net   *faultnet.Network
	Nodes []*Node

	t    testing.TB
	http *http.Client
}

// Node is one of its nodes. It is down while Running returns nil.
type Node struct {
	// ID is its id and its name in the network.
	ID string

	cluster *Cluster
	cfg     config.Config
	log     *logBuffer
	skew    atomic.Int64 // of its wall clock, in nanoseconds

	mu  sync.Mutex
	n   *node.Node
	out *faultnet.Stream // from which it dials HTTP
}

// network puts one node into a faultnet.
type network struct {
	net *faultnet.Network
	id  string
	out *faultnet.Stream
}

func (w network) ListenRaft(bind, _ string) (consensus.Stream, error) {
	return w.net.Listen(w.id, bind)
}

func (w network) ListenHTTP(bind string) (net.Listener, error) { return w.net.Listen(w.id, bind) }

func (w network) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	timeout := 2 * time.Second
	if d, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(d))
	}
	return w.out.Dial(addr, timeout)
}

// Start starts a cluster of n nodes and waits until every node is ready. It is
// stopped when the test ends, and the nodes' logs are shown if the test failed.
func Start(t testing.TB, n int, seed uint64) *Cluster {
	t.Helper()
	c := &Cluster{Net: faultnet.New(seed), t: t}
	out, err := c.Net.Listen(Client, Client+":1")
	if err != nil {
		t.Fatal(err)
	}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:         network{net: c.Net, id: Client, out: out}.Dial,
		MaxIdleConnsPerHost: 64,
	}}
	gossip := freePorts(t, n)
	dir := t.TempDir()
	for i := range n {
		id := fmt.Sprintf("n%d", i+1)
		cfg, err := config.Default()
		if err != nil {
			t.Fatal(err)
		}
		cfg.ID, cfg.DataDir = id, filepath.Join(dir, id)
		cfg.HTTPAddr, cfg.HTTPAdvertise = id+":80", id+":80"
		cfg.RaftAddr, cfg.RaftAdvertise = id+":70", id+":70"
		cfg.GossipAddr, cfg.GossipAdvertise = gossip[i], gossip[i]
		cfg.BootstrapExpect, cfg.Join = n, gossip
		cfg.ReplaceAfter = 500 * time.Millisecond
		cfg.SnapshotThreshold, cfg.TrailingLogs, cfg.SnapshotInterval = 200, 100, time.Second
		c.Nodes = append(c.Nodes, &Node{ID: id, cluster: c, cfg: cfg, log: &logBuffer{}})
	}
	t.Cleanup(func() {
		c.Net.Heal()
		var wg sync.WaitGroup
		for _, n := range c.Nodes {
			wg.Go(func() {
				if err := n.Stop(); err != nil {
					t.Errorf("stop %s: %v", n.ID, err)
				}
			})
		}
		wg.Wait()
		c.http.CloseIdleConnections()
		if t.Failed() {
			for _, n := range c.Nodes {
				t.Logf("log of %s:\n%s", n.ID, n.log.tail(16<<10))
			}
		}
	})
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			t.Fatalf("start %s: %v", n.ID, err)
		}
	}
	c.AwaitReady(60 * time.Second)
	return c
}

// Start starts a node that is down, on the data that it left.
func (n *Node) Start() error {
	out, err := n.cluster.Net.Listen(n.ID, n.ID+":out")
	if err != nil {
		return err
	}
	const beat = 150 * time.Millisecond
	started, err := node.Open(context.Background(), n.cfg, node.Options{
		Logger: slog.New(slog.NewTextHandler(n.log, nil)), Version: "test", HeartbeatTimeout: beat,
		Network:   network{net: n.cluster.Net, id: n.ID, out: out},
		WallClock: func() time.Time { return time.Now().Add(time.Duration(n.skew.Load())) },
		Timing: cluster.Timing{
			Probe: 200 * time.Millisecond, Gossip: 20 * time.Millisecond, JoinMin: 20 * time.Millisecond, JoinMax: 200 * time.Millisecond,
			Formation: 20 * time.Millisecond, Reconcile: 50 * time.Millisecond, Stabilize: 100 * time.Millisecond, LiveWithin: 3 * beat,
		},
	})
	if err != nil {
		_ = out.Close()
		return err
	}
	n.mu.Lock()
	n.n, n.out = started, out
	n.mu.Unlock()
	return nil
}

// SetClock puts a node's wall clock that far off, forwards or backwards.
func (n *Node) SetClock(off time.Duration) { n.skew.Store(int64(off)) }

// Running returns the node, nil while it is down.
func (n *Node) Running() *node.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.n
}

// Stop stops the node in order. It does nothing to one that is down.
func (n *Node) Stop() error {
	n.mu.Lock()
	r, out := n.n, n.out
	n.n = nil
	n.mu.Unlock()
	if r == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return errors.Join(r.Err(), r.Shutdown(ctx), out.Close())
}

// Kill cuts a node off from everybody and takes it down: no farewell arrives, and no
// answer that was under way. The data is closed in order, since a process can't kill
// a part of itself; real kills are for the tests with real processes.
func (n *Node) Kill() error {
	for _, id := range append(n.cluster.others(n.ID), Client) {
		n.cluster.Net.Block(n.ID, id)
		n.cluster.Net.Block(id, n.ID)
		n.cluster.Net.Drop(n.ID, id)
	}
	err := n.Stop()
	for _, id := range append(n.cluster.others(n.ID), Client) {
		n.cluster.Net.Unblock(n.ID, id)
		n.cluster.Net.Unblock(id, n.ID)
	}
	return err
}

func (c *Cluster) others(id string) []string {
	var ids []string
	for _, n := range c.Nodes {
		if n.ID != id {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// IDs returns the names of all nodes.
func (c *Cluster) IDs() []string { return c.others("") }

// Leader returns the running node that leads by its own account, nil if none does.
// With a partition there may be two such nodes; the one of the highest term counts.
func (c *Cluster) Leader() *Node {
	var leader *Node
	var term uint64
	for _, n := range c.Nodes {
		if r := n.Running(); r != nil && r.Consensus().IsLeader() && r.Consensus().Term() >= term {
			leader, term = n, r.Consensus().Term()
		}
	}
	return leader
}

// AwaitReady waits until every node is running and ready.
func (c *Cluster) AwaitReady(limit time.Duration) {
	c.t.Helper()
	c.Await(limit, "all nodes to be ready", func() error {
		for _, n := range c.Nodes {
			r := n.Running()
			if r == nil {
				return fmt.Errorf("%s is down", n.ID)
			}
			for _, check := range r.Ready() {
				if !check.OK {
					return fmt.Errorf("%s: %s: %s", n.ID, check.Name, check.Detail)
				}
			}
		}
		return nil
	})
}

// Await polls until done returns nil.
func (c *Cluster) Await(limit time.Duration, what string, done func() error) {
	c.t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			c.t.Fatalf("waited %v for %s: %v", limit, what, err)
		}
	}
}

// Answer is an HTTP answer read to its end.
type Answer = histories.Answer

// Request is an HTTP request to a node.
type Request = histories.Request

// Do makes one HTTP request to a node, from the test's place in the network.
func (c *Cluster) Do(ctx context.Context, n *Node, r Request) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, "http://"+n.ID+":80"+r.Path, strings.NewReader(r.Body))
	if err != nil {
		return Answer{}, err
	}
	if r.Header != nil {
		req.Header = r.Header
	}
	// The transport must not repeat a request by itself: the test decides.
	req.GetBody = nil
	resp, err := c.http.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return Answer{Status: resp.StatusCode, Header: resp.Header, Body: b}, err
}

func freePorts(t testing.TB, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		// Gossip needs the same port for TCP and UDP.
		for {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			u, err := net.ListenPacket("udp", l.Addr().String())
			if err != nil {
				_ = l.Close()
				continue
			}
			defer l.Close()
			defer u.Close()
			addrs = append(addrs, l.Addr().String())
			break
		}
	}
	return addrs
}

// logBuffer keeps a node's log.
type logBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	const most = 1 << 20
	l.b = append(l.b, p...)
	if len(l.b) > most {
		l.b = append([]byte(nil), l.b[most/2:]...)
	}
	return len(p), nil
}

func (l *logBuffer) tail(n int) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b[max(0, len(l.b)-n):])
}
