package blackbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Load writes to a cluster through all its nodes until its context ends.
type Load struct {
	// Endpoints are base URLs, one a node. Required.
	Endpoints []string
	// Ledger takes the outcomes. Required.
	Ledger *Ledger
	// Prefix begins every key; two loads on one cluster need two prefixes.
	Prefix string
	// Writers is how many write at once; default 8.
	Writers int
	// Rate bounds the operations per second of all writers together; default 200.
	Rate int
	// ValueBytes is the usual size of a value; default 200. One value in BigEvery
	// (default 40) has BigBytes (default 96 KiB) instead, more than one piece.
	ValueBytes, BigBytes, BigEvery int
	// Timeout bounds one request; default 3 s.
	Timeout time.Duration
}

func (l Load) withDefaults() Load {
	set := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	set(&l.Writers, 8)
	set(&l.Rate, 200)
	set(&l.ValueBytes, 200)
	set(&l.BigBytes, 96<<10)
	set(&l.BigEvery, 40)
	if l.Timeout == 0 {
		l.Timeout = 3 * time.Second
	}
	if l.Prefix == "" {
		l.Prefix = "load"
	}
	return l
}

// Run writes until ctx ends, then waits for the writes at work: their outcomes are
// in the ledger when it returns.
func (l Load) Run(ctx context.Context) {
	l = l.withDefaults()
	tick := time.NewTicker(time.Second / time.Duration(l.Rate))
	defer tick.Stop()
	var wg sync.WaitGroup
	for i := range l.Writers {
		w := &writer{load: l, id: i, http: newHTTPClient(), avoid: make([]time.Time, len(l.Endpoints))}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer w.http.CloseIdleConnections()
			w.run(ctx, tick.C)
		}()
	}
	wg.Wait()
}

// newHTTPClient makes a client that follows no redirect and shares no connection
// with others.
func newHTTPClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: time.Second}).DialContext,
			MaxIdleConnsPerHost: 4,
			IdleConnTimeout:     10 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

const (
	// overwritten is how many keys of each repeatedly written kind a writer owns.
	overwritten = 8
	// readEvery: one operation in so many is a read.
	readEvery = 5
)

type writer struct {
	load  Load
	id    int
	http  *http.Client
	avoid []time.Time // per endpoint: not before then, because it just failed
	next  int
}

func (w *writer) run(ctx context.Context, tick <-chan time.Time) {
	for seq := uint64(1); ; seq++ {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		// The request outlives ctx: a write that was sent is waited for. The node is
		// told a shorter limit, so that it can say itself what became of the write.
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.load.Timeout+time.Second)
		if seq%readEvery == 0 {
			key, _ := w.plan(w.earlier(seq))
			w.read(rctx, key)
		} else {
			key, isDelete := w.plan(seq)
			w.write(rctx, key, seq, isDelete)
		}
		cancel()
	}
}

// earlier names a write before seq: the newest, or one from the middle of the run.
func (w *writer) earlier(seq uint64) uint64 {
	if seq%(2*readEvery) == 0 {
		return seq - 1
	}
	e := seq / 2
	if e%readEvery == 0 {
		e++
	}
	return e
}

// plan spreads a writer's operations over three kinds of key: written once, put
// again and again, put and deleted in turn.
func (w *writer) plan(seq uint64) (key string, isDelete bool) {
	p := w.load.Prefix + "/" + strconv.Itoa(w.id)
	slot := seq / 4 % overwritten
	switch seq % 4 {
	case 0, 1:
		return fmt.Sprintf("%s/once/%d", p, seq), false
	case 2:
		return fmt.Sprintf("%s/again/%d", p, slot), false
	default:
		return fmt.Sprintf("%s/flip/%d", p, slot), seq/4/overwritten%2 == 1
	}
}

func (w *writer) write(ctx context.Context, key string, seq uint64, isDelete bool) {
	rec := Record{Key: key, Seq: seq, SizeBytes: -1}
	method, body := http.MethodDelete, []byte(nil)
	if !isDelete {
		rec.SizeBytes = w.load.ValueBytes
		if seq%uint64(w.load.BigEvery) == 1 {
			rec.SizeBytes = w.load.BigBytes
		}
		method, body = http.MethodPut, value(key, seq, rec.SizeBytes)
		rec.SizeBytes = len(body)
	}
	i := w.pick()
	a, err := send(ctx, w.http, request{method: method, base: w.load.Endpoints[i], key: key, body: body, timeout: w.load.Timeout})
	rec.Outcome, rec.Revision = w.judge(rec, a, err)
	if rec.Outcome != Acked {
		w.avoid[i] = time.Now().Add(300 * time.Millisecond)
	}
	w.load.Ledger.Add(rec)
}

