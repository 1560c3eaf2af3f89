package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const (
	formA = `{"key":"a","value":"1","create_revision":3,"mod_revision":3,"version":1}`
	formB = `{"key_base64":"/2I=","value":"two","create_revision":4,"mod_revision":9,"version":2}`
)

// ranges is a fake node with two keys, "a" and "\xffb", a common prefix between them, and
// a short history.
type ranges struct {
	*httptest.Server
	mu    sync.Mutex
	calls []string
	once  []string
	// stream, if not empty, is what it streams.
	stream string
}

func newRanges(t *testing.T) *ranges {
	f := &ranges{}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

func (f *ranges) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	q := r.URL.Query()
	q.Del("timeout")
	f.mu.Lock()
	f.calls = append(f.calls, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+q.Encode()+" "+string(body)))
	f.once = append(f.once, r.Header.Get("Idempotency-Key"))
	stream := f.stream
	f.mu.Unlock()
	w.Header().Set("Sett-Revision", "9")
	switch r.Method + " " + r.URL.Path {
	case "GET /v1/kv":
		switch {
		case q.Get("prefix") == "old":
			problemOf(w, 410, `{"code":"compacted","detail":"gone","oldest_revision":3}`)
		case q.Get("count_only") != "":
			_, _ = io.WriteString(w, `{"revision":9,"items":[],"count":2,"more":false}`)
		case r.Header.Get("Accept") == "application/x-ndjson":
			if stream == "" {
				stream = formA + "\n" + formB + "\n" + `{"end":true,"count":2,"revision":9}` + "\n"
			}
			_, _ = io.WriteString(w, stream)
		case q.Get("after") != "":
			fmt.Fprintf(w, `{"revision":9,"items":[%s],"count":1,"more":false}`, formB)
		case q.Get("limit") == "1":
			fmt.Fprintf(w, `{"revision":9,"items":[%s],"count":1,"more":true,"next":"C"}`, formA)
		default:
			fmt.Fprintf(w, `{"revision":9,"items":[%s],"common_prefixes":["b/"],"count":2,"more":true,"next":"C"}`, formA)
		}
	case "DELETE /v1/kv":
		if q.Get("prefix") == "huge" {
			problemOf(w, 413, `{"code":"too-large","outcome":"not-applied","detail":"use atomic=0"}`)
			return
		}
		_, _ = io.WriteString(w, `{"deleted":2,"revision":10}`)
	case "POST /v1/kv":
		f.load(w, body)
	case "POST /v1/txn":
		if !json.Valid(body) {
			problemOf(w, 400, `{"code":"invalid-argument","outcome":"not-applied","detail":"the JSON body is malformed"}`)
			return
		}
		_, _ = io.WriteString(w, `{"succeeded":false,"revision":9,"results":[]}`+"\n")
	case "GET /v1/watch":
		_, _ = io.WriteString(w, `{"type":"put","revision":10,"key":"a","value":"one","create_revision":3,"mod_revision":10,"version":2}
{"type":"delete","revision":10,"key_base64":"/w==","mod_revision":10,"last":true}
{"type":"expire","revision":11,"key":"n\u0000l","mod_revision":11,"last":true}
{"type":"error","code":"compacted","detail":"fell behind","oldest_revision":20}
`)
	case "POST /v1/compact":
		_, _ = io.WriteString(w, `{"compacted_to":7,"held_by":[]}`)
	case "POST /v1/pins":
		_, _ = io.WriteString(w, `{"id":"p1","revision":7,"expires_at":"2030-01-02T15:04:05Z"}`)
	case "DELETE /v1/pins/p1":
		w.WriteHeader(http.StatusNoContent)
	case "DELETE /v1/pins/p2":
		problemOf(w, 404, `{"code":"not-found","outcome":"not-applied","detail":"no such pin"}`)
	default:
		w.WriteHeader(http.StatusCreated)
	}
}

// load counts as a node does, and refuses a line with the key "bad".
func (f *ranges) load(w http.ResponseWriter, body []byte) {
	applied := 0
	for i, line := range bytes.Split(bytes.TrimSpace(body), []byte("\n")) {
		if bytes.Contains(line, []byte(`"bad"`)) || !json.Valid(line) {
			problemOf(w, 400, fmt.Sprintf(`{"code":"invalid-argument","detail":"line %d: it is bad","line":%d,"applied":%d}`, i+1, i+1, applied))
			return
		}
		if bytes.HasPrefix(line, []byte(`{"key`)) {
			applied++
		}
	}
	fmt.Fprintf(w, `{"applied":%d,"revision":12}`, applied)
}

