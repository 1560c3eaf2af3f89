package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/settkv/sett/kv"
)

// page is the answer to a listing as a client reads it.
type page struct {
	Revision             kv.Revision `json:"revision"`
	Items                []form      `json:"items"`
	CommonPrefixes       *[]string   `json:"common_prefixes"`
	CommonPrefixesBase64 [][]byte    `json:"common_prefixes_base64"`
	Count                int         `json:"count"`
	More                 bool        `json:"more"`
	Next                 string      `json:"next"`
}

func strictJSON(t testing.TB, text []byte, v any) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// list asks for one page.
func (f *fixture) list(t testing.TB, query string) page {
	t.Helper()
	w := f.do(t, "GET", "/v1/kv?"+query, "")
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("%s: %d %s", query, w.Code, w.Body)
	}
	var p page
	strictJSON(t, w.Body.Bytes(), &p)
	if p.Items == nil {
		t.Fatalf("%s: items is no array: %s", query, w.Body)
	}
	if got := w.Header().Get("Sett-Revision"); got != strconv.FormatUint(uint64(p.Revision), 10) {
		t.Fatalf("%s: Sett-Revision %s, revision %d", query, got, p.Revision)
	}
	return p
}

func (p *page) keys() string {
	var keys []string
	for i := range p.Items {
		keys = append(keys, p.Items[i].key())
	}
	if p.CommonPrefixes != nil {
		keys = append(keys, *p.CommonPrefixes...)
	}
	return strings.Join(keys, " ")
}

func put(t testing.TB, f *fixture, keys ...string) {
	t.Helper()
	for _, k := range keys {
		f.store.set(kv.Item{Key: k, Value: []byte("v-" + k)})
	}
}

func TestListings(t *testing.T) {
	f := newFixture(t)
	put(t, f, "a/1", "a/2", "a/x/1", "a/x/2", "a/y/1", "b", "c")
	for query, want := range map[string]string{
		"":                                       "a/1 a/2 a/x/1 a/x/2 a/y/1 b c",
		"prefix=":                                "a/1 a/2 a/x/1 a/x/2 a/y/1 b c",
		"prefix=a/x":                             "a/x/1 a/x/2",
		"prefix=nope":                            "",
		"start=b":                                "b c",
		"start=b&end=":                           "b c",
		"end=a/2":                                "a/1",
		"start=a/2&end=b":                        "a/2 a/x/1 a/x/2 a/y/1",
		"prefix=a&reverse=1":                     "a/y/1 a/x/2 a/x/1 a/2 a/1",
		"prefix=a/&limit=2":                      "a/1 a/2",
		"delimiter=/":                            "b c a/",
		"prefix=a/&delimiter=/":                  "a/1 a/2 a/x/ a/y/",
		"prefix=a/&delimiter=/&reverse=1":        "a/2 a/1 a/y/ a/x/",
		"prefix=a/&delimiter=/&limit=3":          "a/1 a/2 a/x/",
		"start=a/x&end=z&delimiter=x/":           "a/y/1 b c a/x/",
		"revision=2":                             "a/1 a/2",
		"keys_only=true&prefix=a/x/":             "a/x/1 a/x/2",
		"consistency=stale&start=c":              "c",
		"consistency=leader&start=c":             "c",
		"min_revision=7&timeout=1s&end=a%2F1%00": "a/1",
	} {
		p := f.list(t, query)
		if got := p.keys(); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
		if len(strings.Fields(want)) != p.Count || p.More != strings.Contains(query, "limit=") || p.More != (p.Next != "") {
			t.Errorf("%s: count %d, more %v, next %q", query, p.Count, p.More, p.Next)
		}
		if strings.Contains(query, "delimiter") != (p.CommonPrefixes != nil) {
			t.Errorf("%s: common_prefixes %v", query, p.CommonPrefixes)
		}
		for _, it := range p.Items {
			if strings.Contains(query, "keys_only") != (it.Value == nil) {
				t.Errorf("%s: value %v", query, it.Value)
			}
			if it.ModRevision == 0 || it.Version != 1 {
				t.Errorf("%s: item %+v", query, it)
			}
		}
	}
	for query, want := range map[string]int{
		"count_only=1": 7, "count_only=1&prefix=a/": 5, "count_only=1&delimiter=/": 3, "count_only=1&limit=2": 7, "count_only=1&reverse=1&keys_only=1": 7, "count_only=1&prefix=z": 0,
	} {
		if p := f.list(t, query); p.Count != want || len(p.Items) != 0 || p.More {
			t.Errorf("%s: %+v, want %d", query, p, want)
		}
	}
	head := f.do(t, "HEAD", "/v1/kv?prefix=a/", "")
	whole := f.do(t, "GET", "/v1/kv?prefix=a/", "")
	if head.Code != 200 || head.Body.Len() != 0 || head.Header().Get("Content-Length") != strconv.Itoa(whole.Body.Len()) {
		t.Errorf("HEAD: %d, %d bytes, Content-Length %s of %d", head.Code, head.Body.Len(), head.Header().Get("Content-Length"), whole.Body.Len())
	}
	// Names that are no text.
	f.store.set(kv.Item{Key: "\xff\xff/1", Value: []byte("\xfe")}, kv.Item{Key: "\xff", Value: []byte("1")})
	p := f.list(t, "start=%ff&delimiter=/")
	if len(p.Items) != 1 || p.Items[0].key() != "\xff" || len(p.CommonPrefixesBase64) != 1 || string(p.CommonPrefixesBase64[0]) != "\xff\xff/" || len(*p.CommonPrefixes) != 0 || p.Count != 2 {
		t.Errorf("binary names: %+v", p)
	}
}

