package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

const loadType = "Content-Type: application/x-ndjson"

func (f *fixture) load(t testing.TB, lines string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	return f.do(t, "POST", "/v1/kv", lines, append(headers, loadType)...)
}

// bothWays runs a test on a leader and on a follower in front of it.
func bothWays(t *testing.T, test func(t *testing.T, asked, leader *fixture)) {
	t.Helper()
	t.Run("here", func(t *testing.T) { f := newFixture(t); test(t, f, f) })
	t.Run("forwarded", func(t *testing.T) { p := newPair(t); test(t, p.asked, p.leader) })
}

func TestBulk(t *testing.T) {
	bothWays(t, func(t *testing.T, asked, leader *fixture) {
		leader.store.set(kv.Item{Key: "old"}, kv.Item{Key: "old\xff"}, kv.Item{Key: "kept", Value: []byte("x")})
		lines := strings.Join([]string{
			`{"key":"a","value":"1","content_type":"text/x","ttl":"30s"}`,
			`{"key":"b","value":"é\n","create_revision":3,"mod_revision":9,"version":2,"expires_at":"2030-01-02T04:04:05.678Z"}`,
			``, ` `, "\r",
			`{"key_base64":"/w==","value_base64":"AP8="}`,
			`{"delete":"old"}`, `{"delete_base64":"b2xk/w=="}`, `{"delete":"never was"}`,
			`{"key":"kept","value":"y","expires_at":"2030-01-02T03:04:05.678Z"}`,
			`  {"value":"2","key":"a"}  `,
		}, "\n")
		w := asked.load(t, lines)
		if w.Code != 200 || w.Body.String() != `{"applied":8,"revision":2}`+"\n" || w.Header().Get("Sett-Revision") != "2" {
			t.Fatalf("%d %s %v", w.Code, w.Body, w.Header())
		}
		for k, v := range map[string]string{"a": "2", "b": "é\n", "\xff": "\x00\xff", "old": "(none)", "old\xff": "(none)", "kept": "x"} {
			if got := leader.store.value(k); got != v {
				t.Errorf("%q is %q, want %q", k, got, v)
			}
		}
		if it := leader.store.atLocked("b", 2); !it.ExpiresAt.Equal(time.Date(2030, 1, 2, 4, 4, 5, 678e6, time.UTC)) {
			t.Errorf("b ends at %v", it.ExpiresAt)
		}
		for lines, want := range map[string]string{
			"": `{"applied":0,"revision":`, "\n\n": `{"applied":0,"revision":`, `{"begin":true,"cluster":"x","n":[1,{"a":null}]}`: `{"applied":0,"revision":`, `{"end":true,"count":0}`: `{"applied":0,"revision":`,
			`{"begin":true}` + "\n" + `{"key":"a","value":"1"}` + "\n" + `{"end":true,"count":1,"revision":7}` + "\n\n": `{"applied":1,"revision":`,
			`{"key":"a","value":"1"}` + "\n" + `{"revision":7,"count":1,"end":true}`:                                    `{"applied":1,"revision":`,
			`{"key":"a","value":"1"}` + "\n" + `{"end":true}`:                                                           `{"applied":1,"revision":`,
		} {
			if w := asked.load(t, lines); w.Code != 200 || !strings.HasPrefix(w.Body.String(), want) {
				t.Errorf("%q: %d %s", lines, w.Code, w.Body)
			}
		}
		// What is exported loads back.
		var export strings.Builder
		export.WriteString(`{"begin":true}` + "\n")
		export.WriteString(leader.do(t, "GET", "/v1/kv", "", "Accept: application/x-ndjson").Body.String())
		before := leader.do(t, "GET", "/v1/kv", "").Body.String()
		leader.do(t, "DELETE", "/v1/kv?all=true", "")
		if w := asked.load(t, export.String()); w.Code != 200 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if after := leader.do(t, "GET", "/v1/kv", "").Body.String(); contentOf(t, after) != contentOf(t, before) {
			t.Errorf("after the load:\n%s\nbefore:\n%s", after, before)
		}
	})
}

// contentOf is a page without its revisions.
func contentOf(t *testing.T, text string) string {
	t.Helper()
	var p page
	strictJSON(t, []byte(text), &p)
	var b strings.Builder
	for _, it := range p.Items {
		fmt.Fprintf(&b, "%q=%q %s %v;", it.key(), it.value(), it.ContentType, it.ExpiresAt)
	}
	return b.String()
}

