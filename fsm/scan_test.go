package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/settkv/sett/kv"
)

// wantScan is what a scan of the keys must give: the plainest way to say it.
func wantScan(keys []string, q kv.Scan) (out []string) {
	keys = slices.Clone(keys)
	slices.Sort(keys)
	if q.Reverse {
		slices.Reverse(keys)
	}
	for _, k := range keys {
		if !q.Range.Contains(k) {
			continue
		}
		e := "item " + k
		if q.Delimiter != "" && len(k) > len(q.Prefix) {
			if i := strings.Index(k[len(q.Prefix):], q.Delimiter); i >= 0 {
				e = "prefix " + k[:len(q.Prefix)+i+len(q.Delimiter)]
			}
		}
		if len(out) == 0 || out[len(out)-1] != e {
			out = append(out, e)
		}
	}
	return out
}

// scanPages reads q in pages of a size, each from where the one before ended.
func scanPages(t *testing.T, m *machine, q kv.Scan, rev kv.Revision, size int) (out []string) {
	t.Helper()
	for {
		s, err := m.Scan(q, rev)
		if err != nil {
			t.Fatal(err)
		}
		var last kv.ScanEntry
		n := 0
		for n < size && s.Next() {
			last = *s.Entry()
			n++
			if last.CommonPrefix != "" {
				out = append(out, "prefix "+last.CommonPrefix)
				continue
			}
			if string(last.Item.Value) != "v"+last.Item.Key && !q.KeysOnly || q.KeysOnly && last.Item.Value != nil {
				t.Fatalf("%q has value %q", last.Item.Key, last.Item.Value)
			}
			out = append(out, "item "+last.Item.Key)
		}
		if err := s.Err(); err != nil {
			t.Fatal(err)
		}
		s.Close()
		rest, ok := q.Rest(last)
		if n < size || !ok {
			return out
		}
		q = rest
	}
}

// checkScan holds one scan, whole and in pages, to the keys.
func checkScan(t *testing.T, m *machine, keys []string, q kv.Scan, rev kv.Revision) {
	t.Helper()
	want := wantScan(keys, q)
	for _, size := range []int{1 << 30, 1, 3} {
		if got := scanPages(t, m, q, rev, size); !slices.Equal(got, want) {
			t.Fatalf("%+v in pages of %d:\n%q\nwant\n%q", q, size, got, want)
		}
	}
}

func fill(m *machine, keys []string) {
	var ops []kv.Op
	for _, k := range keys {
		ops = append(ops, put(k, "v"+k))
	}
	m.mustTxn(ops...)
}

func TestScan(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 11))
	alphabet := []string{"a", "/", "b", "\x00", "\xff", "//", "é"}
	word := func(most int) string {
		var b strings.Builder
		for range rng.IntN(most + 1) {
			b.WriteString(alphabet[rng.IntN(len(alphabet))])
		}
		return b.String()
	}
	m := newMachine(t)
	var versions [][]string
	for range 5 {
		set := map[string]bool{}
		for range 40 {
			if k := word(5); k != "" {
				set[k] = true
			}
		}
		var keys []string
		for k := range set {
			keys = append(keys, k)
		}
		ops := []kv.Op{{Kind: kv.OpDeleteRange}}
		for _, k := range keys {
			ops = append(ops, put(k, "v"+k))
		}
		m.mustTxn(ops...)
		versions = append(versions, keys)
	}
	for range 600 {
		n := rng.IntN(len(versions))
		q := kv.Scan{Reverse: rng.IntN(2) == 0, KeysOnly: rng.IntN(2) == 0}
		if rng.IntN(2) == 0 {
			q.Prefix = word(2)
			q.Range = kv.PrefixRange(q.Prefix)
		} else {
			q.Range = kv.Range{Start: word(3), End: word(3)}
		}
		if rng.IntN(2) == 0 {
			q.Delimiter = alphabet[rng.IntN(len(alphabet))]
		}
		if q.Range.Empty() {
			continue
		}
		checkScan(t, m, versions[n], q, kv.Revision(n+1))
	}
}

func FuzzScan(f *testing.F) {
	f.Add("a\na/b\na/c\n\xff\n\xff\xff", "a", "", "", "/", false)
	f.Add("x/\nx/y\nx//\nx0", "", "x/", "x0", "/", true)
	m := newMachine(f)
	f.Fuzz(func(t *testing.T, list, prefix, start, end, delimiter string, reverse bool) {
		set := map[string]bool{}
		var keys []string
		for k := range strings.SplitSeq(list, "\n") {
			if k != "" && !set[k] && len(k) < 100 && len(keys) < 50 {
				set[k] = true
				keys = append(keys, k)
			}
		}
		q := kv.Scan{Range: kv.Range{Start: start, End: end}, Reverse: reverse, Delimiter: delimiter}
		if prefix != "" {
			q.Prefix, q.Range = prefix, kv.PrefixRange(prefix)
		}
		if len(keys) == 0 || q.Range.Empty() || max(len(prefix), len(start), len(end)) > 1000 {
			t.Skip("nothing to scan")
		}
		m.t = t // one machine for all: making one takes longer than thousands of scans
		m.mustTxn(kv.Op{Kind: kv.OpDeleteRange})
		fill(m, keys)
		checkScan(t, m, keys, q, 0)
	})
}

// TestScanOfThePast: a scan's revision must exist, and what it reads must still be kept.
func TestScanOfThePast(t *testing.T) {
	m := newMachine(t)
	big := bytes.Repeat([]byte("0123456789"), 20_000) // in pieces
	m.mustTxn(kv.Op{Kind: kv.OpPut, Key: "big", Value: big})
	for i := range 9 {
		m.mustTxn(put("k", fmt.Sprint(i)))
	}
	if _, err := m.Scan(kv.Scan{}, 11); !errors.Is(err, kv.ErrInvalidArgument) {
		t.Errorf("the future: %v", err)
	}
	s, err := m.Scan(kv.Scan{}, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.Next() || !bytes.Equal(s.Entry().Item.Value, big) || !s.Next() || string(s.Entry().Item.Value) != "1" || s.Next() || s.Err() != nil || s.Revision() != 3 {
		t.Errorf("%+v: %v", s.Entry().Item.Key, s.Err())
	}
	m.apply(EncodeCompact(5))
	m.mustTxn(put("k", "last"))
	if _, err := m.Scan(kv.Scan{}, 4); !errors.Is(err, kv.ErrCompacted) {
		t.Errorf("below the oldest revision: %v", err)
	}
	if s, err := m.Scan(kv.Scan{}, 5); err != nil {
		t.Errorf("at the oldest revision: %v", err)
	} else {
		s.Close()
	}
}
