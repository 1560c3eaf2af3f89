package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

// holds checks that the store's database and label are those of m at its newest
// revision, that it was opened from disk as such, and that nothing else lies about.
func holds(t *testing.T, s *Store, m *machine) {
	t.Helper()
	want := m.label(m.revision, m.compact)
	if l, ok := s.Label(); !ok || !reflect.DeepEqual(l, want) {
		t.Errorf("label of index %d revision %d, %v; want index %d revision %d", l.Index, l.Revision, ok, want.Index, want.Revision)
	}
	if err := sameContent(contentOf(t, s, m.revision, m.compact), m.model(m.revision, m.compact)); err != nil {
		t.Error(err)
	}
	if got := generationsIn(t, s.cfg.Dir); len(got) != 1 {
		t.Errorf("generations %v", got)
	}
}

// The whole way: a leader's live stream replaces a follower's database, history and
// tombstones included, and the follower's stream is then the same.
func TestInstallRoundTrip(t *testing.T) {
	leader := startMachine(t, nil)
	leader.fill(300)
	leader.compact = 100
	leader.put("after the snapshot", "k1")
	meta, stream := leader.stream()

	follower := startMachine(t, nil)
	follower.put("old", "k1", "old key")
	old := follower.store.Engine()
	l := mustInstall(t, follower.store, meta, stream)
	if !reflect.DeepEqual(l, leader.label(leader.revision, 100)) {
		t.Errorf("switched to %+v", l)
	}
	if follower.store.Engine() == old {
		t.Error("the old engine is in use")
	}
	holds(t, follower.store, leader)

	// From there on it is a database like any other.
	follower.history, follower.revision, follower.compact = slices.Clone(leader.history), leader.revision, leader.compact
	follower.put("next", "k1")
	if err := follower.takeSnapshot(); err != nil {
		t.Fatal(err)
	}
	if err := follower.store.Close(); err != nil {
		t.Fatal(err)
	}
	s := reopen(t, follower.store.cfg.Dir)
	holds(t, s, follower)
	follower.store = s
	s.SetSource(follower)
	third := startMachine(t, nil)
	meta, stream = follower.stream()
	mustInstall(t, third.store, meta, stream)
	holds(t, third.store, follower)
}

// A database without a single key can be sent too.
func TestInstallEmpty(t *testing.T) {
	leader := startMachine(t, nil)
	leader.store.Engine().Publish(0)
	if err := leader.takeSnapshot(); err != nil {
		t.Fatal(err)
	}
	meta, stream := leader.stream()
	follower := startMachine(t, nil)
	follower.put("old", "k")
	mustInstall(t, follower.store, meta, stream)
	holds(t, follower.store, leader)
	if err := follower.store.Close(); err != nil {
		t.Fatal(err)
	}
	holds(t, reopen(t, follower.store.cfg.Dir), leader)
}

// The stream doesn't depend on how either side keeps its database.
func TestInstallIntoEncryptedDatabase(t *testing.T) {
	leader := startMachine(t, func(c *StoreConfig) { c.Engine.Compression = "zstd" })
	leader.fill(100)
	meta, stream := leader.stream()
	key := bytes.Repeat([]byte{7}, 32)
	follower := startMachine(t, func(c *StoreConfig) { c.Engine.EncryptionKey = key })
	mustInstall(t, follower.store, meta, stream)
	holds(t, follower.store, leader)
	if err := follower.store.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, follower.store.cfg.Dir)
	if s, err := OpenStore(cfg); err == nil {
		s.Close()
		t.Error("opened without its key")
	}
	cfg.Engine.EncryptionKey = key
	s, err := OpenStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	holds(t, s, leader)
}

