package httpapi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

// pair is two nodes: n1 is asked, n2 leads.
type pair struct {
	asked, leader *fixture
	addr          string // of the leader
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{asked: newFixture(t), leader: newFixture(t)}
	p.leader.cluster.self = "n2"
	p.leader.cluster.lead("n2", "")
	p.addr = p.leader.listen(t)
	p.asked.cluster.lead("n2", p.addr)
	p.asked.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) {
		t.Error("the follower proposed")
		return kv.TxnResult{}, kv.NotApplied(kv.CodeNoLeader, "not the leader")
	}
	return p
}

func TestForwardWrites(t *testing.T) {
	p := newPair(t)
	key := "/v1/kv/a%2F%2Fb/..%00%ff/"
	p.leader.store.settings.MaxValueBytes = 4 << 20
	p.asked.store.settings.MaxValueBytes = 4 << 20
	big := strings.Repeat("\x00x", 1<<20)
	runSteps(t, p.asked, []step{
		{req: "PUT " + key + "?ttl=10s", body: "one", headers: []string{"Content-Type: text/x", "Sett-Request-Id: r-1"}, status: 201, want: body(""), has: map[string]string{
			"ETag": `"1"`, "Sett-Node": "n1", "Sett-Served-By": "n2", "Sett-Leader": "n2", "Sett-Revision": "1", "Sett-Request-Id": "r-1",
		}},
		{req: "PUT " + key, body: big, headers: []string{`If-Match: "1"`}, status: 204, has: map[string]string{"ETag": `"2"`}},
		{req: "PUT " + key, body: "x", headers: []string{`If-Match: "1"`}, status: 412, code: kv.CodePreconditionFailed, current: 3, has: map[string]string{"Sett-Node": "n1", "Sett-Served-By": "n2", "Sett-Revision": "2"}},
		{req: "GET " + key + "?consistency=leader", status: 200, want: &big, has: map[string]string{"Sett-Served-By": "n2", "Sett-Node": "n1", "ETag": `"2"`}},
		{req: "HEAD " + key + "?consistency=leader", status: 200, want: body(""), has: map[string]string{"Content-Length": "2097152"}},
		{req: "GET " + key + "?consistency=leader", headers: []string{"Range: bytes=1-1"}, status: 206, want: body("x")},
		{req: "GET " + key + "?consistency=leader", headers: []string{`If-None-Match: "2"`}, status: 304},
		{req: "GET /v1/kv/none?consistency=leader", status: 404, code: kv.CodeNotFound, has: map[string]string{"Sett-Served-By": "n2"}},
		{req: "GET " + key, status: 404, code: kv.CodeNotFound, has: map[string]string{"Sett-Served-By": "n1", "Sett-Leader": "n2"}}, // linearizable reads are n1's own
		{req: "GET " + key + "?consistency=stale", status: 404, code: kv.CodeNotFound, has: map[string]string{"Sett-Served-By": "n1"}},
		{req: "DELETE " + key, status: 204},
		{req: "POST /v1/kv?key=n%2B+1&op=incr", status: 200, want: body("1")},
		{req: "POST /v1/kv?key=n%2B+1&op=incr&by=4&previous=1", status: 200},
	})
	if got := p.leader.store.txns[0].Then[0]; got.Key != "a//b/..\x00\xff/" || got.ContentType != "text/x" || got.TTL != 10*time.Second {
		t.Errorf("the leader got %+v", got)
	}
	if !p.leader.store.has("n+ 1") {
		t.Errorf("the leader has %v", p.leader.store.hist)
	}
	timing := p.asked.do(t, "PUT", "/v1/kv/t?timing=1", "v").Header().Values("Server-Timing")
	if len(timing) != 1 || !strings.Contains(timing[0], "replicate;dur=0.020, apply;dur=0.010") || strings.HasPrefix(timing[0], "forward;dur=0.000") {
		t.Errorf("Server-Timing %q", timing)
	}
}

