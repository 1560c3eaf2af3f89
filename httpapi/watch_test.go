package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

// watching is a client that follows changes.
type watching struct {
	resp  *http.Response
	lines *bufio.Reader
}

func watch(t testing.TB, addr, query string, headers ...string) *watching {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/v1/watch?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	addHeaders(t, req, headers)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %d %s", query, resp.StatusCode, b)
	}
	return &watching{resp, bufio.NewReader(resp.Body)}
}

// line reads the next line, "" at the end.
func (w *watching) line(t testing.TB) string {
	t.Helper()
	text, err := w.lines.ReadString('\n')
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return strings.TrimSuffix(text, "\n")
}

func (w *watching) want(t testing.TB, lines ...string) {
	t.Helper()
	for _, want := range lines {
		if got := w.line(t); got != want {
			t.Fatalf("line %s\nwant %s", got, want)
		}
	}
}

// quiet is a server whose watches mark no progress while a test lasts.
func quiet(c *Config) { c.WatchProgress = time.Hour }

func TestWatch(t *testing.T) {
	f := newFixture(t, quiet)
	put(t, f, "a/old")
	addr := f.listen(t)
	w := watch(t, addr, "prefix=a/")
	if h := w.resp.Header; h.Get("Content-Type") != ndjson || h.Get("Sett-Revision") != "1" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", h)
	}
	prev := watch(t, addr, "start=a/&end=a0&previous=1&from=1")
	one := watch(t, addr, "key=a%2F1&from=2")
	all := watch(t, addr, "")
	for _, b := range []string{
		`{"then":[{"put":{"key":"a/1","value":"x","content_type":"text/x"}},{"put":{"key":"b","value":"y"}},{"put":{"key_base64":"YS//","value_base64":"/w=="}}]}`,
		`{"then":[{"put":{"key":"z","value":""}}]}`,
		`{"then":[{"incr":{"key":"a/2"}},{"delete":{"key":"a/1"}}]}`,
	} {
		if r := f.do(t, "POST", "/v1/txn", b); r.Code != 200 {
			t.Fatal(r.Body)
		}
	}
	f.store.expire("a/2", "b")
	const put1 = `{"type":"put","revision":2,"key":"a/1","value":"x","create_revision":2,"mod_revision":2,"version":1,"content_type":"text/x"`
	const put2 = `{"type":"put","revision":2,"key_base64":"YS//","value_base64":"/w==","create_revision":2,"mod_revision":2,"version":1`
	const incr = `{"type":"put","revision":4,"key":"a/2","value":"1","create_revision":4,"mod_revision":4,"version":1`
	w.want(t, put1+`}`, put2+`,"last":true}`,
		`{"type":"delete","revision":4,"key":"a/1","mod_revision":4}`, incr+`,"last":true}`,
		`{"type":"expire","revision":5,"key":"a/2","mod_revision":5,"last":true}`)
	prev.want(t, `{"type":"put","revision":1,"key":"a/old","value":"v-a/old","create_revision":1,"mod_revision":1,"version":1,"previous":null,"last":true}`,
		put1+`,"previous":null}`, put2+`,"previous":null,"last":true}`,
		`{"type":"delete","revision":4,"key":"a/1","mod_revision":4,"previous":{"key":"a/1","value":"x","create_revision":2,"mod_revision":2,"version":1,"content_type":"text/x"}}`,
		incr+`,"previous":null,"last":true}`,
		`{"type":"expire","revision":5,"key":"a/2","mod_revision":5,"previous":{"key":"a/2","value":"1","create_revision":4,"mod_revision":4,"version":1},"last":true}`)
	one.want(t, put1+`,"last":true}`, `{"type":"delete","revision":4,"key":"a/1","mod_revision":4,"last":true}`)
	for range 8 {
		all.line(t)
	}
	// On another node, from a revision on: the same.
	again := watch(t, addr, "prefix=a/&from=4")
	again.want(t, `{"type":"delete","revision":4,"key":"a/1","mod_revision":4}`, incr+`,"last":true}`)
	for _, x := range []*watching{w, prev, one, all, again} {
		_ = x.resp.Body.Close()
	}
	eventually(t, "the watches end with their clients", func() bool { return f.store.watching() == 0 })
	head := f.do(t, "HEAD", "/v1/watch?prefix=a", "")
	if head.Code != 200 || head.Body.Len() != 0 || f.store.watching() != 0 {
		t.Errorf("HEAD: %d, %d bytes", head.Code, head.Body.Len())
	}
}

