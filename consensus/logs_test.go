package consensus

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestSnapshotByBytes: few big entries cause a snapshot although the threshold in
// entries is far, and the log is cut to its bound in bytes.
func TestSnapshotByBytes(t *testing.T) {
	t.Parallel()
	tc := newCluster(t, 1, func(_ string, cfg *Config) {
		cfg.SnapshotThresholdBytes = 16 << 20
		cfg.SnapshotInterval = time.Hour
	})
	l := tc.leader()
	for i := range 300 {
		if _, _, err := l.c.Propose(tc.ctx(testPatience), slices.Repeat([]byte{byte(i)}, 128<<10)); err != nil {
			t.Fatal(err)
		}
	}
	tc.until("a snapshot", func() bool { return l.c.SnapshotIndex() > 0 })
	tc.until("a shorter log", func() bool {
		first, _ := l.logs.FirstIndex()
		return first > 1
	})
	index, err := l.c.Snapshot(tc.ctx(testPatience))
	if err != nil || index < l.c.CommitIndex() {
		t.Errorf("snapshot at %d, %v; committed %d", index, err, l.c.CommitIndex())
	}
	again, err := l.c.Snapshot(tc.ctx(testPatience))
	if err != nil || again < index {
		t.Errorf("a second snapshot with nothing new: %d, %v", again, err)
	}
}

// slowSnapshots makes a snapshot's stream wait.
type slowSnapshots struct {
	raft.SnapshotStore
	mu            sync.Mutex
	opening, gate chan struct{}
}

func (s *slowSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := s.SnapshotStore.Open(id)
	s.mu.Lock()
	gate, opening := s.gate, s.opening
	s.mu.Unlock()
	if err != nil || gate == nil {
		return meta, r, err
	}
	<-opening
	return meta, &slowReader{ReadCloser: r, gate: gate}, nil
}

type slowReader struct {
	io.ReadCloser
	gate chan struct{}
}

func (r *slowReader) Read(b []byte) (int, error) {
	<-r.gate
	return r.ReadCloser.Read(b)
}

// TestLogIsKeptDuringInstall: while a snapshot is opened and a follower installs it, the leader takes snapshots
// and compacts, but keeps what the follower needs next: one install is enough.
func TestLogIsKeptDuringInstall(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	stores := map[string]*slowSnapshots{}
	tc := newCluster(t, 3, func(id string, cfg *Config) {
		mu.Lock()
		defer mu.Unlock()
		stores[id] = &slowSnapshots{SnapshotStore: cfg.Snapshots}
		cfg.Snapshots = stores[id]
		cfg.TrailingLogs = 1
	})
	var l *testNode
	for i := range 10 {
		l = tc.put(fmt.Sprint("before ", i))
	}
	if _, err := l.c.Snapshot(tc.ctx(testPatience)); err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	opening := make(chan struct{})
	stores[l.id].mu.Lock()
	stores[l.id].gate, stores[l.id].opening = gate, opening
	stores[l.id].mu.Unlock()
	fresh := tc.start("n3")
	if err := l.c.AddNonvoter(tc.ctx(testPatience), "n3", "n3:7000"); err != nil {
		t.Fatal(err)
	}
	holding := func() bool { return l.c.holding() }
	tc.until("an install", holding)
	installed := l.c.SnapshotIndex()
	for round := range 3 { // each would cut the log behind it
		for i := range 10 {
			tc.put(fmt.Sprintf("during %d %d", round, i))
		}
		if _, err := l.c.Snapshot(tc.ctx(testPatience)); err != nil {
			t.Fatal(err)
		}
		if round == 0 { // it was still being opened till now; from here it is being sent
			close(opening)
		}
	}
	if first, _ := l.logs.FirstIndex(); first > installed+1 {
		t.Errorf("the log begins at %d, but the follower will need %d", first, installed+1)
	}
	open()
	tc.until("n3 caught up", func() bool {
		m, ok := l.c.Match("n3")
		return ok && m >= l.c.LastIndex()
	})
	if list, err := fresh.snaps.List(); err != nil || len(list) != 1 || list[0].Index > installed {
		t.Errorf("n3 did not go on from the snapshot it was sent: %+v, %v", list, err)
	}
	tc.sameEverywhere()
	tc.until("the log is let go", func() bool { return !holding() })
}

// TestAppendEntriesIsBoundedInBytes: a follower that missed many big entries gets
// them in messages of bounded size, and gets them all.
func TestAppendEntriesIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	args := &raft.AppendEntriesRequest{}
	for range maxAppendEntries {
		args.Entries = append(args.Entries, &raft.Log{Data: make([]byte, MaxEntryBytes)})
	}
	trimEntries(args)
	if n := len(args.Entries); n != maxBodyBytes/MaxEntryBytes {
		t.Errorf("%d entries of %d bytes", n, MaxEntryBytes)
	}
	args.Entries = []*raft.Log{{Data: make([]byte, maxBodyBytes+1)}}
	if trimEntries(args); len(args.Entries) != 1 {
		t.Error("a lone big entry was dropped")
	}

	tc := newCluster(t, 3, nil)
	l := tc.leader()
	f := tc.followers(l)[0]
	tc.net.Isolate(f.id, tc.ids()...)
	for i := range 40 {
		if _, _, err := l.c.Propose(tc.ctx(testPatience), slices.Repeat([]byte{byte(i)}, 250<<10)); err != nil {
			t.Fatal(err)
		}
	}
	tc.net.Heal()
	tc.sameEverywhere()
}

type monotonicLogs struct{ raft.LogStore }

func (monotonicLogs) IsMonotonic() bool { return true }

// TestMeteredLogsStayMonotonic: raft must see through the wrapper.
func TestMeteredLogsStayMonotonic(t *testing.T) {
	var plain, monotonic raft.LogStore = newMeteredLogs(raft.NewInmemStore()), newMeteredLogs(monotonicLogs{raft.NewInmemStore()})
	if m, ok := plain.(raft.MonotonicLogStore); ok && m.IsMonotonic() {
		t.Error("a plain store became monotonic")
	}
	if m, ok := monotonic.(raft.MonotonicLogStore); !ok || !m.IsMonotonic() {
		t.Error("a monotonic store lost it")
	}
	if _, ok := plain.(raft.CommitTrackingLogStore); ok {
		t.Error("raft would restore committed logs from it")
	}
}