// Two installs in a row, and one that was received but never switched in.
func TestInstallAgain(t *testing.T) {
	leader := startMachine(t, nil)
	leader.fill(20)
	follower := startMachine(t, nil)
	meta, stream := leader.stream()
	unused, err := receive(follower.store, meta, bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	mustInstall(t, follower.store, meta, stream)
	if _, err := restore(follower.store, unused); err == nil {
		t.Error("an install that was superseded was switched in")
	}
	leader.put("more", "k")
	meta, stream = leader.stream()
	mustInstall(t, follower.store, meta, stream)
	holds(t, follower.store, leader)

	// One that waits is gone with the store.
	if _, err := receive(follower.store, meta, bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	if err := follower.store.Close(); err != nil {
		t.Fatal(err)
	}
	if got := generationsIn(t, follower.store.cfg.Dir); len(got) != 1 {
		t.Errorf("generations %v", got)
	}
}

// What is refused leaves the old state in use and nothing behind.
func TestInstallRefused(t *testing.T) {
	leader := startMachine(t, nil)
	leader.fill(100)
	leader.put("x", "k")
	goodMeta, good := leader.stream()
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 4
	increment, _ := mustStream(t, Header{BaseRevision: 5, Label: leader.label(3, 0)}, recordList{})
	var free uint64
	follower := startMachine(t, func(c *StoreConfig) {
		c.Engine.MinFreeBytes = 1 << 20
		c.freeBytes = func(string) (uint64, error) { return free, nil }
	})
	follower.fill(5)
	enough := uint64(1<<20 + len(good))

	cases := []struct {
		name   string
		stream []byte
		meta   func(*raft.SnapshotMeta)
		free   uint64
		want   error
	}{
		{name: "cut short", stream: good[:len(good)-1], want: kv.ErrCorruption},
		{name: "empty", stream: nil, want: kv.ErrInvalidArgument},
		{name: "header only", stream: good[:40], want: kv.ErrCorruption},
		{name: "a bit flipped", stream: flipped, want: kv.ErrCorruption},
		{name: "bytes after the end", stream: append(bytes.Clone(good), 1), want: kv.ErrCorruption},
		{name: "an increment", stream: increment, want: kv.ErrInvalidArgument},
		{name: "another index", stream: good, meta: func(m *raft.SnapshotMeta) { m.Index++ }, want: kv.ErrCorruption},
		{name: "another term", stream: good, meta: func(m *raft.SnapshotMeta) { m.Term++ }, want: kv.ErrCorruption},
		{name: "another configuration", stream: good, meta: func(m *raft.SnapshotMeta) { m.Configuration = raft.Configuration{} }, want: kv.ErrCorruption},
		{name: "another configuration index", stream: good, meta: func(m *raft.SnapshotMeta) { m.ConfigurationIndex++ }, want: kv.ErrCorruption},
		{name: "one byte of disk too few", stream: good, free: enough - 1, want: kv.ErrDiskFull},
		{name: "below the floor already", stream: good, free: 5, want: kv.ErrDiskFull},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			free = enough
			if c.free != 0 {
				free = c.free
			}
			meta := *goodMeta
			meta.Size = int64(len(c.stream))
			if c.meta != nil {
				c.meta(&meta)
			}
			if _, err := receive(follower.store, &meta, bytes.NewReader(c.stream)); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			holds(t, follower.store, follower)
		})
	}
	free = enough
	t.Run("good after all of it", func(t *testing.T) {
		mustInstall(t, follower.store, goodMeta, good)
		holds(t, follower.store, leader)
	})
	t.Run("older than what is there", func(t *testing.T) {
		old := startMachine(t, nil)
		old.fill(3)
		meta, stream := old.stream()
		if _, err := receive(follower.store, meta, bytes.NewReader(stream)); !errors.Is(err, kv.ErrConflict) {
			t.Errorf("%v, want conflict", err)
		}
		holds(t, follower.store, leader)
	})
}

// Cut anywhere, or altered anywhere, a stream is never switched in. (The format
// alone is tested byte by byte in TestTornStreamIsNeverAccepted.)
func TestTornInstall(t *testing.T) {
	leader := startMachine(t, nil)
	leader.fill(100)
	meta, good := leader.stream()
	follower := startMachine(t, nil)
	follower.fill(5)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 25 {
		torn := bytes.Clone(good[:rnd.IntN(len(good))])
		sized := *meta
		if rnd.IntN(2) == 0 {
			torn = bytes.Clone(good)
			torn[rnd.IntN(len(torn))] ^= 1 << rnd.IntN(8)
		}
		sized.Size = int64(len(torn))
		if _, err := receive(follower.store, &sized, bytes.NewReader(torn)); err == nil {
			t.Fatalf("a torn stream of %d bytes was accepted", len(torn))
		}
	}
	holds(t, follower.store, follower)
}

