package httpapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

// step is one request and what its answer must be.
type step struct {
	req     string // "METHOD target"
	body    string
	headers []string
	status  int
	code    kv.Code           // of a problem
	want    *string           // the exact body
	has     map[string]string // headers; "" is absent
	current int               // current_revision + 1 of a 412
}

func body(s string) *string { return &s }

func runSteps(t *testing.T, f *fixture, steps []step) {
	t.Helper()
	for i, s := range steps {
		method, target, _ := strings.Cut(s.req, " ")
		w := f.do(t, method, target, s.body, s.headers...)
		name := fmt.Sprintf("step %d %s", i, s.req)
		if w.Code != s.status {
			t.Fatalf("%s: status %d, want %d; body %s", name, w.Code, s.status, w.Body)
		}
		if s.code != "" {
			p := parseProblem(t, w.Header(), w.Body.Bytes(), s.status, s.code)
			if s.current > 0 && (p.CurrentRevision == nil || int(*p.CurrentRevision) != s.current-1) {
				t.Errorf("%s: current_revision %v, want %d", name, p.CurrentRevision, s.current-1)
			}
			if s.status == 412 && p.CurrentRevision == nil {
				t.Errorf("%s: no current_revision", name)
			}
		}
		if s.want != nil && w.Body.String() != *s.want {
			t.Errorf("%s: body %q, want %q", name, w.Body, *s.want)
		}
		for h, v := range s.has {
			if got := w.Header().Get(h); got != v {
				t.Errorf("%s: %s %q, want %q", name, h, got, v)
			}
		}
	}
}

func TestLifeOfAKey(t *testing.T) {
	for _, at := range []string{"/v1/kv/a?", "/v1/kv?key=a&"} {
		runSteps(t, newFixture(t), []step{
			{req: "GET " + at, status: 404, code: kv.CodeNotFound, has: map[string]string{"Sett-Revision": "0", "ETag": ""}},
			{req: "HEAD " + at, status: 404},
			{req: "DELETE " + at, status: 404, code: kv.CodeNotFound},
			{req: "PUT " + at, body: "one", headers: []string{"Content-Type: text/x"}, status: 201, want: body(""), has: map[string]string{"ETag": `"1"`, "Sett-Revision": "1"}},
			{req: "GET " + at, status: 200, want: body("one"), has: map[string]string{
				"ETag": `"1"`, "Content-Type": "text/x", "Sett-Create-Revision": "1", "Sett-Version": "1", "Sett-Expires-At": "", "Sett-Revision": "1",
				"Content-Length": "3", "X-Content-Type-Options": "nosniff", "Accept-Ranges": "bytes", "Vary": "Accept",
			}},
			{req: "PUT " + at + "ttl=30s", body: "two", status: 204, want: body(""), has: map[string]string{"ETag": `"2"`, "Content-Length": ""}},
			{req: "HEAD " + at, status: 200, want: body(""), has: map[string]string{
				"ETag": `"2"`, "Content-Type": "application/octet-stream", "Sett-Create-Revision": "1", "Sett-Version": "2",
				"Sett-Expires-At": "2030-01-02T03:04:35.678Z", "Content-Length": "3",
			}},
			{req: "GET " + at, headers: []string{"Accept: text/html, application/json;q=0.5"}, status: 200, has: map[string]string{"Content-Type": "application/json"},
				want: body(`{"key":"a","value":"two","create_revision":1,"mod_revision":2,"version":2,"expires_at":"2030-01-02T03:04:35.678Z"}` + "\n")},
			{req: "GET " + at, headers: []string{"Accept: */*"}, status: 200, want: body("two")},
			{req: "GET " + at, headers: []string{"Accept: application/json;q=0"}, status: 200, want: body("two")},
			{req: "DELETE " + at, status: 204, want: body(""), has: map[string]string{"ETag": "", "Sett-Revision": "3"}},
			{req: "GET " + at, status: 404, code: kv.CodeNotFound, has: map[string]string{"Sett-Revision": "3"}},
			{req: "PUT " + at, status: 201}, // an empty value
			{req: "GET " + at, status: 200, want: body(""), has: map[string]string{"Content-Length": "0"}},
		})
	}
}

