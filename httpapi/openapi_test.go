package httpapi

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/errors"
	"github.com/pb33f/libopenapi-validator/schema_validation"
	"github.com/pb33f/libopenapi/datamodel/high/base"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"

	"github.com/settkv/sett/kv"
)

// description is openapi.yaml, and what of it was seen to be true.
type description struct {
	check   validator.Validator
	schemas map[string]*base.Schema
	ops     map[string]*v3.Operation // "GET /v1/kv"
	paths   map[string]*regexp.Regexp
	seen    map[string]bool     // "GET /v1/kv 200"
	query   map[string][]string // the query parameters of an operation, sorted
	once    map[string]bool     // the operations that take an Idempotency-Key
}

func readDescription(t *testing.T) *description {
	t.Helper()
	doc, err := libopenapi.NewDocument(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(doc)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if ok, errs := v.ValidateDocument(); !ok {
		t.Fatal(reasons(errs))
	}
	model, err := doc.BuildV3Model()
	if err != nil {
		t.Fatal(err)
	}
	d := &description{check: v, schemas: map[string]*base.Schema{}, ops: map[string]*v3.Operation{}, paths: map[string]*regexp.Regexp{}, seen: map[string]bool{}, query: map[string][]string{}, once: map[string]bool{}}
	for name, s := range model.Model.Components.Schemas.FromOldest() {
		d.schemas[name] = s.Schema()
	}
	for path, item := range model.Model.Paths.PathItems.FromOldest() {
		d.paths[path] = regexp.MustCompile("^" + regexp.MustCompile(`\\\{[a-z]+\\\}`).ReplaceAllString(regexp.QuoteMeta(path), "[^/]+") + "$")
		for method, op := range item.GetOperations().FromOldest() {
			name := strings.ToUpper(method) + " " + path
			d.ops[name] = op
			for _, p := range slices.Concat(item.Parameters, op.Parameters) {
				if p.In == "query" {
					d.query[name] = append(d.query[name], p.Name)
				}
				if p.Name == headerIdempotencyKey {
					d.once[name] = true
				}
			}
			slices.Sort(d.query[name])
		}
	}
	return d
}

func reasons(errs []*errors.ValidationError) string {
	var b strings.Builder
	for _, e := range errs {
		fmt.Fprintf(&b, "%s: %s\n", e.Message, e.Reason)
		for _, s := range e.SchemaValidationErrors {
			fmt.Fprintf(&b, "   %s: %s\n", s.FieldPath, s.Reason)
		}
	}
	return b.String()
}

// see holds one exchange against the description, and that of a key or a range once more
// as a HEAD.
func (d *description) see(t *testing.T, f *fixture, s step) {
	t.Helper()
	d.see1(t, f, s)
	if head, ok := strings.CutPrefix(s.req, "GET /v1/kv"); ok {
		s.req = "HEAD /v1/kv" + head
		d.see1(t, f, s)
	}
}

func (d *description) see1(t *testing.T, f *fixture, s step) {
	t.Helper()
	method, target, _ := strings.Cut(s.req, " ")
	request := func() *http.Request {
		var body io.Reader
		if s.body != "" {
			body = strings.NewReader(s.body)
		}
		r := httptest.NewRequest(method, target, body)
		addHeaders(t, r, s.headers)
		return r
	}
	w := httptest.NewRecorder()
	f.srv.Handler().ServeHTTP(w, request())
	if w.Code != s.status {
		t.Errorf("%s: status %d, want %d; body %.300s", s.req, w.Code, s.status, w.Body)
		return
	}
	path := ""
	for p, re := range d.paths {
		if re.MatchString(request().URL.EscapedPath()) {
			path = p
		}
	}
	op := d.ops[method+" "+path]
	if op == nil {
		t.Errorf("%s: %s %s is not described", s.req, method, path)
		return
	}
	d.seen[method+" "+path+" "+strconv.Itoa(w.Code)] = true
	if op.Responses.Codes.GetOrZero(strconv.Itoa(w.Code)) == nil {
		t.Errorf("%s: status %d is not described; body %.300s", s.req, w.Code, w.Body)
		return
	}
	kind, _, _ := strings.Cut(w.Header().Get("Content-Type"), ";")
	for _, part := range parts(kind, w.Body.String()) {
		resp := w.Result()
		resp.Body = io.NopCloser(strings.NewReader(part))
		if part == "" && (kind == "" || method == http.MethodHead) {
			continue // there is no body, and so nothing that could be otherwise
		}
		if ok, errs := d.check.ValidateHttpResponse(request(), resp); !ok {
			t.Errorf("%s: the answer %d %s is not as described: %s\n%.300s", s.req, w.Code, kind, reasons(errs), part)
		}
	}
	if kind == eventStream {
		for line := range strings.SplitSeq(w.Body.String(), "\n") {
			if data, ok := strings.CutPrefix(line, "data: "); ok {
				d.line(t, s.req, "WatchLine", data)
			}
		}
	}
	if w.Code < 400 {
		for _, part := range parts(request().Header.Get("Content-Type"), s.body) {
			r := request()
			r.Body = io.NopCloser(strings.NewReader(part))
			if ok, errs := d.check.ValidateHttpRequest(r); !ok {
				t.Errorf("%s: the request is not as described: %s\n%.300s", s.req, reasons(errs), part)
			}
		}
	}
}

// parts are the documents of a body: its lines, or the whole.
func parts(kind, body string) []string {
	if kind != ndjson {
		return []string{body}
	}
	return slices.DeleteFunc(strings.Split(body, "\n"), func(line string) bool { return strings.TrimSpace(line) == "" })
}

// line holds a line against a schema.
func (d *description) line(t *testing.T, req, schema, line string) {
	t.Helper()
	if ok, errs := schema_validation.NewSchemaValidator().ValidateSchemaString(d.schemas[schema], line); !ok {
		t.Errorf("%s: the line is no %s: %s\n%s", req, schema, reasons(errs), line)
	}
}

// TestOpenAPI holds openapi.yaml against the handlers, both ways: what they answer is
// described, and what is described they answer.
func TestOpenAPI(t *testing.T) {
	d := readDescription(t)

	// Every route is described, and nothing else.
	routes := map[string]bool{}
	for _, rt := range newFixture(t).srv.routeTable() {
		path := regexp.MustCompile(`:[^}]*\}`).ReplaceAllString(rt.path, "}")
		if rt.prefix {
			path += "{key}"
		}
		for method := range rt.methods {
			routes[method+" "+path] = true
			if d.ops[method+" "+path] == nil {
				t.Errorf("%s %s is not described", method, path)
			}
			takes := slices.Clone(rt.methods[method].params)
			if strings.HasPrefix(path, "/v1/") {
				takes = append(takes, commonParams()...)
			}
			if got := d.once[method+" "+path]; got != rt.methods[method].once {
				t.Errorf("%s %s takes an Idempotency-Key: %v, described: %v", method, path, rt.methods[method].once, got)
			}
			slices.Sort(takes)
			if got := d.query[method+" "+path]; !slices.Equal(got, takes) {
				t.Errorf("%s %s takes %v, and %v are described", method, path, takes, got)
			}
		}
	}
	for name := range d.ops {
		if method, path, _ := strings.Cut(name, " "); !routes[name] && (method != "HEAD" || !routes["GET "+path]) {
			t.Errorf("%s is described, and there is no such route", name)
		}
	}

	d.seeSuccess(t)
	d.seeMalformed(t)
	d.seeBadRequests(t)
	d.seeFailures(t)

	for _, name := range slices.Sorted(maps.Keys(d.ops)) {
		for status := range d.ops[name].Responses.Codes.KeysFromOldest() {
			if !d.seen[name+" "+status] {
				t.Errorf("%s: status %s is described and was not seen", name, status)
			}
		}
	}
}

// seeSuccess sees every operation succeed in each of its ways.
func (d *description) seeSuccess(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.WatchProgress = time.Millisecond })
	f.cluster.members = []kv.Member{{ID: "n1", ServerID: "s", RaftAddr: "h:1", HTTPAddr: "h:2", State: kv.StateAlive, Role: kv.RoleLeader}}
	nd := []string{loadType}
	steps := []step{
		{req: "POST /v1/txn", status: 200, headers: []string{"Content-Type: application/json", "Idempotency-Key: t"}, body: `{"if":[{"key":"none","exists":false},{"key":"none","mod_revision":{"eq":0}},{"key_base64":"/w==","version":{"lt":9}}],
			"then":[{"put":{"key":"t/a","value":"1","ttl":"30s","content_type":"text/plain"}},{"put":{"key_base64":"/w==","value_base64":"AP8="}},{"append":{"key":"t/l","value":"x"}},{"incr":{"key":"t/a","by":-2}},{"touch":{"key":"t/l","ttl":60}},
			{"get":{"key":"t/a"}},{"get":{"key":"none"}},{"range":{"prefix":"t/","limit":1,"keys_only":true}},{"range":{"start":"t","end":"u","reverse":true}},{"delete":{"key":"t/l"}},{"delete":{"prefix":"zzz"}}]}`},
		{req: "POST /v1/txn", status: 200, headers: []string{"Content-Type: application/json"}, body: `{"if":[{"key":"t/a","value":{"eq":"no"}},{"key":"t/a","value_base64":{"eq":"AP8="}}],"then":[],"else":[{"get":{"key_base64":"/w=="}}]}`},
		{req: "GET /v1/kv?prefix=t/&timeout=5s&timing=1", status: 200},
		{req: "GET /v1/kv?delimiter=/&limit=1&reverse=1&consistency=stale&max_staleness=5s&min_revision=1", status: 200},
		{req: "GET /v1/kv?start=a&end=z&count_only=1&keys_only=1&revision=1", status: 200},
		{req: "GET /v1/kv", headers: []string{"Accept: application/x-ndjson"}, status: 200},
		{req: "GET /v1/kv?delimiter=/&keys_only=1", headers: []string{"Accept: application/x-ndjson"}, status: 200},
		{req: "HEAD /v1/kv?prefix=t/", status: 200},
		{req: "HEAD /v1/kv?key=none", status: 404},
		{req: "POST /v1/kv", headers: nd, status: 200, body: `{"begin":true,"by":"a test"}` + "\n" + `{"key":"b","value":"x","ttl":5,"content_type":"a/b"}` + "\n" + `{"key_base64":"/w==","value_base64":"AP8=","create_revision":1,"mod_revision":2,"version":3,"expires_at":"2031-01-02T03:04:05Z"}` + "\n" + `{"delete":"b"}` + "\n" + `{"delete_base64":"/w=="}` + "\n" + `{"end":true,"count":4,"revision":7}`},
		{req: "DELETE /v1/kv?prefix=t/", status: 200}, {req: "DELETE /v1/kv?all=true&atomic=0", headers: []string{"Idempotency-Key: d"}, status: 200},
		{req: "GET /v1/watch?prefix=b&from=2&previous=1", status: 200}, {req: "GET /v1/watch?key=b&from=1", headers: []string{"Accept: text/event-stream", "Last-Event-ID: 1"}, status: 200},
		{req: "POST /v1/pins", headers: []string{"Content-Type: application/json"}, body: `{"revision":2,"ttl":"1h"}`, status: 200},
		{req: "POST /v1/compact", headers: []string{"Content-Type: application/json"}, body: `{"revision":3}`, status: 200},
		{req: "DELETE /v1/pins/pin-1", status: 204},
		{req: "GET /v1/cluster", status: 200}, {req: "GET /v1/status", status: 200}, {req: "POST /v1/snapshot", status: 200},
		{req: "POST /v1/cluster/members", headers: []string{"Content-Type: application/json"}, body: `{"id":"n4","raft_addr":"h:1","http_addr":"h:2","voter":false}`, status: 201},
		{req: "POST /v1/cluster/members", headers: []string{"Content-Type: application/json"}, body: `{"id":"n4","raft_addr":"h:1","http_addr":"h:2"}`, status: 200},
		{req: "POST /v1/cluster/members", headers: []string{"Content-Type: application/json", "Idempotency-Key: m"}, body: `{"id":"n4","raft_addr":"h:1","http_addr":"h:2"}`, status: 200},
		{req: "POST /v1/cluster/members/n4/promote", status: 200}, {req: "POST /v1/cluster/members/n4/demote?force=1", status: 200}, {req: "DELETE /v1/cluster/members/n4?force=0", status: 204},
		{req: "POST /v1/cluster/transfer", headers: []string{"Content-Type: application/json"}, body: `{"to":"n2"}`, status: 200},
		{req: "PUT /v1/cluster/settings", headers: []string{"Content-Type: application/json"}, body: `{"history_retention":"2h","max_key_bytes":128}`, status: 200},
		{req: "GET /livez?verbose=1", status: 200}, {req: "GET /readyz", status: 200}, {req: "GET /healthz?verbose", status: 200},
		{req: "GET /metrics", status: 200}, {req: "GET /openapi.yaml", status: 200},
	}
	for i, at := range []string{"/v1/kv/k%d?", "/v1/kv?key=k%d&"} {
		at = fmt.Sprintf(at, i)
		rev := 0 // what If-Match of the delete below does not name
		steps = append(steps, []step{
			{req: "PUT " + at + "ttl=30s", headers: []string{"Content-Type: text/plain", "If-None-Match: *", "Idempotency-Key: p" + strconv.Itoa(i)}, body: "value", status: 201},
			{req: "PUT " + at, headers: []string{"Content-Type: text/plain", "If-Match: *"}, body: "value", status: 204},
			{req: "PUT " + at + "previous=1", headers: []string{"Content-Type: text/plain"}, body: "\xffvalue", status: 200},
			{req: "GET " + at, status: 200}, {req: "GET " + at, headers: []string{"Accept: application/json"}, status: 200}, {req: "GET " + at, headers: []string{"Range: bytes=1-2"}, status: 206},
			{req: "GET " + at, headers: []string{"If-None-Match: *"}, status: 304}, {req: "HEAD " + at, status: 200}, {req: "GET " + at, headers: []string{"Range: bytes=99-"}, status: 416},
			{req: "POST " + at + "op=touch&ttl=60", status: 200}, {req: "POST " + at + "op=append&previous=1", headers: []string{"Content-Type: text/plain"}, body: "x", status: 200},
			{req: "POST " + at + "op=incr", status: 409}, {req: "DELETE " + at, headers: []string{fmt.Sprintf(`If-Match: "%d"`, rev)}, status: 412}, {req: "PUT " + at, headers: []string{"If-None-Match: *"}, body: "x", status: 412},
			{req: "POST " + at + "op=touch&ttl=60", headers: []string{`If-Match: "0"`}, status: 412}, {req: "GET " + at, headers: []string{`If-Match: "0"`}, status: 412},
			{req: "DELETE " + at + "previous=1", status: 200}, {req: "DELETE " + at + "previous=1", status: 200}, {req: "DELETE " + at, status: 404}, {req: "GET " + at, status: 404}, {req: "HEAD " + at, status: 404}, {req: "POST " + at + "op=touch&ttl=60", status: 404},
			{req: "POST " + at + "op=incr&by=5", status: 200}, {req: "DELETE " + at, status: 204},
			{req: "PUT " + at, headers: []string{"Idempotency-Key: t"}, body: "x", status: 409}, {req: "DELETE " + at, headers: []string{"Idempotency-Key: t"}, status: 409},
			{req: "GET " + at + "revision=1", status: 410},
		}...)
	}
	steps = append(steps,
		step{req: "POST /v1/txn", body: `{"then":[{"touch":{"key":"none","ttl":60}}]}`, status: 404}, step{req: "POST /v1/txn", body: `{}`, headers: []string{"Idempotency-Key: t"}, status: 409},
		step{req: "GET /v1/kv?revision=1", status: 410}, step{req: "GET /v1/watch?from=1", status: 410}, step{req: "POST /v1/pins", body: `{"revision":1,"ttl":"1h"}`, status: 410}, step{req: "DELETE /v1/pins/none", status: 404},
		step{req: "POST /v1/pins", body: `{"revision":1,"ttl":"1h"}`, headers: []string{"Idempotency-Key: t"}, status: 409}, step{req: "DELETE /v1/pins/none", headers: []string{"Idempotency-Key: t"}, status: 409},
		step{req: "POST /v1/compact", body: `{"revision":1}`, headers: []string{"Idempotency-Key: t"}, status: 409}, step{req: "PUT /v1/cluster/settings", body: `{}`, headers: []string{"Idempotency-Key: t"}, status: 409},
	)
	for _, s := range steps {
		s.headers = append(s.headers, "Sett-Request-Id: r-1")
		if strings.Contains(s.req, "GET /v1/watch") && s.status == 200 {
			d.seeWatch(t, f, s)
			continue
		}
		d.see(t, f, s)
	}
	f.health.checks = []kv.Check{{Name: "raft", Detail: "no leader"}}
	f.health.live = errSecret
	for _, probe := range []string{"/livez", "/readyz", "/healthz"} {
		d.see(t, f, step{req: "GET " + probe, status: 503})
		d.see(t, f, step{req: "GET " + probe + "?verbose=1", status: 503})
		d.see(t, f, step{req: "GET " + probe + "?verbose=2", status: 400})
	}
	d.see(t, f, step{req: "GET /metrics?x=1", status: 400})
	d.see(t, f, step{req: "GET /openapi.yaml?x=1", status: 400})
}

