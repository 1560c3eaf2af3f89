package raftstore

import (
	"fmt"
	"path/filepath"
	"testing"

	raftbadger "github.com/BBVA/raft-badger"
	"github.com/hashicorp/raft"

	"github.com/settkv/sett/internal/badgerkit"
)

// BenchmarkAppend compares what the layer costs over the bare library with the same options, for batches
// as raft makes them.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct{ batch, size int }{{1, 100}, {1, 4 << 10}, {64, 100}, {64, 4 << 10}, {1, 256 << 10}} {
		name := fmt.Sprintf("batch=%d/size=%d", c.batch, c.size)
		b.Run("raftstore/"+name, func(b *testing.B) {
			s := mustOpen(b, testConfig(b, b.TempDir()))
			benchAppend(b, s.Logs(), c.batch, c.size)
		})
		b.Run("bare/"+name, func(b *testing.B) {
			o := badgerkit.BaseOptions(filepath.Join(b.TempDir(), "log"), 8<<20, badgerkit.Logger(nil, "")).
				WithSyncWrites(true).WithValueThreshold(16 << 10)
			s, err := raftbadger.New(raftbadger.Options{BadgerOptions: &o})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			benchAppend(b, s, c.batch, c.size)
		})
	}
}

func benchAppend(b *testing.B, l raft.LogStore, batch, size int) {
	data := make([]byte, size)
	next := uint64(1)
	b.SetBytes(int64(batch * size))
	b.ReportAllocs()
	for b.Loop() {
		logs := make([]*raft.Log, batch)
		for i := range logs {
			logs[i] = &raft.Log{Index: next, Term: 1, Data: data}
			next++
		}
		if err := l.StoreLogs(logs); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRead shows what the cache is worth.
func BenchmarkRead(b *testing.B) {
	for _, cached := range []bool{true, false} {
		b.Run(fmt.Sprintf("cached=%v", cached), func(b *testing.B) {
			cfg := testConfig(b, b.TempDir())
			if !cached {
				cfg.CacheBytes = -1
			}
			s := mustOpen(b, cfg)
			mustStore(b, s.Logs(), entries(1, 2000, 1, 1000))
			var log raft.Log
			i := uint64(0)
			for b.Loop() {
				if err := s.Logs().GetLog(i%2000+1, &log); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// BenchmarkBounds: first and last index do not depend on what was deleted (Invariant 3).
func BenchmarkBounds(b *testing.B) {
	s := mustOpen(b, testConfig(b, b.TempDir()))
	mustStore(b, s.Logs(), entries(1, 50_000, 1, 50))
	if err := s.Logs().DeleteRange(1, 49_000); err != nil {
		b.Fatal(err)
	}
	b.Run("raftstore", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Logs().FirstIndex(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.logDB.in.FirstIndex(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
