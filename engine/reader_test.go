package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// grow commits revisions from+1..to, each of which overwrites all keys.
func grow(t testing.TB, e *Engine, h *history, keys int, to uint64) {
	t.Helper()
	for ts := h.ts + 1; ts <= to; ts++ {
		var entries []Entry
		for k := range keys {
			if (int(ts)+k)%5 == 0 {
				entries = append(entries, del(fmt.Sprintf("d%03d", k)))
			} else {
				entries = append(entries, put(fmt.Sprintf("d%03d", k), fmt.Sprintf("value %d of %d", ts, k)))
			}
		}
		must(t, e.Commit(ts, entries, event(ts)))
		h.commit(ts, entries)
	}
	e.Publish(to)
}

// TestReadersHoldDiscardBack: what a reader may still read stays, whatever is asked
// for and compacted, and goes when the reader is closed (Invariant B5).
func TestReadersHoldDiscardBack(t *testing.T) {
	dir := freshDir(t)
	e := open(t, dir)
	h := newHistory()
	grow(t, e, h, 20, 50)
	must(t, e.Close()) // into tables
	e = open(t, dir)
	e.Publish(50)

	r := readAt(t, e, 10)
	defer r.Close()
	e.SetDiscard(50)
	e.SetDiscard(30) // backwards: nothing
	if s := e.Stats(); s.RequestedDiscard != 50 || s.EffectiveDiscard != 10 {
		t.Fatalf("requested %d, effective %d", s.RequestedDiscard, s.EffectiveDiscard)
	}
	if _, err := e.ReadAt(49); !errors.Is(err, ErrDiscarded) {
		t.Errorf("a new reader below the requested timestamp: %v", err)
	}
	grow(t, e, h, 20, 60)
	must(t, e.Close())
	// The pin is not kept over a reopen: hold it again before anything is discarded.
	e = open(t, dir)
	e.Publish(60)
	r = readAt(t, e, 10)
	e.SetDiscard(60)
	must(t, e.Compact(context.Background()))
	all := ScanOptions{Start: []byte("d"), End: []byte("e")}
	if got, want := fmt.Sprint(scan(t, r, all)), fmt.Sprint(h.scan(10, all)); got != want {
		t.Errorf("at 10 after compaction: %s, want %s", got, want)
	}
	r.Close()
	if s := e.Stats(); s.EffectiveDiscard != 60 {
		t.Errorf("effective %d after the reader left", s.EffectiveDiscard)
	}
}

// TestRevokedReaderNeverPartial: a reader that is too old fails; it never returns
// less than its revision has, while its history is being compacted away.
func TestRevokedReaderNeverPartial(t *testing.T) {
	dir := freshDir(t)
	h := newHistory()
	e := open(t, dir)
	grow(t, e, h, 200, 40)
	must(t, e.Close())
	e = open(t, dir, func(c *Config) {
		c.MaxReaderAge = 50 * time.Millisecond
		c.pollInterval = 5 * time.Millisecond
	})
	e.Publish(40)
	grow(t, e, h, 200, 41)

	all := ScanOptions{Start: []byte("d"), End: []byte("e")}
	want := fmt.Sprint(h.scan(20, all))
	r := readAt(t, e, 20)
	open := r.Scan(all)
	if !open.Next() {
		t.Fatal("nothing to scan")
	}
	kept := readAt(t, e, 41) // holds nothing back, so it may grow old
	slow := readAt(t, e, 30)
	slow.Extend(time.Hour)

	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				it := r.Scan(all)
				var got []string
				for it.Next() {
					got = append(got, fmt.Sprintf("%s=%s@%d", it.Key(), it.Value(), it.Version()))
				}
				err := it.Err()
				it.Close()
				if errors.Is(err, ErrDiscarded) {
					return
				}
				if err != nil || fmt.Sprint(got) != want {
					t.Errorf("read at 20: %v, %d of %d keys", err, len(got), len(h.scan(20, all)))
					return
				}
			}
		})
	}
	e.SetDiscard(41)
	must(t, e.Compact(context.Background()))
	wg.Wait()
	if open.Next() || !errors.Is(open.Err(), ErrDiscarded) {
		t.Errorf("an open iterator of a revoked reader: %v", open.Err())
	}
	if _, _, _, err := r.Get([]byte("d001")); !errors.Is(err, ErrDiscarded) {
		t.Errorf("get: %v", err)
	}
	if err := r.Export(20, func(Record) error { return nil }); !errors.Is(err, ErrDiscarded) {
		t.Errorf("export: %v", err)
	}
	if got := scan(t, kept, all); fmt.Sprint(got) != fmt.Sprint(h.scan(41, all)) {
		t.Error("a reader at the discard timestamp was disturbed")
	}
	if got := scan(t, slow, all); fmt.Sprint(got) != fmt.Sprint(h.scan(30, all)) {
		t.Error("a reader with more time was disturbed")
	}
	if s := e.Stats(); s.RevokedReaders != 1 || s.EffectiveDiscard != 30 {
		t.Errorf("revoked %d, effective %d", s.RevokedReaders, s.EffectiveDiscard)
	}
	r.Close()
}

