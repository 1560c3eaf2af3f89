package engine

import (
	"fmt"
	"math/rand"
	"testing"
)

func benchValue() []byte {
	v := make([]byte, 256)
	rand.New(rand.NewSource(1)).Read(v)
	return v
}

// BenchmarkCommit is one command of a key and an event, flushed and published every
// batch.
func BenchmarkCommit(b *testing.B) {
	for _, batch := range []int{1, 64} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			e := open(b, freshDir(b), func(c *Config) { c.GCEnabled = true })
			value := benchValue()
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				ts := uint64(i + 1)
				if err := e.Commit(ts, []Entry{{Key: fmt.Appendf(nil, "d%07d", rand.Intn(1e6)), Value: value}}, event(ts)); err != nil {
					b.Fatal(err)
				}
				if i%batch == batch-1 {
					e.Publish(ts)
				}
			}
			must(b, e.Flush())
		})
	}
}

const benchKeys = 200_000

func benchEngine(b *testing.B) *Engine {
	b.Helper()
	dir := freshDir(b)
	e := open(b, dir)
	value := benchValue()
	for ts := uint64(1); ts <= benchKeys/100; ts++ {
		var entries []Entry
		for k := range uint64(100) {
			entries = append(entries, Entry{Key: fmt.Appendf(nil, "d%07d", (ts-1)*100+k), Value: value})
		}
		must(b, e.Commit(ts, entries, event(ts)))
	}
	e.Publish(benchKeys / 100)
	must(b, e.Close())
	e = open(b, dir)
	e.Publish(benchKeys / 100)
	return e
}

func BenchmarkGet(b *testing.B) {
	e := benchEngine(b)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r, err := e.ReadAt(e.Published())
			if err != nil {
				b.Error(err)
				return
			}
			if _, _, found, err := r.Get(fmt.Appendf(nil, "d%07d", rand.Intn(benchKeys))); !found || err != nil {
				b.Errorf("found %v, %v", found, err)
			}
			r.Close()
		}
	})
}

// BenchmarkScan reads 1000 keys and values an iteration.
func BenchmarkScan(b *testing.B) {
	e := benchEngine(b)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		r := readAt(b, e, e.Published())
		it := r.Scan(ScanOptions{Start: fmt.Appendf(nil, "d%07d", rand.Intn(benchKeys-1000)), End: []byte("e")})
		for range 1000 {
			if !it.Next() {
				b.Fatal(it.Err())
			}
		}
		it.Close()
		r.Close()
	}
}

// BenchmarkExport exports and restores all of a store of 200 000 keys.
func BenchmarkExport(b *testing.B) {
	e := benchEngine(b)
	b.Run("export", func(b *testing.B) {
		for range b.N {
			r := readAt(b, e, e.Published())
			n := 0
			must(b, r.Export(0, func(rec Record) error { n += len(rec.Key) + len(rec.Value); return nil }))
			b.SetBytes(int64(n))
			r.Close()
		}
	})
	b.Run("restore", func(b *testing.B) {
		for range b.N {
			must(b, restored(b, e, e.Published(), 0).Close())
		}
	})
}