// A load of many batches is whole, whatever the line lengths and however the bytes come.
func TestBulkBatches(t *testing.T) {
	bothWays(t, func(t *testing.T, asked, leader *fixture) {
		asked.store.settings.MaxRequestBytes, leader.store.settings.MaxRequestBytes = 4<<20, 4<<20
		asked.store.settings.MaxValueBytes, leader.store.settings.MaxValueBytes = 4<<20, 4<<20
		var in bytes.Buffer
		const n = 12000
		big := strings.Repeat("v", 3<<20)
		for i := range n {
			v := strings.Repeat("x", i%97)
			if i == 6000 {
				v = big
			}
			fmt.Fprintf(&in, `{"key":"k%06d","value":"%s"}`+"\n", i, v)
		}
		fmt.Fprintf(&in, `{"end":true,"count":%d}`, n)
		addr := asked.listen(t)
		for _, chunk := range []int{in.Len(), 777} {
			leader.store.reset()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/v1/kv", &chunkReader{bytes.NewReader(in.Bytes()), chunk})
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/x-ndjson; charset=utf-8")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(string(got), `{"applied":12000,`) {
				t.Fatalf("chunks of %d: %d %s %v", chunk, resp.StatusCode, got, err)
			}
			if c := asked.do(t, "GET", "/v1/kv?count_only=1&consistency=leader", "").Body.String(); !strings.Contains(c, `"count":12000,`) {
				t.Errorf("chunks of %d: %s", chunk, c)
			}
			if leader.store.value("k006000") != big || leader.store.value("k011999") != strings.Repeat("x", 11999%97) {
				t.Error("values differ")
			}
		}
		if asked.srv.admission.used != 0 || leader.srv.admission.used != 0 {
			t.Errorf("%d and %d bytes are still admitted", asked.srv.admission.used, leader.srv.admission.used)
		}
	})
}

type chunkReader struct {
	r io.Reader
	n int
}

func (c *chunkReader) Read(p []byte) (int, error) { return c.r.Read(p[:min(len(p), c.n)]) }

