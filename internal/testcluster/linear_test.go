package testcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/settkv/sett/fsm"
	"github.com/settkv/sett/kv"
	"github.com/settkv/sett/snapshot"
)

// The operations of the history.
const (
	opPut = iota
	opCAS
	opDelete
	opGet
)

type input struct {
	op    int
	key   string
	value string
	rev   uint64 // CAS: the revision expected
}

type output struct {
	unknown bool
	ok      bool   // CAS: it happened; get and delete: there was a key
	value   string // get
	rev     uint64 // put, CAS: the new revision; get: the key's
}

// cell is the model's state of one key.
type cell struct {
	present bool
	value   string
	rev     uint64
}

// registers is the specification: each key is a register with a revision. A write
// whose fate is unknown may have happened or not.
var registers = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range history {
			k := o.Input.(input).key
			byKey[k] = append(byKey[k], o)
		}
		var parts [][]porcupine.Operation
		for _, p := range byKey {
			parts = append(parts, p)
		}
		return parts
	},
	Init: func() []any { return []any{cell{}} },
	Step: func(state, in, out any) []any {
		s, i, o := state.(cell), in.(input), out.(output)
		// written is the key after a write; its revision is not known if the answer was
		// lost, and then every revision that is read later is possible.
		written := cell{present: true, value: i.value, rev: o.rev}
		switch i.op {
		case opPut:
			if o.unknown {
				return []any{s, written}
			}
			if o.rev <= s.rev {
				return nil
			}
			return []any{written}
		case opCAS:
			matches := s.present && (s.rev == i.rev || s.rev == 0)
			switch {
			case o.unknown && matches:
				return []any{s, written}
			case o.unknown:
				return []any{s}
			case o.ok && matches && o.rev > i.rev:
				return []any{written}
			case !o.ok && (!matches || s.rev == 0):
				return []any{s}
			}
			return nil
		case opDelete:
			switch {
			case o.unknown:
				return []any{s, cell{}}
			case o.ok == s.present:
				return []any{cell{}}
			}
			return nil
		case opGet:
			if o.ok != s.present || (o.ok && o.value != s.value) {
				return nil
			}
			if o.ok && s.rev != 0 && s.rev != o.rev {
				return nil
			}
			if o.ok {
				s.rev = o.rev // a write with a lost answer has shown its revision
			}
			return []any{s}
		}
		return nil
	},
	Equal: func(a, b any) bool { return a.(cell) == b.(cell) },
	DescribeOperation: func(in, out any) string {
		return fmt.Sprintf("%+v -> %+v", in, out)
	},
}

// recorder collects the history.
type recorder struct {
	mu    sync.Mutex
	start time.Time
	ops   []porcupine.Operation
	done  atomic.Int64 // known outcomes
}

// add records an operation of a client that was called at a time since the start. One
// whose outcome is unknown may happen at any time after its call.
func (r *recorder) add(o porcupine.Operation, unknown bool) {
	o.Return = int64(time.Since(r.start))
	if unknown {
		o.Return = 1 << 62
	} else {
		r.done.Add(1)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, o)
}

// worker is one client. After an unknown outcome it goes on under a new number, for
// its old self may still be writing.
func (r *recorder) worker(ctx context.Context, c *Cluster, rng *rand.Rand, number *atomic.Int64) {
	client := int(number.Add(1))
	seen := map[string]uint64{} // revisions for CAS
	for n := 0; ctx.Err() == nil; n++ {
		in := input{key: fmt.Sprintf("k%d", rng.IntN(8)), value: fmt.Sprintf("c%d-%d", client, n)}
		method, path, header := http.MethodPut, "/v1/kv/"+in.key+"?timeout=1s", http.Header{}
		switch p := rng.IntN(100); {
		case p < 35:
			in.op = opPut
		case p < 50 && seen[in.key] != 0:
			in.op, in.rev = opCAS, seen[in.key]
			header.Set("If-Match", strconv.Quote(strconv.FormatUint(in.rev, 10)))
		case p < 56:
			in.op, method = opDelete, http.MethodDelete
		default:
			in.op, method = opGet, http.MethodGet
		}
		body := ""
		if method == http.MethodPut {
			body = in.value
		}
		rctx, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
		call := time.Since(r.start)
		a, err := c.Do(rctx, c.Nodes[rng.IntN(len(c.Nodes))], Request{method, path, header, body})
		cancel()
		out, counts := judge(in, a, err)
		if !counts {
			continue
		}
		r.add(porcupine.Operation{ClientId: client, Input: in, Output: out, Call: int64(call)}, out.unknown)
		if out.unknown {
			client = int(number.Add(1))
		}
		if out.rev != 0 {
			seen[in.key] = out.rev
		}
	}
}

