package fsm

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

// TestKeyed: what is decided about small state under an idempotency key is decided once, also by a machine
// that gets the log again with its data and its clock already further.
func TestKeyed(t *testing.T) {
	m := newMachine(t)
	for i := range 9 {
		m.mustTxn(put("k", fmt.Sprint(i)))
	}
	born := uint64(1000)
	once := func(key, request string) kv.Once {
		o := kv.Once{Key: key}
		copy(o.Request[:], request)
		return o
	}
	at := func(stamp uint64, cmd []byte) Result { return m.ApplyBatch([]Log{m.entry(stamp, cmd)})[0][0] }
	code := func(r Result) kv.Code {
		if r.Err == nil {
			return ""
		}
		return r.Err.Code
	}
	settings := kv.ClusterSettings{HistoryRetention: time.Minute, MaxKeyBytes: 7}
	pinned := at(1000, EncodeKeyed(once("pin", "a"), born, EncodePin(4, time.Hour)))
	steps := []struct {
		name string
		cmd  []byte
		want Result
	}{
		{"pin", EncodeKeyed(once("pin", "a"), born, EncodePin(4, time.Hour)), Result{Pin: pinned.Pin}},
		{"compact", EncodeKeyed(once("compact", "a"), born, EncodeCompact(8)), Result{Compaction: kv.Compaction{To: 4, HeldBy: []string{pinned.Pin.ID}}}},
		{"settings", EncodeKeyed(once("settings", "a"), born, EncodeSettings(settings)), Result{Settings: settings}},
		{"unpin", EncodeKeyed(once("unpin", "a"), born, EncodeUnpin(pinned.Pin.ID)), Result{}},
		{"unpin none", EncodeKeyed(once("none", "a"), born, EncodeUnpin("none")), Result{Err: &kv.Error{Code: kv.CodeNotFound}}},
	}
	check := func(when string, stamp uint64, replayed bool) {
		t.Helper()
		for _, s := range steps {
			r := at(stamp, s.cmd)
			if r.Txn.Replayed != (replayed || s.name == "pin") {
				t.Errorf("%s, %s: replayed is %v", when, s.name, r.Txn.Replayed)
			}
			if r.Pin != s.want.Pin || !reflect.DeepEqual(r.Compaction, s.want.Compaction) || r.Settings != s.want.Settings || code(r) != code(s.want) {
				t.Errorf("%s, %s: %+v, want %+v", when, s.name, r, s.want)
			}
		}
	}
	check("first", 2000, false)
	at(2000, EncodeSettings(kv.ClusterSettings{MaxKeyBytes: 9}))
	check("again", 3000, true)
	if m.small.settings.MaxKeyBytes != 9 || len(m.small.pins) != 0 {
		t.Errorf("a repeat has changed something: %+v, %d pins", m.small.settings, len(m.small.pins))
	}
	if r := at(3000, EncodeKeyed(once("pin", "b"), born, EncodePin(4, time.Hour))); code(r) != kv.CodeConflict {
		t.Errorf("another pin: %+v", r)
	}
	if _, err := m.txn(kv.Txn{Then: []kv.Op{put("x", "")}, Once: once("pin", "a")}); kv.AsError(err).Code != kv.CodeConflict {
		t.Errorf("a transaction: %v", err)
	}
	if r := at(3000, EncodeKeyed(once("gone", "a"), born, EncodePin(3, time.Hour))); code(r) != kv.CodeCompacted {
		t.Errorf("%+v", r)
	}
	if r := at(3000, EncodeKeyed(once("gone", "a"), born, EncodePin(5, time.Hour))); r.Err != nil || r.Txn.Replayed {
		t.Errorf("what may succeed later was remembered: %+v", r)
	}

	// Data and clock go on past the window before the log comes again.
	late := 3000 + onceKeep
	if r := at(late, EncodeKeyed(once("late", "a"), born, EncodePin(9, time.Hour))); code(r) != kv.CodeTimeout {
		t.Errorf("too late: %+v", r)
	}
	fresh := at(late, EncodeKeyed(once("pin", "b"), late, EncodePin(9, time.Hour)))
	if fresh.Err != nil || fresh.Txn.Replayed {
		t.Fatalf("after the window: %+v", fresh)
	}
	m.mustTxn(put("k", "last"))
	pins := slices.Clone(m.small.pins)
	for _, again := range []func(){m.restart, func() { m.snapshot(); m.restart() }} {
		again()
		if !slices.Equal(m.small.pins, pins) || m.small.settings.MaxKeyBytes != 9 {
			t.Fatalf("after a restart: %+v, %+v", m.small.pins, m.small.settings)
		}
		if r := at(late, EncodeKeyed(once("pin", "b"), late, EncodePin(9, time.Hour))); r.Pin != fresh.Pin || !r.Txn.Replayed {
			t.Fatalf("after a restart: %+v", r)
		}
	}

	// A full table refuses, and forgets nothing early.
	free := maxKeyed - len(m.small.keyedList)
	for i := range free {
		if r := at(late, EncodeKeyed(once(fmt.Sprint(i), ""), late, EncodeUnpin("none"))); code(r) != kv.CodeNotFound {
			t.Fatalf("%d: %+v", i, r)
		}
	}
	if r := at(late, EncodeKeyed(once("more", ""), late, EncodeUnpin("none"))); code(r) != kv.CodeOverloaded {
		t.Errorf("%+v", r)
	}
	if r := at(late+onceKeep, EncodeKeyed(once("more", ""), late+onceKeep, EncodeUnpin("none"))); code(r) != kv.CodeNotFound || r.Txn.Replayed || len(m.small.keyedBy) != 1 {
		t.Errorf("%+v, %d remembered", r, len(m.small.keyedBy))
	}
}

