package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/engine"
)

// within fails the test if fn takes longer than a generous bound.
func within(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s hangs", what)
	}
}

// eventually polls until ok, with a deadline.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s does not happen", what)
		}
	}
}

var testServers = raft.Configuration{Servers: []raft.Server{
	{ID: "one", Address: "127.0.0.1:1", Suffrage: raft.Voter},
	{ID: "two", Address: "127.0.0.1:2", Suffrage: raft.Nonvoter},
}}

// machine is a small state machine on a Store: revision r was made by raft entry
// indexOf(r), and every change is remembered as the model.
type machine struct {
	t     testing.TB
	store *Store

	mu       sync.Mutex
	history  []engine.Record // all versions in the order of commits
	revision uint64
	compact  uint64
	// beforeCapture is called at the start of each Capture.
	beforeCapture func()
}

func indexOf(revision uint64) uint64 { return 2*revision + 3 }

func testConfig(t testing.TB, dir string) StoreConfig {
	return StoreConfig{
		Dir:    dir,
		Engine: engine.Config{MinFreeBytes: 1 << 20},
		OnFatal: func(err error) {
			t.Errorf("fatal: %v", err)
		},
	}
}

// startMachine opens a machine in a fresh folder.
func startMachine(t testing.TB, change func(*StoreConfig)) *machine {
	t.Helper()
	cfg := testConfig(t, filepath.Join(t.TempDir(), "state"))
	if change != nil {
		change(&cfg)
	}
	s, err := OpenStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, store: s}
	s.SetSource(m)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

// put commits one revision that writes value under each key; "" deletes.
func (m *machine) put(value string, keys ...string) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	rev := m.revision + 1
	var entries []engine.Entry
	for _, k := range keys {
		entries = append(entries, engine.Entry{Key: []byte(k), Value: []byte(value), Delete: value == ""})
	}
	event := engine.Entry{Key: fmt.Appendf(nil, "e%08d", rev), Value: []byte(strconv.Itoa(len(keys)))}
	eng := m.store.Engine()
	if err := eng.Commit(rev, entries, event); err != nil {
		m.t.Errorf("commit: %v", err)
		return
	}
	eng.Publish(rev)
	for _, e := range append(entries, event) {
		m.history = append(m.history, cloneRecord(engine.Record{Key: e.Key, Value: e.Value, Version: rev, Delete: e.Delete}))
	}
	m.revision = rev
}

func (m *machine) label(rev, compact uint64) Label {
	return Label{
		Index: indexOf(rev), Term: 1 + rev/7, Configuration: raft.EncodeConfiguration(testServers), ConfigurationIndex: 1,
		Revision: rev, CompactRevision: compact, State: fmt.Appendf(nil, "state of %d", rev),
		ClusterID: "cluster", ServerID: "server", Time: time.Unix(1700000000, 0).UTC(),
	}
}

func (m *machine) Capture() (Label, *engine.Reader, error) {
	if m.beforeCapture != nil {
		m.beforeCapture()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.store.Engine().ReadAt(m.revision)
	if err != nil {
		return Label{}, nil, err
	}
	return m.label(m.revision, m.compact), r, nil
}

// model returns what an export at rev must be.
func (m *machine) model(rev, floor uint64) recordList {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list recordList
	for _, r := range m.history {
		if r.Version <= rev {
			list = append(list, r)
		}
	}
	slices.SortStableFunc(list, func(a, b engine.Record) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		return int(b.Version) - int(a.Version)
	})
	var out recordList
	var key []byte
	based := false
	for _, r := range list {
		if !bytes.Equal(r.Key, key) {
			key, based = r.Key, false
		}
		switch {
		case r.Version > floor:
			out = append(out, r)
		case !based:
			based = true
			if !r.Delete {
				out = append(out, r)
			}
		}
	}
	return out
}