func TestWatchSSE(t *testing.T) {
	f := newFixture(t, quiet)
	addr := f.listen(t)
	w := watch(t, addr, "prefix=a", "Accept: text/event-stream")
	if h := w.resp.Header; h.Get("Content-Type") != eventStream {
		t.Errorf("headers %v", h)
	}
	f.store.set(kv.Item{Key: "a1", Value: []byte("two\nlines")}, kv.Item{Key: "a2"})
	f.store.expire("a1")
	events := []string{
		"event: put", `data: {"type":"put","revision":1,"key":"a1","value":"two\nlines","create_revision":1,"mod_revision":1,"version":1}`, "",
		"event: put", "id: 1", `data: {"type":"put","revision":1,"key":"a2","value":"","create_revision":1,"mod_revision":1,"version":1,"last":true}`, "",
		"event: expire", "id: 2", `data: {"type":"expire","revision":2,"key":"a1","mod_revision":2,"last":true}`, "",
	}
	w.want(t, events...)
	// The id of the last event leads to what comes after it, whatever else is asked for.
	w = watch(t, addr, "prefix=a&from=1", "Accept: text/event-stream", "Last-Event-ID: 1")
	w.want(t, events[7:]...)
	w = watch(t, addr, "prefix=a&from=1", "Accept: text/event-stream", "Last-Event-ID: 0")
	w.want(t, events...)
	w = watch(t, addr, "prefix=a&from=2", "Accept: text/event-stream", "Last-Event-ID: ")
	w.want(t, events[7:]...)
	w = watch(t, addr, "prefix=a", "Last-Event-ID: 1") // lines, too
	w.want(t, `{"type":"expire","revision":2,"key":"a1","mod_revision":2,"last":true}`)
}

func TestWatchProgress(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.WatchProgress = 5 * time.Millisecond })
	put(t, f, "b", "c")
	addr := f.listen(t)
	lines := watch(t, addr, "prefix=a&timeout=20ms")
	sse := watch(t, addr, "prefix=a", "Accept: text/event-stream")
	for range 10 { // longer than the request's timeout
		lines.want(t, `{"type":"progress","revision":2}`)
		sse.want(t, "event: progress", "id: 2", `data: {"type":"progress","revision":2}`, "")
	}
	// A watch that always has something to tell marks progress, too.
	busy := watch(t, addr, "prefix=a")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				f.store.set(kv.Item{Key: "a", Value: []byte(strconv.Itoa(n))})
				runtime.Gosched()
			}
		}
	})
	var seen, marks int
	last := kv.Revision(2)
	for marks < 5 {
		var e struct {
			Type     string
			Revision kv.Revision
		}
		if err := json.Unmarshal([]byte(busy.line(t)), &e); err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Type == "progress":
			marks++
			if e.Revision != last && seen > 0 {
				t.Fatalf("progress %d after revision %d", e.Revision, last)
			}
			last = e.Revision
		case e.Revision != last+1:
			t.Fatalf("revision %d after %d", e.Revision, last)
		default:
			seen++
			last = e.Revision
		}
	}
	close(stop)
	wg.Wait()
}