func TestConditions(t *testing.T) {
	runSteps(t, newFixture(t), []step{
		{req: "PUT /v1/kv/a", headers: []string{`If-Match: "1"`}, status: 412, code: kv.CodePreconditionFailed, current: 1},
		{req: "PUT /v1/kv/a", headers: []string{`If-Match: "0"`}, status: 412, code: kv.CodePreconditionFailed, current: 1},
		{req: "PUT /v1/kv/a", headers: []string{"If-Match: *"}, status: 412, code: kv.CodePreconditionFailed, current: 1},
		{req: "DELETE /v1/kv/a", headers: []string{"If-Match: *"}, status: 412, code: kv.CodePreconditionFailed, current: 1},
		{req: "POST /v1/kv/a?op=touch&ttl=1s", headers: []string{`If-Match: "1"`}, status: 412, code: kv.CodePreconditionFailed, current: 1},
		{req: "POST /v1/kv/a?op=touch&ttl=1s", status: 404, code: kv.CodeNotFound},
		{req: "GET /v1/kv/a", headers: []string{"If-Match: *"}, status: 412, code: kv.CodePreconditionFailed, current: 1},
		{req: "PUT /v1/kv/a", headers: []string{"If-None-Match: *"}, body: "x", status: 201},
		{req: "PUT /v1/kv/a", headers: []string{"If-None-Match: *"}, body: "y", status: 412, code: kv.CodePreconditionFailed, current: 2, has: map[string]string{"Sett-Revision": "1", "ETag": ""}},
		{req: "PUT /v1/kv/a", headers: []string{`If-Match: "1"`}, body: "y", status: 204, has: map[string]string{"ETag": `"2"`}},
		{req: "PUT /v1/kv/a", headers: []string{`If-Match: "1"`}, body: "z", status: 412, code: kv.CodePreconditionFailed, current: 3},
		{req: "PUT /v1/kv/a", headers: []string{"If-Match: *"}, body: "z", status: 204},
		{req: "POST /v1/kv/a?op=append", headers: []string{`If-Match: "3"`}, body: "z", status: 200, want: body("")},
		{req: "POST /v1/kv/a?op=append", headers: []string{`If-Match: "3"`}, body: "z", status: 412, code: kv.CodePreconditionFailed, current: 5},
		{req: "GET /v1/kv/a", headers: []string{`If-None-Match: "4"`}, status: 304, want: body(""), has: map[string]string{"ETag": `"4"`, "Sett-Revision": "4"}},
		{req: "GET /v1/kv/a", headers: []string{`If-None-Match: "1", W/"4"`}, status: 304},
		{req: "HEAD /v1/kv/a", headers: []string{"If-None-Match: *"}, status: 304},
		{req: "GET /v1/kv/a", headers: []string{`If-None-Match: "3","abc"`}, status: 200, want: body("zz")},
		{req: "GET /v1/kv/a", headers: []string{`If-None-Match: 4`}, status: 400, code: kv.CodeInvalidArgument},
		{req: "GET /v1/kv/a", headers: []string{`If-None-Match: "4`}, status: 400, code: kv.CodeInvalidArgument},
		{req: "GET /v1/kv/none", headers: []string{`If-None-Match: "4`}, status: 400, code: kv.CodeInvalidArgument},
		{req: "GET /v1/kv/a", headers: []string{`If-Match: "4"`}, status: 200},
		{req: "GET /v1/kv/a", headers: []string{`If-Match: "3"`}, status: 412, code: kv.CodePreconditionFailed, current: 5},
		{req: "DELETE /v1/kv/a", headers: []string{`If-Match: "3"`}, status: 412, code: kv.CodePreconditionFailed, current: 5},
		{req: "DELETE /v1/kv/a", headers: []string{`If-Match: "4"`}, status: 204},
	})
	bad := []string{`If-Match: 1`, `If-Match: "x"`, `If-Match: ""`, `If-Match: "01"`, `If-Match: "+1"`, `If-Match: "-1"`, `If-Match: W/"1"`, `If-Match: "1", "2"`, `If-Match: "18446744073709551616"`, `If-Match: `}
	for _, h := range bad {
		for _, req := range []string{"PUT /v1/kv/a", "DELETE /v1/kv/a", "POST /v1/kv/a?op=incr", "POST /v1/kv/a?op=touch&ttl=1s"} {
			runSteps(t, newFixture(t), []step{{req: req, headers: []string{h}, status: 400, code: kv.CodeInvalidArgument}})
		}
	}
	for _, h := range []string{`If-None-Match: "1"`, "If-None-Match: *x", "Content-Range: bytes 0-1/2", "Content-Encoding: gzip"} {
		runSteps(t, newFixture(t), []step{{req: "PUT /v1/kv/a", headers: []string{h}, status: 400, code: kv.CodeInvalidArgument}})
	}
	for _, req := range []string{"DELETE /v1/kv/a", "POST /v1/kv/a?op=incr"} {
		runSteps(t, newFixture(t), []step{{req: req, headers: []string{"If-None-Match: *"}, status: 400, code: kv.CodeInvalidArgument}})
	}
	twice := []step{
		{req: "PUT /v1/kv/a", headers: []string{"If-Match: *", "If-Match: *"}, status: 400, code: kv.CodeInvalidArgument},
		{req: "PUT /v1/kv/a", headers: []string{"Content-Type: a/b", "Content-Type: c/d"}, status: 400, code: kv.CodeInvalidArgument},
		{req: "PUT /v1/kv/a", headers: []string{"Content-Type: a/" + strings.Repeat("b", 254)}, status: 400, code: kv.CodeInvalidArgument},
		{req: "PUT /v1/kv/a", headers: []string{"Content-Type: caf\xe9"}, status: 400, code: kv.CodeInvalidArgument},
	}
	runSteps(t, newFixture(t), twice)
}