func problemOf(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// seen returns the requests so far and forgets them.
func (f *ranges) seen() (calls, once []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls, once = f.calls, f.once
	f.calls, f.once = nil, nil
	return calls, once
}

func TestDataCommands(t *testing.T) {
	f := newRanges(t)
	tests := []struct {
		line, in string
		code     int
		out      string // and, of an error, the line of it
		calls    string // requests, joined by |; "-": does not matter
	}{
		{"ls", "", 0, "a\nb/\n\xffb\n", "GET /v1/kv keys_only=1|GET /v1/kv after=C&keys_only=1"},
		{"ls p --reverse --delimiter / --revision 5 --consistency stale", "", 0, "b/\na\n\xffb\n", "GET /v1/kv consistency=stale&delimiter=%2F&keys_only=1&prefix=p&reverse=1&revision=5|GET /v1/kv after=C&consistency=stale&delimiter=%2F&keys_only=1&prefix=p&reverse=1&revision=5"},
		{"ls --limit 1", "", 0, "a\n", "GET /v1/kv keys_only=1&limit=1"},
		{"ls --limit 3", "", 0, "a\nb/\n\xffb\n", "GET /v1/kv keys_only=1&limit=3|GET /v1/kv after=C&keys_only=1&limit=1"},
		{"ls --output json", "", 0, formA + "\n" + `{"common_prefix":"b/"}` + "\n" + formB + "\n", "GET /v1/kv|GET /v1/kv after=C"},
		{"ls --limit 1 --output table", "", 0, "KEY  REVISION  VERSION  SIZE\n\"a\"  3         1        1\n", "GET /v1/kv limit=1"},
		{"ls --count", "", 0, "2\n", "GET /v1/kv count_only=1"},
		{"ls a --count --output json", "", 0, `{"count":2,"revision":9}` + "\n", "GET /v1/kv count_only=1&prefix=a"},
		{"ls old", "", 1, "gone (the oldest revision is 3)", "-"},
		{"ls --count --limit 2", "", 2, "--count counts all keys: leave out --limit and --delimiter", ""},
		{"ls --consistency strong", "", 2, `bad value "strong" for --consistency: want linearizable, leader or stale`, ""},
		{"ls a b", "", 2, "-", ""},

		{"del --prefix a", "", 0, "deleted 2 keys at revision 10\n", "DELETE /v1/kv prefix=a"},
		{"del --prefix a --paged --output json", "", 0, `{"revision":10,"deleted":2}` + "\n", "DELETE /v1/kv atomic=0&prefix=a"},
		{"del --prefix a --output raw", "", 0, "10\n", "-"},
		{"del --prefix huge", "", 1, "use atomic=0", "-"},
		{"del --prefix=", "", 2, "--prefix is empty, which would be every key; name a prefix", ""},
		{"del k --prefix a", "", 2, "--prefix goes with neither a KEY nor --if-match", ""},
		{"del --prefix a --if-match 3", "", 2, "--prefix goes with neither a KEY nor --if-match", ""},
		{"del", "", 2, "del takes a KEY, or --prefix P, which --paged goes with", ""},
		{"del k --paged", "", 2, "del takes a KEY, or --prefix P, which --paged goes with", ""},

		{"txn", `{"then":[]}`, 0, `{"succeeded":false,"revision":9,"results":[]}` + "\n", `POST /v1/txn  {"then":[]}`},
		{"txn -f -", `{"then":[ ]}`, 0, `{"succeeded":false,"revision":9,"results":[]}` + "\n", `POST /v1/txn  {"then":[ ]}`},
		{"txn", "no JSON", 2, "the JSON body is malformed", "-"},
		{"txn -f /nonexistent", "", 1, "open /nonexistent: no such file or directory", ""},

		{"export", "", 0, `{"begin":true,"revision":9,"prefix":""}` + "\n" + formA + "\n" + formB + "\n" + `{"end":true,"count":2,"revision":9}` + "\n", "GET /v1/kv"},
		{"export - --prefix a --revision 9", "", 0, "-", "GET /v1/kv prefix=a&revision=9"},
		{"export --prefix old", "", 1, "gone (the oldest revision is 3)", "-"},

		{"import", formA + "\n", 0, "loaded 1 lines, the last at revision 12\n", "POST /v1/kv  " + formA},
		{"import - --output json", formA + "\n" + formB, 0, `{"applied":2,"revision":12}` + "\n", "-"},
		{"import --output raw", formA, 0, "1\n", "-"},
		{"import", formA + "\n" + `{"key":"bad"}` + "\n", 2, "line 2: it is bad; lines loaded before it: 1", "-"},
		{"import", `{"begin":true}` + "\n" + formA + "\n", 1, "1 keys were loaded, and then the input ended: the export has a beginning and no end, so it is not whole: make it again, or load what there is with --partial", "-"},
		{"import --partial", `{"begin":true}` + "\n" + formA + "\n" + `{"key":"b`, 0, "loaded 1 lines, the last at revision 12\n", "-"},
		{"import /nonexistent", "", 1, "open /nonexistent: no such file or directory", ""},
		{"import /", "", 2, "/ is a folder; name the file in it", ""},

		{"watch", "", 1, "fell behind (the oldest revision is 20)", "GET /v1/watch"},
		{"watch k --from 10 --previous --output json", "", 1, "-", "GET /v1/watch from=10&key=k&previous=1"},
		{"watch --prefix p", "", 1, "-", "GET /v1/watch prefix=p"},
		{"watch k --prefix p", "", 2, "watch takes a KEY or --prefix, not both", ""},
		{"watch --from 0", "", 2, "bad value 0 for --from: revisions begin at 1; leave it out to watch from now on", ""},

		{"compact 9", "", 0, "compacted to revision 7\n", `POST /v1/compact  {"revision":9}`},
		{"compact 9 --output json", "", 0, `{"compacted_to":7,"held_by":[]}` + "\n", "-"},
		{"compact 0", "", 2, `bad value "0" for REV: want a revision, such as 12`, ""},
		{"pin 7 --ttl 1h", "", 0, "p1\n", `POST /v1/pins  {"revision":7,"ttl":"1h0m0s"}`},
		{"pin 7 --ttl 60 --output json", "", 0, `{"id":"p1","revision":7,"expires_at":"2030-01-02T15:04:05Z"}` + "\n", "-"},
		{"pin 7", "", 2, "pin needs --ttl, how long to hold the history, such as 1h", ""},
		{"pin 7 --ttl 25h", "", 2, `bad value "25h" for --ttl: want more than 0 and at most 24h0m0s`, ""},
		{"unpin p1", "", 0, "p1 holds nothing any more\n", "DELETE /v1/pins/p1"},
		{"unpin p2", "", 3, "no such pin", "-"},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			f.seen()
			r := sett(t, tt.in, []string{"SETT_ENDPOINTS=" + f.URL, "SETT_TIMEOUT=2s"}, strings.Fields(tt.line)...)
			got := r.out
			if tt.code != 0 {
				got = strings.TrimSuffix(strings.TrimPrefix(r.stderr, "sett: "), "\n")
			}
			if r.code != tt.code || tt.out != "-" && got != tt.out {
				t.Errorf("exit code %d, want %d\ngot  %q\nwant %q", r.code, tt.code, got, tt.out)
			}
			if calls, _ := f.seen(); tt.calls != "-" && strings.Join(calls, "|") != tt.calls {
				t.Errorf("requests\n     %q\nwant %q", strings.Join(calls, "|"), tt.calls)
			}
		})
	}
}