// judge turns an answer into an output; counts is false for what surely did nothing.
func judge(in input, a Answer, err error) (out output, counts bool) {
	if err != nil {
		// The request may have arrived.
		return output{unknown: true}, in.op != opGet
	}
	rev := func(name string) uint64 {
		v, err := strconv.ParseUint(string(bytes.Trim([]byte(a.Header.Get(name)), `"`)), 10, 64)
		if err != nil {
			panic(fmt.Sprintf("%s: %q in an answer %d to %+v", name, a.Header.Get(name), a.Status, in))
		}
		return v
	}
	switch {
	case a.Status == 200 && in.op == opGet:
		return output{ok: true, value: string(a.Body), rev: rev("ETag")}, true
	case a.Status == 404 && in.op == opGet:
		return output{}, true
	case a.Status == 201 || a.Status == 204:
		if in.op == opDelete {
			return output{ok: true}, true
		}
		return output{ok: true, rev: rev("ETag")}, true
	case a.Status == 404 && in.op == opDelete, a.Status == 412:
		return output{}, true
	case in.op == opGet || bytes.Contains(a.Body, []byte(`"outcome":"not-applied"`)):
		return output{}, false
	}
	return output{unknown: true}, true
}

// TestLinearizable lets clients work on all nodes while leaders are cut off, killed
// and moved, and networks are split in every way; then the history must be
// linearizable and all nodes must hold the same.
func TestLinearizable(t *testing.T) {
	l := linearizable{faults: 14, enough: 2000, workers: 6, work: (*recorder).worker, model: registers.ToModel()}
	if testing.Short() {
		l.faults, l.enough = 5, 300
	}
	l.check(t)
}

// linearizable is a test of histories: what the workers do while there are faults must
// fit the model.
type linearizable struct {
	faults  int
	enough  int64 // operations with a known outcome
	workers int
	work    func(*recorder, context.Context, *Cluster, *rand.Rand, *atomic.Int64)
	model   porcupine.Model
}

func (l linearizable) check(t *testing.T) {
	t.Helper()
	seed := seedOf(t)
	c := Start(t, 3, seed)
	rng := rand.New(rand.NewPCG(seed, 7))
	rec := &recorder{start: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	var number atomic.Int64
	for i := range l.workers {
		wrng := rand.New(rand.NewPCG(seed, uint64(100+i)))
		wg.Go(func() { l.work(rec, ctx, c, wrng, &number) })
	}
	progress := getOn(c, &rec.done)
	progress(50)
	counts := storm(t, c, rng, l.faults, progress)
	for rec.done.Load() < l.enough {
		progress(min(50, l.enough-rec.done.Load()))
	}
	cancel()
	wg.Wait()
	t.Logf("faults: %v; %d operations, %d with a known outcome", counts, len(rec.ops), rec.done.Load())

	result, info := porcupine.CheckOperationsVerbose(l.model, rec.ops, time.Minute)
	if result != porcupine.Ok {
		path := filepath.Join(os.TempDir(), fmt.Sprintf("sett-%s-%d.html", t.Name(), seed))
		t.Errorf("history is %s; picture in %s: %v", result, path, porcupine.VisualizePath(l.model, info, path))
	}
	sameContent(t, c)
}

// seedOf draws a test's seed, or takes SETT_SEED, and says how to repeat it.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("SETT_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d: SETT_SEED=%d go test -run '^%s$' ./internal/testcluster", seed, seed, t.Name())
	return seed
}

// getOn returns what waits until done has grown by n.
func getOn(c *Cluster, done *atomic.Int64) func(n int64) {
	return func(n int64) {
		c.t.Helper()
		from := done.Load()
		c.Await(30*time.Second, "the clients to get on", func() error {
			if got := done.Load() - from; got < n {
				return fmt.Errorf("%d of %d operations", got, n)
			}
			return nil
		})
	}
}

