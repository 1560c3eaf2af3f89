package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

// fill commits n revisions over some keys, with deletions, and takes a snapshot.
func (m *machine) fill(n int) {
	m.t.Helper()
	for i := range n {
		value := strings.Repeat(fmt.Sprint("value ", i, " "), 1+i%50)
		if i%9 == 8 {
			value = ""
		}
		m.put(value, fmt.Sprint("k", i%17), fmt.Sprint("l", i))
	}
	if err := m.takeSnapshot(); err != nil {
		m.t.Fatal(err)
	}
}

// What a stream says of itself is what it holds, whatever is committed meanwhile,
// and raft is told the same. (Invariant 16.)
func TestLabelEqualsContent(t *testing.T) {
	m := startMachine(t, nil)
	m.fill(60)
	m.mu.Lock()
	m.compact = 20
	m.mu.Unlock()
	for range 5 {
		m.put("later", "k1", "k2")
		want := m.revision
		meta, r := m.open()
		m.put("during", "k1", "k3") // after the capture: must not show
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		list, sum, err := readRecords(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		l := sum.Header.Label
		if l.Revision != want || l.Index != indexOf(want) || string(l.State) != fmt.Sprint("state of ", want) {
			t.Errorf("label %+v at revision %d", l, want)
		}
		if meta.Index != l.Index || meta.Term != l.Term || meta.ConfigurationIndex != l.ConfigurationIndex || meta.Size != int64(len(b)) {
			t.Errorf("raft was told %+v of a stream of %d bytes labelled %+v", meta, len(b), l)
		}
		if err := sameContent(list, m.model(want, 20)); err != nil {
			t.Error(err)
		}
	}
}

// Streams taken while revisions are committed at full speed are of one revision
// each. Every revision writes all keys, so that any tear shows.
func TestSnapshotIsNotTorn(t *testing.T) {
	m := startMachine(t, nil)
	var keys []string
	for i := range 40 {
		keys = append(keys, fmt.Sprintf("key%03d", i))
	}
	m.put("0", keys...)
	if err := m.takeSnapshot(); err != nil {
		t.Fatal(err)
	}
	// At least one revision comes between two captures.
	m.beforeCapture = func() { m.put("capture", keys...) }
	for round := range 12 {
		// Commits for as long as the stream is read, up to a bound on the test's cost.
		var writer sync.WaitGroup
		quit := make(chan struct{})
		writer.Go(func() {
			for i := range 150 {
				select {
				case <-quit:
					return
				default:
					m.put(fmt.Sprint("value ", round, i), keys...)
				}
			}
		})
		meta, r := m.open()
		list, sum, err := readRecords(r)
		r.Close()
		close(quit)
		writer.Wait()
		if err != nil {
			t.Fatal(err)
		}
		rev := sum.Header.Label.Revision
		if meta.Index != indexOf(rev) {
			t.Fatalf("raft was told index %d of revision %d", meta.Index, rev)
		}
		newest := map[string]uint64{}
		for _, rec := range list {
			if k := string(rec.Key); newest[k] == 0 {
				newest[k] = rec.Version
			}
		}
		for _, k := range keys {
			if newest[k] != rev {
				t.Fatalf("stream of revision %d has %q as of %d: it is torn", rev, k, newest[k])
			}
		}
		if err := sameContent(list, m.model(rev, 0)); err != nil {
			t.Fatalf("stream of revision %d: %v", rev, err)
		}
	}
}

// released checks that no stream holds the engine any more.
func released(t *testing.T, m *machine) {
	t.Helper()
	if n := m.store.Engine().Stats().Readers; n != 0 {
		t.Errorf("%d readers are left", n)
	}
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	if n := len(m.store.streams); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// A writer that fails, at any byte, is reported at once, and nothing stays behind:
// Badger's own Backup hangs for ever here.
func TestFailingWriter(t *testing.T) {
	m := startMachine(t, nil)
	m.fill(400)
	_, whole := m.stream()
	broken := errors.New("writer broke")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	offsets := []int{0, 1, 8, len(whole) / 2, len(whole) - 1}
	for range 40 {
		offsets = append(offsets, rnd.IntN(len(whole)))
	}
	for _, n := range offsets {
		within(t, "a stream into a failing writer", func() {
			label, r, err := m.Capture()
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			w := &failingWriter{n: n, err: broken}
			if _, err := WriteStream(w, label, r); !errors.Is(err, broken) {
				t.Errorf("writer that fails after %d bytes: %v", n, err)
			}
			if w.late > 2*frameTargetBytes {
				t.Errorf("went on writing %d bytes after the failure", w.late)
			}
		})
		within(t, "raft's copy into a failing connection", func() {
			_, r, err := m.tryOpen()
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := io.Copy(&failingWriter{n: n, err: broken}, r); !errors.Is(err, broken) {
				t.Errorf("connection that fails after %d bytes: %v", n, err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
		released(t, m)
	}
}

// A writer that takes less than it is given without saying why is an error too.
func TestShortWriter(t *testing.T) {
	h := Header{Label: sampleLabel()}
	if _, err := writeStream(shortWriter{}, h, sampleRecords(3)); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("short writer: %v", err)
	}
}

type shortWriter struct{}

func (shortWriter) Write(p []byte) (int, error) { return len(p) / 2, nil }

// A stream may be closed before, during and after reading, and twice.
func TestStreamClosedEarly(t *testing.T) {
	m := startMachine(t, nil)
	m.fill(400)
	_, whole := m.stream()
	for _, n := range []int{0, 1, 100, len(whole) / 2, len(whole)} {
		within(t, "closing a stream", func() {
			_, r, err := m.tryOpen()
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := r.Close(); err != nil {
					t.Errorf("close after %d bytes: %v", n, err)
				}
			}
			if _, err := r.Read(make([]byte, 1)); err == nil {
				t.Error("Read after Close succeeds")
			}
		})
		released(t, m)
	}
}

// A consumer that stops reading loses the stream: it must not hold history for ever.
func TestStalledConsumer(t *testing.T) {
	m := startMachine(t, func(c *StoreConfig) { c.StallTimeout = 20 * time.Millisecond })
	m.fill(400)
	_, r := m.open()
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, 100); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the release of a stalled stream", func() bool { return m.store.Engine().Stats().Readers == 0 })
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, ErrStalled) {
		t.Errorf("reading on: %v, want ErrStalled", err)
	}
	if m.store.Streaming() {
		t.Error("a stalled stream keeps local snapshots off")
	}
}

// Invariant 20: raft cuts its log behind a local snapshot, so none is taken while a
// follower installs one that will need that log.
func TestNoLocalSnapshotWhileStreaming(t *testing.T) {
	m := startMachine(t, func(c *StoreConfig) { c.HoldTimeout = 50 * time.Millisecond })
	m.fill(50)
	m.put("more", "k")
	_, r := m.open()
	m.put("and more", "k")
	refused := func(when string) {
		t.Helper()
		if !m.store.Streaming() {
			t.Errorf("%s: not streaming", when)
		}
		if err := m.takeSnapshot(); !errors.Is(err, ErrStreaming) {
			t.Errorf("%s: snapshot %v, want ErrStreaming", when, err)
		}
	}
	refused("while a stream is open")
	// raft closes it only once the follower has answered.
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.takeSnapshot(); err != nil {
		t.Errorf("after the stream: %v", err)
	}

	m.put("once more", "k")
	_, r = m.open()
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the hold", func() bool { return !m.store.Streaming() })
	if err := m.takeSnapshot(); err != nil {
		t.Errorf("after a stream that was read and never closed: %v", err)
	}
}

// However many installs fail one after the other, the log may be cut some time.
func TestHoldIsBounded(t *testing.T) {
	m := startMachine(t, nil)
	m.fill(50)
	_, r := m.open()
	defer r.Close()
	if !m.store.Streaming() {
		t.Fatal("not streaming")
	}
	m.store.mu.Lock()
	m.store.heldSince = time.Now().Add(-2 * maxHold)
	m.store.mu.Unlock()
	if err := m.takeSnapshot(); err != nil {
		t.Errorf("after two hours of installs: %v", err)
	}
	if !m.store.Streaming() {
		t.Error("the hold doesn't begin anew after a snapshot")
	}
}

func TestOpenFails(t *testing.T) {
	m := startMachine(t, nil)
	m.fill(20)
	id := m.store.current.name
	open := func() error {
		_, r, err := m.store.Raft().Open(id)
		if err == nil {
			r.Close()
		}
		return err
	}
	if _, _, err := m.store.Raft().Open("gen-ffffffffffffffff"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("unknown id: %v", err)
	}
	broken := errors.New("no capture today")
	cases := map[string]struct {
		source sourceFunc
		want   error
	}{
		"capture fails": {func() (Label, *engine.Reader, error) { return Label{}, nil, broken }, broken},
		"label of another revision": {func() (Label, *engine.Reader, error) {
			l, r, err := m.Capture()
			l.Revision--
			return l, r, err
		}, kv.ErrInternal},
		"index below the snapshot": {func() (Label, *engine.Reader, error) {
			l, r, err := m.Capture()
			l.Index = 1
			return l, r, err
		}, kv.ErrInternal},
		"configuration that isn't one": {func() (Label, *engine.Reader, error) {
			l, r, err := m.Capture()
			l.Configuration = []byte{0xff, 0xff}
			return l, r, err
		}, kv.ErrCorruption},
		"history is gone": {func() (Label, *engine.Reader, error) {
			m.store.Engine().SetDiscard(10)
			l, r, err := m.Capture()
			return l, r, err
		}, engine.ErrDiscarded},
	}
	for _, name := range []string{"capture fails", "label of another revision", "index below the snapshot", "configuration that isn't one", "history is gone"} {
		m.store.SetSource(cases[name].source)
		if err := open(); !matches(err, cases[name].want) {
			t.Errorf("%s: %v, want %v", name, err, cases[name].want)
		}
		released(t, m)
	}
	m.store.SetSource(nil)
	if err := open(); !errors.Is(err, kv.ErrNotReady) {
		t.Errorf("without a source: %v", err)
	}
}

func matches(err, want error) bool { return err != nil && errors.Is(err, want) }

type sourceFunc func() (Label, *engine.Reader, error)

func (f sourceFunc) Capture() (Label, *engine.Reader, error) { return f() }

// Close ends the streams that are out.
func TestStoreCloseEndsStreams(t *testing.T) {
	m := startMachine(t, nil)
	m.fill(400)
	_, r := m.open()
	if _, err := io.CopyN(io.Discard, r, 10); err != nil {
		t.Fatal(err)
	}
	within(t, "closing the store", func() {
		if err := m.store.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, ErrClosed) {
		t.Errorf("reading on: %v, want ErrClosed", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
