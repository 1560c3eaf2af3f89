package httpapi

import (
	"context"
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

func TestTxn(t *testing.T) {
	f := newFixture(t)
	txn := func(b string, want string) {
		t.Helper()
		w := f.do(t, "POST", "/v1/txn", b)
		if w.Code != 200 || w.Body.String() != want+"\n" || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s:\n%d %s, want\n%s", b, w.Code, w.Body, want)
		}
	}
	txn(`{"then":[{"put":{"key":"a","value":"1","ttl":"30s","content_type":"text/plain"}},{"put":{"key_base64":"/w==","value_base64":"AP8="}},{"append":{"key":"l","value":"x"}}]}`,
		`{"succeeded":true,"revision":1,"results":[{"put":{"created":true,"mod_revision":1}},{"put":{"created":true,"mod_revision":1}},{"append":{"created":true,"mod_revision":1}}]}`)
	txn(`{"if":[{"key":"a","mod_revision":{"eq":1}},{"key":"a","version":{"ge":1}},{"key":"a","create_revision":{"lt":2}},{"key":"a","value":{"eq":"1"}},{"key":"none","exists":false},
		{"key_base64":"/w==","value_base64":{"eq":"AP8="}},{"key":"a","exists":true},{"key":"none","mod_revision":{"eq":0}},{"key":"none","version":{"le":0}},{"key":"a","version":{"ne":2}},{"key":"a","version":{"gt":0}}],
		"then":[{"incr":{"key":"a"}},{"incr":{"key":"a","by":-7}},{"get":{"key":"a"}},{"get":{"key":"none"}},{"touch":{"key":"l","ttl":60}},{"delete":{"key":"none"}},{"delete":{"key_base64":"/w=="}},{"get":{"key_base64":"/w=="}}],
		"else":[{"delete":{"prefix":""}}]}`,
		`{"succeeded":true,"revision":2,"results":[{"incr":{"value":2}},{"incr":{"value":-5}},{"get":{"key":"a","value":"-5","create_revision":1,"mod_revision":2,"version":2,"content_type":"text/plain","expires_at":"2030-01-02T03:04:35.678Z"}},{"get":null},`+
			`{"touch":{"mod_revision":2}},{"delete":{"deleted":0}},{"delete":{"deleted":1}},{"get":null}]}`)
	txn(`{"if":[{"key":"a","value":{"eq":"2"}}],"then":[{"delete":{"prefix":""}}],"else":[{"get":{"key":"l"}}]}`,
		`{"succeeded":false,"revision":2,"results":[{"get":{"key":"l","value":"x","create_revision":1,"mod_revision":2,"version":2,"expires_at":"2030-01-02T03:05:05.678Z"}}]}`)
	txn(`{"if":[{"key":"none","value":{"eq":""}}],"then":[{"delete":{"prefix":""}}]}`, `{"succeeded":false,"revision":2,"results":[]}`)
	txn(`{}`, `{"succeeded":true,"revision":2,"results":[]}`)
	txn(` {"then" : [ {"put":{"value":"é\u00e9\ud83d\ude00\\","key":"\u0000\/"}} ] , "if":[], "else":[]} `, `{"succeeded":true,"revision":3,"results":[{"put":{"created":true,"mod_revision":3}}]}`)
	if got := f.store.value("\x00/"); got != "éé😀\\" {
		t.Errorf("value %q", got)
	}
	txn(`{"then":[{"range":{}},{"range":{"prefix":"a","keys_only":true}},{"range":{"start":"a","end":"m","reverse":true,"limit":1}},{"range":{"start_base64":"/w=="}},{"delete":{"start":"a","end":"b"}},{"delete":{"prefix_base64":""}},{"range":{"end_base64":"/w=="}}]}`,
		`{"succeeded":true,"revision":4,"results":[{"range":{"items":[{"key":"\u0000/","value":"éé😀\\","create_revision":3,"mod_revision":3,"version":1},{"key":"a","value":"-5","create_revision":1,"mod_revision":2,"version":2,"content_type":"text/plain","expires_at":"2030-01-02T03:04:35.678Z"},`+
			`{"key":"l","value":"x","create_revision":1,"mod_revision":2,"version":2,"expires_at":"2030-01-02T03:05:05.678Z"}],"count":3,"more":false}},`+
			`{"range":{"items":[{"key":"a","create_revision":1,"mod_revision":2,"version":2,"content_type":"text/plain","expires_at":"2030-01-02T03:04:35.678Z"}],"count":1,"more":false}},`+
			`{"range":{"items":[{"key":"l","value":"x","create_revision":1,"mod_revision":2,"version":2,"expires_at":"2030-01-02T03:05:05.678Z"}],"count":1,"more":true}},`+
			`{"range":{"items":[],"count":0,"more":false}},{"delete":{"deleted":1}},{"delete":{"deleted":2}},{"range":{"items":[],"count":0,"more":false}}]}`)
	txn(`{"then":[{"incr":{"key":"n","by":9223372036854775807}}]}`, `{"succeeded":true,"revision":5,"results":[{"incr":{"value":9223372036854775807}}]}`)
	runSteps(t, f, []step{
		{req: "POST /v1/txn", body: `{"then":[{"put":{"key":"x","value":"y"}},{"incr":{"key":"x"}}]}`, status: 409, code: kv.CodeConflict, has: map[string]string{"Sett-Revision": "5"}},
		{req: "POST /v1/txn", body: `{"then":[{"incr":{"key":"n"}}]}`, status: 409, code: kv.CodeConflict},
		{req: "POST /v1/txn", body: `{"then":[{"touch":{"key":"none","ttl":1}}]}`, status: 404, code: kv.CodeNotFound},
		{req: "GET /v1/kv/x", status: 404, code: kv.CodeNotFound},
	})
	ttl := func(text string) time.Duration {
		f := newFixture(t)
		if w := f.do(t, "POST", "/v1/txn", `{"then":[{"put":{"key":"a","value":"","ttl":`+text+`}}]}`); w.Code != 200 {
			t.Fatalf("%s: %s", text, w.Body)
		}
		return f.store.txns[0].Then[0].TTL
	}
	for text, want := range map[string]time.Duration{`"30s"`: 30 * time.Second, `"30"`: 30 * time.Second, `30`: 30 * time.Second, `0.5`: 500 * time.Millisecond, `"1h30m"`: 90 * time.Minute, `"100.0001ms"`: 101 * time.Millisecond, `"876600h"`: maxTTL} {
		if got := ttl(text); got != want {
			t.Errorf("ttl %s: %v", text, got)
		}
	}
}