func TestPost(t *testing.T) {
	runSteps(t, newFixture(t), []step{
		{req: "POST /v1/kv/n?op=incr", status: 200, want: body("1"), has: map[string]string{"ETag": `"1"`, "Content-Type": "text/plain; charset=utf-8"}},
		{req: "POST /v1/kv/n?op=incr&by=-43", status: 200, want: body("-42")},
		{req: "POST /v1/kv/n?op=incr&by=9223372036854775807", status: 200, want: body("9223372036854775765")},
		{req: "POST /v1/kv/n?op=incr&by=100", status: 409, code: kv.CodeConflict},
		{req: "POST /v1/kv/n?op=append", body: "x", status: 200, want: body(""), has: map[string]string{"ETag": `"4"`}},
		{req: "POST /v1/kv/n?op=incr", status: 409, code: kv.CodeConflict},
		{req: "POST /v1/kv/n?op=touch&ttl=90", status: 200, want: body(""), has: map[string]string{"ETag": `"5"`}},
		{req: "GET /v1/kv/n", status: 200, has: map[string]string{"Sett-Expires-At": "2030-01-02T03:05:35.678Z", "Sett-Version": "5"}},
	})
	for _, q := range []string{
		"", "?op=", "?op=cas", "?op=incr&by=", "?op=incr&by=x", "?op=incr&by=1.5", "?op=incr&by=9223372036854775808", "?op=incr&ttl=1s",
		"?op=append&by=1", "?op=append&ttl=1s", "?op=touch", "?op=touch&ttl=", "?op=touch&ttl=1s&by=2", "?op=INCR", "?op=incr&op=incr",
	} {
		runSteps(t, newFixture(t), []step{{req: "POST /v1/kv/n" + q, status: 400, code: kv.CodeInvalidArgument}})
	}
	runSteps(t, newFixture(t), []step{{req: "POST /v1/kv/n?op=incr", body: "5", status: 400, code: kv.CodeInvalidArgument}})
}

func TestPrevious(t *testing.T) {
	const first = `{"key":"a","value":"one","create_revision":1,"mod_revision":1,"version":1,"content_type":"t/x"}` + "\n"
	runSteps(t, newFixture(t), []step{
		{req: "PUT /v1/kv/a?previous=1", body: "one", headers: []string{"Content-Type: t/x"}, status: 200, want: body("null\n"), has: map[string]string{"ETag": `"1"`, "Content-Type": "application/json"}},
		{req: "PUT /v1/kv/a?previous=1", body: "2", status: 200, want: body(first), has: map[string]string{"ETag": `"2"`, "Sett-Revision": "2"}},
		{req: "POST /v1/kv/a?op=incr&previous=true", status: 200, want: body(`{"key":"a","value":"2","create_revision":1,"mod_revision":2,"version":2}` + "\n")},
		{req: "PUT /v1/kv/a?previous=0", body: "2", status: 204},
		{req: "DELETE /v1/kv/a?previous", status: 200, want: body(`{"key":"a","value":"2","create_revision":1,"mod_revision":4,"version":4}` + "\n")},
		{req: "DELETE /v1/kv/a?previous=1", status: 200, want: body("null\n")},
		{req: "DELETE /v1/kv/a?previous=1", headers: []string{"If-Match: *"}, status: 412, code: kv.CodePreconditionFailed, current: 1},
		{req: "PUT /v1/kv/a?previous=yes", status: 400, code: kv.CodeInvalidArgument},
	})
}

