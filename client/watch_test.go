package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

// history is what a fake node tells to watches: the keys of each revision from 1 on.
type history [][]string

// lines returns what a watch from that revision is told.
func (h history) lines(from int) string {
	var b strings.Builder
	for rev := from; rev <= len(h); rev++ {
		keys := h[rev-1]
		for i, key := range keys {
			last := ""
			if i == len(keys)-1 {
				last = `,"last":true`
			}
			fmt.Fprintf(&b, `{"type":"put","revision":%d,"key":%q,"value":"v","create_revision":1,"mod_revision":%d,"version":1%s}`+"\n", rev, key, rev, last)
		}
		if len(keys) == 0 {
			fmt.Fprintf(&b, `{"type":"progress","revision":%d}`+"\n", rev)
		}
	}
	return b.String()
}

// serve answers the first watch with the first cut bytes and breaks the connection, the
// others with all. broken says how it breaks.
func (h history) serve(cut int, broken func(http.ResponseWriter)) http.HandlerFunc {
	first := true
	return func(w http.ResponseWriter, r *http.Request) {
		from, err := strconv.Atoi(r.URL.Query().Get("from"))
		if err != nil || from < 1 || from > len(h)+1 {
			problem(400, map[string]any{"code": "invalid-argument", "detail": "from " + r.URL.Query().Get("from")})(w, r)
			return
		}
		w.Header().Set("Sett-Revision", strconv.Itoa(len(h)))
		text := h.lines(from)
		if first {
			first = false
			_, _ = io.WriteString(w, text[:cut])
			_ = http.NewResponseController(w).Flush()
			broken(w)
			return
		}
		_, _ = io.WriteString(w, text)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

// collect reads a watch until it is at revision end.
func collect(t rapid.TB, w *client.Watcher, end int) (got []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for int(w.Revision()) < end {
		b, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("after %v: %v", got, err)
		}
		for _, e := range b.Events {
			if e.Revision != b.Revision {
				t.Fatalf("revision %d in the batch of %d", e.Revision, b.Revision)
			}
			got = append(got, fmt.Sprintf("%d %s", e.Revision, e.Item.Key))
		}
	}
	return got
}

func (h history) want() (want []string) {
	for i, keys := range h {
		for _, key := range keys {
			want = append(want, fmt.Sprintf("%d %s", i+1, key))
		}
	}
	return want
}

// Wherever a connection is cut, every event is told once, in order, in whole revisions.
func TestWatchResumesAtEveryByte(t *testing.T) {
	h := history{{"a"}, {"b", "c", "d"}, {}, {"e"}, {"f", "g"}}
	breaks := map[string]func(http.ResponseWriter){
		"cut":  func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"ends": func(http.ResponseWriter) {},
		"told": func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, `{"type":"error","code":"not-ready","detail":"stopping"}`+"\n")
		},
	}
	for name, broken := range breaks {
		t.Run(name, func(t *testing.T) {
			for cut := range len(h.lines(1)) + 1 {
				if name == "told" && cut > 0 && h.lines(1)[cut-1] != '\n' {
					continue // a node tells between lines only
				}
				t.Run(strconv.Itoa(cut), func(t *testing.T) {
					t.Parallel()
					nodes := h.serve(cut, broken)
					n, m := newNode(t, nodes), newNode(t, nodes)
					w, err := dial(t, 5*time.Second, n.URL, m.URL).Watch(t.Context(), kv.Range{}, client.WatchOptions{From: 1, Progress: true})
					if err != nil {
						t.Fatal(err)
					}
					defer w.Close()
					got := collect(t, w, len(h))
					if fmt.Sprint(got) != fmt.Sprint(h.want()) {
						t.Errorf("got  %v\nwant %v", got, h.want())
					}
					if cut < len(h.lines(1)) && (len(n.seen()) == 0 || len(m.seen()) == 0) {
						t.Errorf("it did not go elsewhere: %d and %d requests", len(n.seen()), len(m.seen()))
					}
				})
			}
		})
	}
}