// storm does one bad thing to the cluster after the other, and lets it recover between
// them. It returns how often it did each.
func storm(t *testing.T, c *Cluster, rng *rand.Rand, faults int, progress func(int64)) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for range faults {
		counts[fault(t, c, rng, progress)]++
		c.Net.Heal()
		c.AwaitReady(30 * time.Second)
		progress(30)
	}
	return counts
}

// fault does one thing to the cluster and returns its name.
func fault(t *testing.T, c *Cluster, rng *rand.Rand, progress func(int64)) string {
	t.Helper()
	pause := func(d time.Duration) {
		// Here time is the fault: how long it lasts.
		timer := time.NewTimer(d)
		defer timer.Stop()
		<-timer.C
	}
	var leader *Node
	c.Await(20*time.Second, "a leader", func() error {
		if leader = c.Leader(); leader == nil {
			return errors.New("none")
		}
		return nil
	})
	ids := c.IDs()
	others := c.others(leader.ID)
	short := time.Duration(100+rng.IntN(700)) * time.Millisecond
	switch rng.IntN(7) {
	case 0:
		// The client still reaches it: a deposed leader must not answer from old data.
		c.Net.Isolate(leader.ID, others...)
		progress(30)
		pause(short)
		return "leader cut off"
	case 1:
		c.Net.Isolate(others[rng.IntN(len(others))], ids...)
		progress(30)
		return "follower cut off"
	case 2:
		// One direction only: the leader hears nobody, but is heard.
		for _, o := range others {
			c.Net.Block(o, leader.ID)
		}
		pause(short)
		return "leader deaf"
	case 3:
		for _, o := range others {
			c.Net.Block(leader.ID, o)
		}
		progress(20)
		return "leader mute"
	case 4:
		if err := leader.Kill(); err != nil {
			t.Fatalf("kill %s: %v", leader.ID, err)
		}
		progress(30)
		if err := leader.Start(); err != nil {
			t.Fatalf("start %s: %v", leader.ID, err)
		}
		return "leader killed"
	case 5:
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if _, err := c.Do(ctx, leader, Request{Method: http.MethodPost, Path: "/v1/cluster/transfer", Body: "{}"}); err != nil {
			t.Logf("transfer: %v", err)
		}
		return "leadership moved"
	default:
		// Bridge: two followers do not see each other, the leader sees both.
		c.Net.Block(others[0], others[1])
		c.Net.Block(others[1], others[0])
		c.Net.SetResetRate(0.01)
		pause(short)
		c.Net.SetResetRate(0)
		return "bridge"
	}
}

// sameContent compares what all nodes hold at one revision: the digest that was kept,
// one computed from disk, and one from an export. Writes whose clients gave up, and
// keys that fall due, may still move a node on between two looks: it looks again until all
// agree, which those that differ never do.
func sameContent(t *testing.T, c *Cluster) {
	t.Helper()
	var want kv.Digest
	c.Await(30*time.Second, "equal content at one revision on all nodes", func() error {
		want = c.Nodes[0].Running().FSM().Digest()
		for _, n := range c.Nodes {
			if err := contentIs(n, want); err != nil {
				return fmt.Errorf("%s: %w", n.ID, err)
			}
		}
		return nil
	})
	t.Logf("revision %d, digest %s on all nodes", want.Revision, want.Hash[:16])
}

// contentIs compares a node's content with a digest, in three ways.
func contentIs(n *Node, want kv.Digest) error {
	m := n.Running().FSM()
	if got := m.Digest(); got != want {
		return fmt.Errorf("digest %+v, want %+v", got, want)
	}
	disk, keys, err := m.Recompute(context.Background())
	if err != nil || disk != want || keys != m.Info().Keys {
		return fmt.Errorf("digest from disk %+v, want %+v; %d keys of %d: %w", disk, want, keys, m.Info().Keys, err)
	}
	l, r, err := m.Capture()
	if err != nil {
		return err
	}
	defer r.Close()
	var stream bytes.Buffer
	if _, err := snapshot.WriteStream(&stream, l, r); err != nil {
		return err
	}
	exported, _, err := fsm.DigestOf(&stream)
	if err != nil || exported != want {
		return fmt.Errorf("digest of an export %+v, want %+v: %w", exported, want, err)
	}
	return nil
}