func TestForwardAdmin(t *testing.T) {
	p := newPair(t)
	runSteps(t, p.asked, []step{
		{req: "POST /v1/cluster/members", body: `{"id":"n4","raft_addr":"h:1","http_addr":"h:2"}`, status: 201, has: map[string]string{"Sett-Served-By": "n2"}},
		{req: "POST /v1/cluster/members", body: `{"id":"n4","raft_addr":"h:1","http_addr":"h:2"}`, status: 200},
		{req: "DELETE /v1/cluster/members/n%2F4?force=1", status: 204},
		{req: "POST /v1/cluster/members/n4/promote", status: 200},
		{req: "POST /v1/cluster/members/n4/demote?force=1", status: 200},
		{req: "POST /v1/cluster/transfer", status: 200, want: body(`{"leader":"n2"}` + "\n")},
		{req: "PUT /v1/cluster/settings", body: `{"max_key_bytes":99}`, status: 200},
		{req: "GET /v1/cluster", status: 200, has: map[string]string{"Sett-Served-By": "n1"}},
		{req: "POST /v1/snapshot", status: 200, has: map[string]string{"Sett-Served-By": "n1"}},
	})
	want := "add n4 true,add n4 true,remove n/4 true,promote n4,demote n4 true,transfer "
	if got := strings.Join(p.leader.cluster.calls, ","); got != want {
		t.Errorf("leader did %q", got)
	}
	if len(p.asked.cluster.calls) != 0 || p.leader.store.settings.MaxKeyBytes != 99 || p.asked.store.settings.MaxKeyBytes == 99 {
		t.Errorf("the asked node did %v", p.asked.cluster.calls)
	}
}

func TestRedirect(t *testing.T) {
	p := newPair(t)
	for _, req := range []string{
		"PUT /v1/kv/a%2Fb//../%ff?ttl=5s&redirect=1", "POST /v1/kv?key=a+b&op=incr&redirect=1", "DELETE /v1/kv/a?redirect=1",
		"GET /v1/kv/a?consistency=leader&redirect=1", "POST /v1/cluster/transfer?redirect=1", "DELETE /v1/cluster/members/n3?redirect=1&force=1",
		"POST /v1/cluster/members?redirect=1", "PUT /v1/cluster/settings?redirect=1",
	} {
		method, target, _ := strings.Cut(req, " ")
		w := p.asked.do(t, method, target, "")
		if w.Code != 307 || w.Header().Get("Location") != "http://"+p.addr+target || w.Header().Get(headerServedBy) != "n1" {
			t.Errorf("%s: %d to %q", req, w.Code, w.Header().Get("Location"))
		}
	}
	// The body is not read, and the leader and local reads don't redirect.
	read := &countingReader{r: strings.NewReader("xyz")}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPut, "/v1/kv/a?redirect=1", read)
	r.ContentLength = 3
	p.asked.srv.Handler().ServeHTTP(w, r)
	if w.Code != 307 || read.n != 0 {
		t.Errorf("%d after %d bytes", w.Code, read.n)
	}
	if w := p.leader.do(t, "PUT", "/v1/kv/a?redirect=1", "v"); w.Code != 201 {
		t.Errorf("on the leader: %d", w.Code)
	}
	if w := p.asked.do(t, "GET", "/v1/kv/a?redirect=1", ""); w.Code != 404 || w.Header().Get(headerServedBy) != "n1" {
		t.Errorf("linearizable read: %d", w.Code)
	}
}

// Invariant 25: a forwarded request is not forwarded again, nor does it wait.
func TestForwardedIsNotForwardedAgain(t *testing.T) {
	p := newPair(t) // n1 would forward to n2
	for _, req := range []string{"PUT /v1/kv/a", "GET /v1/kv/a?consistency=leader", "POST /v1/cluster/transfer", "PUT /v1/kv/a?redirect=1"} {
		method, target, _ := strings.Cut(req, " ")
		w := p.asked.do(t, method, target, "", "Sett-Forwarded: n3", "Sett-Cluster-Id: c-1")
		pr := wantProblem(t, w, 503, kv.CodeNoLeader)
		if want := map[bool]kv.Outcome{true: kv.OutcomeNotApplied}[method != "GET"]; pr.Outcome != want {
			t.Errorf("%s: outcome %q", req, pr.Outcome)
		}
	}
	if p.leader.store.txnCount() != 0 || len(p.leader.store.reads) != 0 {
		t.Error("it was forwarded")
	}
}

