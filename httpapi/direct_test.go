package httpapi

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// scriptedLeader answers requests on keep-alive connections: after writes what follows
// each answer on its connection, and says whether the connection then closes.
func scriptedLeader(t *testing.T, after func(c net.Conn) (closes bool)) (addr string, conns, requests *atomic.Int32) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conns, requests = new(atomic.Int32), new(atomic.Int32)
	var mu sync.Mutex
	var open []net.Conn
	var wg sync.WaitGroup
	serve := func(c net.Conn) {
		defer func() { _ = c.Close() }()
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			requests.Add(1)
			if _, err := io.WriteString(c, "HTTP/1.1 204 No Content\r\nSett-Served-By: n2\r\n\r\n"); err != nil {
				return
			}
			if after(c) {
				return
			}
		}
	}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() { serve(c) })
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		mu.Lock()
		for _, c := range open {
			_ = c.Close() // may be closed already
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String(), conns, requests
}

func TestForwardsShareConnections(t *testing.T) {
	p := newPair(t)
	addr, conns, requests := scriptedLeader(t, func(net.Conn) bool { return false })
	p.asked.cluster.lead("n2", addr)
	const writes = 20
	for range writes {
		if w := p.asked.do(t, "PUT", "/v1/kv/a", "v"); w.Code != http.StatusNoContent {
			t.Fatalf("status %d", w.Code)
		}
	}
	if requests.Load() != writes || conns.Load() != 1 {
		t.Errorf("%d requests on %d connections", requests.Load(), conns.Load())
	}
	p.asked.srv.forward.close()
	if got := len(p.asked.srv.forward.direct.slots); got != 0 {
		t.Errorf("%d connections are still in use", got)
	}
	pr := wantProblem(t, p.asked.do(t, "PUT", "/v1/kv/a?timeout=20ms", "v"), 503, "no-leader")
	if pr.Outcome != "not-applied" {
		t.Errorf("outcome %q after the close", pr.Outcome)
	}
}

// A connection that the leader has closed while it was idle, as at its restart, must
// not make the next write's outcome unknown.
func TestIdleConnectionClosedByLeader(t *testing.T) {
	p := newPair(t)
	addr, conns, requests := scriptedLeader(t, func(net.Conn) bool { return true })
	p.asked.cluster.lead("n2", addr)
	idle := func() *directConn {
		d := p.asked.srv.forward.direct
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.idle) == 0 {
			return nil
		}
		return d.idle[0]
	}
	const writes = 10
	for i := range writes {
		if i > 0 {
			c := idle()
			if c == nil {
				t.Fatal("no connection was kept")
			}
			eventually(t, "the end of the connection arrives", func() bool { return !silent(c.Conn) })
		}
		if w := p.asked.do(t, "PUT", "/v1/kv/a", "v"); w.Code != http.StatusNoContent {
			t.Fatalf("write %d: status %d, %s", i, w.Code, w.Body)
		}
	}
	if requests.Load() != writes || conns.Load() != writes {
		t.Errorf("%d requests on %d connections", requests.Load(), conns.Load())
	}
}

// Bytes that nobody asked for must not be taken for the next request's answer.
func TestUnaskedBytesEndTheConnection(t *testing.T) {
	p := newPair(t)
	var first atomic.Bool
	first.Store(true)
	addr, conns, _ := scriptedLeader(t, func(c net.Conn) bool {
		if first.Swap(false) {
			if _, err := io.WriteString(c, "HTTP/1.1 201 Created\r\nSett-Served-By: n2\r\nContent-Length: 0\r\n\r\n"); err != nil {
				t.Error(err)
			}
		}
		return false
	})
	p.asked.cluster.lead("n2", addr)
	if w := p.asked.do(t, "PUT", "/v1/kv/a", "v"); w.Code != http.StatusNoContent {
		t.Fatalf("status %d", w.Code)
	}
	d := p.asked.srv.forward.direct
	eventually(t, "the unasked bytes arrive", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.idle) == 1 && (d.idle[0].r.Buffered() > 0 || !silent(d.idle[0].Conn))
	})
	for range 3 {
		if w := p.asked.do(t, "PUT", "/v1/kv/a", "v"); w.Code != http.StatusNoContent {
			t.Errorf("status %d: the answer to nothing was taken", w.Code)
		}
	}
	if conns.Load() != 2 {
		t.Errorf("%d connections", conns.Load())
	}
}

// A request that ends early takes its connection with it, and its slot comes back.
func TestAbandonedForward(t *testing.T) {
	p := newPair(t)
	addr, requests := faultyLeader(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	p.asked.cluster.lead("n2", addr)
	var wg sync.WaitGroup
	const writes = 8
	for range writes {
		wg.Go(func() { wantProblem(t, p.asked.do(t, "PUT", "/v1/kv/a?timeout=50ms", "v"), 504, "outcome-unknown") })
	}
	wg.Wait()
	d := p.asked.srv.forward.direct
	d.mu.Lock()
	kept := len(d.idle)
	d.mu.Unlock()
	if kept != 0 || len(d.slots) != 0 || requests.Load() != writes {
		t.Errorf("%d connections kept, %d in use, %d requests", kept, len(d.slots), requests.Load())
	}
}

// Long answers come whole through either way, and a connection is used again after one
// that was read to its end.
func TestForwardedBodies(t *testing.T) {
	p := newPair(t)
	for _, size := range []int{0, 1, relayBufferBytes - 1, relayBufferBytes, relayBufferBytes + 1, 700_000} {
		value := strings.Repeat("v", size)
		if w := p.asked.do(t, "PUT", "/v1/kv/a", value); w.Code >= 300 {
			t.Fatalf("%d bytes: status %d", size, w.Code)
		}
		w := p.asked.do(t, "GET", "/v1/kv/a?consistency=leader", "")
		if w.Code != http.StatusOK || w.Body.String() != value {
			t.Errorf("%d bytes: status %d with %d bytes", size, w.Code, w.Body.Len())
		}
	}
	if got := len(p.asked.srv.forward.direct.slots); got != 0 {
		t.Errorf("%d connections are still in use", got)
	}
}
