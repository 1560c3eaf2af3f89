package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// background runs step again and again until the returned function is called.
func background(step func(i int)) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
				step(i)
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// TestExportIsOneRevision exports while another goroutine writes, discards, and
// flattens: all passes must be byte for byte what the model says that the revision
// had (Invariant 16). The mutant reads above the pinned timestamp.
func TestExportIsOneRevision(t *testing.T) {
	dir := freshDir(t)
	h := newHistory()
	e := open(t, dir)
	grow(t, e, h, 500, 40)
	must(t, e.Close())
	e = open(t, dir)
	e.Publish(40)
	e.SetDiscard(20)
	r := readAt(t, e, 40)
	must(t, r.Hold(20))
	want := h.export(40, 20)

	written := make(chan struct{})
	go func() {
		defer close(written)
		for ts := uint64(41); ts <= 300; ts++ {
			var entries []Entry
			for k := range 100 {
				entries = append(entries, put(fmt.Sprintf("d%03d", (int(ts)*100+k)%600), strings.Repeat("new", 100)))
			}
			if err := e.Commit(ts, entries, event(ts)); err != nil {
				t.Error(err)
			}
			e.Publish(ts)
			e.SetDiscard(ts)
		}
	}()
	stopCompaction := background(func(int) {
		if err := e.Compact(context.Background()); err != nil {
			t.Error(err)
		}
	})
	during := 0
	for done := false; !done && !t.Failed(); {
		select {
		case <-written:
			done = true // one more pass, over all that was written
		default:
			during++
		}
		got, err := export(r, 20)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("pass %d: %d bytes, want %d", during, len(got), len(want))
		}
	}
	<-written
	stopCompaction()
	if during == 0 {
		t.Error("the writer was done before the first pass")
	}
}

// TestExportWriterFails: an error of the callback ends the export, leaves nothing
// open, and the engine goes on.
func TestExportWriterFails(t *testing.T) {
	e := open(t, freshDir(t))
	h := newHistory()
	grow(t, e, h, 100, 10)
	full := errors.New("connection lost")
	before := runtime.NumGoroutine()
	for stop := range 50 {
		r := readAt(t, e, 10)
		n := 0
		err := r.Export(0, func(Record) error {
			if n++; n > stop*20 {
				return full
			}
			return nil
		})
		if !errors.Is(err, full) {
			t.Fatalf("after %d records: %v", n, err)
		}
		if len(r.iters) != 0 {
			t.Fatalf("%d iterators left open", len(r.iters))
		}
		r.Close()
	}
	if after := runtime.NumGoroutine(); after > before+2 {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
	if s := e.Stats(); s.Readers != 0 {
		t.Errorf("%d readers left", s.Readers)
	}
	grow(t, e, h, 100, 11)
	got, err := export(readAt(t, e, 11), 0)
	must(t, err)
	if !bytes.Equal(got, h.export(11, 0)) {
		t.Error("export after failures differs")
	}
}

// TestSlowExportDoesNotBlock: while an export waits for its receiver, reads, writes,
// compaction and closing go on.
func TestSlowExportDoesNotBlock(t *testing.T) {
	e := open(t, freshDir(t))
	h := newHistory()
	grow(t, e, h, 100, 10)
	r := readAt(t, e, 10)
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	result := make(chan error, 1)
	go func() {
		result <- r.Export(0, func(Record) error {
			once.Do(func() { close(entered) })
			<-release
			return nil
		})
	}()
	<-entered
	grow(t, e, h, 100, 11)
	must(t, e.Compact(context.Background()))
	if _, _, _, err := r.Get([]byte("d001")); err != nil {
		t.Errorf("get beside an export: %v", err)
	}
	must(t, e.Close())
	close(release)
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Errorf("export over a close: %v", err)
	}
}

func TestRestoreRefuses(t *testing.T) {
	ok := []Record{{Key: []byte("b"), Version: 5, Value: []byte("v")}}
	for name, bad := range map[string][]Record{
		"equal":              ok,
		"version ascending":  {{Key: []byte("b"), Version: 6}},
		"key descending":     {{Key: []byte("a"), Version: 1}},
		"no version":         {{Key: []byte("c")}},
		"no key":             {{Version: 3}},
		"badger's key":       {{Key: []byte("!badger!head"), Version: 9}},
		"value too long":     {{Key: []byte("c"), Version: 1, Value: make([]byte, MaxValueBytes+1)}},
		"tombstone's value":  {{Key: []byte("c"), Version: 1, Value: []byte("x"), Delete: true}},
		"the last timestamp": {{Key: []byte("c"), Version: unpublished}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := freshDir(t)
			w, err := CreateRestore(testConfig(t, dir))
			must(t, err)
			must(t, w.Write(ok))
			if err := w.Write(bad); !errors.Is(err, ErrInvalid) {
				t.Errorf("write: %v", err)
			}
			if err := w.Write([]Record{{Key: []byte("z"), Version: 1}}); !errors.Is(err, ErrInvalid) {
				t.Errorf("write after an error: %v", err)
			}
			if err := w.Close(); !errors.Is(err, ErrInvalid) {
				t.Errorf("close after an error: %v", err)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a failed restore left %s: %v", dir, err)
			}
			w.Abort()
		})
	}
	dir := freshDir(t)
	e := open(t, dir)
	commit(t, e, 1, put("da", "1"))
	must(t, e.Close())
	if _, err := CreateRestore(testConfig(t, dir)); err == nil {
		t.Error("restored over a database")
	}
	e = open(t, dir)
	e.Publish(1)
	if _, _, found, _ := readAt(t, e, 1).Get([]byte("da")); !found {
		t.Error("the refusal harmed the database")
	}
}