func TestBadListings(t *testing.T) {
	f := newFixture(t)
	put(t, f, "a", "b", "c")
	next := f.list(t, "limit=1").Next
	for _, query := range []string{
		"prefix=a&start=a", "prefix=a&end=b", "start=b&end=a", "start=b&end=b", "limit=0", "limit=10001", "limit=-1", "limit=x", "limit=", "limit=1e3", "limit=1.0", "limit=99999999999999999999",
		"delimiter=", "reverse=2", "keys_only=yes", "count_only=x", "after=", "after=x", "after=" + next + "A", "after=" + next[:len(next)-1], "after=" + next + "&prefix=a", "after=" + next + "&reverse=1",
		"after=" + next + "&keys_only=1", "after=" + next + "&count_only=1", "after=" + next + "&delimiter=/", "after=" + next + "&start=a", "after=" + next + "&revision=1", "after=" + next + "%0A",
		"revision=4", "revision=0", "key=a&prefix=a", "key=a&limit=1", "key=a&reverse=1", "ttl=1s", "all=true", "from=1", "previous=1", "max_staleness=1s", "prefix=a&prefix=b", "Prefix=a",
	} {
		if w := f.do(t, "GET", "/v1/kv?"+query, ""); w.Code != 400 {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		} else {
			wantProblem(t, w, 400, kv.CodeInvalidArgument)
		}
	}
	for _, query := range []string{"limit=1", "after=" + next, "count_only=1"} {
		wantProblem(t, f.do(t, "GET", "/v1/kv?"+query, "", "Accept: application/x-ndjson"), 400, kv.CodeInvalidArgument)
	}
	for _, h := range []string{`If-Match: "1"`, `If-None-Match: "1"`} {
		wantProblem(t, f.do(t, "GET", "/v1/kv", "", h), 400, kv.CodeInvalidArgument)
	}
	wantProblem(t, f.do(t, "GET", "/v1/kv", "body"), 400, kv.CodeInvalidArgument)
	wantProblem(t, f.do(t, "GET", "/v1/kv?start="+strings.Repeat("a", kv.MaxKeyBytesBound+2), ""), 413, kv.CodeTooLarge)
	f.list(t, "limit=3&after="+next+"&revision=3&timeout=1s&consistency=stale") // the limit, the revision and how it is read may differ
	put(t, f, "aa")
	if p := f.list(t, "after="+next); p.keys() != "b c" || p.Revision != 3 {
		t.Errorf("the next page is of another revision: %+v", p)
	}
	f.store.oldest = 4
	if p := wantProblem(t, f.do(t, "GET", "/v1/kv?after="+next, ""), 410, kv.CodeCompacted); *p.OldestRevision != 4 {
		t.Errorf("oldest revision %v", p.OldestRevision)
	}
}