// TestOperations: an operation outside the state machine begins once under its key and has one answer; a restart and
// a snapshot keep both.
func TestOperations(t *testing.T) {
	m := newMachine(t)
	once := func(key, request string) kv.Once {
		o := kv.Once{Key: key}
		copy(o.Request[:], request)
		return o
	}
	clock := uint64(1000)
	do := func(o kv.Once, cmd []byte) Result {
		return m.ApplyBatch([]Log{m.entry(clock, EncodeKeyed(o, 0, cmd))})[0][0]
	}
	at := map[string]uint64{} // where each was begun
	end := func(o kv.Once, status int, body string) Result {
		return m.ApplyBatch([]Log{m.entry(clock, EncodeEnd(kv.Ending{Once: o, Began: at[o.Key], Status: status, Body: []byte(body)}))})[0][0]
	}
	began := func(when string, o kv.Once, want kv.Operation, again bool) {
		t.Helper()
		r := do(o, EncodeBegin(false))
		if !again {
			at[o.Key] = m.index
		}
		want.Began = at[o.Key]
		if r.Err != nil || r.Txn.Replayed != again || !reflect.DeepEqual(r.Operation, want) {
			t.Errorf("%s: %+v, again %v; want %+v, %v: %v", when, r.Operation, r.Txn.Replayed, want, again, r.Err)
		}
	}
	refused := func(when string, r Result, code kv.Code) {
		t.Helper()
		if r.Err == nil || r.Err.Code != code {
			t.Errorf("%s: %+v", when, r)
		}
	}
	begun := kv.Operation{Term: 1, Tries: 1}
	tried := func(n int) kv.Operation { return kv.Operation{Term: 1, Tries: n} }
	began("first", once("a", "r"), begun, false)
	began("again", once("a", "r"), tried(2), true)
	end(once("a", "r"), 0, "") // the first try was refused, and another one is under way
	began("a third time", once("a", "r"), tried(3), true)
	refused("another request", do(once("a", "s"), EncodeBegin(false)), kv.CodeConflict)
	refused("the end of another request", end(once("a", "s"), 200, ""), kv.CodeConflict)
	refused("a pin", do(once("a", "s"), EncodePin(1, time.Hour)), kv.CodeConflict)
	if _, err := m.txn(kv.Txn{Then: []kv.Op{put("x", "")}, Once: once("a", "r")}); kv.AsError(err).Code != kv.CodeConflict {
		t.Errorf("a transaction: %v", err)
	}

	// Nothing was done: the key is free.
	bytes := m.small.keyedBytes
	began("to be refused", once("free", "r"), begun, false)
	end(once("free", "r"), 0, "")
	if m.small.keyedBytes != bytes || len(m.small.keyedList) != 1 {
		t.Errorf("%d outcomes of %d bytes, want 1 of %d", len(m.small.keyedList), m.small.keyedBytes, bytes)
	}
	was := at["free"]
	began("after it was refused", once("free", "s"), begun, false)
	at["free"], was = was, at["free"]
	end(once("free", "s"), 0, "") // a late one, of the operation before
	at["free"] = was
	began("after a late end", once("free", "s"), tried(2), true)

	done := kv.Operation{Term: 1, Tries: 3, Status: 201, Body: []byte("{}")}
	end(once("a", "r"), 201, "{}")
	end(once("a", "r"), 0, "") // the first answer stays
	end(once("a", "r"), 204, "")
	began("done", once("a", "r"), done, true)
	began("with an answer too long to be noted", once("long", "r"), begun, false)
	end(once("long", "r"), 200, strings.Repeat("b", maxEndBytes+1))
	pinned := do(once("pin", "r"), EncodePin(1, time.Hour))
	end(once("pin", "r"), 204, "") // a pin is none
	if r := do(once("pin", "r"), EncodePin(1, time.Hour)); r.Pin != pinned.Pin || !r.Txn.Replayed {
		t.Errorf("a pin after an end: %+v", r)
	}

	count := 0
	for _, o := range m.small.keyedList {
		count += o.bytes()
	}
	if count != m.small.keyedBytes {
		t.Errorf("%d bytes are counted, %d are there", m.small.keyedBytes, count)
	}
	for i, again := range []func(){m.restart, func() { m.snapshot(); m.restart() }} {
		again()
		began("after a restart", once("a", "r"), done, true)
		began("after a restart", once("long", "r"), tried(2+i), true)
	}
	clock += onceKeep
	end(once("a", "r"), 200, "") // too late
	began("after the window", once("a", "r"), begun, false)
	if len(m.small.keyedList) != 1 || len(m.small.keyedBy) != 1 {
		t.Errorf("%d and %d are remembered", len(m.small.keyedList), len(m.small.keyedBy))
	}

	// There is room for operations where there is none for pins.
	for i := len(m.small.keyedList); i < maxKeyed; i++ {
		refused("a pin that is not there", do(once(fmt.Sprint(i), ""), EncodeUnpin("none")), kv.CodeNotFound)
	}
	refused("one pin more", do(once("more", ""), EncodeUnpin("none")), kv.CodeOverloaded)
	for i := range operationRoom {
		began("beyond", once(fmt.Sprint("operation ", i), ""), begun, false)
	}
	refused("one operation more", do(once("more", ""), EncodeBegin(false)), kv.CodeOverloaded)
}
