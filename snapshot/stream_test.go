package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

// recordList is an exporter of fixed content.
type recordList []engine.Record

func (l recordList) Export(_ uint64, fn func(engine.Record) error) error {
	for _, r := range l {
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

// sampleLabel is the label of the golden files.
func sampleLabel() Label {
	return Label{
		Index: 42, Term: 7, Configuration: []byte{1, 2, 3}, ConfigurationIndex: 40, Revision: 1000, CompactRevision: 10,
		State: []byte("small state"), ClusterID: "c-1", ServerID: "s-1", Time: time.Unix(1700000000, 123456789).UTC(),
	}
}

func sampleRecords(n int) recordList {
	var list recordList
	for i := range n {
		key := fmt.Appendf(nil, "key-%06d", i)
		list = append(list,
			engine.Record{Key: key, Version: uint64(500 + i%400), Delete: i%5 == 0},
			engine.Record{Key: key, Value: bytes.Repeat([]byte{byte(i)}, 1+i%37), Version: uint64(11 + i%300)})
	}
	return list
}

func mustStream(t testing.TB, h Header, src exporter) ([]byte, Summary) {
	t.Helper()
	var buf bytes.Buffer
	sum, err := writeStream(&buf, h, src)
	if err != nil {
		t.Fatalf("write stream: %v", err)
	}
	return buf.Bytes(), sum
}

// readRecords collects copies of a stream's records.
func readRecords(r io.Reader) (recordList, Summary, error) {
	var list recordList
	sum, err := ReadStream(r, nil, func(batch []engine.Record) error {
		for _, rec := range batch {
			list = append(list, cloneRecord(rec))
		}
		return nil
	})
	return list, sum, err
}

func cloneRecord(r engine.Record) engine.Record {
	r.Key = bytes.Clone(r.Key)
	if r.Value = bytes.Clone(r.Value); len(r.Value) == 0 {
		r.Value = nil
	}
	return r
}

// drawRecords makes any content that an export may have.
func drawRecords(t *rapid.T, revision uint64) recordList {
	keys := rapid.SliceOfNDistinct(rapid.SliceOfN(rapid.Byte(), 1, 20), 0, 15, func(b []byte) string { return string(b) }).Draw(t, "keys")
	var list recordList
	for _, k := range sortedBytes(keys) {
		versions := rapid.SliceOfNDistinct(rapid.Uint64Range(1, revision), 1, 4, rapid.ID).Draw(t, "versions")
		for _, v := range sortedDescending(versions) {
			r := engine.Record{Key: k, Version: v, Delete: rapid.Bool().Draw(t, "delete")}
			if !r.Delete {
				n := rapid.SampledFrom([]int{0, 1, 100, 1000, 64 << 10, 300 << 10}).Draw(t, "value bytes")
				r.Value = bytes.Repeat([]byte{byte(v)}, n)
			}
			list = append(list, cloneRecord(r))
		}
	}
	return list
}

func TestStreamRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := Header{Label: Label{
			Index: rapid.Uint64().Draw(t, "index"), Term: rapid.Uint64().Draw(t, "term"),
			Revision: rapid.Uint64Range(10, 1<<40).Draw(t, "revision"), State: rapid.SliceOfN(rapid.Byte(), 1, 50).Draw(t, "state"),
			Configuration: []byte("c"), ClusterID: rapid.String().Draw(t, "cluster"),
		}}
		want := drawRecords(t, h.Label.Revision)
		size, err := measureStream(h, want)
		if err != nil {
			t.Fatal(err)
		}
		h.Size = size
		var buf bytes.Buffer
		wrote, err := writeStream(&buf, h, want)
		if err != nil {
			t.Fatal(err)
		}
		if uint64(buf.Len()) != size || wrote.Bytes != size {
			t.Fatalf("measured %d bytes, wrote %d, summary says %d", size, buf.Len(), wrote.Bytes)
		}
		got, read, err := readRecords(iotest.HalfReader(bytes.NewReader(buf.Bytes())))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("read %d records, wrote %d, or they differ", len(got), len(want))
		}
		if !reflect.DeepEqual(read, wrote) {
			t.Fatalf("summaries differ: read %+v, wrote %+v", read, wrote)
		}
		inspected, err := Inspect(bytes.NewReader(buf.Bytes()))
		if err != nil || !reflect.DeepEqual(inspected, h) {
			t.Fatalf("inspect: %+v, %v", inspected, err)
		}
	})
}

