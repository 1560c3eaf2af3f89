package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func send(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

// answer reads one response and its body.
func answer(t testing.TB, r *bufio.Reader) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
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

// wantClosed checks that the server ends the connection.
func wantClosed(t testing.TB, r *bufio.Reader) {
	t.Helper()
	if n, err := io.Copy(io.Discard, r); err != nil && strings.Contains(err.Error(), "i/o timeout") || n > 0 {
		t.Fatalf("the connection is still open: %d bytes, %v", n, err)
	}
}

// What is too big is refused on its headers: no byte of it is asked for, waited for
// or kept.
func TestOversizeIsRefusedUnread(t *testing.T) {
	f := newFixture(t)
	addr := f.listen(t)
	for _, h := range []string{"Content-Length: 2000000", "Content-Length: 9000000000000000000", "Content-Length: 2000000\r\nExpect: 100-continue"} {
		c := dial(t, addr)
		send(t, c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\n"+h+"\r\n\r\n")
		r := bufio.NewReader(c)
		resp, b := answer(t, r)
		parseProblem(t, resp.Header, []byte(b), 413, kv.CodeTooLarge)
		if resp.StatusCode != http.StatusRequestEntityTooLarge || !resp.Close {
			t.Errorf("%s: %d, close %v", h, resp.StatusCode, resp.Close)
		}
		wantClosed(t, r)
	}
	if f.store.txnCount() != 0 {
		t.Error("something was stored")
	}
	// A body that fits is invited.
	c := dial(t, addr)
	send(t, c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
	r := bufio.NewReader(c)
	if resp, _ := answer(t, r); resp.StatusCode != http.StatusContinue {
		t.Fatalf("no invitation: %d", resp.StatusCode)
	}
	send(t, c, "abc")
	if resp, b := answer(t, r); resp.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", resp.StatusCode, b)
	}
	// So is the next on the same connection, but not one with a bad precondition.
	send(t, c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\nIf-Match: x\r\n\r\n")
	if resp, b := answer(t, r); resp.StatusCode != http.StatusBadRequest {
		t.Fatalf("%d %s", resp.StatusCode, b)
	}
	wantClosed(t, r)
}

// An endless chunked body costs a bounded read and bounded memory.
func TestEndlessChunks(t *testing.T) {
	f := newFixture(t)
	c := dial(t, f.listen(t))
	send(t, c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
	chunk := []byte("10000\r\n" + strings.Repeat("x", 0x10000) + "\r\n")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	go func() {
		for { // until the server hangs up
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	}()
	resp, b := answer(t, bufio.NewReader(c))
	parseProblem(t, resp.Header, []byte(b), 413, kv.CodeTooLarge)
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
		t.Errorf("%d bytes were allocated for a limit of 1 MiB", grown)
	}
}

// Announced but not sent: memory and admission follow what arrives.
func TestAnnouncedBytesAreNotReserved(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.MaxInflightBytes = 4 << 20 })
	addr := f.listen(t)
	for range 16 {
		c := dial(t, addr)
		send(t, c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nx")
	}
	f.srv.admission.mu.Lock()
	used := f.srv.admission.used
	f.srv.admission.mu.Unlock()
	if used > 16*(firstReadBytes+requestWeight+64) {
		t.Errorf("%d bytes reserved", used)
	}
	if w := f.do(t, "PUT", "/v1/kv/b", strings.Repeat("x", 1<<20)); w.Code != 201 {
		t.Errorf("a whole body beside them: %d %s", w.Code, w.Body)
	}
}

func TestLyingContentLength(t *testing.T) {
	f := newFixture(t)
	addr := f.listen(t)
	// Shorter than announced, then half-closed.
	c := dial(t, addr)
	send(t, c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, b := answer(t, bufio.NewReader(c))
	p := parseProblem(t, resp.Header, []byte(b), 400, kv.CodeInvalidArgument)
	if p.Outcome != kv.OutcomeNotApplied || f.store.txnCount() != 0 {
		t.Errorf("outcome %q, %d transactions", p.Outcome, f.store.txnCount())
	}
	// Longer than announced: the rest is the next request, and no request.
	c = dial(t, addr)
	send(t, c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcdef\r\n\r\n")
	r := bufio.NewReader(c)
	if resp, _ := answer(t, r); resp.StatusCode != http.StatusCreated {
		t.Errorf("status %d", resp.StatusCode)
	}
	if resp, _ := answer(t, r); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("status of the rest %d", resp.StatusCode)
	}
	if string(f.store.txns[0].Then[0].Value) != "abc" || f.store.txnCount() != 1 {
		t.Errorf("stored %v", f.store.txns)
	}
}

// Forms that two servers could read differently are refused and the connection ends.
func TestSmuggling(t *testing.T) {
	f := newFixture(t)
	addr := f.listen(t)
	const get = "GET /v1/kv/smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
	for name, req := range map[string]string{
		"two lengths":         "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"length list":         "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3, 4\r\n\r\nabcd",
		"signed length":       "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nabc",
		"bad coding":          "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"two codings":         "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"space before colon":  "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length : 3\r\n\r\nabc",
		"bare CR in a header": "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nX: a\rb\r\nContent-Length: 3\r\n\r\nabc",
		"NUL in a header":     "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\nContent-Length: 3\r\n\r\nabc",
		"no host":             "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
		"two hosts":           "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nHost: g\r\nContent-Length: 3\r\n\r\nabc",
		"bad chunk size":      "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
		"bare LF chunk":       "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
		"huge chunk":          "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
		"bad escape":          "PUT /v1/kv/%zz HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
		"HTTP/0.9":            "GET /v1/kv/a\r\n",
		"not HTTP":            "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
		"body of a GET":       "GET /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
	} {
		c := dial(t, addr)
		send(t, c, req+get)
		_ = c.(*net.TCPConn).CloseWrite() // the server may have hung up by now
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		if errors.Is(err, syscall.ECONNRESET) {
			continue // closed with the second request unread, which may swallow the answer
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b, _ := io.ReadAll(resp.Body) // as above
		if err := resp.Body.Close(); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("%s: %v", name, err)
		}
		if resp.StatusCode < 400 || resp.StatusCode > 599 || resp.StatusCode == http.StatusInternalServerError {
			t.Errorf("%s: %d %s", name, resp.StatusCode, b)
		}
		wantClosed(t, r)
	}
	if f.store.txnCount() != 0 || len(f.store.reads) != 0 {
		t.Errorf("reached the store: %v %v", f.store.txns, f.store.reads)
	}
	// Both lengths: RFC 9112 lets chunked win if the connection ends; nothing is smuggled.
	c := dial(t, addr)
	send(t, c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	if resp, _ := answer(t, r); resp.StatusCode == http.StatusCreated && string(f.store.txns[0].Then[0].Value) != "abc" {
		t.Errorf("stored %q", f.store.txns[0].Then[0].Value)
	}
	wantClosed(t, r)
}

// Slow headers, a slow body, and a reader that doesn't read lose their connection;
// what they held is given back.
func TestSlowClients(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.HeaderTimeout, c.ProgressTimeout = 50*time.Millisecond, 150*time.Millisecond })
	addr := f.listen(t)

	c := dial(t, addr)
	send(t, c, "PUT /v1/kv/a HTTP/1.1\r\nHost")
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 && !bytes.HasPrefix(b, []byte("HTTP/1.1 4")) {
		t.Fatalf("slow headers: %q, %v", b, err)
	}

	c = dial(t, addr)
	send(t, c, "PUT /v1/kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n")
	stop := make(chan struct{})
	trickled := make(chan struct{})
	go func() { // a byte now and then is no progress
		defer close(trickled)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
			}
		}
	}()
	began := time.Now()
	resp, b := answer(t, bufio.NewReader(c))
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the slow body was borne for %v", took)
	}
	close(stop)
	<-trickled
	p := parseProblem(t, resp.Header, []byte(b), 504, kv.CodeTimeout)
	if p.Outcome != kv.OutcomeNotApplied || !resp.Close {
		t.Errorf("outcome %q, close %v", p.Outcome, resp.Close)
	}

	f.store.set(kv.Item{Key: "big", Value: bytes.Repeat([]byte("x"), 64<<20)})
	c = dial(t, addr)
	if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	send(t, c, "GET /v1/kv/big HTTP/1.1\r\nHost: h\r\n\r\n")
	held := func() int64 {
		f.srv.admission.mu.Lock()
		defer f.srv.admission.mu.Unlock()
		return f.srv.admission.used
	}
	eventually(t, "the value is weighed", func() bool { return held() > 0 })
	eventually(t, "the reader who does not read is given up", func() bool { return held() == 0 })
}