// seeWatch sees a watch until its server stops.
func (d *description) seeWatch(t *testing.T, f *fixture, s step) {
	t.Helper()
	other := newFixture(t, func(c *Config) { c.WatchProgress = time.Millisecond })
	other.store = f.store
	other.srv.cfg.Store = f.store
	stop := time.AfterFunc(30*time.Millisecond, other.srv.Drain)
	defer stop.Stop()
	d.see(t, other, s)
}

// theRequests has a good request of every operation that can fail in the same ways.
func theRequests() []step {
	js := []string{"Content-Type: application/json"}
	return []step{
		{req: "GET /v1/kv/k?"}, {req: "PUT /v1/kv/k?", body: "v"}, {req: "POST /v1/kv/k?op=incr&"}, {req: "DELETE /v1/kv/k?"},
		{req: "GET /v1/kv?"}, {req: "PUT /v1/kv?key=k&", body: "v"}, {req: "POST /v1/kv?", body: `{"delete":"a"}`, headers: []string{loadType}}, {req: "DELETE /v1/kv?prefix=k&"},
		{req: "POST /v1/txn?", body: `{"then":[{"get":{"key":"a"}}]}`, headers: js}, {req: "GET /v1/watch?"},
		{req: "POST /v1/compact?", body: `{"revision":1}`, headers: js}, {req: "POST /v1/pins?", body: `{"revision":1,"ttl":"1h"}`, headers: js}, {req: "DELETE /v1/pins/a?"},
		{req: "GET /v1/cluster?"}, {req: "POST /v1/cluster/members?", body: `{"id":"n4","raft_addr":"h:1","http_addr":"h:2"}`, headers: js}, {req: "DELETE /v1/cluster/members/n4?"},
		{req: "POST /v1/cluster/members/n4/promote?"}, {req: "POST /v1/cluster/members/n4/demote?"}, {req: "POST /v1/cluster/transfer?", body: `{}`, headers: js},
		{req: "PUT /v1/cluster/settings?", body: `{}`, headers: js}, {req: "GET /v1/status?"}, {req: "POST /v1/snapshot?"},
	}
}