// A bad line stops the load; the problem says which it is and how many stand.
func TestBulkBadLines(t *testing.T) {
	bothWays(t, func(t *testing.T, asked, leader *fixture) {
		for bad, code := range map[string]kv.Code{
			`x`: kv.CodeInvalidArgument, `[]`: kv.CodeInvalidArgument, `{}`: kv.CodeInvalidArgument, `{"key":"a"}`: kv.CodeInvalidArgument, `{"value":"a"}`: kv.CodeInvalidArgument, `{"key":"","value":"a"}`: kv.CodeInvalidArgument,
			`{"key":"a","value":"b"}x`: kv.CodeInvalidArgument, `{"key":"a","value":"b"}{}`: kv.CodeInvalidArgument, `{"key":"a","value":"b","x":1}`: kv.CodeInvalidArgument, `{"key":"a","key":"b","value":""}`: kv.CodeInvalidArgument,
			`{"key":"a","value":"b","ttl":"1s","expires_at":"2031-01-01T00:00:00Z"}`: kv.CodeInvalidArgument, `{"key":"a","value":"b","expires_at":"tomorrow"}`: kv.CodeInvalidArgument, `{"key":"a","value":"b","expires_at":"2031-01-01T00:00:00+24:00"}`: kv.CodeInvalidArgument,
			`{"key":"a","value":"b","expires_at":"2031-01-01T00:00:00,5Z"}`: kv.CodeInvalidArgument, `{"key":"a","value":"b","expires_at":"2031-01-01T0:00:00Z"}`: kv.CodeInvalidArgument, `{"key":"a","value":"b","expires_at":"2200-01-01T00:00:00Z"}`: kv.CodeInvalidArgument,
			`{"key":"a","value":"b","version":"1"}`: kv.CodeInvalidArgument, `{"key":"a","value_base64":"?"}`: kv.CodeInvalidArgument, "{\"key\":\"\xff\",\"value\":\"\"}": kv.CodeInvalidArgument, `{"key":"a","value":"b","revision":1}`: kv.CodeInvalidArgument,
			`{"key":"a","value":"b","count":1}`: kv.CodeInvalidArgument, `{"delete":"a","value":"b"}`: kv.CodeInvalidArgument, `{"delete":""}`: kv.CodeInvalidArgument, `{"delete":null}`: kv.CodeInvalidArgument, `{"delete":"a","delete_base64":"YQ=="}`: kv.CodeInvalidArgument,
			`{"begin":true}`: kv.CodeInvalidArgument, `{"begin":false}`: kv.CodeInvalidArgument, `{"end":true,"count":4}`: kv.CodeInvalidArgument, `{"end":true,"count":2}`: kv.CodeInvalidArgument, `{"end":false}`: kv.CodeInvalidArgument, `{"end":true,"count":-1}`: kv.CodeInvalidArgument,
			`{"error":{"code":"compacted"}}`: kv.CodeInvalidArgument, `{"common_prefix":"a/"}`: kv.CodeInvalidArgument, `null`: kv.CodeInvalidArgument, `{"key":` + strings.Repeat("[", 20000): kv.CodeInvalidArgument,
			`{"key":"` + strings.Repeat("k", 65) + `","value":""}`: kv.CodeTooLarge, `{"key":"a","value":"` + strings.Repeat("v", 1<<20+1) + `"}`: kv.CodeTooLarge, `{"key":"a","value":"` + strings.Repeat(" ", 2<<20) + `"}`: kv.CodeTooLarge,
		} {
			status, _ := statusOf(code)
			leader.store.reset()
			w := asked.load(t, "{\"begin\":true}\n"+`{"key":"1","value":"x"}`+"\n\n"+`{"key":"2","value":"x"}`+"\n"+`{"delete":"3"}`+"\n"+bad+"\n"+`{"key":"4","value":"x"}`+"\n")
			p := wantProblem(t, w, status, code)
			if p.Line != 6 || p.Applied == nil || *p.Applied != 3 || p.Outcome != "" || !strings.HasPrefix(p.Detail, "line 6: ") {
				t.Errorf("%.80q: line %d, applied %v, outcome %q: %s", bad, p.Line, p.Applied, p.Outcome, p.Detail)
			}
			if leader.store.value("2") != "x" || leader.store.value("4") != "(none)" {
				t.Errorf("%.80q: the lines before it do not stand, or those after it do", bad)
			}
		}
		w := asked.load(t, `{"key":"1","value":"x"}`+"\n"+`{"end":true,"count":1}`+"\n\n"+`{"key":"2","value":"x"}`)
		if p := wantProblem(t, w, 400, kv.CodeInvalidArgument); p.Line != 4 || *p.Applied != 1 {
			t.Errorf("%+v", p)
		}
		// In another batch, too.
		lines := strings.Repeat(`{"delete":"a"}`+"\n", batchLines-1) + `{"end":true,"count":4999}` + "\n"
		if w := asked.load(t, lines+"\n\n \n"); w.Code != 200 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if p := wantProblem(t, asked.load(t, lines+"\n"+`{"delete":"b"}`), 400, kv.CodeInvalidArgument); p.Line != 5002 || *p.Applied != 4999 {
			t.Errorf("%+v", p)
		}
		lines = strings.Repeat(`{"delete":"a"}`+"\n", 2*batchLines+7)
		if p := wantProblem(t, asked.load(t, lines+"x\n"+lines), 400, kv.CodeInvalidArgument); p.Line != 10008 || *p.Applied != 10007 {
			t.Errorf("%+v", p)
		}
		if p := wantProblem(t, asked.load(t, lines+`{"end":true,"count":10008}`), 400, kv.CodeInvalidArgument); p.Line != 10008 || *p.Applied != 10007 {
			t.Errorf("%+v", p)
		}
	})
}

func TestBadBulkRequests(t *testing.T) {
	f := newFixture(t)
	for _, h := range [][]string{{}, {"Content-Type: application/json"}, {"Content-Type: text/x-ndjson"}, {loadType, `If-Match: "1"`}, {loadType, "If-None-Match: *"}, {loadType, "Content-Encoding: gzip"}, {loadType, "Content-Range: bytes 1-2/3"}, {loadType, "Idempotency-Key: k"}} {
		runSteps(t, f, []step{{req: "POST /v1/kv", body: `{"key":"a","value":"b"}`, headers: h, status: 400, code: kv.CodeInvalidArgument}})
	}
	for _, q := range []string{"prefix=a", "op=append", "ttl=5s", "previous=1"} {
		runSteps(t, f, []step{{req: "POST /v1/kv?" + q, body: `{"key":"a","value":"b"}`, headers: []string{loadType}, status: 400, code: kv.CodeInvalidArgument}})
	}
	runSteps(t, f, []step{{req: "POST /v1/kv?key=a&op=append", body: `{"key":"a","value":"b"}`, headers: []string{loadType}, status: 200}})
	if f.store.value("a") != `{"key":"a","value":"b"}` {
		t.Errorf("value %q", f.store.value("a"))
	}
	p := newPair(t)
	runSteps(t, p.asked, []step{{req: "POST /v1/kv?redirect=1", headers: []string{loadType}, status: 307, has: map[string]string{"Location": "http://" + p.addr + "/v1/kv?redirect=1"}}})
}

