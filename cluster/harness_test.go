package cluster

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/settkv/sett/kv"
)

// fakeRaft is one consensus group and its replicated records, without any network:
// every server of the configuration sees it at once.
type fakeRaft struct {
	mu      sync.Mutex
	servers []kv.Server
	leader  string
	term    uint64
	commit  uint64
	records map[string]kv.MemberRecord
	state   map[string]bool      // has Raft state on disk
	silent  map[string]time.Time // last contact of servers that are cut off
	behind  map[string]bool      // servers that lag
	boots   map[string]bool      // distinct configurations
	changes []string
}

func newFakeRaft() *fakeRaft {
	return &fakeRaft{records: map[string]kv.MemberRecord{}, state: map[string]bool{}, silent: map[string]time.Time{}, behind: map[string]bool{}, boots: map[string]bool{}, commit: 1000}
}

// with runs fn with the group locked.
func (r *fakeRaft) with(fn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn()
}

func (r *fakeRaft) cut(id string) { r.with(func() { r.silent[id] = time.Now() }) }

func (r *fakeRaft) log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.changes)
}

func (r *fakeRaft) find(id string) int {
	return slices.IndexFunc(r.servers, func(s kv.Server) bool { return s.ID == id })
}

func (r *fakeRaft) row(id string) (kv.Server, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.find(id); i >= 0 {
		return r.servers[i], true
	}
	return kv.Server{}, false
}

// fakeConsensus is a server's view of the group.
type fakeConsensus struct {
	r  *fakeRaft
	id string
}

func (f *fakeConsensus) Leader() string {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if f.r.find(f.id) < 0 {
		return ""
	}
	return f.r.leader
}

func (f *fakeConsensus) IsLeader() bool { return f.Leader() == f.id && f.id != "" }

func (f *fakeConsensus) Ready() (uint64, bool) {
	lead := f.IsLeader()
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	return f.r.term, lead
}

func (f *fakeConsensus) Configuration() []kv.Server {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if f.r.find(f.id) < 0 && !f.r.state[f.id] {
		return nil
	}
	return slices.Clone(f.r.servers)
}

func (f *fakeConsensus) change(what, id string, fn func() error) error {
	if !f.IsLeader() {
		return kv.NotApplied(kv.CodeNoLeader, "not the leader")
	}
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if err := fn(); err != nil {
		return err
	}
	f.r.changes = append(f.r.changes, what+" "+id)
	f.r.commit++
	return nil
}

func (f *fakeConsensus) put(id, addr string, voter bool) error {
	for _, s := range f.r.servers {
		if s.Addr == addr && s.ID != id {
			return fmt.Errorf("found duplicate address %s", addr)
		}
	}
	f.r.state[id] = true
	if i := f.r.find(id); i >= 0 {
		f.r.servers[i].Addr = addr
		f.r.servers[i].Voter = f.r.servers[i].Voter || voter
		return nil
	}
	f.r.servers = append(f.r.servers, kv.Server{ID: id, Addr: addr, Voter: voter})
	return nil
}

func (f *fakeConsensus) AddNonvoter(_ context.Context, id, addr string) error {
	return f.change("nonvoter", id, func() error { return f.put(id, addr, false) })
}

func (f *fakeConsensus) AddVoter(_ context.Context, id, addr string) error {
	return f.change("voter", id, func() error { return f.put(id, addr, true) })
}

func (f *fakeConsensus) Demote(_ context.Context, id string) error {
	return f.change("demote", id, func() error {
		f.r.servers[f.r.find(id)].Voter = false
		return nil
	})
}

func (f *fakeConsensus) Remove(_ context.Context, id string) error {
	return f.change("remove", id, func() error {
		f.r.servers = slices.DeleteFunc(f.r.servers, func(s kv.Server) bool { return s.ID == id })
		if f.r.leader == id {
			f.r.leader = ""
		}
		return nil
	})
}

