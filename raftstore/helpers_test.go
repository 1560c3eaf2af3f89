package raftstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// fatals collects what OnFatal is called with.
type fatals struct {
	mu     sync.Mutex
	causes []error
}

func (f *fatals) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.causes = append(f.causes, err)
}

func (f *fatals) all() []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]error(nil), f.causes...)
}

// testConfig is a small store whose latching fails the test, unless the test sets OnFatal itself.
func testConfig(t testing.TB, dir string) Config {
	return Config{
		Dir:           dir,
		MemTableBytes: 8 << 20,
		MinFreeBytes:  1,
		OnFatal:       func(err error) { t.Errorf("store latched: %v", err) },
	}
}

func mustOpen(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustClose(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// entry is a log entry whose content follows from its index and term, so that it can be checked.
func entry(index, term uint64, size int) *raft.Log {
	data := make([]byte, size)
	r := rand.New(rand.NewPCG(index, term))
	for i := 0; i < len(data); i += 8 {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], r.Uint64())
		copy(data[i:], b[:])
	}
	return &raft.Log{
		Index: index, Term: term, Type: raft.LogCommand, Data: data, Extensions: []byte{byte(index), 1},
		AppendedAt: time.Unix(1_700_000_000, int64(index)).UTC(),
	}
}

func entries(first, last, term uint64, size int) []*raft.Log {
	var out []*raft.Log
	for i := first; i <= last; i++ {
		out = append(out, entry(i, term, size))
	}
	return out
}

func mustStore(t testing.TB, l raft.LogStore, logs []*raft.Log) {
	t.Helper()
	if err := l.StoreLogs(logs); err != nil {
		t.Fatalf("StoreLogs(%d..%d): %v", logs[0].Index, logs[len(logs)-1].Index, err)
	}
}

// sameEntry is nil if got is want.
func sameEntry(got, want *raft.Log) error {
	if got.Index != want.Index || got.Term != want.Term || got.Type != want.Type ||
		!bytes.Equal(got.Data, want.Data) || !bytes.Equal(got.Extensions, want.Extensions) || !got.AppendedAt.Equal(want.AppendedAt) {
		return fmt.Errorf("entry %d: got {%d %d %v %d bytes %v}, want {%d %d %v %d bytes %v}", want.Index,
			got.Index, got.Term, got.Type, len(got.Data), got.AppendedAt,
			want.Index, want.Term, want.Type, len(want.Data), want.AppendedAt)
	}
	return nil
}

// checkRange reads first..last from l and compares them with entry(i, term, size).
func checkRange(t testing.TB, l raft.LogStore, first, last, term uint64, size int) {
	t.Helper()
	for i := first; i <= last; i++ {
		var got raft.Log
		if err := l.GetLog(i, &got); err != nil {
			t.Fatalf("GetLog(%d): %v", i, err)
		}
		if err := sameEntry(&got, entry(i, term, size)); err != nil {
			t.Fatal(err)
		}
	}
}

func checkBounds(t testing.TB, l raft.LogStore, first, last uint64) {
	t.Helper()
	f, err := l.FirstIndex()
	if err != nil {
		t.Fatalf("FirstIndex: %v", err)
	}
	la, err := l.LastIndex()
	if err != nil {
		t.Fatalf("LastIndex: %v", err)
	}
	if f != first || la != last {
		t.Fatalf("bounds are %d..%d, want %d..%d", f, la, first, last)
	}
}

// eventually polls cond until it holds, for at most limit.
func eventually(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}
