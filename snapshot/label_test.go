package snapshot

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/settkv/sett/kv"
)

var update = flag.Bool("update", false, "write the golden files anew")

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func sortedBytes(keys [][]byte) [][]byte {
	slices.SortFunc(keys, bytes.Compare)
	return keys
}

func sortedDescending(v []uint64) []uint64 {
	slices.Sort(v)
	slices.Reverse(v)
	return v
}

// golden compares got with a file of testdata. A difference means that files of this
// version can no longer be read by others of its version: add a version instead.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has changed:\n%s\nwas\n%s", name, hex.Dump(got), hex.Dump(want))
	}
}

func TestLabelGolden(t *testing.T) {
	b, err := encodeLabelFile(sampleLabel())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "label-v1", b)
	back, err := decodeLabelFile(b)
	if err != nil || !reflect.DeepEqual(back, sampleLabel()) {
		t.Errorf("reads as %+v, %v", back, err)
	}
}

func TestPointerGolden(t *testing.T) {
	golden(t, "current-v1", encodePointer("gen-0123456789abcdef"))
}

func TestPendingGolden(t *testing.T) {
	b := encodePending("gen-0123456789abcdef")
	golden(t, "pending-v1", b)
	if name, err := PendingID(bytes.NewReader(b)); err != nil || name != "gen-0123456789abcdef" {
		t.Errorf("reads as %q, %v", name, err)
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1
		if name, err := PendingID(bytes.NewReader(c)); !errors.Is(err, kv.ErrCorruption) {
			t.Errorf("byte %d flipped: %q, %v", i, name, err)
		}
	}
	if _, err := PendingID(bytes.NewReader(append(b, 0))); !errors.Is(err, kv.ErrCorruption) {
		t.Errorf("a longer one: %v", err)
	}
	whole, _ := mustStream(t, Header{Label: sampleLabel()}, sampleRecords(2))
	if _, err := PendingID(bytes.NewReader(whole)); !errors.Is(err, kv.ErrCorruption) {
		t.Errorf("a content stream: %v", err)
	}
}

func drawLabel(t *rapid.T) Label {
	some := func(name string) []byte {
		b := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, name)
		if len(b) == 0 {
			return nil
		}
		return b
	}
	l := Label{
		Index: rapid.Uint64().Draw(t, "index"), Term: rapid.Uint64().Draw(t, "term"),
		ConfigurationIndex: rapid.Uint64().Draw(t, "configuration index"), Revision: rapid.Uint64().Draw(t, "revision"),
		CompactRevision: rapid.Uint64().Draw(t, "compact revision"), Configuration: some("configuration"), State: some("state"),
		ClusterID: rapid.String().Draw(t, "cluster"), ServerID: rapid.String().Draw(t, "server"),
	}
	if nanos := rapid.Int64().Draw(t, "time"); nanos != 0 {
		l.Time = time.Unix(0, nanos).UTC()
	}
	return l
}

func TestLabelRoundTrip(t *testing.T) {
	dir := t.TempDir()
	if _, found, err := ReadLabel(dir); found || err != nil {
		t.Fatalf("label in an empty folder: %v, %v", found, err)
	}
	rapid.Check(t, func(t *rapid.T) {
		want := drawLabel(t)
		if err := writeLabel(dir, want); err != nil {
			t.Fatal(err)
		}
		got, found, err := ReadLabel(dir)
		if err != nil || !found || !reflect.DeepEqual(got, want) {
			t.Fatalf("read %+v, %v, %v; wrote %+v", got, found, err, want)
		}
	})
}

func TestDamagedLabelIsCorruption(t *testing.T) {
	dir := t.TempDir()
	if err := writeLabel(dir, sampleLabel()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, labelName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(what string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := ReadLabel(dir); !errors.Is(err, kv.ErrCorruption) {
			t.Fatalf("%s: %v, want corruption", what, err)
		}
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 0x10
		refuse("a flipped bit", b)
		refuse("a short label", whole[:i])
	}
	refuse("a longer label", append(bytes.Clone(whole), 0))
}

func TestLabelLimits(t *testing.T) {
	l := Label{State: make([]byte, maxStateBytes+1)}
	if _, err := encodeLabelFile(l); !errors.Is(err, kv.ErrTooLarge) {
		t.Errorf("state over the limit: %v", err)
	}
	l = Label{ClusterID: string(make([]byte, maxSmallBytes+1))}
	if _, err := encodeLabelFile(l); !errors.Is(err, kv.ErrTooLarge) {
		t.Errorf("cluster id over the limit: %v", err)
	}
}

func FuzzLabelDecode(f *testing.F) {
	whole, err := encodeLabelFile(sampleLabel())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := decodeLabelFile(b); err == nil {
			again, err := encodeLabelFile(l)
			if err != nil || !bytes.Equal(again, b) {
				t.Fatalf("accepted bytes that are not its encoding: %v", err)
			}
		}
		// Below the checksum, which the fuzzer can't guess.
		if l, err := decodeLabel(b); err == nil {
			again, err := appendLabel(nil, l)
			if err != nil || !bytes.Equal(again, b) {
				t.Fatalf("accepted bytes that are not its encoding: %v", err)
			}
		}
	})
}
