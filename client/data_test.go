package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

// request is a call as a test compares it: without what each call has of its own.
func request(c call) string {
	q := url.Values{}
	for k, v := range c.query {
		if k != "timeout" {
			q.Set(k, v)
		}
	}
	return strings.TrimSpace(c.method + " " + c.path + " " + q.Encode() + " " + c.body)
}

func TestDataRequests(t *testing.T) {
	ctx := t.Context()
	list := func(r kv.Range, o client.ListOptions) func(*client.Client) error {
		return func(c *client.Client) error { _, err := c.List(ctx, r, o); return err }
	}
	tests := []struct {
		name   string
		do     func(*client.Client) error
		answer string
		want   string
		once   bool
	}{
		{"list all", list(kv.Range{}, client.ListOptions{}), "{}", "GET /v1/kv", false},
		{"list a prefix", list(kv.PrefixRange("a/"), client.ListOptions{
			ReadOptions: kv.ReadOptions{Consistency: kv.Stale, MaxStaleness: time.Second, MinRevision: 2, Revision: 3},
			Limit:       5, After: "c", Reverse: true, KeysOnly: true, Delimiter: "/",
		}), "{}", "GET /v1/kv after=c&consistency=stale&delimiter=%2F&keys_only=1&limit=5&max_staleness=1s&min_revision=2&prefix=a%2F&reverse=1&revision=3", false},
		{"list a range", list(kv.Range{Start: "a", End: "\xff"}, client.ListOptions{}), "{}", "GET /v1/kv end=%FF&start=a", false},
		{"list from", list(kv.Range{Start: "a"}, client.ListOptions{}), "{}", "GET /v1/kv start=a", false},
		{"count", func(c *client.Client) error {
			n, rev, err := c.Count(ctx, kv.PrefixRange("a"), kv.ReadOptions{})
			if n != 4 || rev != 9 {
				return fmt.Errorf("%d at %d", n, rev)
			}
			return err
		}, `{"revision":9,"items":[],"count":4,"more":false}`, "GET /v1/kv count_only=1&prefix=a", false},
		{"delete a prefix", func(c *client.Client) error {
			r, err := c.DeleteRange(ctx, kv.PrefixRange("a"), client.DeleteRangeOptions{})
			if r != (client.DeleteRangeResult{Deleted: 3, Revision: 8}) {
				return fmt.Errorf("%+v", r)
			}
			return err
		}, `{"deleted":3,"revision":8}`, "DELETE /v1/kv prefix=a", true},
		{"delete in pages", func(c *client.Client) error {
			_, err := c.DeleteRange(ctx, kv.Range{Start: "a", End: "b0"}, client.DeleteRangeOptions{Paged: true})
			return err
		}, `{}`, "DELETE /v1/kv atomic=0&end=b0&start=a", true},
		{"delete all", func(c *client.Client) error {
			_, err := c.DeleteRange(ctx, kv.Range{}, client.DeleteRangeOptions{})
			return err
		}, `{}`, "DELETE /v1/kv all=true&atomic=1", true},
		{"compact", func(c *client.Client) error {
			r, err := c.Compact(ctx, 9, client.OnceOptions{})
			if !reflect.DeepEqual(r, kv.Compaction{To: 7, HeldBy: []string{"p1"}}) {
				return fmt.Errorf("%+v", r)
			}
			return err
		}, `{"compacted_to":7,"held_by":["p1"]}`, `POST /v1/compact  {"revision":9}`, true},
		{"pin", func(c *client.Client) error {
			r, err := c.Pin(ctx, 9, time.Hour, client.OnceOptions{})
			if r.ID != "p1" || r.Revision != 9 || !r.ExpiresAt.Equal(time.Unix(1, 0)) {
				return fmt.Errorf("%+v", r)
			}
			return err
		}, `{"id":"p1","revision":9,"expires_at":"1970-01-01T00:00:01Z"}`, `POST /v1/pins  {"revision":9,"ttl":"1h0m0s"}`, true},
		{"unpin", func(c *client.Client) error { return c.Unpin(ctx, "p/1", client.OnceOptions{}) }, "", "DELETE /v1/pins/p%2F1", true},
		{"raw transaction", func(c *client.Client) error {
			out, err := c.TxnJSON(ctx, []byte(`{"then":[]}`), "")
			if string(out) != `{"x":1}` {
				return errors.New(string(out))
			}
			return err
		}, `{"x":1}`, `POST /v1/txn  {"then":[]}`, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, answerWith(200, tt.answer))
			if err := tt.do(dial(t, 5*time.Second, n.URL)); err != nil {
				t.Fatal(err)
			}
			c := n.seen()[0]
			if got := request(c); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if key := c.header.Get("Idempotency-Key"); (key != "") != tt.once {
				t.Errorf("idempotency key %q", key)
			}
		})
	}
}

