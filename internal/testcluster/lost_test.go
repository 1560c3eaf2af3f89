package testcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

// put writes a key through a node, until it is acknowledged.
func put(t *testing.T, c *Cluster, n *Node, key, value string) {
	t.Helper()
	c.Await(20*time.Second, "a write of "+key, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		a, err := c.Do(ctx, n, Request{Method: http.MethodPut, Path: "/v1/kv/" + key, Body: value})
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
		name     string
		snapshot bool // taken just before
		lose     func(dir string) error
	}{
		{"everything", false, os.RemoveAll},
		{"the log", false, func(dir string) error { return os.RemoveAll(filepath.Join(dir, "raft")) }},
		{"the entries", false, func(dir string) error { return os.RemoveAll(filepath.Join(dir, "raft", "log")) }},
		{"the entries, all of them in a snapshot", true, func(dir string) error { return os.RemoveAll(filepath.Join(dir, "raft", "log")) }},
		{"the pointer", false, func(dir string) error { return os.Remove(filepath.Join(dir, "state", "CURRENT")) }},
		{"the cluster's name", true, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "cluster.json"), []byte("{}"), 0o600)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := Start(t, 3, 1)
			for i := range 300 {
				put(t, cl, cl.Nodes[i%3], fmt.Sprintf("k%d", i), "v")
			}
			victim := cl.Nodes[2]
			old := victim.Running().ServerID()
			if c.snapshot {
				takeSnapshot(t, cl, victim, 300)
			}
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

// takeSnapshot makes a node take a Raft snapshot that covers at least the entry least.
func takeSnapshot(t *testing.T, c *Cluster, n *Node, least uint64) {
	t.Helper()
	c.Await(30*time.Second, "a snapshot on "+n.ID, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		a, err := c.Do(ctx, n, Request{Method: http.MethodPost, Path: "/v1/snapshot"})
		if err == nil && a.Status != 200 {
			err = fmt.Errorf("%d: %s", a.Status, a.Body)
		}
		if got := n.Running().Consensus().SnapshotIndex(); err == nil && got < least {
			err = fmt.Errorf("it is at %d", got)
		}
		return err
	})
}

// TestNewerFormatIsNotDamage: what a newer version wrote is refused and left alone.
func TestNewerFormatIsNotDamage(t *testing.T) {
	c := Start(t, 1, 1)
	n := c.Nodes[0]
	put(t, c, n, "k", "v")
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.cfg.DataDir, "cluster.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.Replace(b, []byte(`"version":1`), []byte(`"version":2`), 1)
	if err := os.WriteFile(path, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); !errors.Is(err, kv.ErrUnknownVersion) {
		t.Fatalf("started on a newer format: %v", err)
	}
	if lost, err := filepath.Glob(filepath.Join(n.cfg.DataDir, "lost-*")); err != nil || len(lost) != 0 {
		t.Fatalf("data was put aside: %v, %v", lost, err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	c.AwaitReady(20 * time.Second)
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
		takeSnapshot(t, c, n, 350)
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
