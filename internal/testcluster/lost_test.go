package testcluster

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// put writes a key through a node, until it is acknowledged.
func put(t *testing.T, c *Cluster, n *Node, key, value string) {
	t.Helper()
	c.Await(20*time.Second, "a write of "+key, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		a, err := c.Do(ctx, n, http.MethodPut, "/v1/kv/"+key, nil, []byte(value))
		if err == nil && a.Status >= 300 {
			err = fmt.Errorf("%d: %s", a.Status, a.Body)
		}
		return err
	})
}

// TestLostDataComesBackAsNewServer takes parts of a node's disk away while it is
// down. It must notice, never vote again under its old identity, and come back by
// itself with everything.
func TestLostDataComesBackAsNewServer(t *testing.T) {
	for _, c := range []struct {
		name string
		lose func(dir string) error
	}{
		{"everything", os.RemoveAll},
		{"the log", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "raft")) }},
		{"the entries", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "raft", "log")) }},
		{"the pointer", func(dir string) error { return os.Remove(filepath.Join(dir, "state", "CURRENT")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := Start(t, 3, 1)
			for i := range 300 {
				put(t, cl, cl.Nodes[i%3], fmt.Sprintf("k%d", i), "v")
			}
			victim := cl.Nodes[2]
			old := victim.Running().ServerID()
			if err := victim.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := c.lose(victim.cfg.DataDir); err != nil {
				t.Fatal(err)
			}
			put(t, cl, cl.Nodes[0], "while-away", "v")
			if err := victim.Start(); err != nil {
				t.Fatal(err)
			}
			cl.AwaitReady(60 * time.Second)
			if victim.Running().ServerID() == old {
				t.Fatalf("%s lost %s and is still server %s", victim.ID, c.name, old)
			}
			put(t, cl, victim, "after", "v")
			sameContent(t, cl)
			ids := map[string]bool{}
			for _, s := range cl.Nodes[0].Running().Consensus().Configuration() {
				ids[s.ID] = true
			}
			if ids[old] || len(ids) != 3 {
				t.Fatalf("the configuration is %v, the lost server was %s", ids, old)
			}
		})
	}
}

// TestInstallOverNetwork brings a node back after the others have dropped the log
// that it would need.
func TestInstallOverNetwork(t *testing.T) {
	c := Start(t, 3, 1)
	away := c.Nodes[1]
	id := away.Running().ServerID()
	if err := away.Stop(); err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		put(t, c, c.Nodes[2*(i%2)], fmt.Sprintf("k%d", i%90), fmt.Sprint(i))
	}
	for _, n := range []*Node{c.Nodes[0], c.Nodes[2]} {
		c.Await(30*time.Second, "a snapshot on "+n.ID, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			a, err := c.Do(ctx, n, http.MethodPost, "/v1/snapshot", nil, nil)
			if err == nil && a.Status != 200 {
				err = fmt.Errorf("%d: %s", a.Status, a.Body)
			}
			if got := n.Running().Consensus().SnapshotIndex(); err == nil && got < 350 {
				err = fmt.Errorf("it is at %d", got)
			}
			return err
		})
	}
	if err := away.Start(); err != nil {
		t.Fatal(err)
	}
	c.AwaitReady(60 * time.Second)
	sameContent(t, c)
	if away.Running().ServerID() != id {
		t.Fatal("the node is another server")
	}
	label := away.Running().Consensus().SnapshotIndex()
	if label < 350 {
		t.Fatalf("the node's snapshot is at %d: it was brought back by the log, not by an install", label)
	}
}