func (f *fakeConsensus) Transfer(_ context.Context, id string) error {
	return f.change("transfer", id, func() error {
		for _, s := range f.r.servers {
			_, cut := f.r.silent[s.ID]
			if s.Voter && !cut && s.ID != f.id && (id == "" || id == s.ID) {
				f.r.leader = s.ID
				f.r.term++
				return nil
			}
		}
		return kv.NotApplied(kv.CodeConflict, "nobody to transfer to")
	})
}

func (f *fakeConsensus) LastContact(id string) (time.Time, bool) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if t, ok := f.r.silent[id]; ok {
		return t, !t.IsZero()
	}
	return time.Now(), f.r.leader == f.id
}

func (f *fakeConsensus) Match(id string) (uint64, bool) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if f.r.behind[id] {
		return 1, true
	}
	return f.r.commit, f.r.leader == f.id
}

func (f *fakeConsensus) CommitIndex() uint64 {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	return f.r.commit
}

func (f *fakeConsensus) Bootstrap(servers []kv.Server) error {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if f.r.state[f.id] {
		return fmt.Errorf("bootstrapped twice")
	}
	f.r.state[f.id] = true
	f.r.boots[fmt.Sprint(servers)] = true
	f.r.servers = slices.Clone(servers)
	if f.r.leader == "" {
		f.r.leader, f.r.term = f.id, f.r.term+1
	}
	return nil
}

func (f *fakeConsensus) HasState() bool {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	return f.r.state[f.id]
}

// Record, Records and PutRecord make the group's directory.
func (f *fakeConsensus) Record(id string) (kv.MemberRecord, bool) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	rec, ok := f.r.records[id]
	return rec, ok
}

func (f *fakeConsensus) Records() []kv.MemberRecord {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	var out []kv.MemberRecord
	for _, rec := range f.r.records {
		out = append(out, rec)
	}
	return out
}

func (f *fakeConsensus) PutRecord(_ context.Context, rec kv.MemberRecord) error {
	return f.change(map[bool]string{true: "mark", false: "record"}[rec.Removed], rec.ServerID, func() error {
		f.r.records[rec.ServerID] = rec
		return nil
	})
}

func (f *fakeConsensus) PutEnding(_ context.Context, end kv.Ending) error {
	return f.change("ending "+end.Once.Key, "", func() error { return nil })
}

// logBuffer collects what a node logs.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type testNode struct {
	*Cluster
	cfg    Config
	dir    string
	http   *httptest.Server
	log    *logBuffer
	fake   *fakeConsensus
	closed bool
	full   atomic.Bool // its disk
}

type handlerBox struct{ h http.Handler }

// startNode starts a node of a group; change may edit its configuration.
func startNode(t *testing.T, r *fakeRaft, name string, change func(*Config)) *testNode {
	t.Helper()
	return startNodeIn(t, t.TempDir(), r, name, change)
}