// TestHoldKeepsHistory: an export's history may not be discarded between its passes.
func TestHoldKeepsHistory(t *testing.T) {
	dir := freshDir(t)
	h := newHistory()
	e := open(t, dir)
	grow(t, e, h, 50, 30)
	must(t, e.Close())
	e = open(t, dir)
	e.Publish(30)
	e.SetDiscard(5)
	r := readAt(t, e, 30)
	if err := r.Hold(4); !errors.Is(err, ErrDiscarded) {
		t.Fatalf("hold below the discard timestamp: %v", err)
	}
	must(t, r.Hold(7))
	e.SetDiscard(30)
	grow(t, e, h, 50, 31)
	must(t, e.Compact(context.Background()))
	got, err := export(r, 7)
	must(t, err)
	if !bytes.Equal(got, h.export(30, 7)) {
		t.Error("history above the hold is gone")
	}
	late := readAt(t, e, 31)
	if err := late.Hold(6); !errors.Is(err, ErrDiscarded) {
		t.Errorf("hold below what is held: %v", err)
	}
}

func TestDeleteAt(t *testing.T) {
	dir := freshDir(t)
	h := newHistory()
	e := open(t, dir)
	grow(t, e, h, 1, 100)
	events := func(from, to uint64) (keys [][]byte, versions []uint64) {
		for ts := from; ts <= to; ts++ {
			keys, versions = append(keys, event(ts).Key), append(versions, ts)
		}
		return keys, versions
	}
	count := func() int {
		r := readAt(t, e, 100)
		defer r.Close()
		return len(scan(t, r, ScanOptions{Start: []byte("e"), End: []byte("f")}))
	}
	keys, versions := events(1, 60)
	if err := e.DeleteAt(keys, versions); !errors.Is(err, ErrInvalid) {
		t.Errorf("above the discard timestamp: %v", err)
	}
	old := readAt(t, e, 50)
	e.SetDiscard(60)
	if err := e.DeleteAt(keys, versions); !errors.Is(err, ErrHeld) {
		t.Errorf("while a reader needs them: %v", err)
	}
	old.Close()
	r := readAt(t, e, 100)
	first, err := export(r, 60)
	must(t, err)
	if err := e.DeleteAt(keys, versions); !errors.Is(err, ErrHeld) {
		t.Errorf("during an export: %v", err)
	}
	second, err := export(r, 60)
	must(t, err)
	if !bytes.Equal(first, second) {
		t.Error("two passes differ")
	}
	if n := count(); n != 100 {
		t.Errorf("%d events of 100 after refusals", n)
	}
	r.Close()
	must(t, e.DeleteAt(keys, versions))
	must(t, e.DeleteAt(keys, versions)) // again: nothing
	check := func(when string) {
		if n := count(); n != 40 {
			t.Errorf("%s: %d events of 40", when, n)
		}
	}
	check("in memory")
	must(t, e.Close())
	e = open(t, dir)
	e.Publish(100)
	check("in tables")
	e.SetDiscard(100)
	must(t, e.Compact(context.Background()))
	check("compacted")
}

// TestScanGoesOnAfterParking: an iterator whose Badger iterator was closed for a log
// collection goes on after the key where it was.
func TestScanGoesOnAfterParking(t *testing.T) {
	e := open(t, freshDir(t))
	h := newHistory()
	grow(t, e, h, 300, 7)
	for _, reverse := range []bool{false, true} {
		r := readAt(t, e, 6)
		it := r.Scan(ScanOptions{Start: []byte("d"), End: []byte("e"), Reverse: reverse})
		other := r.Scan(ScanOptions{})
		other.Next()
		var stop, wg = make(chan struct{}), sync.WaitGroup{}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					e.parkAll()
				}
			}
		})
		var got []string
		for it.Next() {
			got = append(got, fmt.Sprintf("%s=%s@%d", it.Key(), it.Value(), it.Version()))
		}
		close(stop)
		wg.Wait()
		must(t, it.Err())
		want := h.scan(6, ScanOptions{Start: []byte("d"), End: []byte("e"), Reverse: reverse})
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("reverse %v: %d keys, want %d", reverse, len(got), len(want))
		}
		r.Close()
	}
}

// TestSeekOnlyMovesAhead: neither in front of the range nor back.
func TestSeekOnlyMovesAhead(t *testing.T) {
	e := open(t, freshDir(t))
	commit(t, e, 1, put("da", "1"), put("db", "2"), put("dc", "3"), put("dd", "4"))
	it := readAt(t, e, 1).Scan(ScanOptions{Start: []byte("db"), End: []byte("e")})
	it.Seek([]byte("d"))
	if !it.Next() || string(it.Key()) != "db" {
		t.Errorf("seek in front of the range: %q, want db", it.Key())
	}
	it.Seek([]byte("dd"))
	it.Seek([]byte("dc"))
	if !it.Next() || string(it.Key()) != "dd" {
		t.Errorf("two seeks, the second to an earlier key: %q, want dd", it.Key())
	}
	it.Seek([]byte("e"))
	if it.Next() {
		t.Errorf("beyond the range: %q", it.Key())
	}
}