// Listings of random ranges, page by page, are what a sorted map says.
func TestPagesAgainstAModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	word := func() string {
		b := make([]byte, r.IntN(5))
		for i := range b {
			b[i] = "ab/\x00\xff"[r.IntN(5)]
		}
		return string(b)
	}
	f := newFixture(t)
	for range 60 {
		if k := word(); k != "" {
			put(t, f, k)
		}
	}
	for range 400 {
		q := url.Values{}
		scan := kv.Scan{}
		if r.IntN(2) == 0 {
			p := word()
			q.Set("prefix", p)
			scan.Range, scan.Prefix = kv.PrefixRange(p), p
		} else {
			if r.IntN(2) == 0 {
				scan.Range.Start = word()
				q.Set("start", scan.Range.Start)
			}
			if r.IntN(2) == 0 {
				scan.Range.End = word()
				q.Set("end", scan.Range.End)
			}
		}
		if r.IntN(2) == 0 {
			scan.Delimiter = []string{"/", "a", "b/", "\xff"}[r.IntN(4)]
			q.Set("delimiter", scan.Delimiter)
		}
		if scan.Reverse = r.IntN(2) == 0; scan.Reverse {
			q.Set("reverse", "1")
		}
		if scan.Range.Empty() {
			wantProblem(t, f.do(t, "GET", "/v1/kv?"+q.Encode(), ""), 400, kv.CodeInvalidArgument)
			continue
		}
		var want, got []string
		for _, e := range f.store.scanLocked(scan, f.store.rev) {
			want = append(want, fmt.Sprintf("%q%q", e.Item.Key, e.CommonPrefix))
		}
		for n := 0; ; n++ {
			q.Set("limit", strconv.Itoa(1+r.IntN(6)))
			p := f.list(t, q.Encode())
			page := []string{}
			for i := range p.Items {
				page = append(page, fmt.Sprintf("%q%q", p.Items[i].key(), ""))
			}
			if p.CommonPrefixes != nil {
				for _, c := range *p.CommonPrefixes {
					page = append(page, fmt.Sprintf("%q%q", "", c))
				}
			}
			for _, c := range p.CommonPrefixesBase64 {
				page = append(page, fmt.Sprintf("%q%q", "", c))
			}
			if len(page) != p.Count || strconv.Itoa(p.Count) > q.Get("limit") {
				t.Fatalf("%s: %d results, count %d", q.Encode(), len(page), p.Count)
			}
			got = append(got, page...)
			if !p.More {
				break
			}
			q.Set("after", p.Next)
		}
		slices.Sort(want) // within a page, items and prefixes are apart
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("%s: %v, want %v", q.Encode(), got, want)
		}
		count := url.Values{"count_only": {"1"}}
		for _, name := range []string{"prefix", "start", "end", "delimiter"} {
			if q.Has(name) {
				count.Set(name, q.Get(name))
			}
		}
		if p := f.list(t, count.Encode()); p.Count != len(want) {
			t.Fatalf("%s: count %d, want %d", count.Encode(), p.Count, len(want))
		}
	}
}

// A page ends at its size, too, and its bytes are admitted.
func TestBigPages(t *testing.T) {
	f := newFixture(t)
	v := bytes.Repeat([]byte("x"), 1<<20)
	for i := range 20 {
		f.store.set(kv.Item{Key: fmt.Sprintf("k%02d", i), Value: v})
	}
	f.store.set(kv.Item{Key: "z", Value: bytes.Repeat([]byte("\x01"), 2<<20)}) // 12 MiB as JSON
	var counts []int
	q := ""
	for {
		p := f.list(t, q)
		counts = append(counts, p.Count)
		if !p.More {
			break
		}
		q = "after=" + p.Next
	}
	if !slices.Equal(counts, []int{7, 7, 6, 1}) {
		t.Errorf("pages of %v", counts)
	}
	small := newFixture(t, func(c *Config) { c.MaxInflightBytes = 4 << 20 })
	for i := range 20 {
		small.store.set(kv.Item{Key: fmt.Sprintf("k%02d", i), Value: v})
	}
	other := grant{a: small.srv.admission}
	if err := other.grow(1 << 20); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, small.do(t, "GET", "/v1/kv", ""), 429, kv.CodeOverloaded)
	other.release()
	if used := small.srv.admission.used; used != 0 {
		t.Errorf("%d bytes are still admitted", used)
	}
}