func startNodeIn(t *testing.T, dir string, r *fakeRaft, name string, change func(*Config)) *testNode {
	t.Helper()
	state, err := OpenState(dir)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var handler atomic.Pointer[handlerBox]
	srv := &httptest.Server{Listener: lis, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if box := handler.Load(); box != nil {
			box.h.ServeHTTP(w, req)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	})}}
	srv.Start()
	n := &testNode{dir: dir, http: srv, log: &logBuffer{}}
	cfg := Config{
		ServerID: uuid.NewString(), Name: name, Version: "test", ClusterName: "test", RaftAddr: name + ".raft:" + lis.Addr().String()[len("127.0.0.1:"):],
		HTTPAddr: lis.Addr().String(), GossipAddr: "127.0.0.1:0", ReplaceAfter: 400 * time.Millisecond,
		Timing: Timing{
			Probe: 100 * time.Millisecond, Gossip: 20 * time.Millisecond, PushPull: 300 * time.Millisecond,
			JoinMin: 20 * time.Millisecond, JoinMax: 200 * time.Millisecond, Formation: 10 * time.Millisecond, Reconcile: 20 * time.Millisecond,
			LeaderPoll: 10 * time.Millisecond, Call: 2 * time.Second, Stabilize: 100 * time.Millisecond, LiveWithin: 200 * time.Millisecond,
			LeaveWithin: 300 * time.Millisecond, WarnEvery: time.Second,
		},
		State: state, Logger: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelInfo})),
		Status: func() Status { return Status{AppliedIndex: 990, DiskFull: n.full.Load()} },
	}
	if change != nil {
		change(&cfg)
	}
	n.fake = &fakeConsensus{r: r, id: cfg.ServerID}
	cfg.Consensus, cfg.Directory = n.fake, n.fake
	n.cfg = cfg
	if n.Cluster, err = Open(t.Context(), cfg); err != nil {
		srv.Close()
		t.Fatal(err)
	}
	handler.Store(&handlerBox{n.Handler()})
	t.Cleanup(func() {
		n.stop(t)
		if t.Failed() {
			t.Logf("log of %s (%s):\n%s", name, cfg.ServerID, n.log)
		}
	})
	return n
}

func (n *testNode) stop(t *testing.T) {
	if n.closed {
		return
	}
	n.closed = true
	if err := n.Close(); err != nil {
		t.Errorf("close %s: %v", n.cfg.Name, err)
	}
	n.http.Close()
}

// crash ends a node without a farewell.
func (n *testNode) crash(t *testing.T) {
	n.closed = true
	n.cancel()
	if err := n.gossip.ml.Shutdown(); err != nil {
		t.Error(err)
	}
	n.wg.Wait()
	n.form.wait()
	n.recon.wait()
	n.http.Close()
}

func (n *testNode) id() string { return n.cfg.ServerID }

func joining(nodes ...*testNode) func(*Config) {
	return func(c *Config) {
		for _, n := range nodes {
			c.Join = append(c.Join, n.GossipAddr())
		}
	}
}

// eventually polls until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(15 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

// throughout polls for d that cond holds all the time.
func throughout(t *testing.T, d time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if !cond() {
			t.Fatalf("not all the time: %s", what)
		}
		select {
		case <-deadline.C:
			return
		case <-tick.C:
		}
	}
}

// form starts n founders, n1 to nN, and waits for their cluster.
func form(t *testing.T, r *fakeRaft, n int) []*testNode {
	t.Helper()
	var nodes []*testNode
	for i := range n {
		nodes = append(nodes, startNode(t, r, fmt.Sprintf("n%d", i+1), func(c *Config) {
			c.BootstrapExpect = n
			joining(nodes...)(c)
		}))
	}
	eventually(t, "all founders are ready and recorded", func() bool {
		for _, x := range nodes {
			// Started: its own bootstrap is behind it.
			if !x.Ready()[0].OK || !x.cfg.State.Started() {
				return false
			}
			if rec, ok := x.fake.Record(x.id()); !ok || rec.ID != x.cfg.Name {
				return false
			}
		}
		return true
	})
	return nodes
}

func leaderOf(t *testing.T, nodes []*testNode) *testNode {
	t.Helper()
	for _, n := range nodes {
		if n.IsLeader() {
			return n
		}
	}
	t.Fatal("nobody leads")
	return nil
}

// follower returns one that does not lead.
func follower(t *testing.T, nodes []*testNode) *testNode {
	t.Helper()
	for _, n := range nodes {
		if !n.IsLeader() {
			return n
		}
	}
	t.Fatal("everybody leads")
	return nil
}

func isVoter(r *fakeRaft, id string) bool {
	s, ok := r.row(id)
	return ok && s.Voter
}

func detailHas(n *testNode, ok bool, text string) bool {
	c := n.Ready()[0]
	return c.OK == ok && strings.Contains(c.Detail, text)
}