func TestBinaryJSONForm(t *testing.T) {
	f := newFixture(t)
	f.do(t, "PUT", "/v1/kv/%FF%00", "\xfe\x00<")
	w := f.do(t, "GET", "/v1/kv/%FF%00", "", "Accept: application/json")
	want := `{"key_base64":"` + base64.StdEncoding.EncodeToString([]byte("\xff\x00")) + `","value_base64":"` + base64.StdEncoding.EncodeToString([]byte("\xfe\x00<")) + `","create_revision":1,"mod_revision":1,"version":1}` + "\n"
	if w.Body.String() != want {
		t.Errorf("body %s want %s", w.Body, want)
	}
	f.do(t, "PUT", "/v1/kv/t", "\x00<&>\u2028")
	w = f.do(t, "GET", "/v1/kv/t", "", "Accept: application/json")
	var form struct{ Value *string }
	if err := json.Unmarshal(w.Body.Bytes(), &form); err != nil || form.Value == nil || *form.Value != "\x00<&>\u2028" {
		t.Errorf("text value: %s (%v)", w.Body, err)
	}
}

func TestRange(t *testing.T) {
	f := newFixture(t)
	f.do(t, "PUT", "/v1/kv/a", "0123456789")
	f.do(t, "PUT", "/v1/kv/empty", "")
	for _, tt := range []struct {
		header, key   string
		status        int
		want, content string
	}{
		{"bytes=0-0", "a", 206, "0", "bytes 0-0/10"},
		{"bytes=2-5", "a", 206, "2345", "bytes 2-5/10"},
		{"bytes=7-", "a", 206, "789", "bytes 7-9/10"},
		{"bytes=-3", "a", 206, "789", "bytes 7-9/10"},
		{"bytes=-30", "a", 206, "0123456789", "bytes 0-9/10"},
		{"bytes=5-99999999999999999999", "a", 206, "56789", "bytes 5-9/10"},
		{"Bytes=1-1", "a", 206, "1", "bytes 1-1/10"},
		{"bytes=10-", "a", 416, "", "bytes */10"},
		{"bytes=99999999999999999999-", "a", 416, "", "bytes */10"},
		{"bytes=-0", "a", 416, "", "bytes */10"},
		{"bytes=0-", "empty", 416, "", "bytes */0"},
		{"bytes=-1", "empty", 416, "", "bytes */0"},
		{"bytes=5-2", "a", 200, "0123456789", ""},
		{"bytes=a-b", "a", 200, "0123456789", ""},
		{"bytes=-", "a", 200, "0123456789", ""},
		{"bytes", "a", 200, "0123456789", ""},
		{"lines=1-2", "a", 200, "0123456789", ""},
		{"bytes=0-1,3-4", "a", 200, "0123456789", ""},
	} {
		w := f.do(t, "GET", "/v1/kv/"+tt.key, "", "Range: "+tt.header)
		if w.Code != tt.status || w.Header().Get("Content-Range") != tt.content {
			t.Errorf("%s: status %d, Content-Range %q", tt.header, w.Code, w.Header().Get("Content-Range"))
		}
		if tt.status == 416 {
			parseProblem(t, w.Header(), w.Body.Bytes(), 416, kv.CodeInvalidArgument)
		} else if w.Body.String() != tt.want {
			t.Errorf("%s: body %q", tt.header, w.Body)
		}
	}
	for ifRange, status := range map[string]int{`"1"`: 206, `"2"`: 200, `W/"1"`: 200, "Wed, 21 Oct 2015 07:28:00 GMT": 200} {
		if w := f.do(t, "GET", "/v1/kv/a", "", "Range: bytes=0-0", "If-Range: "+ifRange); w.Code != status {
			t.Errorf("If-Range %s: status %d, want %d", ifRange, w.Code, status)
		}
	}
	if w := f.do(t, "GET", "/v1/kv/a", "", "Range: bytes=0-0", "Accept: application/json"); w.Code != 200 || !strings.HasPrefix(w.Body.String(), "{") {
		t.Errorf("range of a JSON form: %d %s", w.Code, w.Body)
	}
}

