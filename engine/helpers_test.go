package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"sort"
	"testing"
	"time"
)

// open opens an engine in dir and closes it at the end of the test.
func open(t testing.TB, dir string, change ...func(*Config)) *Engine {
	t.Helper()
	e, err := Open(testConfig(t, dir, change...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() }) //nolint:errcheck // tests that care close it themselves
	return e
}

func testConfig(t testing.TB, dir string, change ...func(*Config)) Config {
	t.Helper()
	cfg := Config{Dir: dir, CloseGrace: time.Millisecond, OnFatal: func(err error) { t.Errorf("unexpected fatal error: %v", err) }}
	for _, f := range change {
		f(&cfg)
	}
	return cfg
}

func freshDir(t testing.TB) string { return filepath.Join(t.TempDir(), "db") }

// must fails the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(key, value string) Entry { return Entry{Key: []byte(key), Value: []byte(value)} }
func del(key string) Entry        { return Entry{Key: []byte(key), Delete: true} }

// event is the final entry that every test commit carries, as the state machine's do.
func event(ts uint64) Entry {
	return Entry{Key: binary.BigEndian.AppendUint64([]byte("e"), ts), Value: binary.BigEndian.AppendUint64(nil, ts)}
}

// commit commits and publishes one revision.
func commit(t testing.TB, e *Engine, ts uint64, entries ...Entry) {
	t.Helper()
	must(t, e.Commit(ts, entries, event(ts)))
	e.Publish(ts)
	must(t, e.Err())
}

func readAt(t testing.TB, e *Engine, ts uint64) *Reader {
	t.Helper()
	r, err := e.ReadAt(ts)
	must(t, err)
	t.Cleanup(r.Close)
	return r
}

// scan returns the range as "key=value@version" lines.
func scan(t testing.TB, r *Reader, opt ScanOptions) []string {
	t.Helper()
	it := r.Scan(opt)
	defer it.Close()
	var out []string
	for it.Next() {
		out = append(out, fmt.Sprintf("%s=%s@%d", it.Key(), it.Value(), it.Version()))
	}
	must(t, it.Err())
	return out
}

// export returns the export as bytes, in the frame encoding.
func export(r *Reader, floor uint64) ([]byte, error) {
	var b []byte
	err := r.Export(floor, func(rec Record) error {
		b = AppendRecord(b, rec)
		return nil
	})
	return b, err
}

// eventually polls until ok says true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("timed out: %s", what)
		case <-tick.C:
		}
	}
}

// history is the model: all versions of all keys in memory.
type history struct {
	keys map[string][]version // ascending
	ts   uint64
}

type version struct {
	ts    uint64
	value []byte
	dead  bool
}

func newHistory() *history { return &history{keys: make(map[string][]version)} }

func (h *history) commit(ts uint64, entries []Entry) {
	for _, en := range append(append([]Entry(nil), entries...), event(ts)) {
		h.keys[string(en.Key)] = append(h.keys[string(en.Key)], version{ts, bytes.Clone(en.Value), en.Delete})
	}
	h.ts = ts
}

func (h *history) get(key string, ts uint64) (version, bool) {
	vs := h.keys[key]
	i := sort.Search(len(vs), func(i int) bool { return vs[i].ts > ts })
	if i == 0 || vs[i-1].dead {
		return version{}, false
	}
	return vs[i-1], true
}

func (h *history) sorted() []string {
	keys := make([]string, 0, len(h.keys))
	for k := range h.keys {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// scan is what scanning the range at ts must give.
func (h *history) scan(ts uint64, opt ScanOptions) []string {
	var out []string
	for _, k := range h.sorted() {
		if k < string(opt.Start) || len(opt.End) > 0 && k >= string(opt.End) {
			continue
		}
		if v, ok := h.get(k, ts); ok {
			value := v.value
			if opt.KeysOnly {
				value = nil
			}
			out = append(out, fmt.Sprintf("%s=%s@%d", k, value, v.ts))
		}
	}
	if opt.Reverse {
		for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
			out[i], out[j] = out[j], out[i]
		}
	}
	return out
}

// export is what exporting at ts above floor must give.
func (h *history) export(ts, floor uint64) []byte {
	var b []byte
	for _, k := range h.sorted() {
		vs := h.keys[k]
		for i := len(vs) - 1; i >= 0; i-- {
			v := vs[i]
			if v.ts > ts {
				continue
			}
			if v.ts <= floor && v.dead {
				break
			}
			b = AppendRecord(b, Record{Key: []byte(k), Value: v.value, Version: v.ts, Delete: v.dead})
			if v.ts <= floor {
				break
			}
		}
	}
	return b
}