func TestListingErrors(t *testing.T) {
	f := newFixture(t)
	put(t, f, "a", "b", "c")
	f.store.onScan = func(ctx context.Context, q kv.Scan, o kv.ReadOptions) (Scanner, error) {
		return &fakeScanner{rev: 3, entries: f.store.scanLocked(q, 3), onNext: func(n int) error {
			if n == 2 {
				return &kv.Error{Code: kv.CodeCompacted, Msg: "took too long", OldestRevision: 9}
			}
			return nil
		}}, nil
	}
	if p := wantProblem(t, f.do(t, "GET", "/v1/kv", ""), 410, kv.CodeCompacted); *p.OldestRevision != 9 {
		t.Errorf("problem %+v", p)
	}
	f.list(t, "limit=1")
	f.store.onScan = func(ctx context.Context, q kv.Scan, o kv.ReadOptions) (Scanner, error) {
		return nil, errSecret
	}
	wantProblem(t, f.do(t, "GET", "/v1/kv", ""), 500, kv.CodeInternal)
	// A count that takes too long ends with the request.
	f.store.onScan = func(ctx context.Context, q kv.Scan, o kv.ReadOptions) (Scanner, error) {
		return endlessScanner{}, nil
	}
	wantProblem(t, f.do(t, "GET", "/v1/kv?count_only=1&timeout=20ms", ""), 504, kv.CodeTimeout)
}

// endlessScanner has one entry again and again.
type endlessScanner struct{ value []byte }

func (endlessScanner) Revision() kv.Revision { return 7 }
func (endlessScanner) Next() bool            { return true }
func (s endlessScanner) Entry() *kv.ScanEntry {
	return &kv.ScanEntry{Item: kv.Item{Key: "k", Value: s.value, CreateRevision: 1, ModRevision: 1, Version: 1}}
}
func (endlessScanner) Err() error { return nil }
func (endlessScanner) Close()     {}

// stream reads a whole answer of lines.
func streamLines(t testing.TB, body io.Reader) []string {
	t.Helper()
	var lines []string
	sc := bufio.NewScanner(body)
	sc.Buffer(nil, 64<<20)
	for sc.Scan() {
		lines = append(lines, sc.Text())
	}
	if err := sc.Err(); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	return lines
}

func TestStream(t *testing.T) {
	f := newFixture(t)
	put(t, f, "a/1", "a/2", "b/1", "\xffx/1")
	big := bytes.Repeat([]byte("é\"\n\x01"), 100000)
	blob := append(bytes.Repeat([]byte{0xff, 0, 1}, 100000), 7)
	f.store.set(kv.Item{Key: "big", Value: big, ContentType: "text/x"}, kv.Item{Key: "blob", Value: blob})
	w := f.do(t, "GET", "/v1/kv", "", "Accept: application/x-ndjson")
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/x-ndjson" || w.Header().Get("Sett-Revision") != "5" {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	lines := streamLines(t, w.Body)
	if len(lines) != 7 || lines[6] != `{"end":true,"count":6,"revision":5}` {
		t.Fatalf("%d lines, the last %s", len(lines), lines[len(lines)-1])
	}
	for i, want := range []struct {
		key   string
		value []byte
	}{{"a/1", []byte("v-a/1")}, {"a/2", []byte("v-a/2")}, {"b/1", []byte("v-b/1")}, {"big", big}, {"blob", blob}, {"\xffx/1", []byte("v-\xffx/1")}} {
		if got := parseForm(t, []byte(lines[i])); got.key() != want.key || got.value() != string(want.value) || got.ModRevision == 0 {
			t.Errorf("line %d is not %q", i, want.key)
		}
	}
	for query, want := range map[string][]string{
		"prefix=a/&reverse=1&keys_only=1": {`{"key":"a/2","create_revision":2,"mod_revision":2,"version":1}`, `{"key":"a/1","create_revision":1,"mod_revision":1,"version":1}`, `{"end":true,"count":2,"revision":5}`},
		"delimiter=/&keys_only=1&end=big": {`{"common_prefix":"a/"}`, `{"common_prefix":"b/"}`, `{"end":true,"count":2,"revision":5}`},
		"delimiter=/&start=z":             {`{"common_prefix_base64":"/3gv"}`, `{"end":true,"count":1,"revision":5}`},
		"revision=1":                      {`{"key":"a/1","value":"v-a/1","create_revision":1,"mod_revision":1,"version":1}`, `{"end":true,"count":1,"revision":1}`},
		"prefix=none":                     {`{"end":true,"count":0,"revision":5}`},
	} {
		w := f.do(t, "GET", "/v1/kv?"+query, "", "Accept: text/html, application/x-ndjson;q=0.5")
		if got := streamLines(t, w.Body); !slices.Equal(got, want) {
			t.Errorf("%s: %q", query, got)
		}
	}
	if w := f.do(t, "HEAD", "/v1/kv", "", "Accept: application/x-ndjson"); w.Code != 200 || w.Body.Len() != 0 {
		t.Errorf("HEAD: %d, %d bytes", w.Code, w.Body.Len())
	}
	if w := f.do(t, "GET", "/v1/kv?prefix=a", "", "Accept: application/x-ndjson;q=0"); w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("q=0: %s", w.Header().Get("Content-Type"))
	}
	wantProblem(t, f.do(t, "GET", "/v1/kv?revision=99", "", "Accept: application/x-ndjson"), 400, kv.CodeInvalidArgument)
}