// A body that has been read leaves no deadline behind that would end the request
// while it is at work.
func TestReadDeadlineEndsWithTheBody(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.ProgressTimeout = 50 * time.Millisecond })
	addr := f.listen(t)
	f.store.onTxn = func(ctx context.Context, _ kv.Txn) (kv.TxnResult, error) {
		timer := time.NewTimer(200 * time.Millisecond)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return kv.TxnResult{}, ctx.Err()
		case <-timer.C:
			return kv.TxnResult{}, errGoOn
		}
	}
	c := dial(t, addr)
	r := bufio.NewReader(c)
	for i, req := range []string{
		"Content-Length: 3\r\n\r\nabc",
		"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
	} {
		send(t, c, fmt.Sprintf("PUT /v1/kv/k%d HTTP/1.1\r\nHost: h\r\n", i)+req)
		if resp, b := answer(t, r); resp.StatusCode != http.StatusCreated {
			t.Fatalf("%d %s", resp.StatusCode, b)
		}
	}
}

// The same on HTTP/2, where a deadline is a stream's.
func TestReadDeadlineEndsWithTheBodyHTTP2(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.ProgressTimeout = 50 * time.Millisecond })
	addr := f.listen(t)
	f.store.onTxn = func(ctx context.Context, _ kv.Txn) (kv.TxnResult, error) {
		timer := time.NewTimer(200 * time.Millisecond)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return kv.TxnResult{}, ctx.Err()
		case <-timer.C:
			return kv.TxnResult{}, errGoOn
		}
	}
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &p}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+addr+"/v1/kv/a", strings.NewReader(strings.Repeat("x", 100<<10)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusCreated {
		b, err := io.ReadAll(resp.Body)
		t.Fatalf("%d %s %v", resp.StatusCode, b, err)
	}
}

