package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// TestAgainstModel drives an engine and an in-memory model with the same random
// steps, and compares reads, scans and exports at every kept revision.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &machine{t: rt, dir: freshDir(t), h: newHistory()}
		m.open()
		defer func() { m.e.Close() }() //nolint:errcheck // only after a failure
		for range rapid.IntRange(5, 30).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"commit", "commit", "commit", "commit", "discard", "read", "read", "export", "reopen", "flatten", "restore"}).Draw(rt, "step") {
			case "commit":
				m.commit()
			case "discard":
				m.discard = max(m.discard, m.kept("discard"))
				m.e.SetDiscard(m.discard)
			case "read":
				m.read()
			case "export":
				m.export()
			case "reopen":
				m.reopen()
			case "flatten":
				// Only what is in tables can be compacted.
				m.reopen()
				m.must(m.e.Compact(context.Background()))
			case "restore":
				m.restore()
			}
		}
		m.read()
		m.export()
		m.must(m.e.Close())
	})
}

type machine struct {
	t       *rapid.T
	dir     string
	e       *Engine
	h       *history
	discard uint64
	copies  int
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) config(dir string) Config {
	return Config{Dir: dir, OnFatal: func(err error) { panic(err) }}
}

func (m *machine) open() {
	e, err := Open(m.config(m.dir))
	m.must(err)
	e.Publish(m.h.ts)
	e.SetDiscard(m.discard)
	m.e = e
}

func (m *machine) reopen() {
	m.must(m.e.Close())
	m.open()
}

// kept draws a revision whose history is kept.
func (m *machine) kept(label string) uint64 {
	return rapid.Uint64Range(m.discard, m.h.ts).Draw(m.t, label)
}

func (m *machine) commit() {
	for range rapid.IntRange(1, 6).Draw(m.t, "revisions") {
		ts := m.h.ts + 1
		used := make(map[string]bool)
		var entries []Entry
		for range rapid.IntRange(0, 4).Draw(m.t, "entries") {
			k := "d" + rapid.StringMatching(`[ab]{0,3}`).Draw(m.t, "key")
			if used[k] {
				continue
			}
			used[k] = true
			if rapid.Bool().Draw(m.t, "delete") {
				entries = append(entries, del(k))
			} else {
				n := rapid.SampledFrom([]int{0, 1, 50, 3000}).Draw(m.t, "size")
				entries = append(entries, Entry{Key: []byte(k), Value: bytes.Repeat([]byte{byte(ts)}, n)})
			}
		}
		m.must(m.e.Commit(ts, entries, event(ts)))
		m.h.commit(ts, entries)
	}
	m.e.Publish(m.h.ts)
}

func (m *machine) read() {
	if m.discard > 0 {
		below := rapid.Uint64Range(0, m.discard-1).Draw(m.t, "below")
		if _, err := m.e.ReadAt(below); !errors.Is(err, ErrDiscarded) {
			m.t.Fatalf("read at %d, below %d: %v", below, m.discard, err)
		}
	}
	ts := m.kept("at")
	r, err := m.e.ReadAt(ts)
	m.must(err)
	defer r.Close()
	for _, k := range m.h.sorted() {
		want, ok := m.h.get(k, ts)
		v, ver, found, err := r.Get([]byte(k))
		if err != nil || found != ok || !bytes.Equal(v, want.value) || ver != want.ts {
			m.t.Fatalf("get %q at %d: %d bytes of %d, %v %v; want %d bytes of %d, %v", k, ts, len(v), ver, found, err, len(want.value), want.ts, ok)
		}
	}
	bound := rapid.StringMatching(`[de]?[ab]{0,3}`)
	opt := ScanOptions{
		Start: []byte(bound.Draw(m.t, "start")), End: []byte(bound.Draw(m.t, "end")),
		Reverse: rapid.Bool().Draw(m.t, "reverse"), KeysOnly: rapid.Bool().Draw(m.t, "keys only"),
	}
	park := rapid.IntRange(0, 3).Draw(m.t, "park every")
	it := r.Scan(opt)
	var got []string
	for it.Next() {
		got = append(got, fmt.Sprintf("%s=%s@%d", it.Key(), it.Value(), it.Version()))
		if park > 0 && len(got)%park == 0 {
			m.e.parkAll()
		}
	}
	m.must(it.Err())
	if want := m.h.scan(ts, opt); !reflect.DeepEqual(got, want) {
		m.t.Fatalf("scan %+v at %d: %q, want %q", opt, ts, got, want)
	}
}

func (m *machine) export() {
	floor := m.kept("floor")
	ts := rapid.Uint64Range(floor, m.h.ts).Draw(m.t, "top")
	r, err := m.e.ReadAt(ts)
	m.must(err)
	defer r.Close()
	got, err := export(r, floor)
	m.must(err)
	if want := m.h.export(ts, floor); !bytes.Equal(got, want) {
		m.t.Fatalf("export of (%d, %d]: %d bytes, want %d", floor, ts, len(got), len(want))
	}
}

// restore goes on with a restored copy of the newest revision, without the history
// below a drawn floor.
func (m *machine) restore() {
	floor := m.kept("restore floor")
	r, err := m.e.ReadAt(m.h.ts)
	m.must(err)
	defer r.Close()
	m.copies++
	dir := fmt.Sprintf("%s-%d", m.dir, m.copies)
	w, err := CreateRestore(m.config(dir))
	m.must(err)
	defer w.Abort()
	m.must(r.Export(floor, func(rec Record) error { return w.Write([]Record{rec}) }))
	m.must(w.Close())
	r.Close()
	m.must(m.e.Close())
	m.dir, m.discard = dir, floor
	m.open()
}