func TestBadTxns(t *testing.T) {
	f := newFixture(t)
	deep := strings.Repeat(`[`, 20000)
	for _, b := range []string{
		``, ` `, `null`, `[]`, `"x"`, `7`, `{`, `{}x`, `{}{}`, `{},`, `{"then":null}`, `{"then":{}}`, `{"then":[`, `{"then":[]`, `{"then":[],}`, `{"then":[,]}`, `{"when":[]}`, `{"Then":[]}`, `{"then":[],"then":[]}`, `{"th\u0065n":[],"then":[]}`,
		`{"then":[null]}`, `{"then":[{}]}`, `{"then":[7]}`, `{"then":[{"move":{}}]}`, `{"then":[{"put":null}]}`, `{"then":[{"put":{"key":"a"}}]}`, `{"then":[{"put":{"value":"a"}}]}`, `{"then":[{"put":{"key":"","value":"a"}}]}`,
		`{"then":[{"put":{"key":null,"value":"a"}}]}`, `{"then":[{"put":{"key":"a","value":null}}]}`, `{"then":[{"put":{"key":"a","value":1}}]}`, `{"then":[{"put":{"key":"a","value":{}}}]}`, `{"then":[{"put":{"key":"a","value":"b","x":1}}]}`,
		`{"then":[{"put":{"key":"a","key":"b","value":""}}]}`, `{"then":[{"put":{"key":"a","key_base64":"YQ==","value":""}}]}`, `{"then":[{"put":{"key":"a","value":"","value_base64":""}}]}`, `{"then":[{"put":{"key":"a","value":""},"get":{"key":"a"}}]}`,
		`{"then":[{"put":{"key":"a","value_base64":"Y"}}]}`, `{"then":[{"put":{"key":"a","value_base64":"YQ"}}]}`, `{"then":[{"put":{"key":"a","value_base64":"YR=="}}]}`, `{"then":[{"put":{"key":"a","value_base64":"YQ==\n"}}]}`, `{"then":[{"put":{"key":"a","value_base64":"_-8="}}]}`, `{"then":[{"put":{"key":"a","value_base64":"Y*=="}}]}`,
		`{"then":[{"put":{"key":"a","value":"","ttl":"soon"}}]}`, `{"then":[{"put":{"key":"a","value":"","ttl":0}}]}`, `{"then":[{"put":{"key":"a","value":"","ttl":-1}}]}`, `{"then":[{"put":{"key":"a","value":"","ttl":"99ms"}}]}`, `{"then":[{"put":{"key":"a","value":"","ttl":1e3}}]}`,
		`{"then":[{"put":{"key":"a","value":"","ttl":"876601h"}}]}`, `{"then":[{"put":{"key":"a","value":"","ttl":true}}]}`, `{"then":[{"put":{"key":"a","value":"","content_type":"a\nb"}}]}`, `{"then":[{"put":{"key":"a","value":"","content_type":"é"}}]}`, `{"then":[{"put":{"key":"a","value":"","content_type":"` + strings.Repeat("x", 256) + `"}}]}`,
		`{"then":[{"incr":{"key":"a","by":1.0}}]}`, `{"then":[{"incr":{"key":"a","by":1e2}}]}`, `{"then":[{"incr":{"key":"a","by":"1"}}]}`, `{"then":[{"incr":{"key":"a","by":9223372036854775808}}]}`, `{"then":[{"incr":{"key":"a","by":-9223372036854775809}}]}`, `{"then":[{"incr":{"by":1}}]}`,
		`{"then":[{"touch":{"key":"a"}}]}`, `{"then":[{"touch":{"ttl":5}}]}`, `{"then":[{"append":{"key":"a"}}]}`, `{"then":[{"append":{"key":"a","value":"","ttl":1}}]}`, `{"then":[{"get":{}}]}`, `{"then":[{"get":{"prefix":"a"}}]}`,
		`{"then":[{"delete":{}}]}`, `{"then":[{"delete":{"key":"a","prefix":"a"}}]}`, `{"then":[{"delete":{"prefix":"a","start":"a"}}]}`, `{"then":[{"delete":{"start":"b","end":"a"}}]}`, `{"then":[{"delete":{"prefix":"a","limit":1}}]}`, `{"then":[{"delete":{"key":""}}]}`,
		`{"then":[{"range":{"limit":0}}]}`, `{"then":[{"range":{"limit":10001}}]}`, `{"then":[{"range":{"limit":-1}}]}`, `{"then":[{"range":{"limit":"1"}}]}`, `{"then":[{"range":{"start":"b","end":"b"}}]}`, `{"then":[{"range":{"prefix":"a","end":"b"}}]}`, `{"then":[{"range":{"key":"a"}}]}`, `{"then":[{"range":{"prefix":"a","prefix_base64":"YQ=="}}]}`,
		`{"if":[{"key":"a"}]}`, `{"if":[{"exists":true}]}`, `{"if":[{"key":"a","exists":1}]}`, `{"if":[{"key":"a","exists":true,"version":{"eq":1}}]}`, `{"if":[{"key":"a","version":{}}]}`, `{"if":[{"key":"a","version":{"eq":1,"ne":2}}]}`, `{"if":[{"key":"a","version":1}]}`, `{"if":[{"key":"a","version":{"is":1}}]}`,
		`{"if":[{"key":"a","version":{"eq":-1}}]}`, `{"if":[{"key":"a","version":{"eq":18446744073709551616}}]}`, `{"if":[{"key":"a","version":{"eq":1.5}}]}`, `{"if":[{"key":"a","value":{"ne":"x"}}]}`, `{"if":[{"key":"a","value":{}}]}`, `{"if":[{"key":"a","value":"x"}]}`, `{"if":[{"key":"","exists":true}]}`, `{"if":[{"key":"a","version":{"eq":1},"version":{"eq":1}}]}`,
		`{"if":[{"key":"a","ttl":{"eq":1}}]}`, `{"if":{"key":"a","exists":true}}`,
		"{\"then\":[{\"put\":{\"key\":\"\xff\",\"value\":\"\"}}]}", `{"then":[{"put":{"key":"\ud800","value":""}}]}`, `{"then":[{"put":{"key":"\x","value":""}}]}`, "{\"then\":[{\"put\":{\"key\":\"a\nb\",\"value\":\"\"}}]}", "\ufeff{}", `{"then":'x'}`, `{"then":[]/**/}`, `{"then":[NaN]}`,
		`{"then":` + deep, deep, `{"then":[{"put":` + strings.Repeat(`{"a":`, 20000),
	} {
		w := f.do(t, "POST", "/v1/txn", b)
		if w.Code != 400 {
			t.Errorf("%.100s: %d %s", b, w.Code, w.Body)
			continue
		}
		if p := wantProblem(t, w, 400, kv.CodeInvalidArgument); p.Outcome != kv.OutcomeNotApplied || len(p.Detail) > 400 {
			t.Errorf("%.100s: %+v", b, p)
		}
	}
	for _, s := range []step{
		{req: "POST /v1/txn?key=a", body: `{}`}, {req: "POST /v1/txn?revision=1", body: `{}`},
		{req: "POST /v1/txn", body: `{}`, headers: []string{`If-Match: "1"`}}, {req: "POST /v1/txn", body: `{}`, headers: []string{"Content-Encoding: gzip"}},
	} {
		s.status, s.code = 400, kv.CodeInvalidArgument
		runSteps(t, f, []step{s})
	}
	long := strings.Repeat("k", 65)
	for _, b := range []string{
		`{"then":[{"get":{"key":"` + long + `"}}]}`, `{"if":[{"key":"` + long + `","exists":true}]}`, `{"then":[{"put":{"key":"a","value":"` + strings.Repeat("v", 1<<20+1) + `"}}]}`,
		`{"if":[{"key":"a","value":{"eq":"` + strings.Repeat("v", 1<<20+1) + `"}}]}`, `{"then":[` + strings.Repeat(" ", 2<<20) + `]}`,
		`{"then":[{"range":{"start":"` + strings.Repeat("k", kv.MaxKeyBytesBound+2) + `"}}]}`,
	} {
		runSteps(t, f, []step{{req: "POST /v1/txn", body: b, status: 413, code: kv.CodeTooLarge}})
	}
	if f.store.txnCount() != 0 {
		t.Error("a bad transaction reached the store")
	}
	// What the message says is where to look.
	w := f.do(t, "POST", "/v1/txn", `{"then":[{"put":{"key":"a","value":"b"}},{"put":{"key":"a","value":7}}]}`)
	if p := wantProblem(t, w, 400, kv.CodeInvalidArgument); !strings.Contains(p.Detail, "/then/1/put/value") {
		t.Errorf("detail %q", p.Detail)
	}
}