func TestInstallCancelled(t *testing.T) {
	leader := startMachine(t, nil)
	leader.fill(100)
	meta, good := leader.stream()
	follower := startMachine(t, nil)
	follower.fill(5)
	for _, n := range []int{0, 1, 40, len(good) / 2, len(good)} {
		sink := sinkFor(t, follower.store, meta)
		if _, err := sink.Write(good[:n]); err != nil {
			t.Fatal(err)
		}
		within(t, "cancelling an install", func() {
			for range 2 {
				if err := sink.Cancel(); err != nil {
					t.Errorf("cancel after %d bytes: %v", n, err)
				}
			}
		})
		if _, err := sink.Write([]byte("x")); err == nil {
			t.Error("Write after Cancel is accepted")
		}
		if err := sink.Close(); err == nil {
			t.Error("Close after Cancel succeeds")
		}
		holds(t, follower.store, follower)
	}
	// Cancel after a Close that succeeded takes nothing back.
	sink := sinkFor(t, follower.store, meta)
	if _, err := sink.Write(good); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sink.Cancel(); err != nil {
		t.Fatal(err)
	}
	if _, err := restore(follower.store, sink.ID()); err != nil {
		t.Error(err)
	}
	holds(t, follower.store, leader)
}

// A store that is closed under an install, or a stream under a switch, ends it.
func TestCloseEndsInstall(t *testing.T) {
	leader := startMachine(t, nil)
	leader.fill(100)
	meta, good := leader.stream()
	follower := startMachine(t, nil)
	sink := sinkFor(t, follower.store, meta)
	if _, err := sink.Write(good[:len(good)/2]); err != nil {
		t.Fatal(err)
	}
	within(t, "closing the store", func() {
		if err := follower.store.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := sink.Write(good[len(good)/2:]); !errors.Is(err, ErrClosed) {
		t.Errorf("writing on: %v, want ErrClosed", err)
	}
	if err := sink.Cancel(); err != nil {
		t.Error(err)
	}
	if got := generationsIn(t, follower.store.cfg.Dir); len(got) != 1 {
		t.Errorf("generations %v", got)
	}
}

func TestSwitchEndsStreams(t *testing.T) {
	leader := startMachine(t, nil)
	leader.fill(300)
	meta, good := leader.stream()
	follower := startMachine(t, nil)
	follower.fill(200)
	_, r := follower.open()
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, 10); err != nil {
		t.Fatal(err)
	}
	// A capture that is under way, and comes back only after the switch.
	captured, going := make(chan error, 1), make(chan struct{})
	proceed := make(chan struct{})
	follower.beforeCapture = func() { close(going); <-proceed }
	go func() {
		_, r, err := follower.tryOpen()
		if err == nil {
			r.Close()
		}
		captured <- err
	}()
	<-going
	old := follower.store.Engine()
	within(t, "the switch", func() {
		id, err := receive(follower.store, meta, bytes.NewReader(good))
		if err != nil {
			t.Error(err)
			return
		}
		quiesced := false
		_, err = follower.store.Switch(id, func() {
			quiesced = true
			if n := old.Stats().Readers; n != 0 {
				t.Errorf("%d readers when the old database is to be closed", n)
			}
		})
		if err != nil || !quiesced {
			t.Errorf("switch: %v, quiesced %v", err, quiesced)
		}
	})
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, ErrSwitched) {
		t.Errorf("reading on: %v, want ErrSwitched", err)
	}
	follower.mu.Lock()
	follower.revision = leader.revision
	follower.mu.Unlock()
	close(proceed)
	if err := <-captured; err == nil {
		t.Error("a stream opened before the switch survived it")
	}
	holds(t, follower.store, leader)
	if n := follower.store.Engine().Stats().Readers; n != 0 {
		t.Errorf("%d readers are left", n)
	}
}