// seeMalformed sees bodies that are refused for their shape: the description refuses them, too.
func (d *description) seeMalformed(t *testing.T) {
	const js, txn = "Content-Type: application/json", "POST /v1/txn"
	for req, bodies := range map[string][]string{
		"POST /v1/kv": {
			`{"key":"a","value":"v","value_base64":"dg=="}`, `{"key":"a","value":"v","ttl":5,"expires_at":"2031-01-02T03:04:05Z"}`, `{"key":"a"}`,
			`{"key":"a","key_base64":"YQ==","value":"v"}`, `{"value":"v"}`, `{"key":"","value":"v"}`, `{"key":"a","value":1}`, `{"delete":""}`, `{"delete":"a","key":"b"}`, `{"end":false}`,
		},
		txn: {
			`{"then":[{"put":{"key":"a","value":"v","value_base64":"dg=="}}]}`, `{"then":[{"append":{"key":"a","value":"v","value_base64":"dg=="}}]}`, `{"then":[{"put":{"key":"a"}}]}`,
			`{"then":[{"put":{"value":"v"}}]}`, `{"then":[{"get":{"key":"a"},"delete":{"key":"a"}}]}`, `{"then":[{}]}`, `{"then":{}}`, `{"than":[]}`, `{"if":[{"key":"a"}]}`,
			`{"if":[{"key":"a","version":{"eq":-1}}]}`, `{"then":[{"range":{"limit":0}}]}`, `{"then":[{"touch":{"key":"a"}}]}`,
		},
		"POST /v1/pins":             {`{"revision":0,"ttl":"1h"}`, `{"revision":1}`, `{"ttl":"1h"}`, `{"revision":-1,"ttl":"1h"}`, `{"revision":1,"ttl":true}`},
		"POST /v1/compact":          {`{"revision":0}`, `{}`, `{"revision":"1"}`},
		"POST /v1/cluster/members":  {`{"id":"n4"}`, `{"id":4,"raft_addr":"h:1","http_addr":"h:2"}`, `{"id":"n4","raft_addr":"h:1","http_addr":"h:2","vote":true}`},
		"POST /v1/cluster/transfer": {`{"to":1}`, `{"from":"n1"}`},
		"PUT /v1/cluster/settings":  {`{"max_key_bytes":"9"}`, `{"max_key_bytes":0}`, `{"max_keys":9}`},
	} {
		method, target, _ := strings.Cut(req, " ")
		header := js
		if req == "POST /v1/kv" {
			header = loadType
		}
		for _, body := range bodies {
			f := newFixture(t)
			f.store.set(kv.Item{Key: "k"})
			request := func() *http.Request {
				r := httptest.NewRequest(method, target, strings.NewReader(body))
				addHeaders(t, r, []string{header})
				return r
			}
			w := httptest.NewRecorder()
			f.srv.Handler().ServeHTTP(w, request())
			if w.Code != http.StatusBadRequest {
				t.Errorf("%s %s: status %d; body %.300s", req, body, w.Code, w.Body)
			}
			if ok, _ := d.check.ValidateHttpRequest(request()); ok {
				t.Errorf("%s %s is refused, and described as good", req, body)
			}
		}
	}
}