// judge turns an answer into an outcome, and holds the answer to the contract.
func (w *writer) judge(rec Record, a answer, err error) (Outcome, uint64) {
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return NotApplied, 0
		}
		return InDoubt, 0
	}
	deleted := rec.SizeBytes < 0
	switch {
	case a.status == http.StatusCreated && !deleted, a.status == http.StatusNoContent:
		if a.revision == 0 {
			w.load.Ledger.Violate("%s: acknowledged with %d and no Sett-Revision", rec.Key, a.status)
		}
		return Acked, a.revision
	case a.status == http.StatusNotFound && deleted && a.code == "not-found":
		// Decided, and nothing changed: right only if the key may be absent.
		if bad := w.load.Ledger.Check(rec.Key, Seen{}); bad != "" {
			w.load.Ledger.Violate("delete found nothing: %s", bad)
		}
		return Acked, 0
	case a.outcome == "not-applied":
		return NotApplied, 0
	case a.outcome != "unknown":
		w.load.Ledger.Violate("%s: a write was answered %d %q without an outcome", rec.Key, a.status, a.code)
	}
	return InDoubt, 0
}

func (w *writer) read(ctx context.Context, key string) {
	i := w.pick()
	a, err := send(ctx, w.http, request{method: http.MethodGet, base: w.load.Endpoints[i], key: key, timeout: w.load.Timeout})
	seen, ok := a.seen()
	if err != nil || !ok {
		w.avoid[i] = time.Now().Add(300 * time.Millisecond)
		return
	}
	if bad := w.load.Ledger.Check(key, seen); bad != "" {
		w.load.Ledger.Violate("linearizable read through %s: %s", w.load.Endpoints[i], bad)
	}
	w.load.Ledger.mu.Lock()
	w.load.Ledger.counts.Reads++
	w.load.Ledger.mu.Unlock()
}

// pick takes the endpoints in turn and passes over one that failed a moment ago,
// unless all did.
func (w *writer) pick() int {
	now := time.Now()
	n := len(w.load.Endpoints)
	for range n {
		w.next++
		if i := (w.next + w.id) % n; now.After(w.avoid[i]) {
			return i
		}
	}
	return (w.next + w.id) % n
}

type request struct {
	method, base, key string
	query             string // more query parameters, without "&" in front
	body              []byte
	timeout           time.Duration
}

// answer is the part of a response that matters here.
type answer struct {
	status   int
	body     []byte
	revision uint64 // Sett-Revision
	etag     uint64
	version  uint64
	code     string
	outcome  string
}

// seen interprets the answer to a GET; ok is false if it decides nothing.
func (a answer) seen() (Seen, bool) {
	switch {
	case a.status == http.StatusOK:
		return Seen{Exists: true, Value: a.body, Revision: a.etag, Version: a.version}, true
	case a.status == http.StatusNotFound && a.code == "not-found":
		return Seen{}, true
	}
	return Seen{}, false
}

func send(ctx context.Context, c *http.Client, r request) (answer, error) {
	url := fmt.Sprintf("%s/v1/kv/%s?timeout=%dms", strings.TrimSuffix(r.base, "/"), r.key, r.timeout.Milliseconds())
	if r.query != "" {
		url += "&" + r.query
	}
	req, err := http.NewRequestWithContext(ctx, r.method, url, bytes.NewReader(r.body))
	if err != nil {
		return answer{}, fmt.Errorf("make request: %w", err)
	}
	if r.method == http.MethodPut {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }() // read to its end below
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, fmt.Errorf("read answer: %w", err)
	}
	a := answer{status: resp.StatusCode, body: body}
	a.revision, _ = strconv.ParseUint(resp.Header.Get("Sett-Revision"), 10, 64)
	a.version, _ = strconv.ParseUint(resp.Header.Get("Sett-Version"), 10, 64)
	a.etag, _ = strconv.ParseUint(strings.Trim(resp.Header.Get("ETag"), `"`), 10, 64)
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
		var p struct{ Code, Outcome string }
		if err := json.Unmarshal(body, &p); err != nil {
			return answer{}, fmt.Errorf("parse problem: %w", err)
		}
		a.code, a.outcome = p.Code, p.Outcome
	}
	return a, nil
}