// A local snapshot of the replaced database must not label the new one.
func TestLocalSnapshotAcrossSwitch(t *testing.T) {
	leader := startMachine(t, nil)
	leader.fill(10)
	meta, good := leader.stream()
	follower := startMachine(t, nil)
	for range 30 {
		follower.put("v", "k") // further than the leader's snapshot
	}
	l, eng := follower.label(30, 0), follower.store.Engine()
	early, err := follower.store.Raft().Create(1, l.Index, l.Term, testServers, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := early.(*Sink).Commit(l, eng); err != nil {
		t.Fatal(err)
	}

	// One that gets in first keeps an older install out.
	other := startMachine(t, nil)
	for range 30 {
		other.put("v", "k")
	}
	id, err := receive(other.store, meta, bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	if err := other.takeSnapshot(); err != nil {
		t.Fatal(err)
	}
	if _, err := restore(other.store, id); !errors.Is(err, kv.ErrConflict) {
		t.Errorf("switching back behind a local snapshot: %v, want conflict", err)
	}
	holds(t, other.store, other)

	mustInstall(t, follower.store, meta, good)
	if err := early.Close(); !errors.Is(err, ErrSwitched) {
		t.Errorf("closing a sink of the old database: %v", err)
	}
	if err := commitLabel(follower.store, l, eng); !errors.Is(err, ErrSwitched) {
		t.Errorf("committing a snapshot of the old database: %v", err)
	}
	holds(t, follower.store, leader)
}

// installSteps are all points of an install, in order.
var installSteps = []string{
	"install: folder created", "install: mid-stream", "install: before verification", "install: after verification",
	"install: database closed", "install: label written", "install: pending",
	"switch: before quiesce", "switch: before close", "switch: before rename", "switch: after rename",
	"switch: before deletion", "switch: done",
}

// A crash at any step leaves all of the old state or all of the new: before the
// rename the old, after it the new. (Invariant 17.)
func TestInstallCrashAtEachStep(t *testing.T) {
	leader := startMachine(t, nil)
	leader.fill(120)
	// Several frames, so that there is a middle of the stream.
	for i := range 24 {
		leader.put(strings.Repeat(string(rune('a'+i)), 200<<10), fmt.Sprint("big", i))
	}
	meta, stream := leader.stream()

	images := t.TempDir()
	var steps []string
	follower := startMachine(t, func(c *StoreConfig) {
		c.step = func(name string) {
			if slices.Contains(steps, name) {
				t.Errorf("step %q twice", name)
			}
			steps = append(steps, name)
			if err := copyTree(c.Dir, filepath.Join(images, fmt.Sprint(len(steps)))); err != nil {
				t.Errorf("copy at %q: %v", name, err)
			}
		}
	})
	follower.fill(50)
	mustInstall(t, follower.store, meta, stream)
	if !reflect.DeepEqual(steps, installSteps) {
		t.Fatalf("steps %q, want %q", steps, installSteps)
	}
	renamed := slices.Index(steps, "switch: after rename")
	for i, name := range steps {
		t.Run(strings.ReplaceAll(name, ": ", " "), func(t *testing.T) {
			want := follower
			if i >= renamed {
				want = leader
			}
			dir := filepath.Join(images, fmt.Sprint(i+1))
			s, err := OpenStore(testConfig(t, dir))
			if err != nil {
				t.Fatalf("start after a crash there: %v", err)
			}
			holds(t, s, want)
			// And it goes on from there: another install, or the same again.
			mustInstall(t, s, meta, stream)
			holds(t, s, leader)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	// A stream that turns out bad at its end is never anything but a leftover.
	t.Run("bad at the end", func(t *testing.T) {
		bad := bytes.Clone(stream)
		bad[len(bad)-20] ^= 1
		victim := startMachine(t, nil)
		victim.fill(50)
		if _, err := receive(victim.store, meta, bytes.NewReader(bad)); err == nil {
			t.Fatal("accepted")
		}
		dir := filepath.Join(t.TempDir(), "image")
		if err := copyTree(victim.store.cfg.Dir, dir); err != nil {
			t.Fatal(err)
		}
		s, err := OpenStore(testConfig(t, dir))
		if err != nil {
			t.Fatalf("start after it: %v", err)
		}
		defer s.Close()
		holds(t, s, victim)
	})
}

// An error after the old database is closed ends the process, with the state on disk
// whole.
func TestSwitchFailureIsFatal(t *testing.T) {
	leader := startMachine(t, nil)
	leader.fill(30)
	meta, stream := leader.stream()
	var fatal error
	dir := filepath.Join(t.TempDir(), "state")
	cfg := testConfig(t, dir)
	cfg.OnFatal = func(err error) { fatal = err }
	cfg.step = func(name string) {
		if name == "switch: before rename" {
			// A folder in the place of the temporary file makes the write fail.
			if err := os.Mkdir(filepath.Join(dir, currentName+tmpSuffix), 0o700); err != nil {
				t.Error(err)
			}
		}
	}
	s, err := OpenStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	follower := &machine{t: t, store: s}
	s.SetSource(follower)
	follower.fill(10)
	id, err := receive(s, meta, bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := restore(s, id); err == nil || fatal == nil {
		t.Fatalf("switch returned %v, fatal is %v", err, fatal)
	}
	if _, err := s.Raft().Create(1, 1000, 1, testServers, 1, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Raft().Open(s.current.name); !errors.Is(err, ErrClosed) {
		t.Errorf("open after it: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close after it: %v", err)
	}
	back := reopen(t, dir)
	holds(t, back, follower)
}

// A failed switch that has not touched anything leaves the old state in use.
func TestSwitchToNothing(t *testing.T) {
	m := startMachine(t, nil)
	m.fill(10)
	called := false
	if _, err := m.store.Switch("gen-0123456789abcdef", func() { called = true }); err == nil || called {
		t.Errorf("switch to nothing: %v, quiesced %v", err, called)
	}
	holds(t, m.store, m)
	m.put("next", "k")
}

// Installing takes memory for some batches, not for the data.
func TestInstallMemoryIsBounded(t *testing.T) {
	const records = 100_000
	value := bytes.Repeat([]byte("v"), 2000)
	leader := startMachine(t, nil)
	h := Header{Label: leader.label(1, 0)}
	src := exporterFunc(func(fn func(engine.Record) error) error {
		key := make([]byte, 0, 16)
		for i := range records {
			key = fmt.Appendf(key[:0], "k%09d", i)
			if err := fn(engine.Record{Key: key, Value: value, Version: 1}); err != nil {
				return err
			}
		}
		return nil
	})
	size, err := measureStream(h, src)
	if err != nil {
		t.Fatal(err)
	}
	h.Size = size
	meta, err := metaOf("x", h)
	if err != nil {
		t.Fatal(err)
	}
	follower := startMachine(t, nil)
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var peak uint64
	pr, pw := io.Pipe()
	go func() {
		_, err := writeStream(pw, h, src)
		pw.CloseWithError(err)
	}()
	read := 0
	id, err := receive(follower.store, meta, readerFunc(func(p []byte) (int, error) {
		n, err := pr.Read(p)
		if read += n; read/(8<<20) != (read-n)/(8<<20) {
			// What is live, not what is waiting for the collector.
			runtime.GC()
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapAlloc)
		}
		return n, err
	}))
	if err != nil {
		t.Fatal(err)
	}
	if l, err := restore(follower.store, id); err != nil || l.Revision != 1 {
		t.Fatalf("%+v, %v", l, err)
	}
	grown := int64(peak) - int64(before.HeapAlloc)
	t.Logf("stream of %d MiB, heap grew by at most %d MiB", size>>20, grown>>20)
	// Badger's memtables are in it, and the tables that wait to be written, of which it
	// allows sixteen.
	if grown > 150<<20 || size < 190<<20 {
		t.Errorf("heap grew by %d bytes while %d were installed", grown, size)
	}
}

type exporterFunc func(fn func(engine.Record) error) error

func (f exporterFunc) Export(_ uint64, fn func(engine.Record) error) error { return f(fn) }

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