func TestWatchOutput(t *testing.T) {
	f := newRanges(t)
	for output, want := range map[string]string{
		"":      "10\tput\t\"a\"\t\"one\"\n10\tdelete\t\"\\xff\"\n11\texpire\t\"n\\x00l\"\n",
		"table": "10\tput\t\"a\"\t\"one\"\n10\tdelete\t\"\\xff\"\n11\texpire\t\"n\\x00l\"\n",
		"raw":   "10\tput\ta\n10\tdelete\t\xff\n11\texpire\tn\x00l\n",
		"json": `{"type":"put","revision":10,"key":"a","value":"one","create_revision":3,"mod_revision":10,"version":2}
{"type":"delete","revision":10,"key_base64":"/w==","mod_revision":10,"last":true}
{"type":"expire","revision":11,"key":"n\u0000l","mod_revision":11,"last":true}
`,
	} {
		r := sett(t, "", []string{"SETT_ENDPOINTS=" + f.URL, "SETT_OUTPUT=" + output}, "watch")
		if r.out != want {
			t.Errorf("%s: got %q, want %q", output, r.out, want)
		}
	}
	if got := shortened(bytes.Repeat([]byte("x"), 201)); !strings.HasSuffix(got, `x"… (201 bytes)`) {
		t.Error(got)
	}
}

func TestWatchExec(t *testing.T) {
	f := newRanges(t)
	env := []string{"SETT_ENDPOINTS=" + f.URL, "PATH=" + os.Getenv("PATH"), "SETT_EVENT_KEY=outer"}
	const show = `echo "$SETT_EVENT_TYPE,$SETT_EVENT_KEY,$SETT_EVENT_KEY_BASE64,$SETT_EVENT_REVISION,$(cat)"`
	r := sett(t, "", env, "watch", "--exec", show)
	want := "put,a,YQ==,10,one\ndelete,\xff,/w==,10,\nexpire,,bgBs,11,\n"
	if r.out != want || r.code != exitOther {
		t.Errorf("got %q, want %q", r.out, want)
	}
	r = sett(t, "", env, "watch", "--exec", show+`; [ $SETT_EVENT_TYPE != delete ]`)
	if want := "sett: the command failed on the delete of \"\\xff\" at revision 10: exit status 1; go on with --from 10, which has that revision again\n"; r.stderr != want || strings.Count(r.out, "\n") != 2 || r.code != exitOther {
		t.Errorf("%+v", r)
	}
	// What it sets is no setting of a node.
	if r := sett(t, "", []string{"SETT_EVENT_TYPE=put", "SETT_EVENT_KEY=k"}, "serve", "--print-config"); r.code != 0 {
		t.Errorf("%+v", r)
	}
}