func TestPage(t *testing.T) {
	n := newNode(t, answerWith(200, `{"revision":9,"items":[{"key":"a","value":"1","create_revision":1,"mod_revision":2,"version":2},{"key_base64":"/w==","value_base64":"/g==","create_revision":3,"mod_revision":3,"version":1}],
		"common_prefixes":["b/"],"common_prefixes_base64":["/y8="],"count":4,"more":true,"next":"C"}`))
	p, err := dial(t, 5*time.Second, n.URL).List(t.Context(), kv.Range{}, client.ListOptions{})
	want := client.Page{
		Revision: 9, CommonPrefixes: []string{"b/", "\xff/"}, More: true, Next: "C",
		Items: []kv.Item{
			{Key: "a", Value: []byte("1"), CreateRevision: 1, ModRevision: 2, Version: 2},
			{Key: "\xff", Value: []byte{0xfe}, CreateRevision: 3, ModRevision: 3, Version: 1},
		},
	}
	if err != nil || !reflect.DeepEqual(p, want) {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestTxn(t *testing.T) {
	txn := kv.Txn{
		If: []kv.Cond{
			{Key: "a", Target: kv.CondModRevision, Op: kv.CmpEqual, Number: 0},
			{Key: "a", Target: kv.CondCreateRevision, Op: kv.CmpNotEqual, Number: 2},
			{Key: "a", Target: kv.CondVersion, Op: kv.CmpGreaterEqual, Number: 3},
			{Key: "a", Target: kv.CondExists, Op: kv.CmpEqual, Number: 1},
			{Key: "a", Target: kv.CondExists, Op: kv.CmpEqual},
			{Key: "a", Target: kv.CondValue, Op: kv.CmpEqual},
			{Key: "\xff", Target: kv.CondValue, Op: kv.CmpEqual, Value: []byte{0xfe}},
		},
		Then: []kv.Op{
			{Kind: kv.OpPut, Key: "a", TTL: 30 * time.Second, ContentType: "text/x"},
			{Kind: kv.OpPut, Key: "\xff", Value: []byte{0xfe}},
			{Kind: kv.OpGet, Key: "a"},
			{Kind: kv.OpGet, Key: "b"},
			{Kind: kv.OpRange, Range: kv.PrefixRange("p"), Limit: 2, Reverse: true, KeysOnly: true},
			{Kind: kv.OpRange, Range: kv.Range{Start: "a", End: "\xff"}, Limit: 1},
			{Kind: kv.OpDelete, Key: "a"},
			{Kind: kv.OpDeleteRange},
			{Kind: kv.OpIncr, Key: "n", By: -2},
			{Kind: kv.OpAppend, Key: "a", Value: []byte("+")},
			{Kind: kv.OpTouch, Key: "a", TTL: time.Minute},
		},
		Else: []kv.Op{{Kind: kv.OpIncr, Key: "n"}},
		Once: kv.Once{Key: "mine"},
	}
	body := `{"if":[{"key":"a","mod_revision":{"eq":0}},{"key":"a","create_revision":{"ne":2}},{"key":"a","version":{"ge":3}},{"key":"a","exists":true},{"key":"a","exists":false},{"key":"a","value":{"eq":""}},{"key_base64":"/w==","value_base64":{"eq":"/g=="}}],` +
		`"then":[{"put":{"key":"a","value":"","content_type":"text/x","ttl":"30s"}},{"put":{"key_base64":"/w==","value_base64":"/g=="}},{"get":{"key":"a"}},{"get":{"key":"b"}},` +
		`{"range":{"prefix":"p","limit":2,"reverse":true,"keys_only":true}},{"range":{"start":"a","end_base64":"/w==","limit":1}},{"delete":{"key":"a"}},{"delete":{"prefix":""}},{"incr":{"key":"n","by":-2}},{"append":{"key":"a","value":"+"}},{"touch":{"key":"a","ttl":"1m0s"}}],` +
		`"else":[{"incr":{"key":"n","by":0}}]}`
	answer := `{"succeeded":true,"revision":9,"results":[{"put":{"created":true,"mod_revision":9}},{"put":{"created":false,"mod_revision":9}},{"get":{"key":"a","value":"","create_revision":9,"mod_revision":9,"version":1}},{"get":null},
		{"range":{"items":[{"key":"p","create_revision":1,"mod_revision":1,"version":1}],"count":1,"more":true}},{"range":{"items":[],"count":0,"more":false}},{"delete":{"deleted":1}},{"delete":{"deleted":7}},{"incr":{"value":-2}},{"append":{"created":true,"mod_revision":9}},{"touch":{"mod_revision":9}}]}`
	n := newNode(t, answerWith(200, answer, "Sett-Replayed", "true", "Sett-Revision", "9"))
	res, err := dial(t, 5*time.Second, n.URL).Txn(t.Context(), txn)
	if err != nil {
		t.Fatal(err)
	}
	c := n.seen()[0]
	if got := request(c); got != "POST /v1/txn  "+body || c.header.Get("Idempotency-Key") != "mine" {
		t.Errorf("got  %s\nwant %s", got, body)
	}
	want := kv.TxnResult{Succeeded: true, Revision: 9, Replayed: true, Ops: []kv.OpResult{
		{Kind: kv.OpPut, Created: true, ModRevision: 9},
		{Kind: kv.OpPut, ModRevision: 9},
		{Kind: kv.OpGet, Item: &kv.Item{Key: "a", Value: []byte{}, CreateRevision: 9, ModRevision: 9, Version: 1}},
		{Kind: kv.OpGet},
		{Kind: kv.OpRange, Items: []kv.Item{{Key: "p", CreateRevision: 1, ModRevision: 1, Version: 1}}, More: true},
		{Kind: kv.OpRange},
		{Kind: kv.OpDelete, Deleted: 1},
		{Kind: kv.OpDeleteRange, Deleted: 7},
		{Kind: kv.OpIncr, Number: -2},
		{Kind: kv.OpAppend, Created: true, ModRevision: 9},
		{Kind: kv.OpTouch, ModRevision: 9},
	}}
	if !reflect.DeepEqual(res, want) {
		t.Errorf("got  %+v\nwant %+v", res, want)
	}
}

func TestTxnThatCannotBeSaid(t *testing.T) {
	n := newNode(t, answerWith(200, `{"succeeded":true,"revision":1,"results":[]}`))
	c := dial(t, 5*time.Second, n.URL)
	for name, txn := range map[string]kv.Txn{
		"previous":         {Then: []kv.Op{{Kind: kv.OpPut, Key: "a", Previous: true}}},
		"limited delete":   {Then: []kv.Op{{Kind: kv.OpDeleteRange, Limit: 3}}},
		"no kind":          {Else: []kv.Op{{Key: "a"}}},
		"no comparison":    {If: []kv.Cond{{Key: "a", Target: kv.CondVersion}}},
		"no target":        {If: []kv.Cond{{Key: "a", Op: kv.CmpEqual}}},
		"value not equal":  {If: []kv.Cond{{Key: "a", Target: kv.CondValue, Op: kv.CmpNotEqual}}},
		"exists not equal": {If: []kv.Cond{{Key: "a", Target: kv.CondExists, Op: kv.CmpNotEqual}}},
	} {
		if _, err := c.Txn(t.Context(), txn); !errors.Is(err, kv.ErrInvalidArgument) || kv.AsError(err).Outcome != kv.OutcomeNotApplied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(n.seen()) != 0 {
		t.Errorf("%d requests", len(n.seen()))
	}
	// Too few results: it was applied, and what it did is not known.
	if _, err := c.Txn(t.Context(), kv.Txn{Then: []kv.Op{{Kind: kv.OpGet, Key: "a"}}}); kv.AsError(err).Outcome != kv.OutcomeUnknown {
		t.Errorf("%v", err)
	}
}

// store is a fake node with keys, for streams: it breaks the first answers off after so
// many bytes each.
type store struct {
	keys []string
	cuts []int
}

func (s *store) serve(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	rng := kv.Range{Start: q.Get("start"), End: q.Get("end")}
	if q.Has("prefix") {
		rng = kv.PrefixRange(q.Get("prefix"))
	}
	var b bytes.Buffer
	n := 0
	for i := range s.keys {
		key := s.keys[i]
		if q.Get("reverse") == "1" {
			key = s.keys[len(s.keys)-1-i]
		}
		if rng.Contains(key) {
			data, _ := client.EncodeItem(kv.Item{Key: key, Value: []byte("v" + key), CreateRevision: 1, ModRevision: 1, Version: 1})
			b.Write(append(data, '\n'))
			n++
		}
	}
	fmt.Fprintf(&b, `{"end":true,"count":%d,"revision":5}`+"\n", n)
	w.Header().Set("Sett-Revision", "5")
	text := b.Bytes()
	if len(s.cuts) == 0 {
		_, _ = w.Write(text)
		return
	}
	cut := s.cuts[0]
	s.cuts = s.cuts[1:]
	_, _ = w.Write(text[:min(cut, len(text))])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// Wherever the connections break, a scan has every key once, of one revision.
func TestScanResumes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		keys := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "a\x00", "ab", "b", "\xfe", "\xff", "\xff\xff", "c/d", "ä"}), 0, 6, rapid.ID[string]).Draw(rt, "keys")
		slices.Sort(keys)
		s := &store{keys: keys, cuts: rapid.SliceOfN(rapid.IntRange(0, 300), 0, 3).Draw(rt, "cuts")}
		reverse := rapid.Bool().Draw(rt, "reverse")
		n := newNode(t, s.serve)
		c := dial(t, 10*time.Second, n.URL)
		sc, err := c.Scan(t.Context(), kv.Range{}, client.ScanOptions{Reverse: reverse})
		if err != nil {
			rt.Fatal(err)
		}
		defer sc.Close()
		var got []string
		for sc.Next(t.Context()) {
			if string(sc.Item().Value) != "v"+sc.Item().Key {
				rt.Fatalf("%+v", sc.Item())
			}
			got = append(got, sc.Item().Key)
		}
		want := append([]string{}, keys...)
		if reverse {
			slices.Reverse(want)
		}
		if sc.Err() != nil || fmt.Sprint(got) != fmt.Sprint(want) || sc.Revision() != 5 || int(sc.Count()) != len(keys) {
			rt.Fatalf("got %q, want %q, %v", got, want, sc.Err())
		}
		for i, call := range n.seen() {
			if i > 0 && call.query["revision"] != "5" {
				rt.Fatalf("resumed with %v", call.query)
			}
		}
	})
}