// Invariant 28: strangers are refused.
func TestForwardOfAnotherCluster(t *testing.T) {
	f := newFixture(t)
	for _, headers := range [][]string{{"Sett-Forwarded: x"}, {"Sett-Forwarded: x", "Sett-Cluster-Id: c-2"}} {
		wantProblem(t, f.do(t, "PUT", "/v1/kv/a", "v", headers...), 403, kv.CodeForbidden)
		wantProblem(t, f.do(t, "GET", "/v1/kv/a", "", headers...), 403, kv.CodeForbidden)
	}
	f.cluster.id = ""
	wantProblem(t, f.do(t, "PUT", "/v1/kv/a", "v", "Sett-Forwarded: x", "Sett-Cluster-Id: "), 503, kv.CodeNotReady)
	if f.store.txnCount() != 0 {
		t.Error("a stranger wrote")
	}
	p := newPair(t)
	p.asked.cluster.id = "c-2"
	wantProblem(t, p.asked.do(t, "PUT", "/v1/kv/a", "v"), 403, kv.CodeForbidden)
}

func TestWaitForLeader(t *testing.T) {
	p := newPair(t)
	for _, req := range []string{"PUT /v1/kv/a", "GET /v1/kv/a?consistency=leader", "PUT /v1/kv/b?redirect=1", "POST /v1/cluster/transfer"} {
		method, target, _ := strings.Cut(req, " ")
		p.asked.cluster.lead("", "")
		done := make(chan int)
		go func() { done <- p.asked.do(t, method, target, "").Code }()
		select {
		case code := <-done:
			t.Fatalf("%s: %d without a leader", req, code)
		case <-time.After(30 * time.Millisecond):
		}
		p.asked.cluster.lead("n2", p.addr)
		if code := <-done; code >= 400 {
			t.Errorf("%s: %d", req, code)
		}
	}
	// This node itself wins.
	p.asked.cluster.lead("", "")
	p.asked.store.onTxn = nil
	done := make(chan int)
	go func() { done <- p.asked.do(t, "PUT", "/v1/kv/mine", "v").Code }()
	p.asked.cluster.lead("n1", "")
	if code := <-done; code != 201 {
		t.Errorf("as the leader: %d", code)
	}
	// Nobody does.
	p.asked.cluster.lead("", "")
	start := time.Now()
	w := p.asked.do(t, "PUT", "/v1/kv/a?timeout=50ms", "v")
	pr := wantProblem(t, w, 503, kv.CodeNoLeader)
	if pr.Outcome != kv.OutcomeNotApplied || time.Since(start) > 5*time.Second {
		t.Errorf("outcome %q after %v", pr.Outcome, time.Since(start))
	}
	wantProblem(t, p.asked.do(t, "GET", "/v1/kv/a?timeout=50ms&consistency=leader", ""), 503, kv.CodeNoLeader)
	wantProblem(t, p.asked.do(t, "PUT", "/v1/kv/a?timeout=50ms&redirect=1", "v"), 503, kv.CodeNoLeader)
}

// A leader that isn't ready, or not the leader any more, or not there, is asked again.
func TestRetryWhatWasNotApplied(t *testing.T) {
	p := newPair(t)
	var tries atomic.Int32
	p.leader.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) {
		switch tries.Add(1) {
		case 1:
			return kv.TxnResult{}, kv.NotApplied(kv.CodeNoLeader, "stepping down")
		case 2:
			return kv.TxnResult{}, kv.NotApplied(kv.CodeNotReady, "not ready in this term")
		}
		return kv.TxnResult{}, errGoOn
	}
	if w := p.asked.do(t, "PUT", "/v1/kv/a", "v"); w.Code != 201 || tries.Load() != 3 {
		t.Errorf("%d after %d tries", w.Code, tries.Load())
	}
	tries.Store(0)
	if w := p.leader.do(t, "PUT", "/v1/kv/b", "v"); w.Code != 201 || tries.Load() != 3 {
		t.Errorf("on the leader: %d after %d tries", w.Code, tries.Load())
	}
	// A dead address, until the leader is known by its new one.
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	p.asked.cluster.lead("n2", dead)
	done := make(chan int)
	go func() { done <- p.asked.do(t, "PUT", "/v1/kv/c", "v").Code }()
	<-time.After(20 * time.Millisecond)
	p.asked.cluster.lead("n2", p.addr)
	if code := <-done; code != 201 {
		t.Errorf("after a dead address: %d", code)
	}
	p.asked.cluster.lead("n2", dead)
	pr := wantProblem(t, p.asked.do(t, "PUT", "/v1/kv/d?timeout=50ms", "v"), 503, kv.CodeNoLeader)
	if pr.Outcome != kv.OutcomeNotApplied {
		t.Errorf("outcome %q", pr.Outcome)
	}
}