// A stream that fails says so in its last line, and its connection breaks.
func TestStreamBreaksOff(t *testing.T) {
	for name, c := range map[string]struct {
		entries int
		fail    error
		want    kv.Code
	}{
		"compacted": {5000, &kv.Error{Code: kv.CodeCompacted, Msg: "took too long", OldestRevision: 9}, kv.CodeCompacted},
		"at once":   {0, errSecret, kv.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.store.onScan = func(context.Context, kv.Scan, kv.ReadOptions) (Scanner, error) {
				s := &fakeScanner{rev: 3}
				for i := range c.entries + 1 {
					s.entries = append(s.entries, kv.ScanEntry{Item: kv.Item{Key: strconv.Itoa(i), Value: []byte("some value")}})
				}
				s.onNext = func(n int) error {
					if n == c.entries {
						return c.fail
					}
					return nil
				}
				return s, nil
			}
			for _, path := range []string{"/v1/kv", "/v1/kv?consistency=leader"} {
				follower := newFixture(t)
				follower.cluster.lead("n2", f.listen(t))
				f.cluster.self = "n2"
				f.cluster.lead("n2", "")
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+follower.listen(t)+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				if path == "/v1/kv" {
					follower.store.onScan = f.store.onScan
				}
				req.Header.Set("Accept", ndjson)
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err == nil {
					t.Errorf("%s: the body ends as if it were whole", path)
				}
				lines := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
				var last struct{ Error problem }
				strictJSON(t, []byte(lines[len(lines)-1]), &last)
				if len(lines) != c.entries+1 || last.Error.Code != c.want || last.Error.Outcome != "" || strings.Contains(string(body), "secret") {
					t.Errorf("%s: %d lines, the last %s", path, len(lines), lines[len(lines)-1])
				}
			}
		})
	}
}

// A client that goes away ends the scan, as does a stop of the server; a stream may
// last longer than the request's timeout.
func TestStreamEnds(t *testing.T) {
	closed := make(chan struct{}, 4)
	f := newFixture(t)
	f.store.onScan = func(context.Context, kv.Scan, kv.ReadOptions) (Scanner, error) {
		return &closingScanner{endlessScanner{bytes.Repeat([]byte("x"), 1000)}, closed}, nil
	}
	addr := f.listen(t)
	get := func() *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/v1/kv?timeout=20ms", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", ndjson)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	resp := get()
	if _, err := io.CopyN(io.Discard, resp.Body, 64<<20); err != nil { // takes longer than the timeout
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	<-closed
	resp = get()
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	f.srv.Drain()
	rest, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err == nil || !strings.Contains(string(rest[max(0, len(rest)-500):]), `{"error":{`) || !strings.Contains(string(rest[max(0, len(rest)-500):]), `"code":"not-ready"`) {
		t.Errorf("the stream ended with %v and %q", err, rest[max(0, len(rest)-500):])
	}
	<-closed
}

type closingScanner struct {
	endlessScanner
	closed chan struct{}
}