func TestBigTxns(t *testing.T) {
	f := newFixture(t)
	f.store.settings.MaxRequestBytes = 32 << 20
	ops := func(n int) string {
		var b strings.Builder
		b.WriteString(`{"then":[`)
		for i := range n {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `{"put":{"key":"k%06d","value":"v"}}`, i)
		}
		b.WriteString(`]}`)
		return b.String()
	}
	w := f.do(t, "POST", "/v1/txn", ops(10_000))
	if w.Code != 200 || strings.Count(w.Body.String(), `{"put":{"created":true,"mod_revision":1}}`) != 10_000 || f.store.Revision() != 1 {
		t.Errorf("%d, %d bytes", w.Code, w.Body.Len())
	}
	// Conditions and both branches count together.
	many := strings.TrimSuffix(ops(kv.MaxTouchedKeys), "}")
	f.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) {
		return kv.TxnResult{Succeeded: true, Revision: 1, Ops: make([]kv.OpResult, kv.MaxTouchedKeys)}, nil
	}
	if w := f.do(t, "POST", "/v1/txn", many+"}"); w.Code != 200 {
		t.Errorf("%d %.200s", w.Code, w.Body)
	}
	f.store.onTxn = nil
	before := f.store.txnCount()
	for _, more := range []string{`,"else":[{"get":{"key":"a"}}]}`, `,"if":[{"key":"a","exists":true}]}`} {
		if p := wantProblem(t, f.do(t, "POST", "/v1/txn", many+more), 413, kv.CodeTooLarge); !strings.Contains(p.Detail, "100000") || p.Outcome != kv.OutcomeNotApplied {
			t.Errorf("problem %+v", p)
		}
	}
	if f.store.txnCount() != before {
		t.Error("it reached the store")
	}
	// The answer of a range is as long as it is.
	v := strings.Repeat("v", 1000)
	var items []kv.Item
	for i := range 3000 {
		items = append(items, kv.Item{Key: fmt.Sprintf("r%05d", i), Value: []byte(v)})
	}
	f.store.set(items...)
	p := newPair(t)
	p.leader.store = f.store
	p.leader.srv.cfg.Store = f.store
	p.asked.store.settings.MaxRequestBytes = 32 << 20
	for name, x := range map[string]*fixture{"here": f, "forwarded": p.asked} {
		var got struct {
			Succeeded bool
			Revision  kv.Revision
			Results   []struct {
				Range struct {
					Items []form
					Count int
					More  bool
				}
			}
		}
		w := x.do(t, "POST", "/v1/txn", `{"then":[{"range":{"prefix":"r","limit":2000}},{"range":{"prefix":"r","limit":10000}}]}`)
		strictJSON(t, w.Body.Bytes(), &got)
		if w.Code != 200 || len(got.Results) != 2 || got.Results[0].Range.Count != 2000 || !got.Results[0].Range.More || len(got.Results[1].Range.Items) != 3000 || got.Results[1].Range.More || got.Results[1].Range.Items[2999].value() != v {
			t.Errorf("%s: %d, %d bytes", name, w.Code, w.Body.Len())
		}
	}
	if used := f.srv.admission.used; used != 0 {
		t.Errorf("%d bytes are still admitted", used)
	}
}