// A load survives what loses answers and leaders, and applies no batch twice.
func TestBulkSurvives(t *testing.T) {
	bothWays(t, func(t *testing.T, asked, leader *fixture) {
		var n atomic.Int32
		leader.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) {
			switch n.Add(1) % 7 {
			case 1:
				return kv.TxnResult{}, kv.NotApplied(kv.CodeNoLeader, "not the leader")
			case 3:
				return kv.TxnResult{}, errOverloaded()
			case 5:
				return kv.TxnResult{}, kv.Unknown(nil, "lost before")
			}
			return kv.TxnResult{}, errGoOn
		}
		var lost atomic.Int32
		leader.store.afterTxn = func(kv.Txn, kv.TxnResult, error) error {
			if lost.Add(1)%2 == 0 {
				return kv.Unknown(nil, "lost after")
			}
			return nil
		}
		var in strings.Builder
		for i := range 4 * batchLines {
			fmt.Fprintf(&in, `{"key":"%d","value":"x"}`+"\n", i)
		}
		w := asked.load(t, in.String())
		if w.Code != 200 || !strings.HasPrefix(w.Body.String(), `{"applied":20000,`) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		for i := range 4 * batchLines {
			if it := leader.store.atLocked(fmt.Sprint(i), leader.store.rev); it == nil || it.Version != 1 {
				t.Fatalf("key %d: %+v", i, it)
			}
		}
	})
}

// What breaks a load off is told with how far it came; in doubt only if the last batch is.
func TestBulkBreaksOff(t *testing.T) {
	bothWays(t, func(t *testing.T, asked, leader *fixture) {
		// An attempt whose answer nobody waits for any more may still be at work: what it reads
		// is not changed under it.
		var now atomic.Pointer[func() error]
		leader.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) { return kv.TxnResult{}, (*now.Load())() }
		for name, c := range map[string]struct {
			fail    error
			status  int
			code    kv.Code
			outcome kv.Outcome
		}{
			"full":     {kv.NotApplied(kv.CodeDiskFull, "full"), 507, kv.CodeDiskFull, ""},
			"leader":   {kv.NotApplied(kv.CodeNoLeader, "none"), 503, kv.CodeNoLeader, ""},
			"busy":     {errOverloaded(), 429, kv.CodeOverloaded, ""},
			"unknown":  {kv.Unknown(nil, "lost"), 504, kv.CodeOutcomeUnknown, kv.OutcomeUnknown},
			"internal": {errSecret, 500, kv.CodeInternal, kv.OutcomeUnknown},
		} {
			fail, n := c.fail, new(atomic.Int32)
			answer := func() error {
				if n.Add(1) > 2 {
					return fail
				}
				return errGoOn
			}
			now.Store(&answer)
			lines := strings.Repeat(`{"delete":"a"}`+"\n", batchLines)
			var in strings.Builder
			for range 4 {
				in.WriteString(lines)
			}
			again := name == "leader" || name == "busy" // such an answer is worth another attempt
			began := time.Now()
			w := asked.do(t, "POST", "/v1/kv?timeout=1s", in.String(), loadType)
			if c.status != http.StatusGatewayTimeout && w.Code == http.StatusGatewayTimeout && asked != leader && again {
				// Time was up while an attempt was on its way to the leader.
				c.status, c.code, c.outcome = http.StatusGatewayTimeout, kv.CodeOutcomeUnknown, kv.OutcomeUnknown
			}
			p := wantProblem(t, w, c.status, c.code)
			if p.Applied == nil || *p.Applied == 0 || *p.Applied > 3*batchLines || p.Line != 0 || p.Outcome != c.outcome {
				t.Errorf("%s: %+v", name, p)
			}
			if time.Since(began) > 5*time.Second {
				t.Errorf("%s: it took %v", name, time.Since(began))
			}
		}
	})
}

