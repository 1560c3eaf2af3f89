package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/settkv/sett/kv"
)

// fakeCluster is a membership that a test steers.
type fakeCluster struct {
	self, id string

	mu      sync.Mutex
	leader  string
	addr    string
	changed chan struct{}
	members []kv.Member
	calls   []string
	err     error // of the next operations
	infoErr error
}

func newFakeCluster(self string) *fakeCluster {
	return &fakeCluster{self: self, id: "c-1", changed: make(chan struct{})}
}

// lead sets who leads; "" is nobody.
func (f *fakeCluster) lead(id, addr string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leader, f.addr = id, addr
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeCluster) Self() string      { return f.self }
func (f *fakeCluster) ClusterID() string { return f.id }

func (f *fakeCluster) Leader() (string, string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leader, f.addr, f.leader != ""
}

func (f *fakeCluster) IsLeader() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leader == f.self
}

func (f *fakeCluster) LeaderChanged() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *fakeCluster) Info(context.Context) (kv.ClusterInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return kv.ClusterInfo{
		ID: f.id, Name: "sett", Leader: f.leader, Term: 3, Members: f.members,
		Settings: kv.ClusterSettings{HistoryRetention: 90 * time.Minute, MaxKeyBytes: 64, MaxValueBytes: 1 << 20, MaxRequestBytes: 2 << 20},
	}, f.infoErr
}

func (f *fakeCluster) HasMember(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.members, func(m kv.Member) bool { return m.ID == id || m.ServerID == id })
}

// fails sets the error of the next operations.
func (f *fakeCluster) fails(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeCluster) callCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

func (f *fakeCluster) call(what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, what)
	return f.err
}

func (f *fakeCluster) AddMember(_ context.Context, m kv.MemberSpec) (kv.Member, error) {
	if err := f.call("add " + m.ID + " " + strconv.FormatBool(m.Voter)); err != nil {
		return kv.Member{}, err
	}
	member := kv.Member{ID: m.ID, RaftAddr: m.RaftAddr, HTTPAddr: m.HTTPAddr, Voter: m.Voter}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, have := range f.members {
		if have.ID == m.ID {
			return have, nil
		}
	}
	f.members = append(f.members, member)
	return member, nil
}

func (f *fakeCluster) RemoveMember(_ context.Context, id string, force bool) error {
	return f.call("remove " + id + " " + strconv.FormatBool(force))
}

func (f *fakeCluster) Promote(_ context.Context, id string) (kv.Member, error) {
	return kv.Member{ID: id, Voter: true}, f.call("promote " + id)
}

func (f *fakeCluster) Demote(_ context.Context, id string, force bool) (kv.Member, error) {
	return kv.Member{ID: id}, f.call("demote " + id + " " + strconv.FormatBool(force))
}

func (f *fakeCluster) Transfer(_ context.Context, to string) (string, error) {
	if err := f.call("transfer " + to); err != nil {
		return "", err
	}
	if to == "" {
		to = "n2"
	}
	return to, nil
}

type fakeHealth struct {
	mu     sync.Mutex
	live   error
	checks []kv.Check
	panics bool
	err    error // of Status
}

func (f *fakeHealth) Status(context.Context) (kv.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.panics {
		panic("a bug with a secret in it")
	}
	return kv.Status{ID: "n1", Role: kv.RoleLeader, Revision: 5}, f.err
}

func (f *fakeHealth) Live() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live
}

func (f *fakeHealth) Ready() []kv.Check {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.checks
}

// fixture is a server with its fakes. The node n1 leads itself.
type fixture struct {
	store   *fakeStore
	cluster *fakeCluster
	health  *fakeHealth
	srv     *Server
}

func newFixture(t testing.TB, change ...func(*Config)) *fixture {
	t.Helper()
	f := &fixture{store: newFakeStore(), cluster: newFakeCluster("n1"), health: &fakeHealth{checks: []kv.Check{{Name: "raft", OK: true}}}}
	f.cluster.lead("n1", "")
	cfg := Config{Store: f.store, Cluster: f.cluster, Health: f.health, Version: "test"}
	for _, c := range change {
		c(&cfg)
	}
	f.srv = New(cfg)
	t.Cleanup(func() {
		if err := f.srv.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return f
}

// listen serves the fixture on a loopback port and returns host:port.
func (f *fixture) listen(t testing.TB) string {
	t.Helper()
	l := httptest.NewUnstartedServer(nil).Listener
	go func() {
		if err := f.srv.Serve(l); err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	return l.Addr().String()
}

// do asks the handler directly. Headers are "Name: value" lines.
func (f *fixture) do(t testing.TB, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	r := httptest.NewRequest(method, target, rd)
	addHeaders(t, r, headers)
	w := httptest.NewRecorder()
	f.srv.Handler().ServeHTTP(w, r)
	return w
}

func addHeaders(t testing.TB, r *http.Request, headers []string) {
	t.Helper()
	for _, h := range headers {
		name, value, ok := strings.Cut(h, ": ")
		if !ok {
			t.Fatalf("bad header line %q", h)
		}
		r.Header.Add(name, value)
	}
}

// wantProblem checks that the answer is a whole problem of that status and code.
func wantProblem(t testing.TB, w *httptest.ResponseRecorder, status int, code kv.Code) problem {
	t.Helper()
	if w.Code != status {
		t.Fatalf("status %d, want %d; body %s", w.Code, status, w.Body)
	}
	return parseProblem(t, w.Header(), w.Body.Bytes(), status, code)
}

func parseProblem(t testing.TB, h http.Header, body []byte, status int, code kv.Code) problem {
	t.Helper()
	if got := h.Get("Content-Type"); got != "application/problem+json" {
		t.Fatalf("content type %q; body %s", got, body)
	}
	var p problem
	if err := json.Unmarshal(body, &p); err != nil {
		t.Fatalf("problem %q: %v", body, err)
	}
	if p.Code != code || p.Status != status || p.Title == "" || p.Detail == "" || p.RequestID == "" || p.Type != "urn:sett:problem:"+string(code) {
		t.Fatalf("problem %+v, want code %s and status %d and every member", p, code, status)
	}
	if p.RequestID != h.Get(headerRequestID) {
		t.Fatalf("request id %q in the body, %q in the header", p.RequestID, h.Get(headerRequestID))
	}
	if status == 429 || status == 503 {
		if n, err := strconv.Atoi(h.Get("Retry-After")); err != nil || n < 1 {
			t.Fatalf("Retry-After %q", h.Get("Retry-After"))
		}
	}
	return p
}

// eventually polls cond until it holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("never: %s", what)
		}
	}
}

var errGoOn = errors.New("go on")

var errSecret = errors.New("secret internal detail")

func newTestRegistry() *prometheus.Registry { return prometheus.NewRegistry() }