// What is parsed takes room, too: it is admitted before it is kept.
func TestTxnAdmission(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.MaxInflightBytes = 1 << 20 })
	other := grant{a: f.srv.admission}
	if err := other.grow(1000); err != nil {
		t.Fatal(err)
	}
	b := `{"then":[` + strings.Repeat(`{"get":{"key":"a"}},`, 5000) + `{"get":{"key":"a"}}]}` // 100 KB
	wantProblem(t, f.do(t, "POST", "/v1/txn", b), 429, kv.CodeOverloaded)
	other.release()
	if used := f.srv.admission.used; used != 0 || f.store.txnCount() != 0 {
		t.Errorf("%d bytes are still admitted, %d transactions", used, f.store.txnCount())
	}
}

func TestForwardTxn(t *testing.T) {
	p := newPair(t)
	runSteps(t, p.asked, []step{
		{req: "POST /v1/txn", body: `{"then":[{"put":{"key":"a","value":"1"}}]}`, status: 200, want: body(`{"succeeded":true,"revision":1,"results":[{"put":{"created":true,"mod_revision":1}}]}` + "\n"), has: map[string]string{"Sett-Served-By": "n2", "Sett-Revision": "1"}},
		{req: "POST /v1/txn", body: `{"then":[{"put":{"key":"a"}}]}`, status: 400, code: kv.CodeInvalidArgument},
		{req: "POST /v1/txn?redirect=1", body: `{"then":[{"put":{"key":"a","value":"1"}}]}`, status: 307, has: map[string]string{"Location": "http://" + p.addr + "/v1/txn?redirect=1"}},
		{req: "DELETE /v1/kv?prefix=a", status: 200, want: body(`{"deleted":1,"revision":2}` + "\n"), has: map[string]string{"Sett-Served-By": "n2"}},
		{req: "POST /v1/pins", body: `{"revision":1,"ttl":"1h"}`, status: 200, want: body(`{"id":"pin-1","revision":1,"expires_at":"2030-01-02T04:04:05.678Z"}` + "\n"), has: map[string]string{"Sett-Served-By": "n2"}},
		{req: "POST /v1/compact", body: `{"revision":2}`, status: 200, want: body(`{"compacted_to":1,"held_by":["pin-1"]}` + "\n"), has: map[string]string{"Sett-Served-By": "n2"}},
		{req: "DELETE /v1/pins/pin-1", status: 204, has: map[string]string{"Sett-Served-By": "n2"}},
	})
}

