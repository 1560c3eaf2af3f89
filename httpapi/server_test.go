package httpapi

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

func TestProbes(t *testing.T) {
	f := newFixture(t)
	f.health.checks = []kv.Check{{Name: "raft", OK: true}, {Name: "disk", OK: true, Detail: "12 GiB free"}}
	for _, target := range []string{"/livez", "/readyz", "/healthz"} {
		runSteps(t, f, []step{{req: "GET " + target, status: 200, want: body("ok\n")}, {req: "HEAD " + target, status: 200, want: body("")}})
	}
	runSteps(t, f, []step{
		{req: "GET /readyz?verbose", status: 200, want: body("[+]raft ok\n[+]disk ok: 12 GiB free\n")},
		{req: "GET /livez?verbose=1", status: 200, want: body("[+]live ok\n")},
		{req: "GET /healthz?verbose=1", status: 200, want: body("[+]live ok\n[+]raft ok\n[+]disk ok: 12 GiB free\n")},
	})
	f.health.checks[0] = kv.Check{Name: "raft", Detail: "no leader for 12s; start a majority of the voters"}
	w := f.do(t, "GET", "/readyz", "")
	if p := wantProblem(t, w, 503, kv.CodeNotReady); p.Detail != "raft: no leader for 12s; start a majority of the voters" {
		t.Errorf("detail %q", p.Detail)
	}
	wantProblem(t, f.do(t, "GET", "/healthz", ""), 503, kv.CodeNotReady)
	runSteps(t, f, []step{
		{req: "GET /livez", status: 200},
		{req: "GET /readyz?verbose", status: 503, want: body("[-]raft failed: no leader for 12s; start a majority of the voters\n[+]disk ok: 12 GiB free\n")},
	})
	f.health.live = errors.New("the log's disk has hung for 30s")
	wantProblem(t, f.do(t, "GET", "/livez", ""), 503, kv.CodeNotReady)
}

func TestMetricsPage(t *testing.T) {
	f := newFixture(t)
	f.do(t, "PUT", "/v1/kv/secret-key", "v")
	f.do(t, "GET", "/v1/kv/none", "")
	f.do(t, "BREW", "/x", "")
	w := f.do(t, "GET", "/metrics", "")
	for _, want := range []string{
		`sett_http_requests_total{method="PUT",route="key",status="2xx"} 1`,
		`sett_http_requests_total{method="GET",route="key",status="4xx"} 1`,
		`sett_http_requests_total{method="other",route="none",status="4xx"} 1`,
		`sett_http_request_seconds_count{method="PUT",route="key"} 1`,
		"sett_http_inflight_bytes 0",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s in\n%s", want, w.Body)
		}
	}
	if w.Code != 200 || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("status %d", w.Code)
	}
}

func TestPeerRoutes(t *testing.T) {
	f := newFixture(t, func(c *Config) {
		c.Peer = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
				return
			}
			_, _ = w.Write(append([]byte(r.URL.Path+" "), b...))
		})
	})
	runSteps(t, f, []step{
		{req: "POST /internal/v1/hello?x=1", body: "hi", status: 200, want: body("/internal/v1/hello hi")},
		{req: "GET /internal/", status: 200, want: body("/internal/ ")},
		{req: "GET /internal", status: 404, code: kv.CodeNotFound},
		{req: "POST /internal/v1/x", body: strings.Repeat("x", MaxPeerBodyBytes+1), status: 413},
	})
}

// HTTP/1.1 and HTTP/2 without TLS on one port.
func TestProtocols(t *testing.T) {
	f := newFixture(t)
	addr := f.listen(t)
	for _, h2 := range []bool{false, true} {
		var p http.Protocols
		p.SetHTTP1(!h2)
		p.SetUnencryptedHTTP2(h2)
		tr := &http.Transport{Protocols: &p}
		c := &http.Client{Transport: tr}
		do := func(method, target, body string) (*http.Response, string) {
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+target, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if err := resp.Body.Close(); err != nil {
				t.Fatal(err)
			}
			return resp, string(b)
		}
		value := strings.Repeat("v", 1<<20)
		resp, b := do("PUT", "/v1/kv/a%2F%2Fb", value)
		if resp.StatusCode/100 != 2 || resp.ProtoMajor != map[bool]int{true: 2, false: 1}[h2] {
			t.Fatalf("h2 %v: %d %s %s", h2, resp.StatusCode, resp.Proto, b)
		}
		if resp, b = do("GET", "/v1/kv/a//b", ""); resp.StatusCode != http.StatusOK || b != value {
			t.Errorf("h2 %v: %d, %d bytes", h2, resp.StatusCode, len(b))
		}
		if resp, b = do("PUT", "/v1/kv/a", value+"v"); resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("h2 %v: oversize: %d %s", h2, resp.StatusCode, b)
		}
		tr.CloseIdleConnections()
	}
}

func TestConnectionLimit(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.MaxConns = 2 })
	addr := f.listen(t)
	first, second := dial(t, addr), dial(t, addr)
	for _, c := range []net.Conn{first, second} { // both accepted
		send(t, c, "GET /livez HTTP/1.1\r\nHost: h\r\n\r\n")
		if resp, _ := answer(t, bufio.NewReader(c)); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.StatusCode)
		}
	}
	c := dial(t, addr)
	send(t, c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
	r := bufio.NewReader(c)
	resp, b := answer(t, r)
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(b, `"outcome":"not-applied"`) || !resp.Close || resp.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	wantClosed(t, r)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "room for another", func() bool {
		c := dial(t, addr)
		send(t, c, "GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		return err == nil && resp.StatusCode == http.StatusOK
	})
	if f.store.txnCount() != 0 {
		t.Error("the refused write was done")
	}
}

func TestShutdownFinishesWhatIsInFlight(t *testing.T) {
	f := newFixture(t)
	addr := f.listen(t)
	entered, release := make(chan struct{}), make(chan struct{})
	f.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) {
		close(entered)
		<-release
		return kv.TxnResult{}, errGoOn
	}
	c := dial(t, addr)
	send(t, c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
	<-entered
	down := make(chan error)
	go func() { down <- f.srv.Shutdown(t.Context()) }()
	eventually(t, "no new connections", func() bool {
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	select {
	case err := <-down:
		t.Fatalf("shut down under a request: %v", err)
	default:
	}
	close(release)
	r := bufio.NewReader(c)
	if resp, _ := answer(t, r); resp.StatusCode != http.StatusCreated || !resp.Close {
		t.Errorf("%d, close %v", resp.StatusCode, resp.Close)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
	if err := f.srv.Shutdown(t.Context()); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestShutdownDeadline(t *testing.T) {
	f := newFixture(t)
	addr := f.listen(t)
	entered := make(chan struct{})
	f.store.onTxn = func(ctx context.Context, _ kv.Txn) (kv.TxnResult, error) {
		close(entered)
		<-ctx.Done()
		return kv.TxnResult{}, ctx.Err()
	}
	c := dial(t, addr)
	send(t, c, "PUT /v1/kv/a?timeout=5m HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := f.srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
}
