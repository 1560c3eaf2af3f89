package raftstore

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// counter is a state machine that counts its commands.
type counter struct{ applied uint64 }

func (c *counter) Apply(*raft.Log) any                 { c.applied++; return c.applied }
func (c *counter) Snapshot() (raft.FSMSnapshot, error) { return &counterSnapshot{c.applied}, nil }
func (c *counter) Restore(r io.ReadCloser) error {
	defer r.Close()
	_, err := fmt.Fscan(r, &c.applied)
	return err
}

type counterSnapshot struct{ applied uint64 }

func (s *counterSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := fmt.Fprint(sink, s.applied); err != nil {
		return err
	}
	return sink.Close()
}

func (s *counterSnapshot) Release() {}

// startRaft runs a cluster of one on s.
func startRaft(t *testing.T, s *Store, snaps raft.SnapshotStore, fsm raft.FSM) *raft.Raft {
	t.Helper()
	conf := raft.DefaultConfig()
	conf.LocalID = "one"
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	conf.TrailingLogs = 20
	conf.SnapshotInterval, conf.SnapshotThreshold = time.Hour, 1<<40
	conf.Logger = hclog.NewNullLogger()
	addr, trans := raft.NewInmemTransport("one")
	old, err := raft.HasExistingState(s.Logs(), s.Stable(), snaps)
	if err != nil {
		t.Fatal(err)
	}
	if !old {
		if err := raft.BootstrapCluster(conf, s.Logs(), s.Stable(), snaps, trans, raft.Configuration{
			Servers: []raft.Server{{ID: "one", Address: addr}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := raft.NewRaft(conf, fsm, s.Logs(), s.Stable(), snaps, trans)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "it leads", func() bool { return r.State() == raft.Leader })
	return r
}

// TestRaftRunsOnIt: raft itself bootstraps, applies, compacts, restarts and recovers on this store.
func TestRaftRunsOnIt(t *testing.T) {
	dir := t.TempDir()
	snaps := raft.NewInmemSnapshotStore()
	const perRun = 300
	for run := uint64(1); run <= 3; run++ {
		s := mustOpen(t, testConfig(t, dir))
		fsm := &counter{}
		r := startRaft(t, s, snaps, fsm)
		var last raft.ApplyFuture
		for i := range perRun {
			last = r.Apply(fmt.Appendf(nil, "command %d", i), 10*time.Second)
		}
		if err := last.Error(); err != nil {
			t.Fatal(err)
		}
		if got := last.Response(); got != run*perRun {
			t.Fatalf("run %d: %v commands applied, want %d", run, got, run*perRun)
		}
		if run < 3 {
			if err := r.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
			if first, end := s.Bounds(); first != end-20+1 {
				t.Errorf("run %d: after compaction the log has %d..%d", run, first, end)
			}
		}
		if err := r.Shutdown().Error(); err != nil {
			t.Fatal(err)
		}
		if term, err := s.Stable().GetUint64([]byte("CurrentTerm")); err != nil || term < run {
			t.Errorf("run %d: term %d, %v", run, term, err)
		}
		mustClose(t, s)
	}
}
