package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/internal/faultnet"
	"github.com/settkv/sett/kv"
)

// Short, so that tests are; long enough for a busy machine with the race detector.
const (
	testHeartbeat = 300 * time.Millisecond
	testLease     = 300 * time.Millisecond
	testPatience  = 20 * time.Second
)

// testEnvelope is the simplest codec: a kind, then length-prefixed commands.
type testEnvelope struct{}

func (testEnvelope) Batch(cmds [][]byte) []byte {
	b := []byte{'B'}
	for _, c := range cmds {
		b = binary.AppendUvarint(b, uint64(len(c)))
		b = append(b, c...)
	}
	return b
}

func (testEnvelope) Chunk(id uint64, seq int, last bool, part []byte) []byte {
	b := []byte{'C'}
	if last {
		b[0] = 'L'
	}
	b = binary.BigEndian.AppendUint64(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(seq))
	return append(b, part...)
}

// testFSM keeps the commands in the order applied, and where each came from.
type testFSM struct {
	mu        sync.Mutex
	cmds      []string
	byIndex   map[uint64]string // the whole entry
	staged    map[uint64][]byte
	delivered uint64
	changed   chan struct{}
	hold      chan struct{} // if set, ApplyBatch waits for it
	entries   int
}

func newTestFSM() *testFSM {
	return &testFSM{byIndex: make(map[uint64]string), staged: make(map[uint64][]byte), changed: make(chan struct{})}
}

func (f *testFSM) Apply(*raft.Log) any { panic("not used: ApplyBatch is") }

func (f *testFSM) ApplyBatch(logs []*raft.Log) []any {
	f.mu.Lock()
	hold := f.hold
	f.mu.Unlock()
	if hold != nil {
		<-hold
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]any, len(logs))
	for i, l := range logs {
		if l.Type == raft.LogCommand {
			f.entries++
			f.byIndex[l.Index] = string(l.Data)
			out[i] = f.applyEntry(l)
		}
		f.delivered = l.Index
	}
	close(f.changed)
	f.changed = make(chan struct{})
	return out
}

func (f *testFSM) applyEntry(l *raft.Log) []any {
	data := l.Data[1:]
	var results []any
	switch l.Data[0] {
	case 'B':
		for len(data) > 0 {
			n, k := binary.Uvarint(data)
			cmd := string(data[k : k+int(n)])
			data = data[k+int(n):]
			f.cmds = append(f.cmds, cmd)
			results = append(results, fmt.Sprintf("ok:%d:%d", l.Index, len(cmd)))
		}
	case 'C', 'L':
		id := binary.BigEndian.Uint64(data)
		f.staged[id] = append(f.staged[id], data[12:]...)
		if l.Data[0] == 'L' {
			cmd := string(f.staged[id])
			delete(f.staged, id)
			f.cmds = append(f.cmds, cmd)
			results = append(results, fmt.Sprintf("ok:%d:%d", l.Index, len(cmd)))
		} else {
			results = []any{}
		}
	}
	return results
}

func (f *testFSM) WaitDelivered(ctx context.Context, index uint64) error {
	for {
		f.mu.Lock()
		done, changed := f.delivered >= index, f.changed
		f.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *testFSM) applied() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.cmds)
}

func (f *testFSM) entry(index uint64) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byIndex[index]
}

type testSnapshot struct {
	cmds      []string
	delivered uint64
}

func (f *testFSM) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &testSnapshot{slices.Clone(f.cmds), f.delivered}, nil
}

func (s *testSnapshot) Persist(sink raft.SnapshotSink) error {
	b := binary.BigEndian.AppendUint64(nil, s.delivered)
	for _, c := range s.cmds {
		b = binary.AppendUvarint(b, uint64(len(c)))
		b = append(b, c...)
	}
	if _, err := sink.Write(b); err != nil {
		_ = sink.Cancel()
		return err
	}
	return sink.Close()
}

func (*testSnapshot) Release() {}