func (s *closingScanner) Close() { s.closed <- struct{}{} }

func TestLeaderListings(t *testing.T) {
	p := newPair(t)
	for i := range 3000 {
		p.leader.store.set(kv.Item{Key: fmt.Sprintf("k%04d", i), Value: []byte("some value that is not too short")})
	}
	got := p.asked.list(t, "consistency=leader&limit=2000&prefix=k")
	if got.Count != 2000 || !got.More {
		t.Errorf("count %d, more %v", got.Count, got.More)
	}
	if got := p.asked.list(t, "consistency=leader&limit=2000&prefix=k&after="+got.Next); got.Count != 1000 || got.More || got.Items[0].key() != "k2000" {
		t.Errorf("count %d, more %v, first %s", got.Count, got.More, got.Items[0].key())
	}
	w := p.asked.do(t, "GET", "/v1/kv?consistency=leader&timeout=500ms", "", "Accept: application/x-ndjson")
	lines := streamLines(t, w.Body)
	if len(lines) != 3001 || lines[3000] != `{"end":true,"count":3000,"revision":3000}` || w.Header().Get("Sett-Served-By") != "n2" {
		t.Errorf("%d lines, the last %s", len(lines), lines[len(lines)-1])
	}
}

func TestDeleteRange(t *testing.T) {
	f := newFixture(t)
	put(t, f, "a/1", "a/2", "b", "c", "d", "e")
	runSteps(t, f, []step{
		{req: "DELETE /v1/kv?prefix=a/", status: 200, want: body(`{"deleted":2,"revision":7}` + "\n"), has: map[string]string{"Sett-Revision": "7", "ETag": ""}},
		{req: "DELETE /v1/kv?prefix=a/", status: 200, want: body(`{"deleted":0,"revision":7}` + "\n")},
		{req: "DELETE /v1/kv?start=b&end=c", status: 200, want: body(`{"deleted":1,"revision":8}` + "\n")},
		{req: "DELETE /v1/kv?start=d&atomic=0", status: 200, want: body(`{"deleted":2,"revision":9}` + "\n")},
		{req: "DELETE /v1/kv?all=true", status: 200, want: body(`{"deleted":1,"revision":10}` + "\n")},
		{req: "DELETE /v1/kv?all=1&atomic=1", status: 200, want: body(`{"deleted":0,"revision":10}` + "\n")},
		{req: "DELETE /v1/kv", status: 400, code: kv.CodeInvalidArgument},
		{req: "DELETE /v1/kv?all=0", status: 400, code: kv.CodeInvalidArgument},
		{req: "DELETE /v1/kv?prefix=", status: 400, code: kv.CodeInvalidArgument},
		{req: "DELETE /v1/kv?start=&end=", status: 400, code: kv.CodeInvalidArgument},
		{req: "DELETE /v1/kv?start=b&end=a", status: 400, code: kv.CodeInvalidArgument},
		{req: "DELETE /v1/kv?all=true&prefix=a", status: 400, code: kv.CodeInvalidArgument},
		{req: "DELETE /v1/kv?prefix=a&previous=1", status: 400, code: kv.CodeInvalidArgument},
		{req: "DELETE /v1/kv?prefix=a&limit=1", status: 400, code: kv.CodeInvalidArgument},
		{req: "DELETE /v1/kv?prefix=a&atomic=maybe", status: 400, code: kv.CodeInvalidArgument},
		{req: "DELETE /v1/kv?prefix=a", headers: []string{`If-Match: "1"`}, status: 400, code: kv.CodeInvalidArgument},
		{req: "DELETE /v1/kv?prefix=a", body: "x", status: 400, code: kv.CodeInvalidArgument},
		{req: "DELETE /v1/kv?key=a&prefix=a", status: 400, code: kv.CodeInvalidArgument},
		{req: "DELETE /v1/kv?key=a&all=true", status: 400, code: kv.CodeInvalidArgument},
	})
	if got := f.store.txns[0].Then[0]; got.Kind != kv.OpDeleteRange || got.Limit != 0 || got.Range != (kv.Range{Start: "a/", End: "a0"}) {
		t.Errorf("atomic: %+v", got)
	}
	f.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) {
		return kv.TxnResult{Revision: 9}, kv.NotApplied(kv.CodeTooLarge, "too many")
	}
	if p := wantProblem(t, f.do(t, "DELETE", "/v1/kv?prefix=a", ""), 413, kv.CodeTooLarge); p.Outcome != kv.OutcomeNotApplied || !strings.Contains(p.Detail, "100000 keys") || !strings.Contains(p.Detail, "atomic=0") {
		t.Errorf("problem %+v", p)
	}
}

