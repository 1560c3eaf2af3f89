package fsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
	"github.com/settkv/sett/snapshot"
)

// machine is an FSM under test and the log that it is fed.
type machine struct {
	t     testing.TB
	dir   string
	store *snapshot.Store
	*FSM
	index uint64
	log   []Log // all entries, for delivery after a restart
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{t: t, dir: filepath.Join(t.TempDir(), "state")}
	m.open()
	t.Cleanup(func() { _ = m.store.Close() })
	m.index++
	m.log = append(m.log, Log{Index: m.index, Term: 1, Configuration: true, Data: testConfiguration()})
	m.ApplyBatch(m.log)
	return m
}

func (m *machine) open() {
	m.t.Helper()
	var err error
	m.store, err = snapshot.OpenStore(snapshot.StoreConfig{
		Dir: m.dir, Engine: engine.Config{MinFreeBytes: 1 << 20}, Logger: slog.New(slog.DiscardHandler),
		OnFatal: func(err error) { panic(fmt.Sprintf("fatal: %v", err)) },
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.FSM, err = Open(Config{Store: m.store, Logger: slog.New(slog.DiscardHandler), OnFatal: func(err error) { panic(fmt.Sprintf("fatal: %v", err)) }})
	if err != nil {
		m.t.Fatal(err)
	}
}

// restart closes and opens the machine.
func (m *machine) restart() {
	m.t.Helper()
	if err := m.store.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.open()
	m.redeliver()
}

// redeliver delivers the log after the snapshot again, as Raft does.
func (m *machine) redeliver() {
	from := m.Info().Delivered
	var again []Log
	for _, l := range m.log {
		if l.Index > from {
			again = append(again, l)
		}
	}
	for part := range slices.Chunk(again, 64) {
		m.ApplyBatch(part)
	}
}

// entry appends an entry of the commands at the given stamp to the log.
func (m *machine) entry(stamp uint64, cmds ...[]byte) Log {
	m.index++
	l := Log{Index: m.index, Term: 1, Data: encodeBatch(stamp, cmds)}
	m.log = append(m.log, l)
	return l
}

func (m *machine) apply(cmds ...[]byte) []Result {
	return m.ApplyBatch([]Log{m.entry(0, cmds...)})[0]
}

func (m *machine) txn(t kv.Txn) (kv.TxnResult, error) {
	m.t.Helper()
	cmd, err := EncodeTxn(t, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	r := m.apply(cmd)[0]
	if r.Err != nil {
		return r.Txn, r.Err
	}
	return r.Txn, nil
}

func (m *machine) mustTxn(ops ...kv.Op) kv.TxnResult {
	m.t.Helper()
	r, err := m.txn(kv.Txn{Then: ops})
	if err != nil {
		m.t.Fatal(err)
	}
	return r
}

func put(key, value string) kv.Op { return kv.Op{Kind: kv.OpPut, Key: key, Value: []byte(value)} }
func del(key string) kv.Op        { return kv.Op{Kind: kv.OpDelete, Key: key} }

// checkDigest compares the incremental digest with one computed from the disk.
func (m *machine) checkDigest() {
	m.t.Helper()
	got := m.Digest()
	want, keys, err := m.Recompute(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	if got != want || keys != m.Info().Keys {
		m.t.Fatalf("digest %+v with %d keys, recomputed %+v with %d", got, m.Info().Keys, want, keys)
	}
	l, r, err := m.Capture()
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Close()
	var stream bytes.Buffer
	if _, err := snapshot.WriteStream(&stream, l, r); err != nil {
		m.t.Fatal(err)
	}
	if want, keys, err = DigestOf(&stream); err != nil || got != want || keys != m.Info().Keys {
		m.t.Fatalf("digest %+v with %d keys, in an export %+v with %d: %v", got, m.Info().Keys, want, keys, err)
	}
}

func TestRevisionsAndAttributes(t *testing.T) {
	m := newMachine(t)
	r := m.mustTxn(kv.Op{Kind: kv.OpPut, Key: "a", Value: []byte("1"), ContentType: "text/plain"})
	if r.Revision != 1 || !r.Ops[0].Created || r.Ops[0].ModRevision != 1 {
		t.Fatalf("first put: %+v", r)
	}
	if r := m.mustTxn(put("a", "1")); r.Revision != 2 || r.Ops[0].Created {
		t.Fatalf("an identical put is a change: %+v", r)
	}
	it, rev, err := m.Get(context.Background(), "a", 0)
	if err != nil || rev != 2 || it.CreateRevision != 1 || it.ModRevision != 2 || it.Version != 2 || it.ContentType != "" {
		t.Fatalf("%+v at %d: %v", it, rev, err)
	}
	if r := m.mustTxn(del("nothing")); r.Revision != 2 || r.Ops[0].Deleted != 0 {
		t.Fatalf("a delete of nothing: %+v", r)
	}
	if r := m.mustTxn(put("n", "x"), del("n")); r.Revision != 2 {
		t.Fatalf("made and deleted in one transaction is no change: %+v", r)
	}
	if r := m.mustTxn(put("a", "x"), put("a", "y"), put("b", "z")); r.Revision != 3 {
		t.Fatalf("%+v", r)
	}
	if it, _, _ := m.Get(context.Background(), "a", 0); it.Version != 3 || string(it.Value) != "y" {
		t.Fatalf("several changes are one: %+v", it)
	}
	if r := m.mustTxn(del("a"), put("a", "w")); r.Revision != 4 {
		t.Fatalf("%+v", r)
	}
	if it, _, _ := m.Get(context.Background(), "a", 0); it.Version != 4 || it.CreateRevision != 1 {
		t.Fatalf("deleted and made again in one transaction: %+v", it)
	}
	m.mustTxn(del("a"))
	if _, rev, err := m.Get(context.Background(), "a", 0); !errors.Is(err, kv.ErrNotFound) || rev != 5 {
		t.Fatalf("%d %v", rev, err)
	}
	m.mustTxn(put("a", "new"))
	if it, _, _ := m.Get(context.Background(), "a", 0); it.Version != 1 || it.CreateRevision != 6 {
		t.Fatalf("made again: %+v", it)
	}
	for rev, want := range map[kv.Revision]string{1: "1", 3: "y", 4: "w", 6: "new"} {
		if it, at, err := m.Get(context.Background(), "a", rev); err != nil || string(it.Value) != want || at != rev {
			t.Errorf("at %d: %q, %v", rev, it.Value, err)
		}
	}
	if _, _, err := m.Get(context.Background(), "a", 7); !errors.Is(err, kv.ErrInvalidArgument) {
		t.Errorf("the future: %v", err)
	}
	m.checkDigest()
}

func TestConditions(t *testing.T) {
	m := newMachine(t)
	m.mustTxn(put("k", "v"))
	m.mustTxn(put("k", "w"))
	cond := func(target kv.CondTarget, op kv.CondOp, n uint64) kv.Cond {
		return kv.Cond{Key: "k", Target: target, Op: op, Number: n}
	}
	for _, c := range []struct {
		name string
		cond kv.Cond
		want bool
	}{
		{"mod equal", cond(kv.CondModRevision, kv.CmpEqual, 2), true},
		{"mod differs", cond(kv.CondModRevision, kv.CmpEqual, 1), false},
		{"mod greater", cond(kv.CondModRevision, kv.CmpGreater, 1), true},
		{"create", cond(kv.CondCreateRevision, kv.CmpLessEqual, 1), true},
		{"version", cond(kv.CondVersion, kv.CmpGreaterEqual, 3), false},
		{"version not", cond(kv.CondVersion, kv.CmpNotEqual, 1), true},
		{"exists", cond(kv.CondExists, kv.CmpEqual, 1), true},
		{"exists not", cond(kv.CondExists, kv.CmpEqual, 0), false},
		{"value", kv.Cond{Key: "k", Target: kv.CondValue, Op: kv.CmpEqual, Value: []byte("w")}, true},
		{"value differs", kv.Cond{Key: "k", Target: kv.CondValue, Op: kv.CmpEqual, Value: []byte("v")}, false},
		{"absent is revision 0", kv.Cond{Key: "x", Target: kv.CondModRevision, Op: kv.CmpEqual}, true},
		{"absent less", kv.Cond{Key: "x", Target: kv.CondVersion, Op: kv.CmpLess, Number: 1}, true},
		{"no value equals absent", kv.Cond{Key: "x", Target: kv.CondValue, Op: kv.CmpEqual}, false},
	} {
		r, err := m.txn(kv.Txn{If: []kv.Cond{c.cond}, Then: []kv.Op{{Kind: kv.OpGet, Key: "k"}}, Else: nil})
		if err != nil || r.Succeeded != c.want || r.Revision != 2 {
			t.Errorf("%s: %+v, %v", c.name, r, err)
		}
		if !c.want && c.cond.Key == "k" && r.FailedRevision != 2 {
			t.Errorf("%s: failed revision %d", c.name, r.FailedRevision)
		}
	}
	r, err := m.txn(kv.Txn{If: []kv.Cond{cond(kv.CondExists, kv.CmpEqual, 0)}, Then: []kv.Op{put("k", "then")}, Else: []kv.Op{put("k", "else")}})
	if err != nil || r.Succeeded || r.Revision != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	if it, _, _ := m.Get(context.Background(), "k", 0); string(it.Value) != "else" {
		t.Fatalf("%q", it.Value)
	}
}

func TestIncrAppendTouch(t *testing.T) {
	m := newMachine(t)
	m.apply(EncodeInit("c", "sett", kv.ClusterSettings{MaxValueBytes: 300 << 10}))
	incr := func(by int64) kv.Op { return kv.Op{Kind: kv.OpIncr, Key: "n", By: by} }
	if r := m.mustTxn(incr(5)); r.Ops[0].Number != 5 || !r.Ops[0].Created {
		t.Fatalf("%+v", r)
	}
	if r := m.mustTxn(incr(-7)); r.Ops[0].Number != -2 {
		t.Fatalf("%+v", r)
	}
	for _, c := range []struct {
		start string
		by    int64
	}{{"x", 1}, {"", 1}, {" 1", 1}, {"1.0", 1}, {strconv.Itoa(math.MaxInt64), 1}, {strconv.Itoa(math.MinInt64), -1}, {"9223372036854775808", 1}, {"-1", math.MinInt64}} {
		m.mustTxn(put("n", c.start))
		before := m.Info().Revision
		if _, err := m.txn(kv.Txn{Then: []kv.Op{put("other", "x"), incr(c.by)}}); !errors.Is(err, kv.ErrConflict) {
			t.Errorf("incr of %q by %d: %v", c.start, c.by, err)
		}
		if m.Info().Revision != before {
			t.Errorf("a failing operation changed something")
		}
	}
	big := bytes.Repeat([]byte("0123456789"), 15_000) // in pieces
	m.mustTxn(kv.Op{Kind: kv.OpPut, Key: "b", Value: big, ContentType: "text/x", TTL: time.Hour})
	m.mustTxn(kv.Op{Kind: kv.OpAppend, Key: "b", Value: []byte("tail")})
	it, _, err := m.Get(context.Background(), "b", 0)
	if err != nil || !bytes.Equal(it.Value, append(slices.Clone(big), "tail"...)) || it.ContentType != "text/x" || it.ExpiresAt.IsZero() {
		t.Fatalf("append: %d bytes, %q, %v, %v", len(it.Value), it.ContentType, it.ExpiresAt, err)
	}
	if _, err := m.txn(kv.Txn{Then: []kv.Op{{Kind: kv.OpAppend, Key: "b", Value: bytes.Repeat(big, 1)}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.txn(kv.Txn{Then: []kv.Op{{Kind: kv.OpAppend, Key: "b", Value: big}}}); !errors.Is(err, kv.ErrTooLarge) {
		t.Fatalf("beyond max-value-bytes: %v", err)
	}
	if _, err := m.txn(kv.Txn{Then: []kv.Op{{Kind: kv.OpTouch, Key: "absent", TTL: time.Second}}}); !errors.Is(err, kv.ErrNotFound) {
		t.Fatal(err)
	}
	before, _, _ := m.Get(context.Background(), "b", 0)
	r := m.mustTxn(kv.Op{Kind: kv.OpTouch, Key: "b", TTL: 2 * time.Hour})
	after, _, err := m.Get(context.Background(), "b", 0)
	if err != nil || after.ModRevision != r.Revision || after.Version != before.Version+1 || !after.ExpiresAt.After(before.ExpiresAt) || !bytes.Equal(after.Value, before.Value) {
		t.Fatalf("touch: %v %v", after.ExpiresAt, err)
	}
	m.mustTxn(put("b", "small"))
	if it, _, err := m.Get(context.Background(), "b", 0); err != nil || string(it.Value) != "small" || !it.ExpiresAt.IsZero() {
		t.Fatalf("%q %v", it.Value, err)
	}
	if it, _, err := m.Get(context.Background(), "b", r.Revision); err != nil || !bytes.Equal(it.Value, after.Value) {
		t.Fatalf("pieces of the past: %v", err)
	}
	m.checkDigest()
	m.restart()
	m.checkDigest()
}

func TestExpiry(t *testing.T) {
	m := newMachine(t)
	const t0 = 1_000_000
	cmd := func(op kv.Op) []byte {
		b, err := EncodeTxn(kv.Txn{Then: []kv.Op{op}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	at := func(stamp uint64, cmds ...[]byte) []Result { return m.ApplyBatch([]Log{m.entry(stamp, cmds...)})[0] }
	for i := range 1500 {
		at(t0, cmd(kv.Op{Kind: kv.OpPut, Key: fmt.Sprintf("k%04d", i), Value: []byte("v"), TTL: time.Second}))
	}
	at(t0, cmd(kv.Op{Kind: kv.OpPut, Key: "later", Value: []byte("v"), TTL: 2 * time.Second}))
	if ms, ok, err := m.NextExpiry(); err != nil || !ok || ms != t0+1000 {
		t.Fatalf("%d %v %v", ms, ok, err)
	}
	if r := at(t0+1000, EncodeExpire(MaxExpire))[0]; r.Txn.Ops[0].Deleted != 0 || r.Txn.Revision != 1501 {
		t.Fatalf("perhaps a part of a millisecond early: %+v", r)
	}
	if r := at(t0+1001, EncodeExpire(MaxExpire))[0]; r.Txn.Ops[0].Deleted != 1000 || r.Txn.Revision != 1502 {
		t.Fatalf("%+v", r)
	}
	// In one batch with a put that clears a time and one that sets another.
	rs := at(t0+1001, cmd(put("k1499", "kept")), EncodeExpire(MaxExpire))
	if rs[1].Txn.Ops[0].Deleted != 499 {
		t.Fatalf("%+v", rs)
	}
	if m.Info().Keys != 2 {
		t.Fatalf("%d keys are left", m.Info().Keys)
	}
	m.checkDigest()
	m.restart()
	m.checkDigest()
	if clock := m.Info().Clock.UnixMilli(); clock != t0+1001 {
		t.Fatalf("the clock is at %d after a restart", clock)
	}
	// An old stamp never moves the clock back.
	at(5, EncodeExpire(MaxExpire))
	if clock := m.Info().Clock.UnixMilli(); clock != t0+1001 {
		t.Fatalf("the clock went back to %d", clock)
	}
}

func TestBigCommandInChunks(t *testing.T) {
	m := newMachine(t)
	value := bytes.Repeat([]byte("x"), 3<<20)
	cmd, err := EncodeTxn(kv.Txn{Then: []kv.Op{{Kind: kv.OpPut, Key: "big", Value: value}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	chunks := func(id uint64, term uint64, upTo int) (last []Result) {
		parts := slices.Collect(slices.Chunk(cmd, 200<<10))
		for i, p := range parts[:upTo] {
			m.index++
			l := Log{Index: m.index, Term: term, Data: encodeChunk(0, id, i, i == len(parts)-1, p)}
			m.log = append(m.log, l)
			last = m.ApplyBatch([]Log{l})[0]
		}
		return last
	}
	n := (len(cmd) + 200<<10 - 1) / (200 << 10)
	if r := chunks(1, 1, n-1); len(r) != 0 || m.Info().Revision != 0 {
		t.Fatalf("chunks are visible before the last: %+v", r)
	}
	// A restart in between loses nothing: the snapshot's label carries them.
	m.snapshot()
	m.restart()
	m.index++
	l := Log{Index: m.index, Term: 1, Data: encodeChunk(0, 1, n-1, true, cmd[(n-1)*(200<<10):])}
	m.log = append(m.log, l)
	if r := m.ApplyBatch([]Log{l})[0]; len(r) != 1 || r[0].Err != nil || r[0].Txn.Revision != 1 {
		t.Fatalf("%+v", r)
	}
	it, _, err := m.Get(context.Background(), "big", 0)
	if err != nil || !bytes.Equal(it.Value, value) {
		t.Fatalf("%d bytes, %v", len(it.Value), err)
	}
	// A leader that loses its term leaves nothing behind.
	chunks(2, 1, n-1)
	m.index++
	l = Log{Index: m.index, Term: 2, Data: encodeBatch(0, [][]byte{EncodeLead("s", time.Time{})})}
	m.log = append(m.log, l)
	m.ApplyBatch([]Log{l})
	if m.small.stagedBytes != 0 || len(m.small.staged) != 0 {
		t.Fatalf("%d bytes are left staged", m.small.stagedBytes)
	}
	m.index++
	l = Log{Index: m.index, Term: 2, Data: encodeChunk(0, 2, n-1, true, nil)}
	m.log = append(m.log, l)
	if r := m.ApplyBatch([]Log{l})[0]; len(r) != 1 || r[0].Err == nil || r[0].Err.Outcome != kv.OutcomeNotApplied {
		t.Fatalf("a committing chunk without the others: %+v", r)
	}
	m.checkDigest()
}

func TestTransactionLimit(t *testing.T) {
	m := newMachine(t)
	ops := make([]kv.Op, maxTouchedKeys+1)
	for i := range ops {
		ops[i] = put(fmt.Sprintf("key-%06d", i), "v")
	}
	if _, err := EncodeTxn(kv.Txn{Then: ops}, 0); !errors.Is(err, kv.ErrTooLarge) {
		t.Fatalf("%v", err)
	}
	// At the limit it is one revision, in several parts on disk.
	if r := m.mustTxn(ops[:20_000]...); r.Revision != 1 || len(r.Ops) != 20_000 {
		t.Fatalf("revision %d, %d results", r.Revision, len(r.Ops))
	}
	m.checkDigest()
	m.restart()
	if i := m.Info(); i.Keys != 20_000 || i.Revision != 1 {
		t.Fatalf("%+v", i)
	}
	m.checkDigest()
}

// snapshot takes a local Raft snapshot as raft would.
func (m *machine) snapshot() {
	m.t.Helper()
	l, eng, err := m.Label()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := commitLabel(m.store, l, eng); err != nil {
		m.t.Fatal(err)
	}
}

// install streams the machine's state into another one, which takes its place.
func (m *machine) install(t *testing.T) {
	t.Helper()
	m.snapshot()
	next := &machine{t: t, dir: filepath.Join(t.TempDir(), "state"), index: m.index, log: m.log}
	next.open()
	t.Cleanup(func() { _ = next.store.Close() })
	meta, rc, err := openSnapshot(m.store)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := createSink(next.store, meta)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(sink, rc); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(rc.Close(), sink.Close()); err != nil {
		t.Fatal(err)
	}
	if err := restoreSink(next, sink.ID()); err != nil {
		t.Fatal(err)
	}
	if got, want := next.Digest(), m.Digest(); got != want {
		t.Fatalf("digest after the install %+v, want %+v", got, want)
	}
	next.checkDigest()
	if err := m.store.Close(); err != nil {
		t.Fatal(err)
	}
	*m = *next
}

func TestRetained(t *testing.T) {
	m := newMachine(t)
	for i := range 20 {
		cmd, err := EncodeTxn(kv.Txn{Then: []kv.Op{put("k", strings.Repeat("v", 99))}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		m.ApplyBatch([]Log{m.entry(uint64(1000+10*i), cmd)}) // revision i+1 at 1000+10i, 100 bytes each
	}
	for _, c := range []struct {
		ms, bytes uint64
		want      kv.Revision
	}{
		{0, 0, 0}, {1000, 0, 0}, {1001, 0, 1}, {1010, 0, 1}, {1011, 0, 2}, {5000, 0, 20},
		{0, 100_000, 0}, {0, 2000, 0}, {0, 1000, 9}, {0, 1, 19}, {1100, 500, 14}, {1195, 500, 20},
	} {
		if got, err := m.Retained(c.ms, c.bytes); err != nil || got != c.want {
			t.Errorf("since %d, at most %d bytes: revision %d, want %d: %v", c.ms, c.bytes, got, c.want, err)
		}
	}
	m.apply(EncodeCompact(10))
	if got, err := m.Retained(0, 0); err != nil || got != 10 {
		t.Errorf("after compaction to 10: %d, %v", got, err)
	}
}

// TestDeliveryDoesNotMatter: how entries are bundled when Raft delivers them differs
// from node to node, and must not show (Invariant 14).
func TestDeliveryDoesNotMatter(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	var cmds [][]byte
	add := func(ops ...kv.Op) {
		cmd, err := EncodeTxn(kv.Txn{Then: ops}, 0)
		if err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	big := bytes.Repeat([]byte("x"), 8<<20)
	var touches []kv.Op
	for i := range 9 {
		key := fmt.Sprintf("big%d", i)
		add(kv.Op{Kind: kv.OpPut, Key: key, Value: big})
		touches = append(touches, kv.Op{Kind: kv.OpTouch, Key: key, TTL: time.Hour})
	}
	add(touches...)
	for range 60 {
		add(randomOps(rng)...)
	}
	var want kv.Digest
	for i, most := range []int{1, len(cmds), 7} {
		m := newMachine(t)
		var logs []Log
		for _, c := range cmds {
			logs = append(logs, m.entry(1000, c))
		}
		for len(logs) > 0 {
			n := min(1+rng.IntN(most), len(logs))
			if most == len(cmds) {
				n = len(logs)
			}
			m.ApplyBatch(logs[:n])
			logs = logs[n:]
		}
		if i == 0 {
			want = m.Digest()
		} else if got := m.Digest(); got != want {
			t.Errorf("delivered by up to %d: %+v, one by one: %+v", most, got, want)
		}
		m.checkDigest()
	}
}

// TestPreviousIsCounted: what a transaction reads and answers is bounded too.
func TestPreviousIsCounted(t *testing.T) {
	m := newMachine(t)
	var dels []kv.Op
	for i := range 10 {
		key := fmt.Sprint(i)
		m.mustTxn(kv.Op{Kind: kv.OpPut, Key: key, Value: make([]byte, 8<<20)})
		dels = append(dels, kv.Op{Kind: kv.OpDelete, Key: key, Previous: true})
	}
	if _, err := m.txn(kv.Txn{Then: dels}); !errors.Is(err, kv.ErrTooLarge) {
		t.Errorf("80 MiB of previous values: %v", err)
	}
	if r := m.mustTxn(dels[:5]...); len(r.Ops) != 5 {
		t.Errorf("%d results", len(r.Ops))
	}
}

// TestRangeLimits: a range delete takes as many keys as it says and not one more, and a
// transaction's ranges are bounded together (Invariant 10b).
func TestRangeLimits(t *testing.T) {
	m := newMachine(t)
	for i := 0; i < maxTouchedKeys; i += 20_000 {
		ops := make([]kv.Op, 20_000)
		for j := range ops {
			ops[j] = put(fmt.Sprintf("k%06d", i+j), "v")
		}
		m.mustTxn(ops...)
	}
	all := kv.Op{Kind: kv.OpDeleteRange, Range: kv.PrefixRange("k")}
	m.mustTxn(put("k-one-more", "v"))
	var e *kv.Error
	if _, err := m.txn(kv.Txn{Then: []kv.Op{put("x", "v"), all}}); !errors.As(err, &e) || e.Code != kv.CodeTooLarge || m.Info().Keys != maxTouchedKeys+1 {
		t.Fatalf("%d keys: %v", m.Info().Keys, err)
	}
	page := all
	page.Limit = 1
	if r := m.mustTxn(page); r.Ops[0].Deleted != 1 || !r.Ops[0].More {
		t.Fatalf("a page: %+v", r.Ops[0])
	}
	reads := make([]kv.Op, 11)
	for i := range reads {
		reads[i] = kv.Op{Kind: kv.OpRange, Range: all.Range, Limit: kv.MaxRangeLimit, KeysOnly: true}
	}
	if _, err := m.txn(kv.Txn{Then: reads}); !errors.As(err, &e) || e.Code != kv.CodeTooLarge {
		t.Fatalf("eleven reads of ten thousand keys: %v", err)
	}
	if r := m.mustTxn(all); r.Ops[0].Deleted != maxTouchedKeys || m.Info().Keys != 0 {
		t.Fatalf("%+v", r.Ops[0])
	}
	m.checkDigest()
	m.restart()
	m.checkDigest()
}

// TestDeleteNeedsNoValues: what goes is not held in memory, however big it is.
func TestDeleteNeedsNoValues(t *testing.T) {
	m := newMachine(t)
	value := bytes.Repeat([]byte("x"), pieceBytes)
	for i := range 10 {
		ops := make([]kv.Op, 100)
		for j := range ops {
			ops[j] = kv.Op{Kind: kv.OpPut, Key: fmt.Sprintf("k%04d", i*100+j), Value: value}
		}
		m.mustTxn(ops...)
	}
	b, err := m.newBatch()
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	tx := newTxn(b, m.rev+1, m.small)
	ops := []kv.Op{{Kind: kv.OpDeleteRange, Range: kv.PrefixRange("k0")}}
	for i := range 500 {
		ops = append(ops, del(fmt.Sprintf("k%04d", 500+i)))
	}
	if _, err := tx.run(&kv.Txn{Then: ops}); err != nil {
		t.Fatal(err)
	}
	held := 0
	for _, p := range tx.keys {
		if p.old != nil {
			held += len(p.old.value)
		}
	}
	if len(tx.keys) != 1000 || held > maxHeldBytes {
		t.Errorf("%d keys, %d bytes of old values held", len(tx.keys), held)
	}
}

// TestOnceIsBounded: a full table refuses and forgets nothing early; what is past its
// time makes room.
func TestOnceIsBounded(t *testing.T) {
	m := newMachine(t)
	m.limits = onceLimits{outcomes: 3, bytes: 1 << 20, waiting: 2, waitingBytes: 1 << 20}
	clock := uint64(1_000_000)
	once := func(key string, op kv.Op) Result {
		cmd, err := EncodeTxn(kv.Txn{Then: []kv.Op{op}, Once: kv.Once{Key: key}}, clock)
		if err != nil {
			t.Fatal(err)
		}
		return m.ApplyBatch([]Log{m.entry(clock, cmd)})[0][0]
	}
	for i := range 3 {
		if r := once(fmt.Sprint(i), put("k", "v")); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if r := once("4", put("k", "v")); r.Err == nil || r.Err.Code != kv.CodeOverloaded || r.Err.RetryAfter == 0 || m.Info().Revision != 3 {
		t.Fatalf("a full table: %+v", r)
	}
	for i := range 3 {
		if r := once(fmt.Sprint(i), put("k", "v")); r.Err != nil || !r.Txn.Replayed || r.Txn.Revision != kv.Revision(i+1) {
			t.Fatalf("forgotten early: %+v", r)
		}
	}
	clock += onceKeep
	if r := once("0", put("k", "v")); r.Err != nil || r.Txn.Replayed || r.Txn.Revision != 4 {
		t.Fatalf("past its time: %+v", r)
	}
	if m.once.Count > 3 {
		t.Errorf("%d outcomes are kept", m.once.Count)
	}
	// Those that change nothing wait, and are bounded too.
	for i := range 2 {
		if r := once(fmt.Sprint("none", i), del("absent")); r.Err != nil {
			t.Fatalf("%+v", r)
		}
		m.mustTxn(put("k", "v")) // writes what waits
		clock += onceKeep
	}
	m.limits.outcomes = 100
	for i := range 3 {
		r := once(fmt.Sprint("waits", i), del("absent"))
		if (i < 2) != (r.Err == nil) {
			t.Fatalf("number %d that waits: %+v", i, r)
		}
	}
	// A command that was on its way for too long is refused.
	cmd, err := EncodeTxn(kv.Txn{Then: []kv.Op{put("k", "v")}, Once: kv.Once{Key: "late"}}, clock-onceWindow-1)
	if err != nil {
		t.Fatal(err)
	}
	if r := m.ApplyBatch([]Log{m.entry(clock, cmd)})[0][0]; r.Err == nil || r.Err.Code != kv.CodeTimeout || r.Err.Outcome != kv.OutcomeNotApplied {
		t.Fatalf("a late one: %+v", r)
	}
}

// TestPins: history is held, and said by whom.
func TestPins(t *testing.T) {
	m := newMachine(t)
	for i := range 9 {
		m.mustTxn(put("k", fmt.Sprint(i)))
	}
	at := func(stamp uint64, cmd []byte) Result { return m.ApplyBatch([]Log{m.entry(stamp, cmd)})[0][0] }
	a := at(1000, EncodePin(4, time.Second)).Pin
	b := at(1000, EncodePin(6, time.Hour)).Pin
	if c := at(1000, EncodeCompact(8)).Compaction; c.To != 4 || !slices.Equal(c.HeldBy, []string{a.ID, b.ID}) {
		t.Fatalf("%+v", c)
	}
	if c := at(2001, EncodeCompact(8)).Compaction; c.To != 6 || !slices.Equal(c.HeldBy, []string{b.ID}) {
		t.Fatalf("after the first has ended: %+v", c)
	}
	if r := at(2001, EncodePin(5, time.Hour)); r.Err == nil || r.Err.Code != kv.CodeCompacted || r.Err.OldestRevision != 6 {
		t.Fatalf("a pin of what is gone: %+v", r)
	}
	if r := at(2000, EncodeUnpin(a.ID)); r.Err == nil || r.Err.Code != kv.CodeNotFound {
		t.Fatalf("%+v", r)
	}
	if r := at(2000, EncodeUnpin(b.ID)); r.Err != nil {
		t.Fatal(r.Err)
	}
	if c := at(2000, EncodeCompact(8)).Compaction; c.To != 8 || len(c.HeldBy) != 0 {
		t.Fatalf("%+v", c)
	}
	for i := range maxPins {
		if r := at(3000, EncodePin(9, kv.MaxPinTTL)); r.Err != nil {
			t.Fatalf("pin %d: %v", i, r.Err)
		}
	}
	if r := at(3000, EncodePin(9, time.Hour)); r.Err == nil || r.Err.Code != kv.CodeOverloaded {
		t.Fatalf("%+v", r)
	}
	m.snapshot()
	m.restart()
	if len(m.small.pins) != maxPins || m.small.pins[0].Expires != 3000+uint64(kv.MaxPinTTL/time.Millisecond) {
		t.Errorf("%d pins after a restart", len(m.small.pins))
	}
}

// TestExpiryIsNeverEarly by the fraction of a millisecond that stamps leave out: what was written in the last
// moment of one and ends in the first of another must have lived as long as it was to.
func TestExpiryIsNeverEarly(t *testing.T) {
	m := newMachine(t)
	at := func(stamp uint64, cmd []byte) Result { return m.ApplyBatch([]Log{m.entry(stamp, cmd)})[0][0] }
	cmd, err := EncodeTxn(kv.Txn{Then: []kv.Op{{Kind: kv.OpPut, Key: "k", Value: []byte("v"), TTL: 100 * time.Millisecond}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	at(1000, cmd)
	pin := at(1000, EncodePin(1, 100*time.Millisecond)).Pin
	for _, s := range []struct {
		stamp   uint64
		deleted uint64
		held    bool
	}{{1099, 0, true}, {1100, 0, true}, {1101, 1, false}} {
		if r := at(s.stamp, EncodeExpire(10)); r.Txn.Ops[0].Deleted != s.deleted {
			t.Errorf("at %d: %d have ended, want %d", s.stamp, r.Txn.Ops[0].Deleted, s.deleted)
		}
		if c := at(s.stamp, EncodeCompact(1)).Compaction; s.held && len(m.small.pins) != 1 || !s.held && len(m.small.pins) != 0 {
			t.Errorf("at %d: pin %s, held %v: %+v", s.stamp, pin.ID, !s.held, c)
		}
	}
}

// TestElapsed: the clock goes on from what was stamped while this process ran, and from
// nothing that was in the log before.
func TestElapsed(t *testing.T) {
	m := newMachine(t)
	if _, ok := m.Elapsed(); ok {
		t.Error("a new machine has heard of no time")
	}
	at := func(stamp uint64) { m.ApplyBatch([]Log{m.entry(stamp, mustTxnCommand(t, put("a", "1")))}) }
	at(5000)
	first, ok := m.Elapsed()
	if !ok || first.Before(timeOf(5000)) {
		t.Errorf("%v, %v", first, ok)
	}
	at(4000) // never back
	if now, ok := m.Elapsed(); !ok || now.Before(first) {
		t.Errorf("%v after %v", now, first)
	}
	if err := m.store.Close(); err != nil {
		t.Fatal(err)
	}
	m.open()
	m.liveAfter = m.index
	m.redeliver()
	if now, ok := m.Elapsed(); ok {
		t.Errorf("what was in the log says that it is %v", now)
	}
	at(9000)
	if now, ok := m.Elapsed(); !ok || now.Before(timeOf(9000)) {
		t.Errorf("%v, %v", now, ok)
	}
	m.Lead()
	defer m.Follow()
	if s := m.Stamp(); s < 9000 || s > 9000+uint64(time.Minute/time.Millisecond) {
		t.Errorf("a leader begins at %d", s)
	}
}

func mustTxnCommand(t *testing.T, ops ...kv.Op) []byte {
	t.Helper()
	cmd, err := EncodeTxn(kv.Txn{Then: ops}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return cmd
}
