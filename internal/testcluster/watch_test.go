package testcluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// eventLine is a line of a watch.
type eventLine struct {
	Type     string `json:"type"`
	Revision uint64 `json:"revision"`
	Key      string `json:"key"`
	Value    string `json:"value"`
	Version  uint64 `json:"version"`
	Last     bool   `json:"last"`
	Code     string `json:"code"`
	Previous *struct {
		Value   string `json:"value"`
		Version uint64 `json:"version"`
	} `json:"previous"`
}

// String leaves out what only some watchers ask for.
func (e *eventLine) String() string {
	return fmt.Sprintf("%d %s %s=%s v%d", e.Revision, e.Type, e.Key, e.Value, e.Version)
}

// errGone is a watch that was broken off: it goes on elsewhere.
var errGone = errors.New("broken off")

// observer watches through faults and holds what it sees to the promises.
type observer struct {
	name     string
	query    string
	prefix   string // of the keys that it watches
	sse      bool
	previous bool
	slow     bool
	roams    bool // another node at each reconnect

	c    *Cluster
	rng  *rand.Rand
	node int

	told func(*eventLine) // called with each event once its revision is whole; may be nil

	next   uint64 // first revision that was not received whole
	events []*eventLine
	open   []*eventLine // of a revision whose last event has not come
	breaks int
	lastID string
}

// watch follows until everything up to the revision that upTo holds has been told; that
// may be set later.
func (o *observer) watch(ctx context.Context, upTo *atomic.Uint64) error {
	for {
		err := o.stream(ctx, upTo)
		if !errors.Is(err, errGone) {
			return err
		}
		o.breaks++
		o.open = nil
		if o.roams {
			o.node = o.rng.IntN(len(o.c.Nodes))
		}
	}
}