func TestHistory(t *testing.T) {
	f := newFixture(t)
	put(t, f, "a", "b", "c", "d")
	runSteps(t, f, []step{
		{req: "POST /v1/pins", body: `{"revision":2,"ttl":"24h"}`, status: 200, want: body(`{"id":"pin-1","revision":2,"expires_at":"2030-01-03T03:04:05.678Z"}` + "\n")},
		{req: "POST /v1/compact", body: `{"revision":3}`, status: 200, want: body(`{"compacted_to":2,"held_by":["pin-1"]}` + "\n")},
		{req: "DELETE /v1/pins/pin-1", status: 204, want: body("")},
		{req: "DELETE /v1/pins/pin-1", status: 404, code: kv.CodeNotFound},
		{req: "POST /v1/compact", body: `{"revision":3}`, status: 200, want: body(`{"compacted_to":3,"held_by":[]}` + "\n")},
		{req: "GET /v1/kv/c?revision=3", status: 200},
		{req: "GET /v1/kv/b?revision=2", status: 410, code: kv.CodeCompacted},
		{req: "GET /v1/watch?from=2", status: 410, code: kv.CodeCompacted},
		{req: "POST /v1/pins", body: `{"revision":2,"ttl":"1h"}`, status: 410, code: kv.CodeCompacted},
		{req: "POST /v1/compact", body: `{"revision":5}`, status: 400, code: kv.CodeInvalidArgument},
	})
	for req, bodies := range map[string][]string{
		"POST /v1/compact":  {``, `{}`, `{"revision":0}`, `{"revision":-1}`, `{"revision":"3"}`, `{"revision":3,"x":1}`, `{"revision":null}`, `[]`, `{"revision":1}x`},
		"POST /v1/pins":     {``, `{}`, `{"revision":3}`, `{"ttl":"1h"}`, `{"revision":3,"ttl":"25h"}`, `{"revision":3,"ttl":"1ms"}`, `{"revision":0,"ttl":"1h"}`, `{"revision":3,"ttl":"x"}`, `{"revision":3,"ttl":"1h","id":"x"}`},
		"DELETE /v1/pins/a": {`x`},
	} {
		for _, b := range bodies {
			runSteps(t, f, []step{{req: req, body: b, status: 400, code: kv.CodeInvalidArgument}})
		}
	}
}