// seeBadRequests sees what every request is refused for.
func (d *description) seeBadRequests(t *testing.T) {
	for _, s := range theRequests() {
		f := newFixture(t)
		bad := s
		bad.req, bad.status = s.req+"nonsense=1", 400
		d.see(t, f, bad)
		foreign := s
		foreign.headers, foreign.status = append(slices.Clone(s.headers), "Sett-Forwarded: n9", "Sett-Cluster-Id: another"), 403
		d.see(t, f, foreign)
		redirect := s
		redirect.req, redirect.status = s.req+"redirect=1", 307
		if strings.HasPrefix(s.req, "GET /v1/kv") {
			redirect.req += "&consistency=leader"
		}
		f.cluster.lead("n2", "127.0.0.1:1")
		switch s.req {
		case "GET /v1/watch?", "GET /v1/cluster?", "GET /v1/status?", "POST /v1/snapshot?": // these are about the asked node
		default:
			d.see(t, f, redirect)
		}
	}
	f := newFixture(t)
	long := strings.Repeat("k", 65)
	for _, s := range []step{
		{req: "GET /v1/kv/" + long}, {req: "PUT /v1/kv/" + long, body: "v"}, {req: "POST /v1/kv/" + long + "?op=incr"}, {req: "DELETE /v1/kv/" + long},
		{req: "GET /v1/kv?key=" + long}, {req: "PUT /v1/kv?key=" + long, body: "v"}, {req: "POST /v1/kv", body: `{"delete":"` + long + `"}`, headers: []string{loadType}}, {req: "DELETE /v1/kv?start=" + strings.Repeat("k", kv.MaxKeyBytesBound+2)},
		{req: "POST /v1/txn", body: `{"then":[{"get":{"key":"` + long + `"}}]}`}, {req: "GET /v1/watch?key=" + long},
	} {
		s.status = 413
		d.see(t, f, s)
	}
	for _, s := range theRequests() {
		if s.body != "" && !strings.HasPrefix(s.req, "PUT /v1/kv") && !strings.HasPrefix(s.req, "POST /v1/kv") && !strings.HasPrefix(s.req, "POST /v1/txn") {
			s.body, s.status = strings.Repeat(" ", MaxAdminBodyBytes+1), 413
			d.see(t, f, s)
		}
	}
}