// TestRestoreAbort: an abort at any point leaves neither files nor goroutines, and
// an empty restore is an empty database.
func TestRestoreAbort(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, n := range []int{0, 1, 5000} {
		dir := freshDir(t)
		w, err := CreateRestore(testConfig(t, dir))
		must(t, err)
		for i := range n {
			must(t, w.Write([]Record{{Key: fmt.Appendf(nil, "d%06d", i), Version: 7, Value: make([]byte, 4000)}}))
		}
		w.Abort()
		w.Abort()
		if err := w.Write(nil); !errors.Is(err, ErrClosed) {
			t.Errorf("write after abort: %v", err)
		}
		if err := w.Close(); !errors.Is(err, ErrClosed) {
			t.Errorf("close after abort: %v", err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("abort left %s: %v", dir, err)
		}
	}
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before+2 })

	dir := freshDir(t)
	w, err := CreateRestore(testConfig(t, dir))
	must(t, err)
	must(t, w.Close())
	w.Abort()
	e := open(t, dir)
	e.Publish(0)
	if got := scan(t, readAt(t, e, 0), ScanOptions{}); len(got) != 0 {
		t.Errorf("empty restore has %q", got)
	}
	commit(t, e, 1, put("da", "1"))
}

// TestRestoreDiskFull: a restore stops with an error before Badger would panic.
func TestRestoreDiskFull(t *testing.T) {
	free := uint64(1 << 30)
	dir := freshDir(t)
	w, err := CreateRestore(testConfig(t, dir, func(c *Config) {
		c.freeBytes = func(string) (uint64, error) { return free, nil }
	}))
	must(t, err)
	rec := func(i int) []Record {
		return []Record{{Key: fmt.Appendf(nil, "d%06d", i), Version: 7, Value: make([]byte, 4000)}}
	}
	for i := range 1000 {
		must(t, w.Write(rec(i)))
	}
	free = 1 << 20
	err = nil
	for i := 1000; i < 2000 && err == nil; i++ {
		err = w.Write(rec(i))
	}
	if err == nil || !strings.Contains(err.Error(), "1 MiB free") {
		t.Fatalf("write with a full disk: %v", err)
	}
	if err := w.Close(); err == nil {
		t.Fatal("closed with a full disk")
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// TestRestoreIsEqual restores a history of several tables and goes on with it, over
// a reopen: every kept revision and the export must be as in the original.
func TestRestoreIsEqual(t *testing.T) {
	e := open(t, freshDir(t))
	h := newHistory()
	for ts := uint64(1); ts <= 60; ts++ {
		var entries []Entry
		for k := range 60 {
			entries = append(entries, put(fmt.Sprintf("d%03d", (int(ts)*7+k*3)%200), strings.Repeat(fmt.Sprint(ts), 2000)))
		}
		entries = dedup(entries)
		if ts%3 == 0 {
			entries[0] = del(string(entries[0].Key))
		}
		must(t, e.Commit(ts, entries, event(ts)))
		h.commit(ts, entries)
	}
	e.Publish(60)
	copied := restored(t, e, 60, 10)
	if n := copied.Stats().Tables; n < 2 {
		t.Fatalf("%d tables: too small a test", n)
	}
	grow(t, copied, h, 50, 65)
	must(t, copied.Close())
	copied = open(t, copied.cfg.Dir)
	copied.Publish(65)
	copied.SetDiscard(10)
	must(t, copied.Compact(context.Background()))
	for _, ts := range []uint64{10, 11, 30, 59, 60, 61, 65} {
		got, err := export(readAt(t, copied, ts), 10)
		must(t, err)
		if !bytes.Equal(got, h.export(ts, 10)) {
			t.Errorf("revision %d differs", ts)
		}
	}
}

func dedup(entries []Entry) []Entry {
	seen := make(map[string]bool)
	out := entries[:0]
	for _, en := range entries {
		if !seen[string(en.Key)] {
			seen[string(en.Key)] = true
			out = append(out, en)
		}
	}
	return out
}