// contentOf exports the store's current database.
func contentOf(t testing.TB, s *Store, rev, floor uint64) recordList {
	t.Helper()
	r, err := s.Engine().ReadAt(rev)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var list recordList
	if err := r.Export(floor, func(rec engine.Record) error { list = append(list, cloneRecord(rec)); return nil }); err != nil {
		t.Fatal(err)
	}
	return list
}

func sameContent(got, want recordList) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d records, want %d", len(got), len(want))
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], want[i]) {
			return fmt.Errorf("record %d is %q@%d (delete %v, %d bytes), want %q@%d (delete %v, %d bytes)", i,
				got[i].Key, got[i].Version, got[i].Delete, len(got[i].Value), want[i].Key, want[i].Version, want[i].Delete, len(want[i].Value))
		}
	}
	return nil
}

// takeSnapshot does what raft does for a local snapshot.
func (m *machine) takeSnapshot() error {
	m.mu.Lock()
	l := m.label(m.revision, m.compact)
	eng := m.store.Engine()
	m.mu.Unlock()
	return commitLabel(m.store, l, eng)
}

func commitLabel(s *Store, l Label, eng *engine.Engine) error {
	sink, err := s.Raft().Create(raft.SnapshotVersionMax, l.Index, l.Term, testServers, l.ConfigurationIndex, nil)
	if err != nil {
		return err
	}
	if err := sink.(*Sink).Commit(l, eng); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// open opens the source's current snapshot; one must have been taken.
func (m *machine) open() (*raft.SnapshotMeta, io.ReadCloser) {
	m.t.Helper()
	meta, r, err := m.tryOpen()
	if err != nil {
		m.t.Fatal(err)
	}
	return meta, r
}

func (m *machine) tryOpen() (*raft.SnapshotMeta, io.ReadCloser, error) {
	list, err := m.store.Raft().List()
	if err != nil {
		return nil, nil, err
	}
	if len(list) != 1 {
		return nil, nil, fmt.Errorf("%d snapshots", len(list))
	}
	return m.store.Raft().Open(list[0].ID)
}

// stream returns the whole live stream as bytes.
func (m *machine) stream() (*raft.SnapshotMeta, []byte) {
	m.t.Helper()
	meta, r := m.open()
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		m.t.Fatal(err)
	}
	return meta, b
}

func sinkFor(t testing.TB, s *Store, meta *raft.SnapshotMeta) raft.SnapshotSink {
	t.Helper()
	sink, err := s.Raft().Create(meta.Version, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, nil)
	if err != nil {
		t.Fatal(err)
	}
	return sink
}

// receive does what raft does with an InstallSnapshot, up to the sink's Close.
func receive(s *Store, meta *raft.SnapshotMeta, r io.Reader) (id string, err error) {
	sink, err := s.Raft().Create(meta.Version, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, nil)
	if err != nil {
		return "", err
	}
	n, err := io.Copy(sink, r)
	if err == nil && n != meta.Size {
		err = errors.New("short read")
	}
	if err != nil {
		return "", errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return "", err
	}
	return sink.ID(), nil
}

// restore does what raft and the state machine do after it.
func restore(s *Store, id string) (Label, error) {
	meta, r, err := s.Raft().Open(id)
	if err != nil {
		return Label{}, err
	}
	defer r.Close()
	pending, err := PendingID(io.LimitReader(r, meta.Size))
	if err != nil {
		return Label{}, err
	}
	l, err := s.Switch(pending, func() {})
	if err == nil && (l.Index != meta.Index || l.Term != meta.Term) {
		err = fmt.Errorf("switched to index %d, meta says %d", l.Index, meta.Index)
	}
	return l, err
}

func mustInstall(t testing.TB, s *Store, meta *raft.SnapshotMeta, stream []byte) Label {
	t.Helper()
	id, err := receive(s, meta, bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	l, err := restore(s, id)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// generationsIn returns the generation folders of a store's folder.
func generationsIn(t testing.TB, dir string) []string {
	t.Helper()
	names, err := generations(dir)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// copyTree copies a folder as a crash at this instant would leave it.
func copyTree(from, to string) error { return os.CopyFS(to, os.DirFS(from)) }
