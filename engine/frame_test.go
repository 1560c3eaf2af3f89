package engine_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"testing"

	badger "github.com/dgraph-io/badger/v2"
	"github.com/dgraph-io/badger/v2/pb"
	"pgregory.net/rapid"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/internal/badgerkit"
)

func frameRecord(t *rapid.T) engine.Record {
	r := engine.Record{
		Key:     rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "key"),
		Version: rapid.Uint64Min(1).Draw(t, "version"),
		Delete:  rapid.Bool().Draw(t, "delete"),
	}
	if n := rapid.SampledFrom([]int{0, 1, 127, 128, 20000}).Draw(t, "value bytes"); n > 0 {
		r.Value = bytes.Repeat([]byte{7}, n)
	}
	return r
}

// A frame is what Badger's own protocol-buffer code reads and writes.
func TestFrameIsBadgersKVList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Custom(frameRecord), 0, 20).Draw(t, "records")
		frame, err := engine.EncodeFrame(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		list := frame[engine.FramePrefixBytes:]
		if n := binary.LittleEndian.Uint64(frame); n != uint64(len(list)) {
			t.Fatalf("length field %d on %d bytes", n, len(list))
		}
		var theirs pb.KVList
		if err := theirs.Unmarshal(list); err != nil {
			t.Fatal(err)
		}
		size := 0
		for i, kv := range theirs.Kv {
			r := want[i]
			size += engine.RecordBytes(r)
			deleted := len(kv.Meta) == 1 && kv.Meta[0] == 1
			if !bytes.Equal(kv.Key, r.Key) || !bytes.Equal(kv.Value, r.Value) || kv.Version != r.Version || deleted != r.Delete {
				t.Fatalf("record %d: badger reads %+v, wrote %+v", i, kv, r)
			}
		}
		if len(theirs.Kv) != len(want) || size != len(list) {
			t.Fatalf("badger reads %d records of %d; RecordBytes adds up to %d of %d", len(theirs.Kv), len(want), size, len(list))
		}
		again, err := theirs.Marshal()
		if err != nil || !bytes.Equal(again, list) {
			t.Fatalf("badger writes the same list differently: %v", err)
		}
		got, err := engine.DecodeFrame(nil, list)
		if err != nil || len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
			t.Fatalf("decoded %d records: %v", len(got), err)
		}
	})
}

// Plain Badger restores a body of frames with DB.Load.
func TestPlainBadgerLoadsFrames(t *testing.T) {
	var body []byte
	const keys = 500
	for i := range keys {
		key := fmt.Appendf(nil, "key-%04d", i)
		// Oldest first: what Load leaves visible of a key depends on the order.
		records := []engine.Record{{Key: key, Value: []byte("old"), Version: 5}}
		if i%3 == 0 {
			records = append(records, engine.Record{Key: key, Version: 9, Delete: true})
		} else {
			records = append(records, engine.Record{Key: key, Value: fmt.Appendf(nil, "new %d", i), Version: 9})
		}
		var err error
		if body, err = engine.EncodeFrame(body, records); err != nil {
			t.Fatal(err)
		}
	}
	db, err := badger.Open(badger.DefaultOptions(t.TempDir()).WithLogger(badgerkit.Logger(slog.New(slog.DiscardHandler), "test")).WithMaxTableSize(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Load(bytes.NewReader(body), 4); err != nil {
		t.Fatal(err)
	}
	err = db.View(func(txn *badger.Txn) error {
		for i := range keys {
			item, err := txn.Get(fmt.Appendf(nil, "key-%04d", i))
			if i%3 == 0 {
				if !errors.Is(err, badger.ErrKeyNotFound) {
					return fmt.Errorf("deleted key %d: %v", i, err)
				}
				continue
			}
			if err != nil {
				return fmt.Errorf("key %d: %w", i, err)
			}
			v, err := item.ValueCopy(nil)
			if err != nil || string(v) != fmt.Sprintf("new %d", i) {
				return fmt.Errorf("key %d is %q, %v", i, v, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFrameLimits(t *testing.T) {
	big := engine.Record{Key: []byte("k"), Value: make([]byte, engine.MaxFrameBytes), Version: 1}
	if _, err := engine.EncodeFrame(nil, []engine.Record{big}); !errors.Is(err, engine.ErrFrame) {
		t.Errorf("encode over the limit: %v", err)
	}
	if _, err := engine.DecodeFrame(nil, make([]byte, engine.MaxFrameBytes+1)); !errors.Is(err, engine.ErrFrame) {
		t.Errorf("decode over the limit: %v", err)
	}
}

func FuzzDecodeFrame(f *testing.F) {
	for _, records := range [][]engine.Record{
		nil,
		{{Key: []byte("a"), Version: 1}},
		{{Key: []byte("a"), Value: []byte("v"), Version: 300}, {Key: []byte("b"), Version: 2, Delete: true}},
	} {
		frame, err := engine.EncodeFrame(nil, records)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame[engine.FramePrefixBytes:])
	}
	f.Fuzz(func(t *testing.T, list []byte) {
		records, err := engine.DecodeFrame(nil, list)
		if err != nil {
			return
		}
		frame, err := engine.EncodeFrame(nil, records)
		if err != nil || !bytes.Equal(frame[engine.FramePrefixBytes:], list) {
			t.Fatalf("accepted bytes that are not the encoding of what they hold: %v", err)
		}
	})
}