// Invariant 16: an exported record that doesn't belong under the label is an error,
// on either side.
func TestStreamRefusesWrongContent(t *testing.T) {
	k := func(key string, version uint64) engine.Record {
		return engine.Record{Key: []byte(key), Version: version}
	}
	cases := map[string]recordList{
		"newer than the label":     {k("a", 1001)},
		"version zero":             {k("a", 0)},
		"keys out of order":        {k("b", 1), k("a", 1)},
		"key twice":                {k("a", 1), k("b", 1), k("a", 1)},
		"versions ascending":       {k("a", 1), k("a", 2)},
		"the same version twice":   {k("a", 2), k("a", 2)},
		"longer than a frame":      {{Key: []byte("a"), Version: 1, Value: make([]byte, engine.MaxFrameBytes)}},
		"a key that is not before": {k("a\x00", 5), k("a", 5)},
	}
	for name, list := range cases {
		t.Run(name, func(t *testing.T) {
			h := Header{Label: sampleLabel()}
			if _, err := writeStream(io.Discard, h, list); !errors.Is(err, kv.ErrCorruption) {
				t.Errorf("write: %v, want corruption", err)
			}
			if name == "longer than a frame" {
				return
			}
			// The same content as a sender without the check would frame it.
			head, err := appendHeader(nil, h)
			if err != nil {
				t.Fatal(err)
			}
			b, err := engine.EncodeFrame(head, list)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Verify(bytes.NewReader(b)); !errors.Is(err, kv.ErrCorruption) {
				t.Errorf("verify: %v, want corruption", err)
			}
		})
	}
}

// Every stream that is cut short, longer, or altered in any byte is refused.
func TestTornStreamIsNeverAccepted(t *testing.T) {
	whole, sum := mustStream(t, Header{Label: sampleLabel()}, sampleRecords(40))
	if _, err := Verify(bytes.NewReader(whole)); err != nil {
		t.Fatalf("the whole stream: %v", err)
	}
	refuse := func(what string, b []byte) {
		t.Helper()
		if _, err := Verify(bytes.NewReader(b)); err == nil {
			t.Fatalf("%s was accepted", what)
		}
	}
	for n := range whole {
		refuse(fmt.Sprintf("a stream cut to %d of %d bytes", n, len(whole)), whole[:n])
	}
	for i := range whole {
		for bit := range 8 {
			b := bytes.Clone(whole)
			b[i] ^= 1 << bit
			refuse(fmt.Sprintf("bit %d of byte %d flipped", bit, i), b)
		}
	}
	refuse("one byte more", append(bytes.Clone(whole), 0))
	refuse("the stream twice", append(bytes.Clone(whole), whole...))

	// Bytes lost, repeated or zeroed in the middle.
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		from := rnd.IntN(len(whole))
		to := min(from+1+rnd.IntN(64), len(whole))
		refuse(fmt.Sprintf("bytes %d to %d lost", from, to), append(bytes.Clone(whole[:from]), whole[to:]...))
		refuse(fmt.Sprintf("bytes %d to %d repeated", from, to), append(bytes.Clone(whole[:to]), whole[from:]...))
		zeroed := bytes.Clone(whole)
		clear(zeroed[from:to])
		if !bytes.Equal(zeroed, whole) {
			refuse(fmt.Sprintf("bytes %d to %d zeroed", from, to), zeroed)
		}
	}

	// Frames dropped or exchanged as wholes, with an end record that checks out in itself.
	head, err := appendHeader(nil, sum.Header)
	if err != nil {
		t.Fatal(err)
	}
	list := sampleRecords(3)
	frame := func(r ...engine.Record) []byte {
		b, err := engine.EncodeFrame(nil, r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	parts := [][]byte{frame(list[0:2]...), frame(list[2:4]...), frame(list[4:6]...)}
	want, good := mustStreamOfFrames(head, parts)
	if _, err := Verify(bytes.NewReader(want)); err != nil {
		t.Fatalf("three frames: %v", err)
	}
	end := appendEnd(nil, good)
	for name, order := range map[string][]int{"first frame lost": {1, 2}, "middle frame lost": {0, 2}, "last frame lost": {0, 1},
		"frames exchanged": {0, 2, 1}, "frame twice": {0, 1, 1, 2}, "all frames lost": {}} {
		b := bytes.Clone(head)
		for _, i := range order {
			b = append(b, parts[i]...)
		}
		refuse(name, append(b, end...))
	}
	incomplete := bytes.Clone(want)
	incomplete[len(incomplete)-5] = 0
	reseal(incomplete)
	refuse("a stream marked as incomplete", incomplete)
}

// mustStreamOfFrames puts frames together as writeStream would.
func mustStreamOfFrames(head []byte, frames [][]byte) ([]byte, Summary) {
	b := bytes.Clone(head)
	for _, f := range frames {
		b = append(b, f...)
	}
	d := newDecoder(io.MultiReader(bytes.NewReader(b), bytes.NewReader(binary.LittleEndian.AppendUint64(nil, endMarker))))
	if _, err := d.header(); err != nil {
		panic(err)
	}
	for {
		if _, err := d.next(); err == io.EOF {
			break
		} else if err != nil {
			panic(err)
		}
	}
	sum := d.sum
	sum.Keys, sum.Records = d.tally.keys, d.tally.records
	d.hash.Sum(sum.SHA256[:0])
	return appendEnd(b, sum), sum
}

// reseal makes the checksum of a stream's end record right again.
func reseal(b []byte) {
	rec := b[len(b)-endRecordBytes:]
	binary.LittleEndian.PutUint32(rec[endRecordBytes-4:], checksum(rec[:endRecordBytes-4]))
}

// A sender's own failure is not mistaken for a stream's end.
func TestReaderErrorIsReported(t *testing.T) {
	whole, _ := mustStream(t, Header{Label: sampleLabel()}, sampleRecords(40))
	broken := errors.New("connection broke")
	for _, n := range []int{0, 5, 30, 200, len(whole) - 1, len(whole)} {
		_, err := Verify(io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) {
			t.Errorf("broken after %d bytes: %v", n, err)
		}
	}
}

// A callback's error ends the reading and comes back.
func TestReadStreamStopsOnCallbackError(t *testing.T) {
	whole, _ := mustStream(t, Header{Label: sampleLabel()}, sampleRecords(40))
	stop := errors.New("stop")
	_, err := ReadStream(bytes.NewReader(whole), func(Header) error { return stop }, nil)
	if !errors.Is(err, stop) {
		t.Errorf("header callback: %v", err)
	}
	_, err = ReadStream(bytes.NewReader(whole), nil, func([]engine.Record) error { return stop })
	if !errors.Is(err, stop) {
		t.Errorf("records callback: %v", err)
	}
}

// Lengths that promise much cost nothing.
func TestLyingLengthsCostNoMemory(t *testing.T) {
	head, err := appendHeader(nil, Header{Label: sampleLabel()})
	if err != nil {
		t.Fatal(err)
	}
	long := bytes.Clone(head)
	binary.LittleEndian.PutUint32(long[12:], maxHeaderBytes)
	over := bytes.Clone(head)
	binary.LittleEndian.PutUint32(over[12:], ^uint32(0))
	cases := map[string][]byte{
		"header as long as allowed": long,
		"header over the limit":     over,
		"frame over the limit":      binary.LittleEndian.AppendUint64(bytes.Clone(head), engine.MaxFrameBytes+1),
		"frame of 2^63 bytes":       binary.LittleEndian.AppendUint64(bytes.Clone(head), 1<<63),
		"empty frame":               binary.LittleEndian.AppendUint64(bytes.Clone(head), 0),
	}
	for name, b := range cases {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Verify(bytes.NewReader(b))
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Fatal("accepted")
			}
			if spent := after.TotalAlloc - before.TotalAlloc; spent > 1<<20 {
				t.Errorf("spent %d bytes on it", spent)
			}
		})
	}
}