// faultyLeader accepts connections and does to each what fault says.
func faultyLeader(t *testing.T, fault func(net.Conn)) (addr string, requests *atomic.Int32) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	requests = new(atomic.Int32)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				buf := make([]byte, 64<<10)
				if _, err := c.Read(buf); err != nil {
					return
				}
				requests.Add(1)
				fault(c)
			})
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	return l.Addr().String(), requests
}

// Invariants 24 and 25: a write whose answer is lost is of unknown outcome and is not
// sent again.
func TestLostAnswerIsUnknown(t *testing.T) {
	hang := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	for name, fault := range map[string]func(net.Conn){
		"reset":       func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) },
		"closed":      func(net.Conn) {},
		"silent":      hang,
		"half a head": func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 204 No") },
		"half a small body": func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nSett-Served-By: n2\r\nContent-Length: 10\r\n\r\nabc")
		},
		"a proxy's answer": func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		},
		"somebody else's 200": func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			addr, requests := faultyLeader(t, fault)
			p.asked.cluster.lead("n2", addr)
			for i, req := range []string{"PUT /v1/kv/a?timeout=200ms", "DELETE /v1/kv/a?timeout=200ms", "POST /v1/kv/a?op=incr&timeout=200ms", "POST /v1/cluster/transfer?timeout=200ms"} {
				method, target, _ := strings.Cut(req, " ")
				pr := wantProblem(t, p.asked.do(t, method, target, ""), 504, kv.CodeOutcomeUnknown)
				if pr.Outcome != kv.OutcomeUnknown || int(requests.Load()) != i+1 {
					t.Errorf("%s: outcome %q, the leader was asked %d times in all, want %d", req, pr.Outcome, requests.Load(), i+1)
				}
			}
		})
	}
}

// The same for a read: it is asked again, until its time is over.
func TestLostReadIsRetried(t *testing.T) {
	p := newPair(t)
	addr, requests := faultyLeader(t, func(net.Conn) {})
	p.asked.cluster.lead("n2", addr)
	done := make(chan int)
	go func() { done <- p.asked.do(t, "GET", "/v1/kv/a?consistency=leader", "").Code }()
	eventually(t, "two attempts", func() bool { return requests.Load() >= 2 })
	p.asked.cluster.lead("n2", p.addr)
	if code := <-done; code != 404 {
		t.Errorf("status %d", code)
	}
	addr, _ = faultyLeader(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	p.asked.cluster.lead("n2", addr)
	wantProblem(t, p.asked.do(t, "GET", "/v1/kv/a?consistency=leader&timeout=50ms", ""), 504, kv.CodeTimeout)
}

// A refusal that never read the request is no unknown outcome.
func TestConnectionLimitIsNotApplied(t *testing.T) {
	p := newPair(t)
	addr, _ := faultyLeader(t, func(c net.Conn) {
		l := newLimitListener(nil, 0, nil, nil)
		l.refusing.Add(1)
		l.refuse(c)
	})
	p.asked.cluster.lead("n2", addr)
	pr := wantProblem(t, p.asked.do(t, "PUT", "/v1/kv/a?timeout=100ms", "v"), 503, kv.CodeNotReady)
	if pr.Outcome != kv.OutcomeNotApplied {
		t.Errorf("outcome %q", pr.Outcome)
	}
}

// A long answer that breaks off half-way breaks off here, too.
func TestBrokenRelay(t *testing.T) {
	p := newPair(t)
	addr, _ := faultyLeader(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nSett-Served-By: n2\r\nContent-Length: 1000000\r\n\r\n"+strings.Repeat("x", 500000))
	})
	p.asked.cluster.lead("n2", addr)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.asked.listen(t)+"/v1/kv/a?consistency=leader", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return // broken off before the head was out: as good
	}
	defer func() { _ = resp.Body.Close() }()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%d bytes passed for the whole", len(b))
	}
}

// The timeout of the request bounds the leader's work, and the leader's own answer
// comes in time.
func TestTimeoutTravels(t *testing.T) {
	p := newPair(t)
	p.leader.store.onTxn = func(ctx context.Context, _ kv.Txn) (kv.TxnResult, error) {
		d, ok := ctx.Deadline()
		if !ok || time.Until(d) > 300*time.Millisecond {
			t.Errorf("deadline in %v", time.Until(d))
		}
		<-ctx.Done()
		return kv.TxnResult{}, kv.NotApplied(kv.CodeTimeout, "still in the queue")
	}
	pr := wantProblem(t, p.asked.do(t, "PUT", "/v1/kv/a?timeout=300ms", "v"), 504, kv.CodeTimeout)
	if pr.Outcome != kv.OutcomeNotApplied {
		t.Errorf("outcome %q", pr.Outcome)
	}
}