func TestBadWatches(t *testing.T) {
	f := newFixture(t)
	put(t, f, "a", "b", "c")
	f.store.oldest = 2
	for _, q := range []string{
		"key=a&prefix=a", "key=a&start=a", "key=a&end=b", "key=", "prefix=a&start=a", "start=b&end=a", "start=a&end=a", "from=0", "from=-1", "from=x", "from=", "from=18446744073709551616", "from=5", "previous=2",
		"limit=1", "revision=1", "consistency=stale", "x=1", "from=2&from=3", "min_revision=1",
	} {
		wantProblem(t, f.do(t, "GET", "/v1/watch?"+q, ""), 400, kv.CodeInvalidArgument)
	}
	for _, id := range []string{"x", "-1", "1.0", "18446744073709551615", "99"} {
		wantProblem(t, f.do(t, "GET", "/v1/watch", "", "Last-Event-ID: "+id), 400, kv.CodeInvalidArgument)
	}
	wantProblem(t, f.do(t, "GET", "/v1/watch", "", "Last-Event-ID: 2", "Last-Event-ID: 2"), 400, kv.CodeInvalidArgument)
	wantProblem(t, f.do(t, "GET", "/v1/watch", "body"), 400, kv.CodeInvalidArgument)
	wantProblem(t, f.do(t, "GET", "/v1/watch?key="+strings.Repeat("k", 65), ""), 413, kv.CodeTooLarge)
	for _, q := range []string{"from=1", "prefix=a&from=1"} {
		if p := wantProblem(t, f.do(t, "GET", "/v1/watch?"+q, ""), 410, kv.CodeCompacted); *p.OldestRevision != 2 {
			t.Errorf("%+v", p)
		}
	}
	if p := wantProblem(t, f.do(t, "GET", "/v1/watch", "", "Last-Event-ID: 0", "Accept: text/event-stream"), 410, kv.CodeCompacted); *p.OldestRevision != 2 {
		t.Errorf("%+v", p)
	}
	if f.store.watching() != 0 {
		t.Error("a bad watch was begun")
	}
}

// scriptedWatcher tells what it is given.
type scriptedWatcher struct {
	batches chan kv.WatchBatch
	fail    chan error
	closed  chan struct{}
}

func newScriptedWatcher() *scriptedWatcher {
	return &scriptedWatcher{make(chan kv.WatchBatch), make(chan error, 1), make(chan struct{})}
}

func (w *scriptedWatcher) Revision() kv.Revision { return 1 }
func (w *scriptedWatcher) Close()                { close(w.closed) }
func (w *scriptedWatcher) Next(ctx context.Context) (kv.WatchBatch, error) {
	select {
	case b := <-w.batches:
		return b, nil
	case err := <-w.fail:
		return kv.WatchBatch{}, err
	case <-ctx.Done():
		return kv.WatchBatch{}, ctx.Err()
	}
}

func TestWatchEnds(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"fell behind": {&kv.Error{Code: kv.CodeCompacted, Msg: "fell behind", OldestRevision: 9}, `{"type":"error","code":"compacted","detail":"fell behind","oldest_revision":9}`},
		"no leader":   {kv.NotApplied(kv.CodeNoLeader, "no leader for 10s"), `{"type":"error","code":"no-leader","detail":"no leader for 10s"}`},
		"internal":    {errSecret, `{"type":"error","code":"internal","detail":"internal error; see the node's log"}`},
	} {
		t.Run(name, func(t *testing.T) {
			for _, accept := range []string{ndjson, eventStream} {
				f := newFixture(t, quiet)
				sw := newScriptedWatcher()
				f.store.onWatch = func(context.Context, kv.Watch) (Watcher, error) { return sw, nil }
				w := watch(t, f.listen(t), "", "Accept: "+accept)
				sw.fail <- c.err
				if accept == ndjson {
					w.want(t, c.want, "")
				} else {
					w.want(t, "event: error", "data: "+c.want, "", "")
				}
				<-sw.closed
			}
		})
	}
	t.Run("stop", func(t *testing.T) {
		f := newFixture(t, quiet)
		w := watch(t, f.listen(t), "")
		f.srv.Drain()
		if got := w.line(t); !strings.HasPrefix(got, `{"type":"error","code":"not-ready",`) || w.line(t) != "" {
			t.Errorf("line %s", got)
		}
		eventually(t, "the watch is closed", func() bool { return f.store.watching() == 0 })
	})
}

// A watch waits for a leader as a read does, within its timeout.
func TestWatchWaitsForALeader(t *testing.T) {
	f := newFixture(t, quiet)
	n := 0
	f.store.onWatch = func(context.Context, kv.Watch) (Watcher, error) {
		if n++; n < 3 {
			return nil, kv.NotApplied(kv.CodeNoLeader, "none")
		}
		return nil, errGoOn
	}
	watch(t, f.listen(t), "")
	f.store.onWatch = func(context.Context, kv.Watch) (Watcher, error) { return nil, kv.NotApplied(kv.CodeNoLeader, "none") }
	wantProblem(t, f.do(t, "GET", "/v1/watch?timeout=50ms", ""), 503, kv.CodeNoLeader)
}