// Told to end, a watch ends well.
func TestWatchIsStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Sett-Revision", "9")
		_ = http.NewResponseController(w).Flush()
		cancel()
		<-r.Context().Done()
	}))
	defer s.Close()
	var stderr bytes.Buffer
	a := &app{in: strings.NewReader(""), out: io.Discard, err: &stderr, environ: []string{"SETT_ENDPOINTS=" + s.URL}}
	// The start may be canceled, too, which is an error; the watch itself is not.
	if code := a.run(ctx, []string{"watch"}); code != exitDone && code != exitUnavailable {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}

func TestIdempotencyKeys(t *testing.T) {
	f := newRanges(t)
	env := []string{"SETT_ENDPOINTS=" + f.URL, "SETT_OUTPUT=json"}
	for _, line := range []string{"put k v", "del k", "append k v --output raw", "incr k --output raw", "txn", "del --prefix a", "compact 3", "pin 3 --ttl 1h", "unpin p"} {
		args := strings.Fields(line)
		_ = sett(t, "{}", env, args...)
		_, once := f.seen()
		if len(once) == 0 || once[0] == "" {
			t.Errorf("%s: sent %q", line, once)
		}
		r := sett(t, "{}", env, append(args, "--idempotency-key", "mine")...)
		if _, once := f.seen(); len(once) != 1 || once[0] != "mine" {
			t.Errorf("%s: sent %q, %+v", line, once, r)
		}
		if r := sett(t, "{}", env, append(args, "--idempotency-key", "")...); r.code != exitUsage {
			t.Errorf("%s with an empty key: %+v", line, r)
		}
	}
}

// A file is whole or not there.
func TestExportToAFile(t *testing.T) {
	f := newRanges(t)
	env := []string{"SETT_ENDPOINTS=" + f.URL, "SETT_TIMEOUT=1s"}
	dir := t.TempDir()
	name := filepath.Join(dir, "x.ndjson")
	if r := sett(t, "", env, "export", name); r.code != 0 || r.out != "exported 2 keys of revision 9\n" {
		t.Fatalf("%+v", r)
	}
	whole, err := os.ReadFile(name)
	if err != nil || strings.Count(string(whole), "\n") != 4 {
		t.Fatalf("%q, %v", whole, err)
	}
	if r := sett(t, "", env, "export", name, "--output", "json"); r.code != 0 || r.out != `{"count":2,"revision":9}`+"\n" {
		t.Errorf("%+v", r)
	}
	if r := sett(t, "", env, "import", name); r.code != 0 || r.out != "loaded 2 lines, the last at revision 12\n" {
		t.Errorf("%+v", r)
	}

	f.stream = formA + "\n" + `{"error":{"code":"compacted","detail":"gone","oldest_revision":12}}` + "\n"
	for _, target := range []string{name, filepath.Join(dir, "new")} {
		if r := sett(t, "", env, "export", target); r.code != exitOther {
			t.Errorf("%+v", r)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if after, err := os.ReadFile(name); err != nil || !bytes.Equal(after, whole) {
		t.Errorf("what was there was lost: %q, %v", after, err)
	}
	if r := sett(t, "", env, "export", filepath.Join(dir, "no", "folder")); r.code != exitOther {
		t.Errorf("%+v", r)
	}
}

// A file that was cut off is refused before anything is loaded.
func TestImportOfATruncatedFile(t *testing.T) {
	f := newRanges(t)
	env := []string{"SETT_ENDPOINTS=" + f.URL}
	name := filepath.Join(t.TempDir(), "cut")
	text := `{"begin":true,"revision":9}` + "\n" + formA + "\n" + formB + "\n"
	if err := os.WriteFile(name, []byte(text[:len(text)-10]), 0o600); err != nil {
		t.Fatal(err)
	}
	r := sett(t, "", env, "import", name)
	if calls, _ := f.seen(); r.code != exitOther || len(calls) != 0 || !strings.Contains(r.stderr, "--partial") {
		t.Errorf("%+v, %q", r, calls)
	}
	if r := sett(t, "", env, "import", name, "--partial"); r.code != 0 || r.out != "loaded 1 lines, the last at revision 12\n" {
		t.Errorf("%+v", r)
	}
}