func (o *observer) stream(ctx context.Context, upTo *atomic.Uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q := o.query + "&timeout=1s"
	resume := o.sse && o.lastID != ""
	if !resume {
		q += fmt.Sprintf("&from=%d", o.next)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+o.c.Nodes[o.node].ID+":80/v1/watch?"+q, nil)
	if err != nil {
		return err
	}
	if o.sse {
		req.Header.Set("Accept", "text/event-stream")
	}
	if resume {
		req.Header.Set("Last-Event-ID", o.lastID)
	}
	resp, err := o.c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return errGone
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusGatewayTimeout {
			return errGone
		}
		return fmt.Errorf("%s: %d %s", q, resp.StatusCode, b)
	}
	var src io.Reader = resp.Body
	if o.slow {
		src = &slowly{resp.Body}
	}
	lines := bufio.NewScanner(src)
	lines.Buffer(nil, 16<<20)
	id := ""
	for lines.Scan() {
		line := lines.Text()
		if o.sse {
			// An empty line ends an event: only then does its id count.
			if v, ok := strings.CutPrefix(line, "id: "); ok {
				id = v
			}
			if line == "" && id != "" {
				o.lastID = id
			}
			line, _ = strings.CutPrefix(line, "data: ")
		}
		if strings.HasPrefix(line, "{") {
			if err := o.take([]byte(line)); err != nil {
				return err
			}
		}
		if r := upTo.Load(); r != 0 && o.next > r {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errGone
}

// slowly reads in small pieces and takes its time: being slow is what it is for.
type slowly struct{ io.Reader }

func (s *slowly) Read(p []byte) (int, error) {
	timer := time.NewTimer(3 * time.Millisecond)
	defer timer.Stop()
	<-timer.C
	return s.Reader.Read(p[:min(len(p), 200)])
}

// take checks a line against those before it.
func (o *observer) take(line []byte) error {
	var e eventLine
	if err := json.Unmarshal(line, &e); err != nil {
		return errGone // cut off within a line; one that is always bad never gets past
	}
	switch e.Type {
	case "error":
		return errGone
	case "progress":
		if len(o.open) > 0 {
			return fmt.Errorf("progress to %d in the middle of revision %d", e.Revision, o.open[0].Revision)
		}
		if e.Revision+1 < o.next {
			return fmt.Errorf("progress went back from %d to %d", o.next-1, e.Revision)
		}
		o.next = e.Revision + 1
		return nil
	case "put", "delete", "expire":
	default:
		return fmt.Errorf("a line of type %q", e.Type)
	}
	if e.Revision < o.next || len(o.open) > 0 && e.Revision != o.open[0].Revision {
		return fmt.Errorf("%s: came after all up to %d was told, with %d open", line, o.next-1, len(o.open))
	}
	o.open = append(o.open, &e)
	if e.Last {
		for _, e := range o.open {
			if o.told != nil {
				o.told(e)
			}
		}
		o.events = append(o.events, o.open...)
		o.open, o.next = nil, e.Revision+1
	}
	return nil
}

// scribbler changes keys at random until ctx ends.
func scribble(ctx context.Context, c *Cluster, rng *rand.Rand, done *atomic.Int64) {
	key := func() string { return [...]string{"w/a", "w/b", "w/c", "x/a", "x/b", "y"}[rng.IntN(6)] }
	for n := 0; ctx.Err() == nil; n++ {
		value := fmt.Sprintf("%d-%d", n, rng.Uint32())
		r := Request{Method: http.MethodPut, Path: "/v1/kv/" + key() + "?timeout=1s", Body: value}
		switch p := rng.IntN(20); {
		case p < 3:
			r.Path += "&ttl=300ms"
		case p < 6:
			r.Method, r.Body = http.MethodDelete, ""
		case p < 8:
			r = Request{Method: http.MethodDelete, Path: "/v1/kv?timeout=1s&prefix=" + url.QueryEscape([...]string{"w/", "x/"}[rng.IntN(2)])}
		case p < 13:
			put := func() string { return fmt.Sprintf(`{"put":{"key":%q,"value":%q}}`, key(), value) }
			r = Request{Method: http.MethodPost, Path: "/v1/txn?timeout=1s", Body: `{"then":[` + put() + "," + put() + "," + put() + `]}`}
		}
		rctx, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
		if a, err := c.Do(rctx, c.Nodes[rng.IntN(len(c.Nodes))], r); err == nil && a.Status < 300 {
			done.Add(1)
		}
		cancel()
	}
}

// TestWatchUnderFaults: watchers of every kind see every change once, in order and in
// whole revisions, whatever happens to the cluster.
func TestWatchUnderFaults(t *testing.T) {
	seed := seedOf(t)
	faults := 9
	if testing.Short() {
		faults = 3
	}
	c := Start(t, 3, seed)
	rng := rand.New(rand.NewPCG(seed, 51))
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	wctx, stopWriting := context.WithCancel(ctx)
	defer stopWriting()

	var done atomic.Int64
	var writers, watchers sync.WaitGroup
	for i := range 3 {
		wrng := rand.New(rand.NewPCG(seed, uint64(500+i)))
		writers.Go(func() { scribble(wctx, c, wrng, &done) })
	}
	var upTo atomic.Uint64
	observers := []*observer{
		{name: "all keys", query: "prefix="},
		{name: "slow", query: "prefix=", slow: true},
		{name: "roams", query: "prefix=", roams: true},
		{name: "events of the server", query: "prefix=", sse: true, roams: true},
		{name: "previous", query: "prefix=&previous=1", previous: true},
		{name: "one key", query: "key=w%2Fa", prefix: "w/a"},
		{name: "prefix", query: "prefix=w%2F", prefix: "w/", node: 1},
		{name: "range", query: "start=x&end=y", prefix: "x/", node: 2, roams: true},
	}
	errs := make([]error, len(observers))
	for i, o := range observers {
		o.c, o.next, o.rng = c, 1, rand.New(rand.NewPCG(seed, uint64(600+i)))
		watchers.Go(func() { errs[i] = o.watch(ctx, &upTo) })
	}
	progress := getOn(c, &done)
	progress(30)
	counts := storm(t, c, rng, faults, progress)
	progress(50)
	stopWriting()
	writers.Wait()
	// Some last changes that everybody sees; keys may still expire after them.
	sameContent(t, c)
	var last uint64
	for _, key := range []string{"y", "x/a", "w/a"} {
		a, err := c.Do(ctx, c.Nodes[0], Request{Method: http.MethodPut, Path: "/v1/kv/" + key, Body: "end"})
		if err != nil || a.Status >= 300 {
			t.Fatalf("%d %s: %v", a.Status, a.Body, err)
		}
		if _, err := fmt.Sscan(a.Header.Get("Sett-Revision"), &last); err != nil {
			t.Fatal(err)
		}
	}
	upTo.Store(last)
	watchers.Wait()
	for i, o := range observers {
		if errs[i] != nil {
			t.Fatalf("%s: %v", o.name, errs[i])
		}
	}

	// The history as each node tells it now.
	var want []*eventLine
	for i := range c.Nodes {
		ref := &observer{name: "reference", query: "prefix=&previous=1", previous: true, c: c, node: i, next: 1}
		if err := ref.watch(ctx, &upTo); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			want = ref.events
		}
		compareEvents(t, fmt.Sprintf("node %d", i+1), ref.events, want, last)
	}
	checkFold(t, c, want, last)
	for _, o := range observers {
		var mine []*eventLine
		for _, e := range want {
			if strings.HasPrefix(e.Key, o.prefix) {
				mine = append(mine, e)
			}
		}
		compareEvents(t, o.name, o.events, mine, last)
		if o.previous {
			checkPrevious(t, o.events)
		}
		t.Logf("%s: %d events, broken off %d times", o.name, len(o.events), o.breaks)
	}
	t.Logf("faults: %v; %d revisions", counts, last)
}

