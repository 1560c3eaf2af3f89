package raftstore

import (
	"errors"
	"os"
	"testing"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

// model is what a log should hold.
type model struct {
	first uint64
	terms []uint64 // terms[i] is the term of entry first+i
	sizes []int
}

func (m *model) last() uint64 { return m.first + uint64(len(m.terms)) - 1 }
func (m *model) empty() bool  { return len(m.terms) == 0 }

func (m *model) drop(lo, hi uint64) {
	if m.empty() || hi < m.first || lo > m.last() || lo > hi {
		return
	}
	lo, hi = max(lo, m.first), min(hi, m.last())
	switch i, j := lo-m.first, hi-m.first+1; {
	case lo == m.first:
		m.terms, m.sizes, m.first = m.terms[j:], m.sizes[j:], hi+1
	case hi == m.last():
		m.terms, m.sizes = m.terms[:i], m.sizes[:i]
	}
}

func (m *model) middle(lo, hi uint64) bool {
	return !m.empty() && lo <= hi && lo > m.first && hi < m.last()
}

// TestAgainstModel runs random appends, deletions, reads, reopens and crashes against a model.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		root, err := os.MkdirTemp("", "raftstore-model")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(root)
		dir := root + "/0"
		cfg := testConfig(t, dir)
		cfg.CacheBytes = rapid.SampledFrom([]int64{-1, 4 << 10, 1 << 20}).Draw(rt, "cache")
		s, err := Open(cfg)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { s.Close() }()
		m := &model{}
		term := uint64(1)

		check := func() {
			first, last := s.Bounds()
			if m.empty() {
				if first != 0 || last != 0 {
					rt.Fatalf("bounds %d..%d of an empty log", first, last)
				}
				return
			}
			if first != m.first || last != m.last() {
				rt.Fatalf("bounds %d..%d, want %d..%d", first, last, m.first, m.last())
			}
		}
		bound := func(label string) uint64 {
			if m.empty() {
				return rapid.Uint64Range(0, 10).Draw(rt, label)
			}
			return rapid.Uint64Range(m.first-min(m.first, 2), m.last()+2).Draw(rt, label)
		}
		appendSome := func(n int) {
			next := m.last() + 1
			if m.empty() {
				next = rapid.Uint64Range(1, 1<<20).Draw(rt, "first")
				m.first = next
			}
			size := rapid.SampledFrom([]int{0, 1, 300, 20 << 10}).Draw(rt, "size")
			if n > 100 {
				size = 20
			}
			logs := entries(next, next+uint64(n)-1, term, size)
			if err := s.Logs().StoreLogs(logs); err != nil {
				rt.Fatalf("append of %d at %d: %v", n, next, err)
			}
			for range n {
				m.terms, m.sizes = append(m.terms, term), append(m.sizes, size)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { check() },
			"append": func(rt *rapid.T) {
				appendSome(rapid.IntRange(1, 40).Draw(rt, "n"))
			},
			"append many": func(rt *rapid.T) {
				appendSome(rapid.IntRange(300, 1500).Draw(rt, "n"))
			},
			"append wrongly": func(rt *rapid.T) {
				if m.empty() {
					rt.Skip("any index continues an empty log")
				}
				at := bound("at")
				if at == m.last()+1 {
					at++
				}
				if err := s.Logs().StoreLog(entry(at, term, 1)); !errors.Is(err, ErrNotContiguous) {
					rt.Fatalf("append at %d after %d: %v", at, m.last(), err)
				}
			},
			"delete": func(rt *rapid.T) {
				lo, hi := bound("lo"), bound("hi")
				err := s.Logs().DeleteRange(lo, hi)
				if m.middle(lo, hi) {
					if !errors.Is(err, ErrMiddle) {
						rt.Fatalf("deletion of %d..%d in %d..%d: %v", lo, hi, m.first, m.last(), err)
					}
					return
				}
				if err != nil {
					rt.Fatalf("deletion of %d..%d: %v", lo, hi, err)
				}
				m.drop(lo, hi)
			},
			"truncate a suffix": func(rt *rapid.T) {
				if m.empty() {
					rt.Skip("nothing to delete")
				}
				lo := rapid.Uint64Range(m.first, m.last()).Draw(rt, "lo")
				if err := s.Logs().DeleteRange(lo, m.last()); err != nil {
					rt.Fatal(err)
				}
				m.drop(lo, m.last())
				term++
			},
			"read": func(rt *rapid.T) {
				i := bound("index")
				var got raft.Log
				err := s.Logs().GetLog(i, &got)
				if m.empty() || i < m.first || i > m.last() {
					if !errors.Is(err, raft.ErrLogNotFound) {
						rt.Fatalf("GetLog(%d): %v", i, err)
					}
					return
				}
				if err != nil {
					rt.Fatal(err)
				}
				k := i - m.first
				if err := sameEntry(&got, entry(i, m.terms[k], m.sizes[k])); err != nil {
					rt.Fatal(err)
				}
			},
			"reset": func(rt *rapid.T) {
				if rapid.IntRange(0, 9).Draw(rt, "once in ten") > 0 {
					return
				}
				if err := s.Reset(); err != nil {
					rt.Fatal(err)
				}
				*m = model{}
			},
			"reopen or crash": func(rt *rapid.T) {
				switch rapid.IntRange(0, 5).Draw(rt, "how") {
				case 0:
					if err := s.Close(); err != nil {
						rt.Fatal(err)
					}
				case 1: // what a killed process would have left
					dir += "x"
					if err := os.CopyFS(dir, os.DirFS(cfg.Dir)); err != nil {
						rt.Fatal(err)
					}
					if err := s.Close(); err != nil {
						rt.Fatal(err)
					}
					cfg.Dir = dir
				default:
					return
				}
				var err error
				if s, err = Open(cfg); err != nil {
					rt.Fatal(err)
				}
			},
		})
		for k, term := range m.terms {
			i := m.first + uint64(k)
			var got raft.Log
			if err := s.Logs().GetLog(i, &got); err != nil {
				rt.Fatal(err)
			}
			if err := sameEntry(&got, entry(i, term, m.sizes[k])); err != nil {
				rt.Fatal(err)
			}
		}
	})
}