func (f *testFSM) Restore(r io.ReadCloser) error {
	b, err := io.ReadAll(r)
	if err != nil || len(b) < 8 {
		return errors.Join(err, r.Close())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delivered, f.cmds = binary.BigEndian.Uint64(b), nil
	for b = b[8:]; len(b) > 0; {
		n, k := binary.Uvarint(b)
		f.cmds = append(f.cmds, string(b[k:k+int(n)]))
		b = b[k+int(n):]
	}
	close(f.changed)
	f.changed = make(chan struct{})
	return r.Close()
}

// testNode is one server and what a restart keeps.
type testNode struct {
	id    string
	fsm   *testFSM
	logs  raft.LogStore
	inmem *raft.InmemStore
	snaps *raft.InmemSnapshotStore
	c     *Consensus
}

// testCluster is a cluster in this process on a network with faults.
type testCluster struct {
	t         testing.TB
	net       *faultnet.Network
	rng       *rand.Rand
	nodes     []*testNode
	clusterID string
	tune      func(id string, cfg *Config)
	logger    *slog.Logger
}

// newCluster starts and bootstraps a cluster of n voters.
func newCluster(t testing.TB, n int, tune func(id string, cfg *Config)) *testCluster {
	t.Helper()
	tc := newEmptyCluster(t, tune)
	var servers []kv.Server
	for i := range n {
		id := fmt.Sprintf("n%d", i)
		tc.start(id)
		servers = append(servers, kv.Server{ID: id, Addr: id + ":7000", Voter: true})
	}
	for _, n := range tc.nodes {
		if err := n.c.Bootstrap(servers); err != nil {
			t.Fatal(err)
		}
	}
	return tc
}

func newEmptyCluster(t testing.TB, tune func(id string, cfg *Config)) *testCluster {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	tc := &testCluster{
		t: t, net: faultnet.New(seed), rng: rand.New(rand.NewPCG(seed, 1)),
		clusterID: "cluster-a", tune: tune, logger: slog.New(slog.DiscardHandler),
	}
	if os.Getenv("SETT_TEST_LOG") != "" {
		tc.logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	t.Cleanup(func() {
		tc.net.Heal()
		var wg sync.WaitGroup
		for _, n := range tc.nodes {
			wg.Go(func() { tc.stop(n) })
		}
		wg.Wait()
	})
	return tc
}

// start opens a new server, which is in no configuration yet.
func (tc *testCluster) start(id string) *testNode {
	tc.t.Helper()
	store := raft.NewInmemStore()
	n := &testNode{id: id, fsm: newTestFSM(), inmem: store, logs: store, snaps: raft.NewInmemSnapshotStore()}
	tc.nodes = append(tc.nodes, n)
	tc.open(n)
	return n
}

func (tc *testCluster) config(n *testNode) Config {
	stream, err := tc.net.Listen(n.id, n.id+":7000")
	if err != nil {
		tc.t.Fatal(err)
	}
	cfg := Config{
		ServerID: n.id, Stream: stream, Logs: n.logs, Stable: n.inmem, Snapshots: n.snaps,
		FSM: n.fsm, Envelope: testEnvelope{},
		LeaderCommand: func(_ context.Context, term uint64) ([]byte, error) {
			return fmt.Appendf(nil, "lead %d %s", term, n.id), nil
		},
		ClusterID:        func() string { return tc.clusterID },
		HeartbeatTimeout: testHeartbeat, LeaseTimeout: testLease, RPCTimeout: testHeartbeat,
		Logger: tc.logger.With("node", n.id),
	}
	if tc.tune != nil {
		tc.tune(n.id, &cfg)
	}
	return cfg
}

func (tc *testCluster) open(n *testNode) {
	tc.t.Helper()
	c, err := Open(tc.config(n))
	if err != nil {
		tc.t.Fatal(err)
	}
	n.c = c
}

func (tc *testCluster) stop(n *testNode) {
	ctx, cancel := context.WithTimeout(context.Background(), testPatience)
	defer cancel()
	if err := n.c.Shutdown(ctx); err != nil {
		tc.t.Errorf("shut down %s: %v", n.id, err)
	}
}

// until waits until cond holds.
func (tc *testCluster) until(what string, cond func() bool) {
	tc.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(testPatience)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			tc.t.Fatalf("not in time: %s", what)
		}
	}
}

// leader waits for a node, other than not, that leads a ready term.
func (tc *testCluster) leader(not ...*testNode) *testNode {
	tc.t.Helper()
	var found *testNode
	tc.until("a leader", func() bool {
		for _, n := range tc.nodes {
			if slices.Contains(not, n) {
				continue
			}
			if _, ok := n.c.Ready(); ok {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

func (tc *testCluster) followers(leader *testNode) []*testNode {
	return slices.DeleteFunc(slices.Clone(tc.nodes), func(n *testNode) bool { return n == leader })
}

func (tc *testCluster) ids() []string {
	var ids []string
	for _, n := range tc.nodes {
		ids = append(ids, n.id)
	}
	return ids
}

func (tc *testCluster) ctx(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	tc.t.Cleanup(cancel)
	return ctx
}

// put proposes on whichever node leads, until it is applied, perhaps twice.
func (tc *testCluster) put(cmd string) *testNode {
	tc.t.Helper()
	var by *testNode
	tc.until("a write of "+cmd, func() bool {
		by = tc.leader()
		_, _, err := by.c.Propose(tc.ctx(time.Second), []byte(cmd))
		return err == nil
	})
	return by
}

// sameEverywhere waits until all nodes have delivered what the leader committed, and
// compares their entries index by index.
func (tc *testCluster) sameEverywhere() {
	tc.t.Helper()
	l := tc.put("mark")
	index, err := l.c.ReadIndex(tc.ctx(testPatience))
	if err != nil {
		tc.t.Fatal(err)
	}
	for _, n := range tc.nodes {
		if err := n.fsm.WaitDelivered(tc.ctx(testPatience), index); err != nil {
			tc.t.Fatalf("%s: %v", n.id, err)
		}
	}
	for _, n := range tc.nodes {
		for i := uint64(1); i <= index; i++ {
			if a, b := l.fsm.entry(i), n.fsm.entry(i); a != b && a != "" && b != "" {
				tc.t.Fatalf("index %d: %s has %q, %s has %q", i, l.id, a, n.id, b)
			}
		}
		// An attempt that was given up, or a new leader, may have put more into the log meanwhile.
		tc.until(fmt.Sprintf("%s and %s have applied the same commands", l.id, n.id), func() bool {
			return slices.Equal(l.fsm.applied(), n.fsm.applied())
		})
	}
}
