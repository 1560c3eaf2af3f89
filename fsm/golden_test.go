package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

var update = flag.Bool("update", false, "rewrite the golden files; only for a new format version")

func goldenTxn() kv.Txn {
	return kv.Txn{
		If: []kv.Cond{{Key: "a", Target: kv.CondModRevision, Op: kv.CmpEqual, Number: 7}, {Key: "b\x00", Target: kv.CondValue, Op: kv.CmpEqual, Value: []byte("v")}},
		Then: []kv.Op{
			{Kind: kv.OpPut, Key: "a", Value: []byte("value"), ContentType: "text/plain", TTL: 90 * time.Second, Previous: true},
			{Kind: kv.OpIncr, Key: "n", By: -3}, {Kind: kv.OpAppend, Key: "\xff", Value: []byte{0}}, {Kind: kv.OpTouch, Key: "a", TTL: time.Hour},
			{Kind: kv.OpDelete, Key: "gone"}, {Kind: kv.OpGet, Key: "a"},
			{Kind: kv.OpRange, Range: kv.Range{Start: "a", End: "b"}, Limit: 10, Reverse: true, KeysOnly: true}, {Kind: kv.OpDeleteRange, Range: kv.PrefixRange("p/")},
		},
		Else: []kv.Op{{Kind: kv.OpPut, Key: "else"}},
	}
}