// Random histories, cut at random places, again and again.
func TestWatchResumes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := history(rapid.SliceOfN(rapid.SliceOfN(rapid.StringMatching("[a-c]{1,3}"), 0, 4), 1, 8).Draw(rt, "history"))
		cuts := rapid.SliceOfN(rapid.IntRange(0, 400), 0, 3).Draw(rt, "cuts")
		calls := 0
		n := newNode(t, func(w http.ResponseWriter, r *http.Request) {
			cut := 1 << 20
			if calls < len(cuts) {
				cut = cuts[calls]
			}
			calls++
			from, _ := strconv.Atoi(r.URL.Query().Get("from"))
			text := h.lines(from)
			w.Header().Set("Sett-Revision", strconv.Itoa(len(h)))
			_, _ = io.WriteString(w, text[:min(cut, len(text))])
			_ = http.NewResponseController(w).Flush()
			if cut < len(text) {
				panic(http.ErrAbortHandler)
			}
			<-r.Context().Done()
		})
		defer n.CloseClientConnections()
		w, err := dial(t, 5*time.Second, n.URL).Watch(t.Context(), kv.PrefixRange(""), client.WatchOptions{From: 1})
		if err != nil {
			rt.Fatal(err)
		}
		defer w.Close()
		for len(h) > 0 && len(h[len(h)-1]) == 0 {
			h = h[:len(h)-1] // without WatchOptions.Progress nobody hears of what is last
		}
		if got := collect(rt, w, len(h)); fmt.Sprint(got) != fmt.Sprint(h.want()) {
			rt.Fatalf("got  %v\nwant %v", got, h.want())
		}
	})
}