func TestScanEnds(t *testing.T) {
	item := `{"key":"a","value":"1","create_revision":1,"mod_revision":1,"version":1}` + "\n"
	for name, tt := range map[string]struct {
		text string
		want *kv.Error
	}{
		"whole":          {item + `{"end":true,"count":1,"revision":5}` + "\n", nil},
		"empty":          {`{"end":true,"count":0,"revision":5}` + "\n", nil},
		"a lost line":    {item + `{"end":true,"count":2,"revision":5}` + "\n", kv.ErrInternal},
		"an error":       {item + `{"error":{"code":"compacted","detail":"gone","oldest_revision":7}}` + "\n", kv.ErrCompacted},
		"no key":         {item + `{"x":1}` + "\n", kv.ErrInternal},
		"no JSON":        {item + "<html>\n", kv.ErrInternal},
		"never an end":   {"", kv.ErrNotReady},
		"no end, a line": {item, nil}, // what is left is read from where it stopped
	} {
		t.Run(name, func(t *testing.T) {
			script := []http.HandlerFunc{answerWith(200, tt.text, "Sett-Revision", "5")}
			if name == "no end, a line" {
				script = append(script, answerWith(200, `{"end":true,"count":0,"revision":5}`+"\n", "Sett-Revision", "5"))
			}
			n := newNode(t, script...)
			s, err := dial(t, 5*time.Second, n.URL).Scan(t.Context(), kv.PrefixRange("a"), client.ScanOptions{KeysOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for s.Next(t.Context()) {
			}
			if tt.want == nil && s.Err() != nil || tt.want != nil && !errors.Is(s.Err(), tt.want) {
				t.Errorf("%v", s.Err())
			}
			if c := n.seen()[0]; c.header.Get("Accept") != "application/x-ndjson" || request(c) != "GET /v1/kv keys_only=1&prefix=a" {
				t.Errorf("%s", request(c))
			}
		})
	}
}

func TestScanOfALongLine(t *testing.T) {
	value := strings.Repeat("x", 3<<20)
	n := newNode(t, answerWith(200, fmt.Sprintf(`{"key":"a","value":%q,"create_revision":1,"mod_revision":1,"version":1}`+"\n"+`{"end":true,"count":1}`+"\n", value), "Sett-Revision", "5"))
	s, err := dial(t, 5*time.Second, n.URL).Scan(t.Context(), kv.Range{}, client.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.Next(t.Context()) || len(s.Item().Value) != len(value) || s.Next(t.Context()) || s.Err() != nil {
		t.Errorf("%d bytes, %v", len(s.Item().Value), s.Err())
	}
}

func TestLoad(t *testing.T) {
	n := newNode(t, answerWith(200, `{"applied":2,"revision":9}`))
	c := dial(t, 5*time.Second, n.URL)
	text := `{"key":"a","value":"1"}` + "\n" + `{"delete":"b"}` + "\n"
	res, err := c.Load(t.Context(), iotest.OneByteReader(strings.NewReader(text)))
	if err != nil || res != (client.LoadResult{Applied: 2, Revision: 9}) {
		t.Fatalf("%+v, %v", res, err)
	}
	call := n.seen()[0]
	if request(call) != "POST /v1/kv  "+strings.TrimSpace(text) || call.header.Get("Content-Type") != "application/x-ndjson" || call.header.Get("Idempotency-Key") != "" {
		t.Errorf("%s %v", request(call), call.header)
	}
	changes := func(fail error) func(func(client.Change, error) bool) {
		return func(yield func(client.Change, error) bool) {
			_ = yield(client.Change{Item: kv.Item{Key: "a", Value: []byte{0xff}, ContentType: "x", ExpiresAt: time.Unix(1, 0).UTC(), Version: 7}}, nil) &&
				yield(client.Change{Item: kv.Item{Key: "\xff"}, Delete: true}, nil) && (fail == nil || yield(client.Change{}, fail))
		}
	}
	if _, err := c.LoadChanges(t.Context(), changes(nil)); err != nil {
		t.Fatal(err)
	}
	want := `POST /v1/kv  {"key":"a","value_base64":"/w==","content_type":"x","expires_at":"1970-01-01T00:00:01Z"}` + "\n" + `{"delete_base64":"/w=="}`
	if got := request(n.seen()[1]); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	mine := errors.New("mine")
	if _, err := c.LoadChanges(t.Context(), changes(mine)); !errors.Is(err, mine) {
		t.Errorf("%v", err)
	}
}

func TestLoadErrors(t *testing.T) {
	bad := newNode(t, problem(400, map[string]any{"code": "invalid-argument", "detail": "line 3: no", "line": 3, "applied": 2}))
	res, err := dial(t, 5*time.Second, bad.URL).Load(t.Context(), strings.NewReader("x\n"))
	if e := kv.AsError(err); e.Code != kv.CodeInvalidArgument || e.Line != 3 || e.Applied != 2 || res.Applied != 2 || e.Outcome != kv.OutcomeNone {
		t.Errorf("%+v, %#v", res, e)
	}

	lost := newNode(t, breakOff)
	_, err = dial(t, 5*time.Second, lost.URL).Load(t.Context(), strings.NewReader("x\n"))
	if e := kv.AsError(err); e.Outcome != kv.OutcomeUnknown || len(lost.seen()) != 1 {
		t.Errorf("after %d requests: %#v", len(lost.seen()), e)
	}

	// A node that does not touch the body leaves it for another one.
	refused := 0
	follower := newRawNode(t, func(w http.ResponseWriter, r *http.Request) {
		refused++
		refusal(kv.CodeNoLeader, 503)(w, r)
	})
	good := newNode(t, answerWith(200, `{"applied":1,"revision":2}`))
	res, err = dial(t, 5*time.Second, follower, good.URL).Load(t.Context(), strings.NewReader("the body"))
	if err != nil || res.Applied != 1 || refused != 1 || good.seen()[0].body != "the body" {
		t.Errorf("%+v, %v", res, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	stuck := newRawNode(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})
	// What it loads from says nothing more, for ever.
	blocked := &stalls{at: make(chan struct{}), free: make(chan struct{})}
	defer close(blocked.free)
	go func() {
		<-blocked.at
		cancel()
	}()
	if _, err = dial(t, 5*time.Second, stuck).Load(ctx, blocked); kv.AsError(err).Outcome != kv.OutcomeUnknown || !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// stalls is a reader of half a line that then blocks.
type stalls struct {
	at, free chan struct{}
	began    bool
}

func (s *stalls) Read(p []byte) (int, error) {
	if !s.began {
		s.began = true
		return copy(p, "half a li"), nil
	}
	close(s.at)
	<-s.free
	return 0, io.EOF
}

// A bad line ends a load although there is more to come, some time.
func TestLoadEndsEarly(t *testing.T) {
	n := newRawNode(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = r.Body.Read(make([]byte, 1))
		problem(400, map[string]any{"code": "invalid-argument", "detail": "line 1: no", "line": 1, "applied": 0})(w, r)
		_ = http.NewResponseController(w).Flush()
	})
	blocked := &stalls{at: make(chan struct{}), free: make(chan struct{})}
	defer close(blocked.free)
	if _, err := dial(t, 5*time.Second, n).Load(t.Context(), blocked); kv.AsError(err).Line != 1 {
		t.Errorf("%v", err)
	}
}

// loader is a fake node that loads as a node does, as far as an import goes.
func loader(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	applied := 0
	for i, line := range bytes.Split(bytes.TrimSpace(body), []byte("\n")) {
		var l struct {
			Key   *string
			Begin bool
			End   bool
			Count *int
		}
		err := json.Unmarshal(line, &l)
		switch {
		case err != nil || l.Key == nil && !l.Begin && !l.End || l.Count != nil && *l.Count != applied:
			problem(400, map[string]any{"code": "invalid-argument", "detail": "bad line", "line": i + 1, "applied": applied})(w, r)
			return
		case l.Key != nil:
			applied++
		}
	}
	answerWith(200, fmt.Sprintf(`{"applied":%d,"revision":7}`, applied))(w, r)
}

func TestExportAndImport(t *testing.T) {
	keys := []string{"a", "b", "c"}
	s := &store{keys: keys, cuts: []int{100}}
	n := newNode(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			loader(w, r)
			return
		}
		s.serve(w, r)
	})
	// The fake reads bodies before its handlers do.
	c := dial(t, 5*time.Second, newRawNode(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			loader(w, r)
			return
		}
		n.serve(w, r)
	}))
	var out bytes.Buffer
	res, err := c.Export(t.Context(), &out, "", kv.ReadOptions{})
	if err != nil || res != (client.ExportResult{Count: 3, Revision: 5}) {
		t.Fatalf("%+v, %v", res, err)
	}
	export := out.String()
	lines := strings.Split(strings.TrimSuffix(export, "\n"), "\n")
	if len(lines) != 5 || lines[0] != `{"begin":true,"revision":5,"prefix":""}` || lines[4] != `{"end":true,"count":3,"revision":5}` {
		t.Fatalf("%q", lines)
	}
	in, err := c.Import(t.Context(), strings.NewReader(export), client.ImportOptions{})
	if err != nil || in.Applied != 3 {
		t.Fatalf("%+v, %v", in, err)
	}

	first, whole := len(lines[0])+1, len(export)-1
	for cut := range export {
		part := export[:cut]
		err := client.CheckExport(strings.NewReader(part), int64(cut))
		if complete := cut < first-1 || cut >= whole; complete != (err == nil) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if cut < first-1 || cut >= whole {
			continue
		}
		if _, err := c.Import(t.Context(), strings.NewReader(part), client.ImportOptions{}); err == nil {
			t.Fatalf("cut at %d: it was taken for whole", cut)
		} else if part[cut-1] == '\n' && (!errors.Is(err, kv.ErrCorruption) || int(kv.AsError(err).Applied) != strings.Count(part, "\n")-1) {
			t.Fatalf("cut at %d: %#v", cut, err)
		}
		res, err := c.Import(t.Context(), strings.NewReader(part), client.ImportOptions{Partial: true})
		if want := strings.Count(part, "}\n") - 1; err != nil || int(res.Applied) != want && part[cut-1] != '}' {
			t.Fatalf("cut at %d, partial: %+v, %v, want %d", cut, res, err, want)
		}
	}
	broken := strings.Join(lines[:3], "\n") + "\n" + `{"error":{"code":"compacted"}}` + "\n"
	if err := client.CheckExport(strings.NewReader(broken), int64(len(broken))); !errors.Is(err, kv.ErrCorruption) {
		t.Errorf("an error at the end: %v", err)
	}
	if res, err := c.Import(t.Context(), strings.NewReader(broken), client.ImportOptions{Partial: true}); err != nil || res.Applied != 2 {
		t.Errorf("an error at the end, partial: %+v, %v", res, err)
	}
	// Lines that are no export need no end.
	plain := lines[1] + "\n"
	if err := client.CheckExport(strings.NewReader(plain), int64(len(plain))); err != nil {
		t.Error(err)
	}
	if res, err := c.Import(t.Context(), strings.NewReader(plain), client.ImportOptions{}); err != nil || res.Applied != 1 {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestImportOfManyBytes(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"begin":true}` + "\n")
	const count = 3000
	for i := range count {
		fmt.Fprintf(&b, `{"key":"k%d","value":%q}`+"\n", i, strings.Repeat("v", 500))
	}
	end := `{"end":true,"count":` + strconv.Itoa(count) + "}\n"
	c := dial(t, 5*time.Second, newRawNode(t, loader))
	for _, o := range []client.ImportOptions{{}, {Partial: true}} {
		res, err := c.Import(t.Context(), strings.NewReader(b.String()+end), o)
		if err != nil || res.Applied != count {
			t.Errorf("%+v: %+v, %v", o, res, err)
		}
	}
	if _, err := c.Import(t.Context(), strings.NewReader(b.String()), client.ImportOptions{}); !errors.Is(err, kv.ErrCorruption) || kv.AsError(err).Applied != count {
		t.Errorf("%v", err)
	}
}