// A delete in pages is many transactions, done by the leader one after the other.
func TestDeletePages(t *testing.T) {
	bothWays(t, func(t *testing.T, asked, leader *fixture) {
		fill := func() {
			var items []kv.Item
			for i := range 2*deletePageKeys + 5 {
				items = append(items, kv.Item{Key: fmt.Sprintf("k%06d", i)})
			}
			leader.store.reset()
			leader.store.set(items...)
		}
		fill()
		runSteps(t, asked, []step{{req: "DELETE /v1/kv?all=true", status: 200, want: body(`{"deleted":20005,"revision":4}` + "\n"), has: map[string]string{"Sett-Revision": "4", "Sett-Replayed": ""}}})
		if n := leader.store.txnCount(); n != 3 {
			t.Errorf("%d transactions", n)
		}
		// A repeat with the same key sums up to the same and deletes nothing.
		fill()
		key := []string{"Idempotency-Key: K"}
		want := body(`{"deleted":20005,"revision":8}` + "\n")
		runSteps(t, asked, []step{{req: "DELETE /v1/kv?prefix=k&atomic=0", headers: key, status: 200, want: want, has: map[string]string{"Sett-Replayed": ""}}})
		fill()
		runSteps(t, asked, []step{
			{req: "DELETE /v1/kv?prefix=k&atomic=0&timeout=3s", headers: key, status: 200, want: want, has: map[string]string{"Sett-Replayed": "true", "Sett-Revision": "8"}},
			{req: "DELETE /v1/kv?prefix=kk&atomic=0", headers: key, status: 409, code: kv.CodeConflict},
		})
		// What breaks off in the middle is in doubt, and a repeat goes on.
		n := 0
		leader.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) {
			if n++; n == 2 {
				return kv.TxnResult{}, kv.NotApplied(kv.CodeDiskFull, "full")
			}
			return kv.TxnResult{}, errGoOn
		}
		other := []string{"Idempotency-Key: other"}
		w := asked.do(t, "DELETE", "/v1/kv?prefix=k&atomic=0", "", other...)
		if p := wantProblem(t, w, 504, kv.CodeOutcomeUnknown); !strings.Contains(p.Detail, "10000 keys were deleted") {
			t.Errorf("problem %+v", p)
		}
		runSteps(t, asked, []step{{req: "DELETE /v1/kv?prefix=k&atomic=0", headers: other, status: 200, want: body(`{"deleted":20005,"revision":12}` + "\n"), has: map[string]string{"Sett-Replayed": ""}}})
		// A page whose answer is lost is given again, under its key.
		fill()
		lost := 0
		leader.store.afterTxn = func(kv.Txn, kv.TxnResult, error) error {
			if lost++; lost == 2 {
				return kv.Unknown(nil, "lost")
			}
			return nil
		}
		runSteps(t, asked, []step{{req: "DELETE /v1/kv?all=true", status: 200, want: body(`{"deleted":20005,"revision":16}` + "\n")}})
	})
}

// A forwarded delete in pages must say which page it is.
func TestForwardedPageWithoutABatch(t *testing.T) {
	f := newFixture(t)
	h := []string{"Sett-Forwarded: n9", "Sett-Cluster-Id: c-1"}
	for _, v := range []string{"", "x", "a b c", base64.RawURLEncoding.EncodeToString([]byte("k")) + " -1 0", " 0 0", strings.Repeat("A", 200) + " 0 0"} {
		wantProblem(t, f.do(t, "DELETE", "/v1/kv?all=true", "", append(h, "Sett-Batch: "+v)...), 400, kv.CodeInvalidArgument)
		wantProblem(t, f.do(t, "POST", "/v1/kv", "{}", append(h, "Content-Type: application/x-ndjson", "Sett-Batch: "+v)...), 400, kv.CodeInvalidArgument)
	}
	if f.store.txnCount() != 0 {
		t.Error("it reached the store")
	}
}

