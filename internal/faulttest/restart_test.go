package faulttest

import (
	"os"
	"testing"
	"time"

	"github.com/settkv/sett/internal/blackbox"
)

// TestFaultRestartIsFast fills the store, kills a node, and times its way back: it
// must not depend on the amount of data.
func TestFaultRestartIsFast(t *testing.T) {
	// Three seconds are what is promised; beside the other packages' tests, on two
	// cores, a start has to wait for its turn.
	keys, limit := 3000, 12*time.Second
	if inCI(t) {
		keys, limit = 100_000, 3*time.Second
	}
	keys = setting(t, "SETT_FAULT_KEYS", keys)

	c := newCluster(t)
	began := time.Now()
	c.must(blackbox.Fill(c.within(10*time.Minute), c.urls, "fill", keys, 100))
	t.Logf("%d keys in %v", keys, time.Since(began).Round(time.Millisecond))

	l := c.leader()
	for _, n := range []*node{c.nodes[0], c.nodes[1], c.nodes[2]} {
		if n == l {
			continue
		}
		n.kill()
		began = time.Now()
		n.start(t)
		c.must(blackbox.AwaitReady(c.within(60*time.Second), n.url))
		took := time.Since(began)
		t.Logf("follower %s was ready %v after its start, with %d keys", n.id, took.Round(time.Millisecond), keys)
		if took > limit {
			t.Errorf("%s took %v to be ready, want at most %v", n.id, took, limit)
		}
	}

	for _, n := range c.nodes {
		n.kill()
	}
	began = time.Now()
	for _, n := range c.nodes {
		n.start(t)
	}
	c.must(blackbox.AwaitReady(c.within(60*time.Second), c.urls...))
	t.Logf("all three were ready %v after their start, an election included", time.Since(began).Round(time.Millisecond))

	status, err := blackbox.AwaitEqual(c.within(20*time.Second), c.urls)
	c.must(err)
	if status.Keys != uint64(keys) {
		t.Errorf("there are %d keys, want %d", status.Keys, keys)
	}
}

// TestFaultWipedNode takes a stopped node's data folder away. Started again with
// the same line it must come back by itself, as a new server under its old name.
func TestFaultWipedNode(t *testing.T) {
	c := newCluster(t, "--replace-after", "3s")
	before := c.serverIDs()
	ledger, stop := c.load(blackbox.Load{Prefix: "wiped"})
	c.goesOn(ledger, 100)

	l := c.leader()
	victim := c.nodes[0]
	if victim == l {
		victim = c.nodes[1]
	}
	victim.kill()
	c.must(os.RemoveAll(victim.dir))
	c.goesOn(ledger, 50)
	began := time.Now()
	victim.start(t)

	c.must(blackbox.AwaitReady(c.within(60*time.Second), c.urls...))
	after := c.serverIDs()
	t.Logf("%s was a ready voter again %v after its start", victim.id, time.Since(began).Round(time.Millisecond))
	for id, server := range before {
		if is := after[id]; (is == server) == (id == victim.id) || is == "" {
			t.Errorf("%s was server %s, is %q", id, server, is)
		}
	}
	c.goesOn(ledger, 50)
	stop()
	c.judge(ledger)
}