// failingWriter takes n bytes, then fails for ever; late counts what is offered
// to it after that.
type failingWriter struct {
	n    int
	err  error
	late int
}

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.n < len(p) {
		n := w.n
		w.n = 0
		w.late += len(p) - n
		return n, w.err
	}
	w.n -= len(p)
	return len(p), nil
}

// The formats of version 1 are what they were.
func TestStreamGolden(t *testing.T) {
	h := Header{Size: 0, BaseRevision: 0, Label: sampleLabel()}
	list := recordList{
		{Key: []byte("dgone"), Version: 999, Delete: true},
		{Key: []byte("dgone"), Version: 12, Value: []byte("was here")},
		{Key: []byte("dkey"), Version: 1000, Value: []byte("value")},
		{Key: []byte("empty"), Version: 10},
	}
	size, err := measureStream(h, list)
	if err != nil {
		t.Fatal(err)
	}
	h.Size = size
	got, sum := mustStream(t, h, list)
	golden(t, "stream-v1.snap", got)
	f, err := os.Open(filepath.Join("testdata", "stream-v1.snap"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	back, read, err := readRecords(f)
	if err != nil || !reflect.DeepEqual(read, sum) || !reflect.DeepEqual(back, list) {
		t.Errorf("golden stream reads as %+v %v, %v", read, back, err)
	}
}

func TestUnknownStreamVersion(t *testing.T) {
	whole, _ := mustStream(t, Header{Label: sampleLabel()}, recordList{})
	whole[8] = 2
	if _, err := Inspect(bytes.NewReader(whole)); !errors.Is(err, kv.ErrInvalidArgument) {
		t.Errorf("version 2: %v, want invalid-argument", err)
	}
}

func FuzzStreamRead(f *testing.F) {
	head, err := appendHeader(nil, Header{Label: sampleLabel()})
	if err != nil {
		f.Fatal(err)
	}
	whole, _ := mustStream(f, Header{Label: sampleLabel()}, sampleRecords(5))
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add(whole[len(head):])
	empty, _ := mustStream(f, Header{}, recordList{})
	f.Add(empty)
	f.Add([]byte(streamMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		// As a whole stream, and as the body behind a header that checks out.
		for _, in := range [][]byte{b, append(bytes.Clone(head), b...)} {
			list, sum, err := readRecords(bytes.NewReader(in))
			if err != nil {
				continue
			}
			if uint64(len(in)) != sum.Bytes || sum.Records != uint64(len(list)) || !sum.Complete {
				t.Fatalf("summary %+v of %d bytes, %d records", sum, len(in), len(list))
			}
			again, wrote := mustStream(t, sum.Header, list)
			back, _, err := readRecords(bytes.NewReader(again))
			if err != nil || wrote.Keys != sum.Keys || !reflect.DeepEqual(back, list) {
				t.Fatalf("accepted content doesn't survive being written: %v", err)
			}
		}
	})
}