// A linearizable read that finds no leader waits for one; a stale one doesn't.
func TestReadsWaitForLeader(t *testing.T) {
	f := newFixture(t)
	var tries atomic.Int32
	f.store.onGet = func(_ context.Context, _ string, _ kv.ReadOptions) (kv.Item, kv.Revision, error) {
		if tries.Add(1) < 3 {
			return kv.Item{}, 0, kv.Errorf(kv.CodeNoLeader, "none")
		}
		return kv.Item{Key: "a", ModRevision: 1, Value: []byte("v")}, 1, nil
	}
	if w := f.do(t, "GET", "/v1/kv/a", ""); w.Code != 200 || tries.Load() != 3 {
		t.Errorf("%d after %d", w.Code, tries.Load())
	}
	tries.Store(0)
	f.store.onGet = func(_ context.Context, _ string, _ kv.ReadOptions) (kv.Item, kv.Revision, error) {
		tries.Add(1)
		return kv.Item{}, 0, kv.Errorf(kv.CodeNotReady, "behind")
	}
	wantProblem(t, f.do(t, "GET", "/v1/kv/a?consistency=stale", ""), 503, kv.CodeNotReady)
	if tries.Load() != 1 {
		t.Errorf("a stale read was tried %d times", tries.Load())
	}
	wantProblem(t, f.do(t, "GET", "/v1/kv/a?timeout=50ms", ""), 503, kv.CodeNotReady)
}

func TestDrainEndsTheWait(t *testing.T) {
	f := newFixture(t)
	f.cluster.lead("", "")
	done := make(chan *httptest.ResponseRecorder)
	go func() { done <- f.do(t, "PUT", "/v1/kv/a?timeout=1m", "v") }()
	f.srv.Drain()
	wantProblem(t, <-done, 503, kv.CodeNoLeader)
}

func TestLeaderAddresses(t *testing.T) {
	from := httptest.NewRequest(http.MethodGet, "/v1/kv/a%2f?x=1", nil).URL
	from.RawQuery = "key=a b\"\xff"
	for addr, want := range map[string]string{
		"h:1": "http://h:1/v1/kv/a%2f?key=a%20b%22%FF", "https://h:1": "https://h:1/v1/kv/a%2f?key=a%20b%22%FF", "[::1]:80": "http://[::1]:80/v1/kv/a%2f?key=a%20b%22%FF",
		"": "", "http://": "", "a b": "",
	} {
		u, err := leaderURL(addr, from)
		if want == "" {
			if !errors.Is(err, kv.ErrNoLeader) {
				t.Errorf("%q: %v %v", addr, u, err)
			}
			continue
		}
		if err != nil || u.String() != want {
			t.Errorf("%q: %v %v", addr, u, err)
		}
	}
}

// A write that hangs at a leader that is frozen, or cut off, ends soon after another
// one leads, though its own timeout is far away.
func TestForwardToDeposedLeaderEnds(t *testing.T) {
	p := newPair(t)
	stop := make(chan struct{})
	var watching sync.WaitGroup
	addr, requests := faultyLeader(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	p.asked.cluster.lead("n2", addr)
	watching.Go(func() { p.asked.srv.tenures.watch(p.asked.cluster, stop) })
	defer watching.Wait()
	defer close(stop)
	eventually(t, "the tenure is known", func() bool { return p.asked.srv.tenures.of(addr) != nil })
	done := make(chan *httptest.ResponseRecorder)
	start := time.Now()
	go func() { done <- p.asked.do(t, "PUT", "/v1/kv/a?timeout=60s", "v") }()
	eventually(t, "the leader was asked", func() bool { return requests.Load() == 1 })
	p.asked.cluster.lead("n3", p.addr)
	pr := wantProblem(t, <-done, 504, kv.CodeOutcomeUnknown)
	if pr.Outcome != kv.OutcomeUnknown || time.Since(start) > 30*time.Second {
		t.Errorf("outcome %q after %v", pr.Outcome, time.Since(start))
	}
}