func TestReadOptionsReachTheStore(t *testing.T) {
	f := newFixture(t)
	f.do(t, "PUT", "/v1/kv/a", "v")
	for q, want := range map[string]kv.ReadOptions{
		"":                                       {},
		"?consistency=linearizable":              {},
		"?consistency=leader":                    {Consistency: kv.Leader},
		"?consistency=stale&max_staleness=5s":    {Consistency: kv.Stale, MaxStaleness: 5 * time.Second},
		"?consistency=stale&max_staleness=0.25":  {Consistency: kv.Stale, MaxStaleness: 250 * time.Millisecond},
		"?min_revision=1":                        {MinRevision: 1},
		"?min_revision=0":                        {},
		"?revision=1&min_revision=1":             {Revision: 1, MinRevision: 1},
		"?timeout=5s&timing=1&redirect=1":        {},
		"?revision=18446744073709551615&timeout": {},
	} {
		f.store.reads = nil
		w := f.do(t, "GET", "/v1/kv/a"+q, "")
		if strings.HasSuffix(q, "timeout") {
			wantProblem(t, w, 400, kv.CodeInvalidArgument)
			continue
		}
		if w.Code != 200 || len(f.store.reads) != 1 || f.store.reads[0] != want {
			t.Errorf("%s: status %d, reads %+v", q, w.Code, f.store.reads)
		}
	}
	if got := f.do(t, "GET", "/v1/kv/a?timing=1", "").Header().Get("Server-Timing"); got != "forward;dur=0.000, queue;dur=0.000, replicate;dur=0.000, apply;dur=0.000, read;dur=1.000" {
		t.Errorf("Server-Timing %q", got)
	}
	if got := f.do(t, "PUT", "/v1/kv/a?timing=1", "").Header().Get("Server-Timing"); !strings.Contains(got, "replicate;dur=0.020, apply;dur=0.010") {
		t.Errorf("Server-Timing %q", got)
	}
	if got := f.do(t, "GET", "/v1/kv/a", "").Header().Get("Server-Timing"); got != "" {
		t.Errorf("unasked Server-Timing %q", got)
	}
}

func TestBadQueries(t *testing.T) {
	f := newFixture(t)
	for _, req := range []string{
		"GET /v1/kv/a?x=1", "GET /v1/kv/a?ttl=1s", "GET /v1/kv/a?previous=1", "GET /v1/kv/a?key=a", "PUT /v1/kv/a?revision=1", "PUT /v1/kv/a?op=incr",
		"DELETE /v1/kv/a?consistency=stale", "GET /v1/kv/a?revision=1&revision=1", "GET /v1/kv?key=a&key=a", "GET /v1/kv?key=a&%6bey=b", "GET /v1/kv/a?Revision=1",
		"GET /v1/kv/a?revision=%zz", "GET /v1/kv/a?%zz=1", "GET /v1/kv?key=%", "GET /v1/kv?key=%4",
		"GET /v1/kv/a?revision=0", "GET /v1/kv/a?revision=", "GET /v1/kv/a?revision=-1", "GET /v1/kv/a?revision=1.0", "GET /v1/kv/a?revision=0x1", "GET /v1/kv/a?revision=18446744073709551616",
		"GET /v1/kv/a?min_revision=x", "GET /v1/kv/a?consistency=", "GET /v1/kv/a?consistency=Stale", "GET /v1/kv/a?consistency=strong",
		"GET /v1/kv/a?max_staleness=1s", "GET /v1/kv/a?consistency=stale&max_staleness=0", "GET /v1/kv/a?consistency=stale&max_staleness=-1s", "GET /v1/kv/a?consistency=stale&max_staleness=x",
		"GET /v1/kv/a?timeout=0", "GET /v1/kv/a?timeout=-1s", "GET /v1/kv/a?timeout=11m", "GET /v1/kv/a?timeout=soon", "GET /v1/kv/a?timing=maybe", "GET /v1/kv/a?redirect=2",
		"PUT /v1/kv/a?ttl=", "PUT /v1/kv/a?ttl=0", "PUT /v1/kv/a?ttl=99ms", "PUT /v1/kv/a?ttl=0.09", "PUT /v1/kv/a?ttl=-5", "PUT /v1/kv/a?ttl=876601h", "PUT /v1/kv/a?ttl=3155760001", "PUT /v1/kv/a?ttl=1e3", "PUT /v1/kv/a?ttl=9999999999999999999999", "PUT /v1/kv/a?ttl=NaN", "PUT /v1/kv/a?ttl=1.2.3",
		"GET /v1/kv?key=", "GET /v1/kv/", "PUT /v1/kv/", "PUT /v1/kv", "PUT /v1/kv?prefix=a", "DELETE /v1/kv", "DELETE /v1/kv?prefix=", "POST /v1/kv",
		"GET /v1/status?verbose=1", "GET /v1/cluster?key=a", "GET /livez?x=1", "GET /readyz?verbose=2", "GET /metrics?x=1", "GET /readyz?timeout=1s",
	} {
		runSteps(t, f, []step{{req: req, status: 400, code: kv.CodeInvalidArgument}})
	}
	if f.store.txnCount() != 0 || len(f.store.reads) != 0 {
		t.Error("a bad request reached the store")
	}
	for _, req := range []string{"POST /v1/snapshot", "POST /v1/kv"} {
		runSteps(t, f, []step{{req: req, headers: []string{"Idempotency-Key: k"}, status: 400, code: kv.CodeInvalidArgument}})
	}
}