func FuzzTxn(f *testing.F) {
	f.Add([]byte(`{"if":[{"key":"a","mod_revision":{"eq":1}},{"key_base64":"/w==","value_base64":{"eq":"AP8="}}],"then":[{"put":{"key":"a","value":"1","ttl":"30s","content_type":"text/plain"}}],"else":[{"range":{"prefix":"a","limit":5}}]}`))
	f.Add([]byte(`{"then":[{"incr":{"key":"a","by":-1}},{"append":{"key":"l","value":"x"}},{"touch":{"key":"l","ttl":60}},{"delete":{"start":"a","end":"b"}},{"get":{"key":"a"}}]}`))
	f.Add([]byte(`{"then":[{"put":{"key":"\u0000\ud83d\ude00","value_base64":"YQ==\n"}}]}`))
	limits := kv.ClusterSettings{MaxKeyBytes: 64, MaxValueBytes: 1000, MaxRequestBytes: 1 << 20}
	f.Fuzz(func(t *testing.T, data []byte) {
		g := grant{a: newAdmission(1<<30, newMetrics(newTestRegistry()).inflightBytes)}
		p := txnParser{j: newJSONReader(data), limits: limits, grant: &g}
		txn, err := p.txn()
		if err != nil {
			if e := kv.AsError(err); e.Code != kv.CodeInvalidArgument && e.Code != kv.CodeTooLarge {
				t.Fatalf("error %v", err)
			}
			return
		}
		for _, c := range txn.If {
			if c.Key == "" || len(c.Key) > 64 || c.Target == 0 || c.Op == 0 || len(c.Value) > 1000 {
				t.Fatalf("condition %+v", c)
			}
		}
		for _, op := range slices.Concat(txn.Then, txn.Else) {
			ranged := op.Kind == kv.OpRange || op.Kind == kv.OpDeleteRange
			if ranged != (op.Key == "") || len(op.Key) > 64 || op.Range.Empty() || len(op.Value) > 1000 || op.Kind == 0 || op.TTL < 0 || op.TTL > maxTTL {
				t.Fatalf("operation %+v", op)
			}
			if op.Kind == kv.OpRange && (op.Limit < 1 || op.Limit > kv.MaxRangeLimit) {
				t.Fatalf("operation %+v", op)
			}
		}
	})
}