// A client that stops reading loses its watch and holds nothing but a piece.
func TestSlowWatcher(t *testing.T) {
	f := newFixture(t, quiet, func(c *Config) { c.ProgressTimeout = 100 * time.Millisecond })
	sw := newScriptedWatcher()
	f.store.onWatch = func(context.Context, kv.Watch) (Watcher, error) { return sw, nil }
	addr := f.listen(t)
	c := dial(t, addr)
	if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	send(t, c, "GET /v1/watch HTTP/1.1\r\nHost: h\r\n\r\n")
	e := &kv.Event{Type: kv.EventPut, Revision: 2, Item: kv.Item{Key: "a", Value: make([]byte, 100000)}}
	b := kv.WatchBatch{Revision: 2}
	for range 100 {
		b.Events = append(b.Events, e)
	}
	for stuck := false; !stuck; {
		select {
		case sw.batches <- b:
		case <-sw.closed:
			stuck = true
		}
	}
}

// HTTP/2 has deadlines of its own: an idle watch must outlive the time that a write may
// take, and so must a stream that finds nothing for long.
func TestIdleWatchHTTP2(t *testing.T) {
	f := newFixture(t, quiet, func(c *Config) { c.ProgressTimeout = 20 * time.Millisecond })
	addr := f.listen(t)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protocols}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/v1/watch", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	w := &watching{resp, bufio.NewReader(resp.Body)}
	for i := range 3 {
		idle := time.NewTimer(100 * time.Millisecond)
		<-idle.C // the time itself is what is tested
		put(t, f, "a"+strconv.Itoa(i))
		if got := w.line(t); !strings.Contains(got, `"key":"a`+strconv.Itoa(i)) {
			t.Fatalf("line %q", got)
		}
	}
}

// An event is rendered once, whoever watches.
func TestEventsAreRenderedOnce(t *testing.T) {
	f := newFixture(t, quiet)
	e := &kv.Event{Type: kv.EventPut, Revision: 2, Item: kv.Item{Key: "a", Value: []byte("v")}, Previous: &kv.Item{Key: "a"}}
	addr := f.listen(t)
	var ws []*watching
	var sws []*scriptedWatcher
	for i := range 4 {
		sw := newScriptedWatcher()
		f.store.onWatch = func(context.Context, kv.Watch) (Watcher, error) { return sw, nil }
		h := "Accept: " + ndjson
		if i%2 == 1 {
			h = "Accept: " + eventStream
		}
		ws = append(ws, watch(t, addr, fmt.Sprintf("previous=%d", i/2), h))
		sws = append(sws, sw)
	}
	const plain = `{"type":"put","revision":2,"key":"a","value":"v","create_revision":0,"mod_revision":0,"version":0`
	const prev = plain + `,"previous":{"key":"a","value":"","create_revision":0,"mod_revision":0,"version":0}`
	for i, sw := range sws {
		sw.batches <- kv.WatchBatch{Events: []*kv.Event{e}, Revision: 2}
		want := plain
		if i/2 == 1 {
			want = prev
		}
		if i%2 == 1 {
			ws[i].want(t, "event: put", "id: 2", "data: "+want+`,"last":true}`, "")
		} else {
			ws[i].want(t, want+`,"last":true}`)
		}
	}
	for slot, want := range []string{plain, prev} {
		if got := string(e.Memo(slot, func(*kv.Event) []byte { return []byte("rendered anew") })); got != want {
			t.Errorf("memo %d is %s", slot, got)
		}
	}
}

func TestWatchLimit(t *testing.T) {
	f := newFixture(t, quiet, func(c *Config) { c.MaxWatches = 2 })
	addr := f.listen(t)
	a := watch(t, addr, "")
	watch(t, addr, "")
	wantProblem(t, f.do(t, "GET", "/v1/watch", ""), 429, kv.CodeOverloaded)
	_ = a.resp.Body.Close()
	eventually(t, "there is room again", func() bool { return f.srv.watches.n.Load() == 1 })
	watch(t, addr, "")
}