func TestTTL(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"100ms": 100 * time.Millisecond, "0.1": 100 * time.Millisecond, "30s": 30 * time.Second, "30": 30 * time.Second, "1h30m": 90 * time.Minute,
		"876600h": maxTTL, "3155760000": maxTTL, "100000001ns": 101 * time.Millisecond, "%2B5s": 5 * time.Second,
	} {
		f := newFixture(t)
		if w := f.do(t, "PUT", "/v1/kv/a?ttl="+text, "v"); w.Code != 201 || f.store.txns[0].Then[0].TTL != want {
			t.Errorf("ttl=%s: %d %s, ttl %v, want %v", text, w.Code, w.Body, f.store.txns, want)
		}
	}
}

func TestLimits(t *testing.T) {
	f := newFixture(t)
	k := strings.Repeat("k", 64)
	v := strings.Repeat("v", 1<<20)
	runSteps(t, f, []step{
		{req: "PUT /v1/kv/" + k, body: v, status: 201},
		{req: "PUT /v1/kv/" + k + "k", body: "v", status: 413, code: kv.CodeTooLarge},
		{req: "GET /v1/kv/" + k + "k", status: 413, code: kv.CodeTooLarge},
		{req: "GET /v1/kv?key=" + k + "k", status: 413, code: kv.CodeTooLarge},
		{req: "GET /v1/kv/" + strings.Repeat("%41", 64), status: 404, code: kv.CodeNotFound}, // it's the decoded bytes that count
		{req: "PUT /v1/kv/a", body: v + "v", status: 413, code: kv.CodeTooLarge},
		{req: "POST /v1/kv/a?op=append", body: v + "v", status: 413, code: kv.CodeTooLarge},
	})
	f.store.settings.MaxRequestBytes = 10
	runSteps(t, f, []step{
		{req: "PUT /v1/kv/b", body: "0123456789", status: 201},
		{req: "PUT /v1/kv/b", body: "0123456789a", status: 413, code: kv.CodeTooLarge},
	})
	f.store.settings = kv.ClusterSettings{} // none yet: the defaults hold
	runSteps(t, f, []step{
		{req: "PUT /v1/kv/" + strings.Repeat("k", 4096), body: v, status: 201},
		{req: "PUT /v1/kv/" + strings.Repeat("k", 4097), body: v, status: 413, code: kv.CodeTooLarge},
	})
	// A body of unknown length is bounded to the byte, too.
	for size, status := range map[int]int{10: 201, 11: 413, 1 << 20: 413} {
		f := newFixture(t)
		f.store.settings.MaxValueBytes = 10
		r := httptest.NewRequest(http.MethodPut, "/v1/kv/c", struct{ *strings.Reader }{strings.NewReader(strings.Repeat("x", size))})
		r.ContentLength = -1
		w := httptest.NewRecorder()
		f.srv.Handler().ServeHTTP(w, r)
		if w.Code != status {
			t.Errorf("%d bytes of unknown length: status %d, want %d", size, w.Code, status)
		}
	}
}

