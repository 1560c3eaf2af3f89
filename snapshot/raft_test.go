package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/engine"
)

// raftMachine is a state machine as raft sees it: each command "key value" is one
// revision, whose event holds the entry's index.
type raftMachine struct {
	t     *testing.T
	store *Store

	mu                 sync.Mutex
	revision           uint64
	applied            uint64 // index of the newest revision
	delivered          uint64 // index of the newest entry that raft has delivered
	term               uint64
	configuration      []byte
	configurationIndex uint64
}

// load finds out what the database holds.
func (f *raftMachine) load() error {
	eng := f.store.Engine()
	r, err := eng.ReadAt(1 << 62)
	if err != nil {
		return err
	}
	defer r.Close()
	f.revision, f.applied = 0, 0
	it := r.Scan(engine.ScanOptions{Start: []byte("e"), End: []byte("f"), Reverse: true})
	defer it.Close()
	if it.Next() {
		f.revision, f.applied = it.Version(), binary.BigEndian.Uint64(it.Value())
	}
	if err := it.Err(); err != nil {
		return err
	}
	eng.Publish(f.revision)
	if l, ok := f.store.Label(); ok {
		f.delivered, f.term = l.Index, l.Term
		f.configuration, f.configurationIndex = l.Configuration, l.ConfigurationIndex
	}
	return nil
}

func (f *raftMachine) Apply(l *raft.Log) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delivered, f.term = l.Index, l.Term
	if l.Index <= f.applied {
		return nil
	}
	key, value, _ := strings.Cut(string(l.Data), " ")
	rev := f.revision + 1
	eng := f.store.Engine()
	event := engine.Entry{Key: fmt.Appendf(nil, "e%08d", rev), Value: binary.BigEndian.AppendUint64(nil, l.Index)}
	if err := eng.Commit(rev, []engine.Entry{{Key: []byte("d" + key), Value: []byte(value)}}, event); err != nil {
		f.t.Errorf("commit: %v", err)
		return err
	}
	eng.Publish(rev)
	f.revision, f.applied = rev, l.Index
	return nil
}

func (f *raftMachine) StoreConfiguration(index uint64, c raft.Configuration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delivered = index
	f.configuration, f.configurationIndex = raft.EncodeConfiguration(c), index
}

func (f *raftMachine) labelLocked() Label {
	return Label{
		Index: f.delivered, Term: f.term, Configuration: f.configuration, ConfigurationIndex: f.configurationIndex,
		Revision: f.revision, State: fmt.Appendf(nil, "at %d", f.delivered),
	}
}

func (f *raftMachine) Capture() (Label, *engine.Reader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.delivered < f.applied {
		return Label{}, nil, errors.New("catching up")
	}
	r, err := f.store.Engine().ReadAt(f.revision)
	return f.labelLocked(), r, err
}

func (f *raftMachine) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return persisted{f.labelLocked(), f.store.Engine()}, nil
}

func (f *raftMachine) Restore(rc io.ReadCloser) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	id, err := PendingID(rc)
	if err != nil {
		return err
	}
	if _, err := f.store.Switch(id, func() {}); err != nil {
		return err
	}
	return f.load()
}

func (f *raftMachine) state() (revision, delivered uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revision, f.delivered
}

type persisted struct {
	l   Label
	eng *engine.Engine
}

func (p persisted) Persist(sink raft.SnapshotSink) error { return sink.(*Sink).Commit(p.l, p.eng) }
func (p persisted) Release()                             {}

// raftNode is what survives a restart, and the raft that runs on it.
type raftNode struct {
	t    *testing.T
	name string
	dir  string
	logs *raft.InmemStore

	transport *raft.InmemTransport
	machine   *raftMachine
	raft      *raft.Raft
}

func (n *raftNode) start() {
	n.t.Helper()
	s, err := OpenStore(testConfig(n.t, n.dir))
	if err != nil {
		n.t.Fatal(err)
	}
	n.machine = &raftMachine{t: n.t, store: s}
	if err := n.machine.load(); err != nil {
		n.t.Fatal(err)
	}
	s.SetSource(n.machine)
	_, n.transport = raft.NewInmemTransport(raft.ServerAddress(n.name))
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(n.name)
	cfg.LogOutput = io.Discard
	cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLeaseTimeout = 100*time.Millisecond, 100*time.Millisecond, 50*time.Millisecond
	cfg.CommitTimeout = 5 * time.Millisecond
	cfg.TrailingLogs = 1
	cfg.SnapshotThreshold, cfg.SnapshotInterval = 1<<40, time.Hour
	cfg.NoSnapshotRestoreOnStart = true
	n.raft, err = raft.NewRaft(cfg, n.machine, n.logs, n.logs, s.Raft(), n.transport)
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *raftNode) stop() {
	if err := n.raft.Shutdown().Error(); err != nil {
		n.t.Errorf("shut down %s: %v", n.name, err)
	}
	if err := n.machine.store.Close(); err != nil {
		n.t.Errorf("close %s: %v", n.name, err)
	}
}

func (n *raftNode) apply(count int) {
	n.t.Helper()
	for i := range count {
		if err := n.raft.Apply(fmt.Appendf(nil, "key%d %s", i%20, strings.Repeat("value", i%100)), 10*time.Second).Error(); err != nil {
			n.t.Fatalf("apply: %v", err)
		}
	}
}

// Real raft sends a snapshot to a server whose log it no longer has, while it takes
// writes, and both go on from there, after a restart too.
func TestRaftInstallsSnapshot(t *testing.T) {
	newNode := func(name string) *raftNode {
		return &raftNode{t: t, name: name, dir: filepath.Join(t.TempDir(), "state"), logs: raft.NewInmemStore()}
	}
	a, b := newNode("a"), newNode("b")
	a.start()
	defer func() { a.stop() }()
	if err := a.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "a"}}}).Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "leadership", func() bool { return a.raft.State() == raft.Leader })
	a.apply(200)
	if err := a.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if first, _ := a.logs.FirstIndex(); first < 100 {
		t.Fatalf("the log still begins at %d: nothing would be installed", first)
	}
	list, err := a.machine.store.Raft().List()
	if err != nil || len(list) != 1 {
		t.Fatalf("snapshots: %v, %v", list, err)
	}

	b.start()
	a.transport.Connect("b", b.transport)
	b.transport.Connect("a", a.transport)
	if err := a.raft.AddNonvoter("b", "b", 0, 10*time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	a.apply(200)
	caughtUp := func() bool {
		ra, ia := a.machine.state()
		rb, ib := b.machine.state()
		return ra == rb && ia == ib
	}
	eventually(t, "catching up by a snapshot", caughtUp)
	if l, ok := b.machine.store.Label(); !ok || l.Index < list[0].Index {
		t.Errorf("label %d, %v: nothing was installed (the snapshot was at %d)", l.Index, ok, list[0].Index)
	}
	same := func() {
		t.Helper()
		rev, _ := a.machine.state()
		if err := sameContent(contentOf(t, b.machine.store, rev, 0), contentOf(t, a.machine.store, rev, 0)); err != nil {
			t.Error(err)
		}
	}
	same()
	eventually(t, "the end of the stream", func() bool { return !a.machine.store.Streaming() })

	// The receiver takes a snapshot of its own, restarts on it, and goes on.
	if err := b.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	a.apply(20)
	eventually(t, "following the log", caughtUp)
	b.stop()
	a.apply(20)
	b.start()
	defer func() { b.stop() }()
	a.transport.Connect("b", b.transport)
	b.transport.Connect("a", a.transport)
	eventually(t, "catching up after a restart", caughtUp)
	same()
}