func TestJSONReader(t *testing.T) {
	// Values are copies: what they were read from may change.
	data := []byte(`{"a":"text","b":"dGV4dA==","c":"te\u0078t"}`)
	j := newJSONReader(data)
	got := map[string][]byte{}
	if err := j.object(func(name string) (err error) {
		read := j.bytes
		if name == "b" {
			read = j.base64
		}
		got[name], err = read()
		return err
	}); err != nil || j.end() != nil {
		t.Fatal(err)
	}
	for i := range data {
		data[i] = '#'
	}
	for name, v := range got {
		if string(v) != "text" {
			t.Errorf("%s is %q", name, v)
		}
	}
	for text, want := range map[string]int64{"0": 0, "-0": 0, "-9223372036854775808": math.MinInt64, "9223372036854775807": math.MaxInt64} {
		if n, err := newJSONReader([]byte(text)).int64(); err != nil || n != want {
			t.Errorf("%s: %d, %v", text, n, err)
		}
	}
}

func BenchmarkParseTxn(b *testing.B) {
	value := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("v", 64)))
	for name, op := range map[string]string{"put": `{"put":{"key":"app/config/000000","value":"` + value + `"}}`, "incr": `{"incr":{"key":"app/config/000000"}}`} {
		text := []byte(`{"then":[` + strings.Repeat(op+",", 9999) + op + `]}`)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			g := grant{a: newAdmission(1<<40, newMetrics(newTestRegistry()).inflightBytes)}
			for b.Loop() {
				p := txnParser{j: newJSONReader(text), limits: kv.ClusterSettings{MaxKeyBytes: 64, MaxValueBytes: 1000}, grant: &g}
				if _, err := p.txn(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