// A client that sends everything before it reads sees why it was refused, and not
// just a connection reset.
func TestBlindSenderSeesTheAnswer(t *testing.T) {
	f := newFixture(t)
	addr := f.listen(t)
	for _, size := range []int{100 << 10, 2 << 20} {
		c := dial(t, addr)
		send(t, c, fmt.Sprintf("PUT /v1/kv/a?bad=1 HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", size))
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = c.Write(bytes.Repeat([]byte("x"), size)) // may be cut off
		}()
		resp, b := answer(t, bufio.NewReader(c))
		parseProblem(t, resp.Header, []byte(b), 400, kv.CodeInvalidArgument)
		<-sent
	}
}

// The smallest of keys over the wire: request targets that proxies like to rewrite.
func TestRawTargets(t *testing.T) {
	f := newFixture(t)
	addr := f.listen(t)
	for target, key := range map[string]string{
		"/v1/kv/a//b": "a//b", "/v1/kv/a/../b": "a/../b", "/v1/kv/a/": "a/", "/v1/kv//a": "/a", "/v1/kv/%2Fa": "/a", "/v1/kv/.": ".",
		"/v1/kv/%2e%2e/a": "../a", "/v1/kv/%252F": "%2F", "/v1/kv/a+b": "a+b", "/v1/kv/a%00": "a\x00", "/v1/kv/%ff": "\xff", "/v1/kv/\xff": "\xff",
		"/v1/kv/a#b": "a#b", "/v1/kv/a;b=c": "a;b=c", "/v1/kv/a%3Fb": "a?b", "http://h/v1/kv/abs": "abs",
		"/v1/kv?key=a+b": "a b", "/v1/kv?key=a%2Bb": "a+b", "/v1/kv?key=a/b;c": "a/b;c", "/v1/kv?key=%ff": "\xff", "/v1/kv?key==": "=",
	} {
		f.store.reset()
		f.store.set(kv.Item{Key: key, Value: []byte("found")})
		c := dial(t, addr)
		send(t, c, "GET "+target+" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		if resp, b := answer(t, bufio.NewReader(c)); resp.StatusCode != http.StatusOK || b != "found" {
			t.Errorf("%s: %d %s", target, resp.StatusCode, b)
		}
	}
}