// The server holds back a client that sends faster than batches are applied, and takes
// longer than the request's timeout if need be.
func TestBulkBackPressure(t *testing.T) {
	bothWays(t, func(t *testing.T, asked, leader *fixture) {
		gate := make(chan struct{})
		var once sync.Once
		open := func() { once.Do(func() { close(gate) }) }
		t.Cleanup(open)
		leader.store.onTxn = func(ctx context.Context, _ kv.Txn) (kv.TxnResult, error) {
			select {
			case <-gate:
				return kv.TxnResult{}, errGoOn
			case <-ctx.Done():
				return kv.TxnResult{}, kv.NotApplied(kv.CodeTimeout, "late")
			}
		}
		addr := asked.listen(t)
		line := []byte(`{"key":"a","value":"` + strings.Repeat("x", 1000) + `"}` + "\n")
		var sent atomic.Int64
		body := &funcReader{func(p []byte) (int, error) {
			const total = 64 << 20
			n := sent.Load()
			if n >= total {
				return 0, io.EOF
			}
			c := 0
			for c < len(p) {
				c += copy(p[c:], line[(n+int64(c))%int64(len(line)):])
			}
			sent.Add(int64(c))
			return c, nil
		}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/v1/kv?timeout=60s", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", ndjson)
		type result struct {
			resp *http.Response
			err  error
		}
		done := make(chan result)
		go func() {
			resp, err := http.DefaultClient.Do(req)
			done <- result{resp, err}
		}()
		last := int64(-1)
		still := 0
		eventually(t, "the client is held back", func() bool {
			if n := sent.Load(); n != last || n == 0 {
				last, still = n, 0
			} else {
				still++
			}
			return still > 20
		})
		if last > 24<<20 {
			t.Errorf("%d bytes were taken before the first batch was applied", last)
		}
		open()
		r := <-done
		if r.err != nil {
			t.Fatal(r.err)
		}
		defer r.resp.Body.Close()
		if b, _ := io.ReadAll(r.resp.Body); r.resp.StatusCode != http.StatusBadRequest && r.resp.StatusCode != http.StatusOK {
			t.Errorf("%d %s", r.resp.StatusCode, b)
		}
	})
}

type funcReader struct{ read func([]byte) (int, error) }

func (f *funcReader) Read(p []byte) (int, error) { return f.read(p) }

// A client that goes away in the middle, or is cut off: what was whole stands.
func TestBulkClientGoesAway(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.ProgressTimeout = 50 * time.Millisecond })
	addr := f.listen(t)
	c := dial(t, addr)
	send(t, c, "POST /v1/kv HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
	send(t, c, "1b\r\n"+`{"key":"a","value":"12345"}`+"\r\n1\r\n\n\r\n8\r\n"+`{"key":"`+"\r\n")
	eventually(t, "the whole line stands", func() bool { return f.store.value("a") == "12345" })
	_ = c.Close()
	// A slow one is told.
	c = dial(t, addr)
	send(t, c, "POST /v1/kv HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000\r\n\r\n"+`{"key":"b","value":"1"}`+"\n{")
	b, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(b), `"code":"timeout"`) || !strings.Contains(string(b), `"applied":1`) || f.store.value("b") != "1" {
		t.Errorf("%s %v", b, err)
	}
	eventually(t, "nothing is admitted any more", func() bool {
		f.srv.admission.mu.Lock()
		defer f.srv.admission.mu.Unlock()
		return f.srv.admission.used == 0
	})
	// A stop of the server ends a load at the next batch.
	f.srv.Drain()
	w := f.load(t, `{"key":"c","value":"1"}`)
	if p := wantProblem(t, w, 503, kv.CodeNotReady); p.Applied == nil || *p.Applied != 0 {
		t.Errorf("%+v", p)
	}
}

func TestBulkAdmission(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.MaxInflightBytes = 1 << 20 })
	other := grant{a: f.srv.admission}
	if err := other.grow(1000); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, f.load(t, strings.Repeat(`{"delete":"a"}`+"\n", 100000)), 429, kv.CodeOverloaded)
	if w := f.load(t, strings.Repeat(`{"delete":"a"}`+"\n", 1000)); w.Code != 200 {
		t.Errorf("a small one: %d %s", w.Code, w.Body)
	}
	other.release()
	if f.srv.admission.used != 0 {
		t.Errorf("%d bytes are still admitted", f.srv.admission.used)
	}
}

