package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/kv"
)

func reopen(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := OpenStore(testConfig(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestLocalSnapshotIsTheLabel(t *testing.T) {
	m := startMachine(t, nil)
	if list, err := m.store.Raft().List(); err != nil || len(list) != 0 {
		t.Fatalf("snapshots of a new store: %v, %v", list, err)
	}
	if _, ok := m.store.Label(); ok {
		t.Fatal("a new store has a label")
	}
	for i := range 10 {
		m.put(fmt.Sprint("value ", i), "a", fmt.Sprint("b", i))
	}
	if err := m.takeSnapshot(); err != nil {
		t.Fatal(err)
	}
	want := m.label(10, 0)
	check := func(s *Store) {
		t.Helper()
		if l, ok := s.Label(); !ok || !reflect.DeepEqual(l, want) {
			t.Errorf("label %+v, %v; want %+v", l, ok, want)
		}
		list, err := s.Raft().List()
		if err != nil || len(list) != 1 {
			t.Fatalf("list: %v, %v", list, err)
		}
		got := list[0]
		if got.Index != want.Index || got.Term != want.Term || got.ConfigurationIndex != 1 || !reflect.DeepEqual(got.Configuration, testServers) {
			t.Errorf("raft sees %+v", got)
		}
	}
	check(m.store)
	m.put("later", "a")
	check(m.store)
	if err := m.store.Close(); err != nil {
		t.Fatal(err)
	}
	s := reopen(t, m.store.cfg.Dir)
	check(s)
	if err := sameContent(contentOf(t, s, 11, 0), m.model(11, 0)); err != nil {
		t.Errorf("after reopening: %v", err)
	}
}

// Raft's numbers go into the label; what the state machine's label says is only how
// far its small state has got.
func TestCommitTakesRaftsNumbers(t *testing.T) {
	m := startMachine(t, nil)
	m.put("v", "k")
	l := m.label(1, 0)
	create := func(index uint64) *Sink {
		sink, err := m.store.Raft().Create(1, index, 9, testServers, 2, nil)
		if err != nil {
			t.Fatal(err)
		}
		return sink.(*Sink)
	}
	if err := create(l.Index-1).Commit(l, m.store.Engine()); err == nil {
		t.Error("a label above raft's index was accepted")
	}
	sink := create(l.Index + 4)
	if err := sink.Commit(l, m.store.Engine()); err != nil {
		t.Fatal(err)
	}
	if _, ok := m.store.Label(); ok {
		t.Error("the label is there before Close")
	}
	if err := sink.Commit(l, m.store.Engine()); err == nil {
		t.Error("a second Commit was accepted")
	}
	if _, err := sink.Write([]byte("x")); err == nil {
		t.Error("Write after Commit was accepted")
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	got, _ := m.store.Label()
	if got.Index != l.Index+4 || got.Term != 9 || got.ConfigurationIndex != 2 || got.Revision != 1 {
		t.Errorf("label %+v", got)
	}
	if err := commitLabel(m.store, l, m.store.Engine()); err == nil {
		t.Error("an older snapshot replaced a newer one")
	}
	other := startMachine(t, nil)
	if err := commitLabel(m.store, m.label(9, 0), other.store.Engine()); !errors.Is(err, ErrSwitched) {
		t.Errorf("snapshot of another database: %v, want ErrSwitched", err)
	}
	sink = create(100)
	if err := sink.Cancel(); err != nil {
		t.Fatal(err)
	}
	if err := sink.Commit(l, m.store.Engine()); err == nil {
		t.Error("Commit after Cancel was accepted")
	}
	if err := create(100).Close(); err == nil {
		t.Error("a sink that got nothing closed without an error")
	}
	if _, err := m.store.Raft().Create(0, 1, 1, raft.Configuration{}, 1, nil); err == nil {
		t.Error("snapshot version 0 was accepted")
	}
}

// Invariant 19: a local snapshot reads no data and writes nothing but its label.
func TestLocalSnapshotCostsNothing(t *testing.T) {
	m := startMachine(t, nil)
	value := strings.Repeat("v", 4000)
	for i := range 300 {
		m.put(value, fmt.Sprint("k", i), fmt.Sprint("l", i))
	}
	dir := filepath.Join(m.store.cfg.Dir, generationsIn(t, m.store.cfg.Dir)[0])
	sizes := func() map[string]int64 {
		sizes := map[string]int64{}
		err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err == nil && !info.IsDir() {
				sizes[path] = info.Size()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return sizes
	}
	// Whatever reads the data has to allocate for it: this counts work, not time.
	allocated := func(fn func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fn()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	captures := 0
	m.beforeCapture = func() { captures++ }
	before := sizes()
	stats := m.store.Engine().Stats()
	spent := allocated(func() {
		if err := m.takeSnapshot(); err != nil {
			t.Fatal(err)
		}
	})
	if captures != 0 || spent > 300<<10 {
		t.Errorf("%d captures, %d bytes allocated with 2.4 MB of data", captures, spent)
	}
	after := sizes()
	if info := after[filepath.Join(dir, labelName)]; info == 0 || info > 1000 {
		t.Errorf("label of %d bytes", info)
	}
	delete(after, filepath.Join(dir, labelName))
	if !reflect.DeepEqual(after, before) {
		t.Errorf("files changed: %v before, %v after", before, after)
	}
	now := m.store.Engine().Stats()
	if now.Reads != stats.Reads || now.Commits != stats.Commits || now.Readers != 0 {
		t.Errorf("engine was used: %+v before, %+v after", stats, now)
	}
	// The counters do see it when data is read.
	if spent := allocated(func() { m.stream() }); captures == 0 || spent < 2400<<10 {
		t.Errorf("%d captures, %d bytes allocated for a stream: the counters do not count", captures, spent)
	}
}

func TestOpenStoreLeftovers(t *testing.T) {
	m := startMachine(t, nil)
	m.put("v", "k")
	if err := m.takeSnapshot(); err != nil {
		t.Fatal(err)
	}
	dir := m.store.cfg.Dir
	current := generationsIn(t, dir)[0]
	if err := m.store.Close(); err != nil {
		t.Fatal(err)
	}
	left := newGenerationName()
	if err := copyTree(filepath.Join(dir, current), filepath.Join(dir, left)); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{filepath.Join(dir, currentName+tmpSuffix), filepath.Join(dir, current, labelName+tmpSuffix), filepath.Join(dir, "notes")} {
		if err := os.WriteFile(f, []byte("left"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := reopen(t, dir)
	if got := generationsIn(t, dir); len(got) != 1 || got[0] != current {
		t.Errorf("generations %v, want %v only", got, current)
	}
	for _, f := range []string{filepath.Join(dir, currentName+tmpSuffix), filepath.Join(dir, current, labelName+tmpSuffix)} {
		if _, err := os.Stat(f); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", f, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "notes")); err != nil {
		t.Errorf("a foreign file was touched: %v", err)
	}
	if err := sameContent(contentOf(t, s, 1, 0), m.model(1, 0)); err != nil {
		t.Error(err)
	}
}

// A crash at any point of the very first start leaves a folder that starts.
func TestFirstStartAfterCrash(t *testing.T) {
	cases := map[string]func(dir string) error{
		"no folder":       func(dir string) error { return os.Remove(dir) },
		"empty folder":    func(string) error { return nil },
		"generation only": func(dir string) error { _, err := createGeneration(dir, newGenerationName()); return err },
		"no database yet": func(dir string) error {
			name := newGenerationName()
			if _, err := createGeneration(dir, name); err != nil {
				return err
			}
			return writeCurrent(dir, name)
		},
	}
	for name, prepare := range cases {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := prepare(dir); err != nil {
				t.Fatal(err)
			}
			reopen(t, dir)
			if got := generationsIn(t, dir); len(got) != 1 {
				t.Errorf("generations %v", got)
			}
		})
	}
}

// A folder that lost something is refused, and nothing in it is deleted.
func TestOpenStoreRefusesDamage(t *testing.T) {
	m := startMachine(t, nil)
	m.put("v", "k")
	if err := m.takeSnapshot(); err != nil {
		t.Fatal(err)
	}
	whole := m.store.cfg.Dir
	name := generationsIn(t, whole)[0]
	if err := m.store.Close(); err != nil {
		t.Fatal(err)
	}
	garbage := func(path string) func(dir string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, path), []byte("garbage\n"), 0o600) }
	}
	cases := map[string]func(dir string) error{
		"pointer lost":        func(dir string) error { return os.Remove(filepath.Join(dir, currentName)) },
		"pointer damaged":     garbage(currentName),
		"pointer empty":       func(dir string) error { return os.WriteFile(filepath.Join(dir, currentName), nil, 0o600) },
		"generation lost":     func(dir string) error { return os.RemoveAll(filepath.Join(dir, name)) },
		"label damaged":       garbage(filepath.Join(name, labelName)),
		"database damaged":    garbage(filepath.Join(name, dbName, "MANIFEST")),
		"database lost":       func(dir string) error { return os.RemoveAll(filepath.Join(dir, name, dbName)) },
		"pointer elsewhere":   func(dir string) error { return writeCurrent(dir, newGenerationName()) },
		"pointer out of here": func(dir string) error { return writeCurrent(dir, "../"+name) },
	}
	for what, damage := range cases {
		t.Run(what, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			if err := copyTree(whole, dir); err != nil {
				t.Fatal(err)
			}
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			before := generationsIn(t, dir)
			s, err := OpenStore(testConfig(t, dir))
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, kv.ErrCorruption) {
				t.Errorf("opened with %v, want corruption", err)
			}
			if after := generationsIn(t, dir); !reflect.DeepEqual(after, before) {
				t.Errorf("generations %v became %v", before, after)
			}
		})
	}
}

func TestClosedStore(t *testing.T) {
	m := startMachine(t, nil)
	m.put("v", "k")
	if err := m.takeSnapshot(); err != nil {
		t.Fatal(err)
	}
	eng := m.store.Engine()
	if err := m.store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.store.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, _, err := m.tryOpen(); !errors.Is(err, ErrClosed) {
		t.Errorf("Open: %v", err)
	}
	if err := commitLabel(m.store, m.label(1, 0), eng); !errors.Is(err, ErrClosed) {
		t.Errorf("Commit: %v", err)
	}
	if _, err := m.store.Switch("gen-0123456789abcdef", func() {}); !errors.Is(err, ErrClosed) {
		t.Errorf("Switch: %v", err)
	}
	sink, err := m.store.Raft().Create(1, 50, 1, testServers, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("Write: %v", err)
	}
}

// A fatal error of the engine ends the store too, once.
func TestFatalIsReportedOnce(t *testing.T) {
	var fatals []error
	m := startMachine(t, func(c *StoreConfig) { c.OnFatal = func(err error) { fatals = append(fatals, err) } })
	m.put("v", "k")
	broken := errors.New("disk broke")
	m.store.engineConfig("x").OnFatal(broken)
	m.store.engineConfig("x").OnFatal(errors.New("again"))
	if len(fatals) != 1 || !errors.Is(fatals[0], broken) {
		t.Errorf("reported %v", fatals)
	}
	if err := m.takeSnapshot(); !errors.Is(err, broken) {
		t.Errorf("snapshot on a failed store: %v", err)
	}
}