// seeFailures sees what the node answers when what it asks of the store or the cluster
// fails, as each can.
func (d *description) seeFailures(t *testing.T) {
	const all = "internal no-leader timeout "
	may := func(s step) string {
		switch {
		case strings.HasPrefix(s.req, "GET /v1/kv"), strings.HasPrefix(s.req, "GET /v1/watch"), strings.HasPrefix(s.req, "DELETE /v1/kv"), strings.HasPrefix(s.req, "POST /v1/pins"), strings.HasPrefix(s.req, "DELETE /v1/pins"), strings.HasPrefix(s.req, "POST /v1/compact"), strings.HasPrefix(s.req, "PUT /v1/cluster/settings"):
			return all + "overloaded"
		case strings.HasPrefix(s.req, "PUT /v1/kv"), strings.HasPrefix(s.req, "POST /v1/kv"), strings.HasPrefix(s.req, "POST /v1/txn"):
			return all + "overloaded disk-full"
		case strings.HasPrefix(s.req, "POST /v1/cluster/members?"):
			return all + "conflict overloaded"
		case strings.Contains(s.req, "/v1/cluster/members/"), strings.Contains(s.req, "transfer"):
			return all + "conflict not-found overloaded"
		}
		return all
	}
	for _, s := range theRequests() {
		for code := range strings.FieldsSeq(may(s)) {
			f := newFixture(t)
			err := kv.NotApplied(kv.Code(code), "as a test has it")
			f.store.fail, f.cluster.err, f.health.err = err, err, err
			if strings.HasPrefix(s.req, "GET /v1/cluster") {
				f.cluster.infoErr = err
			}
			failing := s
			failing.req += "timeout=20ms"
			failing.status, _ = statusOf(kv.Code(code))
			d.see(t, f, failing)
		}
	}
	// In doubt.
	for _, s := range theRequests() {
		if strings.HasPrefix(s.req, "GET ") {
			continue
		}
		f := newFixture(t)
		err := kv.Unknown(nil, "lost")
		f.store.fail, f.cluster.err = err, err
		s.req, s.status = s.req+"timeout=20ms", 504
		d.see(t, f, s)
	}
}