// Watches of the fake store tell the same as a listing before and after.
func TestWatchLinesAreForms(t *testing.T) {
	f := newFixture(t, quiet)
	addr := f.listen(t)
	w := watch(t, addr, "from=1&previous=1")
	items := []kv.Item{{Key: "\xff", Value: []byte("é\x00")}, {Key: "k", Value: []byte("\xfe"), ContentType: "a/b", ExpiresAt: time.Date(2031, 1, 1, 0, 0, 0, 5e6, time.UTC)}}
	for range 2 {
		f.store.set(items...)
	}
	var got []string
	for range 4 {
		var l struct {
			Type     string
			Revision kv.Revision
			Previous *form
			Last     bool
			form
		}
		line := w.line(t)
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		got = append(got, fmt.Sprintf("%s %d %q=%q %v %v", l.Type, l.Revision, l.key(), l.value(), l.Previous != nil, l.Last))
	}
	want := []string{`put 1 "k"="\xfe" false false`, `put 1 "\xff"="é\x00" false true`, `put 2 "k"="\xfe" true false`, `put 2 "\xff"="é\x00" true true`}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// BenchmarkIdleWatches measures what an idle watch costs in memory, its own connection
// on both sides included.
func BenchmarkIdleWatches(b *testing.B) {
	const n = 2000
	for b.Loop() {
		f := newFixture(b)
		addr := f.listen(b)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var conns []net.Conn
		for range n {
			c, err := new(net.Dialer).DialContext(b.Context(), "tcp", addr)
			if err != nil {
				b.Fatal(err)
			}
			send(b, c, "GET /v1/watch?prefix=app/ HTTP/1.1\r\nHost: h\r\n\r\n")
			conns = append(conns, c)
		}
		eventually(b, "all watch", func() bool { return f.store.watching() == n })
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.Sys-before.Sys)/n, "sys-B/watch")
		b.ReportMetric(float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/n, "inuse-B/watch")
		b.ReportMetric(float64(after.StackInuse-before.StackInuse)/n, "stack-B/watch")
		for _, c := range conns {
			_ = c.Close()
		}
		if err := f.srv.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWatchFanOut measures a change that many watch.
func BenchmarkWatchFanOut(b *testing.B) {
	const n = 100
	f := newFixture(b, quiet)
	addr := f.listen(b)
	var ws []*watching
	for range n {
		ws = append(ws, watch(b, addr, "prefix=a"))
	}
	f.store.set(kv.Item{Key: "a", Value: make([]byte, 256)})
	for b.Loop() {
		f.store.set(kv.Item{Key: "a", Value: make([]byte, 256)})
		for _, w := range ws {
			w.line(b)
		}
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "events/s")
}

// A revision that comes in parts ends once, and no mark comes within it.
func TestWatchInParts(t *testing.T) {
	for _, accept := range []string{ndjson, eventStream} {
		f := newFixture(t, func(c *Config) { c.WatchProgress = time.Nanosecond })
		sw := newScriptedWatcher()
		f.store.onWatch = func(context.Context, kv.Watch) (Watcher, error) { return sw, nil }
		event := func(key string) []*kv.Event {
			return []*kv.Event{{Type: kv.EventDelete, Revision: 2, Item: kv.Item{Key: key}}}
		}
		go func() {
			sw.batches <- kv.WatchBatch{Events: event("a"), Revision: 1, Partial: true}
			sw.batches <- kv.WatchBatch{Events: event("b"), Revision: 1, Partial: true}
			sw.batches <- kv.WatchBatch{Events: event("c"), Revision: 2}
			sw.fail <- kv.NotApplied(kv.CodeNotReady, "over")
		}()
		got := f.do(t, "GET", "/v1/watch", "", "Accept: "+accept).Body.String()
		if strings.Count(got, `"last":true`) != 1 || strings.Index(got, `"last":true`) < strings.Index(got, `"key":"c"`) ||
			strings.Index(got, "progress") < strings.Index(got, `"key":"c"`) || strings.Count(got, `"key":`) != 3 {
			t.Errorf("%s: %s", accept, got)
		}
		if accept == eventStream && strings.Index(got, "id: ") < strings.Index(got, `"key":"b"`) {
			t.Errorf("an id within a revision: %s", got)
		}
	}
}