// TestFormatsAreGolden: what one version wrote, every later one must read. A change
// of these bytes is a new format version.
func TestFormatsAreGolden(t *testing.T) {
	cmd, err := EncodeTxn(goldenTxn(), 0)
	if err != nil {
		t.Fatal(err)
	}
	small := record{create: 3, mod: 9, version: 2, contentType: "text/plain", expires: 1_700_000_000_000, size: 5, value: []byte("value"), loaded: true}
	small.valueHash = sha256.Sum256(small.value)
	big := record{create: 3, mod: 9, version: 1, size: 100_000, valueHash: sha256.Sum256([]byte("big"))}
	ev := event{index: 12, term: 3, sub: 2, stamp: 1_700_000_000_000, compact: 4, keys: 8, written: 99, once: onceTable{1, 2, 3, 4}}
	_, final := encodeEvent(&ev, []change{{changePut, "a"}, {changeDelete, "b"}, {changeExpire, "c"}})
	g := new(digest)
	g.add("a", &small)
	checkpointed := event{index: 1, checkpoint: g}
	_, finalWithCheckpoint := encodeEvent(&checkpointed, []change{{changePut, "a"}})
	sum := sha256.Sum256(finalWithCheckpoint)
	s := newSmall()
	s.clusterID, s.clusterName, s.clock, s.term, s.leader = "c-1", "sett", 1234, 5, "s-1"
	s.settings = kv.ClusterSettings{HistoryRetention: time.Hour, MaxKeyBytes: 4096}
	s.records["s-1"] = kv.MemberRecord{ServerID: "s-1", ID: "n1", HTTPAddr: "h:1"}
	s.stage(7, &entry{chunkID: 11, chunk: []byte("part")})
	s.pins = []pin{{ID: "pin-7-1", Revision: 3, Expires: 99}}
	waits := &outcome{hash: hashOnce("w"), request: onceHash{1, 2, 3}, decided: 1234, size: 4, body: []byte("body")}
	s.wait(waits)
	withKey := goldenTxn()
	withKey.Once = kv.Once{Key: "key", Request: sha256.Sum256([]byte("request"))}
	once, err := EncodeTxn(withKey, 1_700_000_000_000)
	if err != nil {
		t.Fatal(err)
	}
	until, err := EncodeTxn(kv.Txn{Then: []kv.Op{{Kind: kv.OpPut, Key: "a", ExpiresAt: timeOf(1_700_000_000_000)}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	item := kv.Item{Key: "a", Value: []byte("v"), CreateRevision: 1, ModRevision: 2, Version: 2, ContentType: "text/plain", ExpiresAt: timeOf(1_700_000_000_000)}
	result := Result{Txn: kv.TxnResult{Succeeded: true, Revision: 9, Ops: []kv.OpResult{
		{Kind: kv.OpPut, Created: true, ModRevision: 9, Previous: &item}, {Kind: kv.OpGet, Item: &item, ModRevision: 2}, {Kind: kv.OpRange, Items: []kv.Item{item}, More: true},
		{Kind: kv.OpDeleteRange, Deleted: 3}, {Kind: kv.OpIncr, Number: -5, ModRevision: 9},
	}}}
	refused := Result{Err: kv.NotApplied(kv.CodeConflict, "no"), Txn: kv.TxnResult{Revision: 8}}
	state := sha256.Sum256(s.encode(totals{keys: 8, written: 99, once: onceTable{1, 2, 3, 4}}, g))

	s.keep(&keyedOutcome{Hash: waits.hash, Request: waits.request, Decided: 1234, Answer: []byte(`{"pin":{"ID":"pin-7-1"}}`)})
	keyedState := s.encode(totals{keys: 8, written: 99, once: onceTable{1, 2, 3, 4}}, g)
	keyedSum := sha256.Sum256(keyedState)

	var out bytes.Buffer
	for _, row := range []struct {
		name string
		b    []byte
	}{
		{"batch", encodeBatch(1_700_000_000_000, [][]byte{cmd, EncodeExpire(MaxExpire), EncodeCompact(5), EncodePin(3, time.Hour), EncodeUnpin("pin-7-1")})},
		{"once", once},
		{"put with the time of its end", until},
		{"outcome", waits.encode(waits.body)},
		{"outcome group", (&group{decided: 5, hashes: []onceHash{waits.hash}}).encode()},
		{"result", EncodeResult(&result)},
		{"error", EncodeResult(&refused)},
		{"outcome key", outcomeKey(waits.hash)}, {"outcome piece key", outcomePieceKey(waits.hash, 258)}, {"outcome group key", groupKey(258)},
		{"keyed", EncodeKeyed(kv.Once{Key: "key", Request: sha256.Sum256([]byte("request"))}, 1_700_000_000_000, EncodePin(3, time.Hour))},
		{"begin", EncodeKeyed(kv.Once{Key: "key", Request: sha256.Sum256([]byte("request"))}, 1_700_000_000_000, EncodeBegin(true))},
		{"end", EncodeEnd(kv.Ending{Once: kv.Once{Key: "key", Request: sha256.Sum256([]byte("request"))}, Began: 7, Status: 200, Body: []byte("{}")})},
		{"chunk", encodeChunk(5, 0x1122334455667788, 3, true, []byte("part"))},
		{"init", EncodeInit("c-1", "sett", kv.ClusterSettings{HistoryRetention: time.Hour, MaxKeyBytes: 4096})},
		{"lead", EncodeLead("s-1", time.UnixMilli(1_700_000_000_000))},
		{"settings", EncodeSettings(kv.ClusterSettings{MaxValueBytes: 1})},
		{"member", EncodeMember(kv.MemberRecord{ServerID: "s-1", ID: "n1", Removed: true})},
		{"record", encodeRecord(&small)},
		{"record in pieces", encodeRecord(&big)},
		{"event", final},
		{"event with checkpoint, sha256", sum[:]},
		{"state, sha256", state[:]},
		{"state with a keyed outcome, sha256", keyedSum[:]},
		{"data key", dataKey("k/\x00")}, {"piece key", pieceKey("k", 258)}, {"event key", eventKey(258, finalPart)}, {"expiry key", expiryKey(258, "k")},
	} {
		fmt.Fprintf(&out, "%s: %s\n", row.name, hex.EncodeToString(row.b))
	}
	path := filepath.Join("testdata", "formats-v1.golden")
	if *update {
		if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("the formats have changed; they are\n%s\nand were\n%s", out.Bytes(), want)
	}

	// And they read back.
	replayed, replayedRefusal := result, refused
	replayed.Txn.Replayed, replayedRefusal.Txn.Replayed = true, true
	for _, r := range []Result{result, refused, replayed, replayedRefusal} {
		if got, err := DecodeResult(EncodeResult(&r)); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("result %+v, want %+v: %v", got, r, err)
		}
	}
	if o, err := decodeOutcome(waits.encode(waits.body)); err != nil || !reflect.DeepEqual(o, waits) {
		t.Errorf("outcome %+v: %v", o, err)
	}
	en, err := decodeEntry(encodeBatch(9, [][]byte{cmd}))
	if err != nil || en.stamp != 9 || len(en.commands) != 1 {
		t.Fatalf("%+v: %v", en, err)
	}
	d := decoder{b: en.commands[0][1:]}
	if tx, err := decodeTxn(&d); err != nil || fmt.Sprintf("%+v", tx) != fmt.Sprintf("%+v", goldenTxn()) {
		t.Errorf("transaction\n%+v, want\n%+v: %v", tx, goldenTxn(), err)
	}
	if r, err := decodeRecord(encodeRecord(&small), 9); err != nil || !reflect.DeepEqual(*r, small) {
		t.Errorf("record %+v: %v", r, err)
	}
	if got, err := decodeEvent(final); err != nil || got.index != 12 || got.written != 99 || len(got.inline) != 3 {
		t.Errorf("event %+v: %v", got, err)
	}
	if got, err := decodeEvent(finalWithCheckpoint); err != nil || got.checkpoint == nil || !got.checkpoint.equal(g) {
		t.Errorf("checkpoint: %v", err)
	}
	back, tot, g2, err := decodeSmall(s.encode(totals{8, 99, onceTable{}}, g))
	if err != nil || tot != (totals{8, 99, onceTable{}}) || !g2.equal(g) || back.clusterID != "c-1" || back.records["s-1"].ID != "n1" || string(slices.Concat(back.staged[11].parts...)) != "part" ||
		!reflect.DeepEqual(back.pins, s.pins) || !reflect.DeepEqual(back.keyedList, s.keyedList) || len(back.keyedBy) != 1 || back.keyedBytes != s.keyedBytes || !reflect.DeepEqual(back.waiting, s.waiting) || back.waitingBytes != s.waitingBytes {
		t.Errorf("state %+v: %v", back, err)
	}
}

// FuzzDecodeEntry feeds what reaches Apply: it must never panic or take memory that
// the input does not justify.
func FuzzDecodeEntry(f *testing.F) {
	cmd, err := EncodeTxn(goldenTxn(), 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encodeBatch(1, [][]byte{cmd, EncodeExpire(MaxExpire)}))
	f.Add(encodeChunk(1, 2, 0, false, []byte("x")))
	f.Add([]byte{entryVersion, entryBatch, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		en, err := decodeEntry(b)
		if err != nil {
			return
		}
		for _, c := range en.commands {
			if len(c) > 0 && c[0] == cmdTxn {
				if tx, err := decodeTxn(&decoder{b: c[1:]}); err == nil {
					again, err := EncodeTxn(tx, 0)
					if err != nil {
						t.Fatalf("a decoded transaction does not encode: %v", err)
					}
					if back, err := decodeTxn(&decoder{b: again[1:]}); err != nil || fmt.Sprint(back) != fmt.Sprint(tx) {
						t.Fatalf("%+v became %+v: %v", tx, back, err)
					}
				}
			}
		}
		_, _ = decodeEvent(b)
		_, _ = decodeOutcome(b)
		_, _ = decodeGroup(b)
		if r, err := DecodeResult(b); err == nil {
			if back, err := DecodeResult(EncodeResult(&r)); err != nil || !reflect.DeepEqual(back, r) {
				t.Fatalf("%+v became %+v: %v", r, back, err)
			}
		}
		_, _ = decodeRecord(b, 1)
		_, _, _, _ = decodeSmall(b)
	})
}