func compareEvents(t *testing.T, name string, got, want []*eventLine, upTo uint64) {
	t.Helper()
	lines := func(events []*eventLine) (out []string) {
		for _, e := range events {
			if e.Revision <= upTo {
				out = append(out, e.String())
			}
		}
		return out
	}
	g, w := lines(got), lines(want)
	if slices.Equal(g, w) {
		return
	}
	i := 0
	for i < min(len(g), len(w)) && g[i] == w[i] {
		i++
	}
	t.Errorf("%s: %d events, want %d; from number %d on: %q, want %q", name, len(g), len(w), i, g[i:min(i+3, len(g))], w[i:min(i+3, len(w))])
}

// checkFold replays the events up to a revision and compares with what a read finds there.
func checkFold(t *testing.T, c *Cluster, events []*eventLine, upTo uint64) {
	t.Helper()
	state := map[string]string{}
	for _, e := range events {
		if e.Revision > upTo {
			break
		}
		if delete(state, e.Key); e.Type == "put" {
			state[e.Key] = e.Value
		}
	}
	a, err := c.Do(context.Background(), c.Nodes[1], Request{Method: http.MethodGet, Path: fmt.Sprintf("/v1/kv?revision=%d", upTo)})
	var page struct {
		Items []struct{ Key, Value string }
	}
	if err == nil {
		err = json.Unmarshal(a.Body, &page)
	}
	if err != nil || len(page.Items) != len(state) {
		t.Errorf("%d keys in the events, %d in the store: %v", len(state), len(page.Items), err)
	}
	for _, it := range page.Items {
		if v, ok := state[it.Key]; !ok || v != it.Value {
			t.Errorf("%s is %q in the store and %q in the events", it.Key, it.Value, v)
		}
	}
}

// checkPrevious: what was before a change is what the change before left.
func checkPrevious(t *testing.T, events []*eventLine) {
	t.Helper()
	state := map[string]*eventLine{}
	for _, e := range events {
		before := state[e.Key]
		if (before == nil) != (e.Previous == nil) || before != nil && (before.Value != e.Previous.Value || before.Version != e.Previous.Version) {
			t.Errorf("%s: previous %+v, the event before was %v", e, e.Previous, before)
		}
		if state[e.Key] = e; e.Type != "put" {
			delete(state, e.Key)
		}
	}
}