// lineOp is what a line means, read with encoding/json where it is an ordinary put.
func FuzzBulkLines(f *testing.F) {
	f.Add([]byte(`{"begin":true}` + "\n" + `{"key":"a","value":"1","ttl":"30s"}` + "\n" + `{"delete":"b"}` + "\n" + `{"end":true,"count":2}`))
	f.Add([]byte(`{"key_base64":"/w==","value_base64":"AP8=","expires_at":"2030-01-02T03:04:05Z","create_revision":1,"mod_revision":2,"version":3}`))
	f.Add([]byte("\r\n \n{\"error\":{}}\n"))
	limits := kv.ClusterSettings{MaxKeyBytes: 64, MaxValueBytes: 1000}
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, data []byte) {
		p := lineParser{txnParser: txnParser{j: newJSONReader(nil), limits: limits}, now: now}
		err := p.parse(data)
		if uint64(len(p.ops)) > p.applied || p.applied > p.lines || p.lines > uint64(bytes.Count(data, []byte("\n")))+1 {
			t.Fatalf("%d operations, %d applied, %d lines", len(p.ops), p.applied, p.lines)
		}
		if err != nil {
			var e *kv.Error
			if !errors.As(err, &e) || (e.Code != kv.CodeInvalidArgument && e.Code != kv.CodeTooLarge) {
				t.Fatalf("error %v", err)
			}
		}
		for _, op := range p.ops {
			if op.Key == "" || len(op.Key) > 64 || len(op.Value) > 1000 || op.TTL < 0 || op.TTL > maxTTL || (op.Kind != kv.OpPut && op.Kind != kv.OpDelete) {
				t.Fatalf("operation %+v", op)
			}
		}
		// A single line that encoding/json reads as a plain put is that put.
		var plain map[string]string
		if err == nil && len(p.ops) == 1 && p.lines == 1 && json.Unmarshal(data, &plain) == nil && len(plain) == 2 {
			if v, ok := plain["value"]; ok && (string(p.ops[0].Value) != v || p.ops[0].Key != plain["key"]) && plain["key"] != "" {
				t.Fatalf("%q: %+v", data, p.ops[0])
			}
		}
	})
}

// BenchmarkBulk measures what the HTTP side of a load costs on a leader, its client
// included.
func BenchmarkBulk(b *testing.B) {
	f := newFixture(b)
	f.store.onTxn = func(_ context.Context, t kv.Txn) (kv.TxnResult, error) {
		return kv.TxnResult{Succeeded: true, Revision: 1}, nil
	}
	const n = 50000
	var in bytes.Buffer
	for i := range n {
		fmt.Fprintf(&in, `{"key":"app/config/%08d","value":"%s"}`+"\n", i, strings.Repeat("v", 256))
	}
	addr := f.listen(b)
	b.SetBytes(n * 256)
	b.ReportAllocs()
	for b.Loop() {
		resp, err := http.Post("http://"+addr+"/v1/kv", ndjson, bytes.NewReader(in.Bytes()))
		if err != nil {
			b.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			b.Fatal(resp.StatusCode)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "keys/s")
}

// A load that changes nothing answers with the revision at which the leader decided so,
// not with what the node that was asked happens to know.
func TestBulkThatChangesNothing(t *testing.T) {
	bothWays(t, func(t *testing.T, asked, leader *fixture) {
		for i := range 3 {
			if w := leader.do(t, "PUT", "/v1/kv/a", strconv.Itoa(i)); w.Code >= 300 {
				t.Fatal(w.Code)
			}
		}
		for _, body := range []string{"", "\n", `{"end":true,"count":0}`, `{"delete":"none"}`, `{"key":"b","value":"x","expires_at":"2000-01-01T00:00:00Z"}`, `{"key":"b","value":"x","expires_at":"0001-01-01T00:00:00Z"}`} {
			w := asked.do(t, "POST", "/v1/kv", body, loadType)
			if w.Code != 200 || !strings.Contains(w.Body.String(), `"revision":3}`) || w.Header().Get(headerRevision) != "3" {
				t.Errorf("%q: %d %s, %s", body, w.Code, w.Body, w.Header().Get(headerRevision))
			}
		}
	})
}