func lines(revision int, text ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Sett-Revision", strconv.Itoa(revision))
		_, _ = io.WriteString(w, strings.Join(text, "\n")+"\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

func TestWatchRequests(t *testing.T) {
	tests := []struct {
		r    kv.Range
		o    client.WatchOptions
		want string
	}{
		{client.KeyRange("a"), client.WatchOptions{}, "map[key:a]"},
		{kv.PrefixRange("a/"), client.WatchOptions{From: 4, Previous: true}, "map[from:4 prefix:a/ previous:1]"},
		{kv.Range{Start: "b", End: "x"}, client.WatchOptions{}, "map[end:x start:b]"},
		{kv.Range{}, client.WatchOptions{}, "map[]"},
	}
	for _, tt := range tests {
		n := newNode(t, lines(6))
		w, err := dial(t, 5*time.Second, n.URL).Watch(t.Context(), tt.r, tt.o)
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		call := n.seen()[0]
		delete(call.query, "timeout")
		if got := fmt.Sprint(call.query); got != tt.want || call.path != "/v1/watch" || call.header.Get("Accept") != "application/x-ndjson" {
			t.Errorf("%s %s, want %s", call.path, got, tt.want)
		}
	}
}

func TestWatchEvents(t *testing.T) {
	text := []string{
		`{"type":"put","revision":7,"key":"a","value":"1","create_revision":3,"mod_revision":7,"version":2,"content_type":"text/x","previous":{"key":"a","value":"0","create_revision":3,"mod_revision":3,"version":1}}`,
		`{"type":"delete","revision":7,"key_base64":"/w==","mod_revision":7,"previous":null,"last":true}`,
		`{"type":"expire","revision":8,"key":"c","mod_revision":8,"previous":null,"last":true}`,
		`{"type":"progress","revision":12}`,
	}
	n := newNode(t, lines(6, text...))
	o := client.WatchOptions{Previous: true, Progress: true}
	w, err := dial(t, 5*time.Second, n.URL).Watch(t.Context(), kv.Range{}, o)
	if err != nil || w.Revision() != 6 {
		t.Fatal(err, w.Revision())
	}
	defer w.Close()
	var got string
	for range 3 {
		b, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		data, err := client.EncodeBatch(b, o)
		if err != nil {
			t.Fatal(err)
		}
		got += string(data)
	}
	if want := strings.Join(text, "\n") + "\n"; got != want || w.Revision() != 12 {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if w.Close(); w.Revision() != 12 {
		t.Errorf("at %d", w.Revision())
	}
}

// What another node would not serve either ends a watch.
func TestWatchEnds(t *testing.T) {
	event := `{"type":"put","revision":7,"key":"a","value":"","create_revision":7,"mod_revision":7,"version":1,"last":true}`
	gone := problem(410, map[string]any{"code": "compacted", "detail": "gone", "oldest_revision": 20})
	tests := []struct {
		name   string
		script []http.HandlerFunc
		from   kv.Revision
		events int
		want   *kv.Error
		oldest kv.Revision
	}{
		{"fell behind", []http.HandlerFunc{lines(6, event, `{"type":"error","code":"compacted","detail":"x","oldest_revision":20}`)}, 0, 1, kv.ErrCompacted, 20},
		{"fell behind while away", []http.HandlerFunc{answerWith(200, event+"\n", "Sett-Revision", "6"), gone}, 0, 1, kv.ErrCompacted, 20},
		{"restored", []http.HandlerFunc{lines(6, event, `{"type":"restored","revision":8}`)}, 0, 1, kv.ErrCompacted, 8},
		{"restored while away", []http.HandlerFunc{answerWith(200, event+"\n", "Sett-Revision", "6"), lines(9, `{"type":"restored","revision":8}`)}, 0, 1, kv.ErrCompacted, 8},
		{"a watch of the restore", []http.HandlerFunc{lines(7, `{"type":"restored","revision":6}`, event, `{"type":"error","code":"forbidden"}`)}, 6, 1, &kv.Error{Code: kv.CodeForbidden}, 0},
		{"no event", []http.HandlerFunc{lines(6, `{"type":"put"}`)}, 0, 0, kv.ErrInternal, 0},
		{"no JSON", []http.HandlerFunc{lines(6, `<html>`)}, 0, 0, kv.ErrInternal, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, tt.script...)
			w, err := dial(t, 5*time.Second, n.URL).Watch(t.Context(), kv.Range{}, client.WatchOptions{From: tt.from})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			events := 0
			for err == nil {
				var b kv.WatchBatch
				b, err = w.Next(t.Context())
				events += len(b.Events)
			}
			if !errors.Is(err, tt.want) || kv.AsError(err).OldestRevision != tt.oldest || events != tt.events {
				t.Errorf("%d events, %#v", events, err)
			}
			if _, again := w.Next(t.Context()); !errors.Is(again, tt.want) {
				t.Errorf("again: %v", again)
			}
		})
	}
	n := newNode(t, gone)
	if _, err := dial(t, 5*time.Second, n.URL).Watch(t.Context(), kv.Range{}, client.WatchOptions{From: 1}); !errors.Is(err, kv.ErrCompacted) {
		t.Errorf("start: %v", err)
	}
}

// A call that ran out of time loses nothing for the next one.
func TestWatchGoesOnAfterItsContext(t *testing.T) {
	h := history{{"a", "b"}, {"c"}}
	stuck := make(chan struct{})
	serve := h.serve(len(h.lines(1))-10, func(http.ResponseWriter) { <-stuck })
	n := newNode(t, serve)
	w, err := dial(t, 5*time.Second, n.URL).Watch(t.Context(), kv.Range{}, client.WatchOptions{From: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if b, err := w.Next(t.Context()); err != nil || len(b.Events) != 2 {
		t.Fatalf("%+v, %v", b, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	close(stuck)
	if b, err := w.Next(t.Context()); err != nil || len(b.Events) != 1 || b.Events[0].Item.Key != "c" {
		t.Fatalf("%+v, %v", b, err)
	}
}