func FuzzCursor(f *testing.F) {
	l := &listing{scan: kv.Scan{Range: kv.Range{Start: "a", End: "c"}}}
	f.Add(encodeCursor(l, 7, kv.Scan{Range: kv.Range{Start: "b", End: "c"}}), false, "a", "c", "")
	f.Add("", true, "", "", "/")
	f.Add("AQAAAAAAAAAB", false, "a", "", "")
	f.Fuzz(func(t *testing.T, text string, reverse bool, start, end, delimiter string) {
		l := &listing{scan: kv.Scan{Range: kv.Range{Start: start, End: end}, Reverse: reverse, Delimiter: delimiter}}
		rev, rest, err := decodeCursor(l, text)
		if err != nil {
			var e *kv.Error
			if !errors.As(err, &e) || e.Code != kv.CodeInvalidArgument {
				t.Fatalf("error %v", err)
			}
			return
		}
		if rev == 0 || rest.Range.Empty() || encodeCursor(l, rev, rest) != text {
			t.Fatalf("cursor %q: revision %d, rest %+v", text, rev, rest)
		}
		if rest.Range.Start < start || (end != "" && (rest.Range.End == "" || rest.Range.End > end)) {
			t.Fatalf("cursor %q leads out of the range: %+v", text, rest)
		}
	})
}

// Whatever is listed goes on where it ended, and no changed bit goes unnoticed.
func TestCursor(t *testing.T) {
	for _, l := range []*listing{
		{scan: kv.Scan{Range: kv.Range{Start: "a", End: "z"}}},
		{scan: kv.Scan{Range: kv.Range{Start: "a", End: "z"}, Reverse: true, KeysOnly: true, Delimiter: "/", Prefix: "a"}},
	} {
		rest, _ := l.scan.Rest(kv.ScanEntry{Item: kv.Item{Key: "m\xff\x00"}})
		text := encodeCursor(l, 77, rest)
		rev, got, err := decodeCursor(l, text)
		if err != nil || rev != 77 || got != rest {
			t.Fatalf("%v %d %+v, want %+v", err, rev, got, rest)
		}
		raw, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		for bit := range len(raw) * 8 {
			bad := slices.Clone(raw)
			bad[bit/8] ^= 1 << (bit % 8)
			if _, _, err := decodeCursor(l, base64.RawURLEncoding.EncodeToString(bad)); err == nil {
				t.Errorf("bit %d may differ", bit)
			}
		}
	}
}

func BenchmarkPage(b *testing.B) {
	f := newFixture(b)
	v := bytes.Repeat([]byte("v"), 256)
	var items []kv.Item
	for i := range 1000 {
		items = append(items, kv.Item{Key: fmt.Sprintf("app/config/%06d", i), Value: v})
	}
	f.store.set(items...)
	entries := f.store.scanLocked(kv.Scan{}, 1)
	f.store.onScan = func(context.Context, kv.Scan, kv.ReadOptions) (Scanner, error) {
		return &fakeScanner{rev: 1, entries: entries}, nil
	}
	b.ReportAllocs()
	for b.Loop() {
		if w := f.do(b, "GET", "/v1/kv", ""); w.Code != 200 {
			b.Fatal(w.Code)
		}
	}
}

// BenchmarkStream measures a scan over a loopback connection, its reader included.
func BenchmarkStream(b *testing.B) {
	for _, size := range []int{100, 1024, 65536} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			f := newFixture(b)
			n := (64 << 20) / size
			value := bytes.Repeat([]byte("0123456789abcde "), size/16+1)[:size]
			f.store.onScan = func(context.Context, kv.Scan, kv.ReadOptions) (Scanner, error) {
				return &countedScanner{endlessScanner: endlessScanner{value}, n: n}, nil
			}
			addr := f.listen(b)
			b.SetBytes(int64(n * size))
			for b.Loop() {
				req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+addr+"/v1/kv", nil)
				if err != nil {
					b.Fatal(err)
				}
				req.Header.Set("Accept", ndjson)
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					b.Fatal(err)
				}
				_ = resp.Body.Close()
			}
		})
	}
}

type countedScanner struct {
	endlessScanner
	n int
}

func (s *countedScanner) Next() bool { s.n--; return s.n >= 0 }