func TestAdmission(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.MaxInflightBytes = 100 << 10 })
	release := make(chan struct{})
	entered := make(chan struct{}, 1)
	f.store.onTxn = func(_ context.Context, tx kv.Txn) (kv.TxnResult, error) {
		if tx.Then[0].Key == "slow" {
			entered <- struct{}{}
			<-release
		}
		return kv.TxnResult{}, errGoOn
	}
	done := make(chan int)
	go func() { done <- f.do(t, "PUT", "/v1/kv/slow", strings.Repeat("x", 90<<10)).Code }()
	<-entered
	read := &countingReader{r: strings.NewReader(strings.Repeat("x", 20<<10))}
	r := httptest.NewRequest(http.MethodPut, "/v1/kv/a", read)
	r.ContentLength = 20 << 10
	w := httptest.NewRecorder()
	f.srv.Handler().ServeHTTP(w, r)
	p := wantProblem(t, w, 429, kv.CodeOverloaded)
	if p.Outcome != kv.OutcomeNotApplied || read.n != 0 {
		t.Errorf("outcome %q after reading %d bytes", p.Outcome, read.n)
	}
	if w := f.do(t, "PUT", "/v1/kv/a", "small"); w.Code != 201 {
		t.Errorf("a small put beside it: %d", w.Code)
	}
	if w := f.do(t, "GET", "/v1/kv/a", ""); w.Code != 200 {
		t.Errorf("a read beside it: %d", w.Code)
	}
	close(release)
	if code := <-done; code != 201 {
		t.Errorf("the slow put: %d", code)
	}
	// Bigger than the bound, but alone.
	if w := f.do(t, "PUT", "/v1/kv/big", strings.Repeat("x", 300<<10)); w.Code != 201 {
		t.Errorf("a big put alone: %d %s", w.Code, w.Body)
	}
	if f.srv.admission.used != 0 {
		t.Errorf("%d bytes never given back", f.srv.admission.used)
	}
}

type countingReader struct {
	r *strings.Reader
	n int
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// Every byte string is a key, reached by every spelling of it.
func FuzzKeyPath(f *testing.F) {
	for _, k := range []string{"a", "/", "//", "a//b", "a/../b", "a/", "/a", "..", ".", "%", "%2F", "%252F", "\x00", "\xff\xfe", "a b", "a+b", "a?b", "a#b", "a;b", "a&b=c", "é", "\r\n", "http://x/y"} {
		f.Add(k)
	}
	fx := newFixture(f)
	addr := fx.listen(f)
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	f.Fuzz(func(t *testing.T, key string) {
		if key == "" || len(key) > 64 {
			return // the limits of the fixture, tested elsewhere
		}
		var hex strings.Builder
		for i := range len(key) {
			fmt.Fprintf(&hex, "%%%02x", key[i])
		}
		var got string
		fx.store.onGet = func(_ context.Context, k string, _ kv.ReadOptions) (kv.Item, kv.Revision, error) {
			got = k
			return kv.Item{Key: k, ModRevision: 1}, 1, nil
		}
		spell := map[string]string{
			"every byte escaped":       "/v1/kv/" + hex.String(),
			"as a path segment":        "/v1/kv/" + url.PathEscape(key),
			"slashes as they are":      "/v1/kv/" + strings.ReplaceAll(url.PathEscape(key), "%2F", "/"),
			"query, form escaped":      "/v1/kv?key=" + url.QueryEscape(key),
			"query, every byte escape": "/v1/kv?key=" + hex.String(),
		}
		for how, target := range spell {
			got = ""
			w := httptest.NewRecorder()
			fx.srv.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
			if w.Code != 200 || got != key {
				t.Fatalf("%s: %q gave status %d and key %q", how, target, w.Code, got)
			}
		}
		// And over a real connection, with the URL that a Go program would make.
		got = ""
		u := &url.URL{Scheme: "http", Host: addr, Path: "/v1/kv/" + key, RawPath: "/v1/kv/" + url.PathEscape(key)}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL = u
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK || got != key {
			t.Fatalf("over the wire: status %d and key %q", resp.StatusCode, got)
		}
		// The leader's URL for it names the same key.
		to, err := leaderURL("h:1", httptest.NewRequest(http.MethodGet, spell["as a path segment"], nil).URL)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := pathKey(httptest.NewRequest(http.MethodGet, to.String(), nil).URL.EscapedPath()); err != nil || back != key {
			t.Fatalf("forwarded as %q: key %q, %v", to, back, err)
		}
	})
}
