package histories

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	txnPut = iota
	txnDelete
	txnClear // deletes the range
	txnMove  // if a has a value: put b and c and read a; else read all
	txnRead  // reads the range
)

// trioInput is an operation on three keys of an epoch. Histories are checked epoch by
// epoch: what a lost answer leaves open is closed with it.
type trioInput struct {
	op    int
	epoch int64
	key   int
	cond  string // txnMove: the value that key must have, "" absent
	value string
}

type trioOutput struct {
	unknown   bool
	succeeded bool // txnMove; txnDelete: there was a key
	deleted   int  // txnClear
	values    trio // what was read
}

// trio is the state: the values of three keys, "" where there is none.
type trio [3]string

func (s trio) with(i int, v string) trio {
	s[i] = v
	return s
}

func (s trio) count() (n int) {
	for _, v := range s {
		if v != "" {
			n++
		}
	}
	return n
}

// apply is the specification of one operation: the state after it, and whether the
// answer fits.
func (s trio) apply(in trioInput, out trioOutput) (next trio, fits bool) {
	switch in.op {
	case txnPut:
		return s.with(in.key, in.value), true
	case txnDelete:
		return s.with(in.key, ""), out.unknown || out.succeeded == (s[in.key] != "")
	case txnClear:
		return trio{}, out.unknown || out.deleted == s.count()
	case txnRead:
		return s, out.values == s
	}
	holds := s[in.key] == in.cond
	if !holds {
		return s, out.unknown || !out.succeeded && out.values == s
	}
	next = s.with((in.key+1)%3, in.value).with((in.key+2)%3, in.value+"'")
	return next, out.unknown || out.succeeded && out.values == next
}

// Trios is a specification: three keys that are changed and read together.
var Trios = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byEpoch := map[int64][]porcupine.Operation{}
		for _, o := range history {
			e := as[trioInput](o.Input).epoch
			byEpoch[e] = append(byEpoch[e], o)
		}
		var parts [][]porcupine.Operation
		for _, p := range byEpoch {
			parts = append(parts, p)
		}
		return parts
	},
	Init: func() []any { return []any{trio{}} },
	Step: func(state, in, out any) []any {
		s, o := as[trio](state), as[trioOutput](out)
		next, fits := s.apply(as[trioInput](in), o)
		switch {
		case !fits:
			return nil
		case o.unknown && next != s:
			return []any{s, next}
		}
		return []any{next}
	},
	Equal: func(a, b any) bool { return as[trio](a) == as[trio](b) },
	DescribeOperation: func(in, out any) string {
		return fmt.Sprintf("%+v -> %+v", in, out)
	},
}

var trioKeys = [3]string{"a", "b", "c"}

func trioKey(epoch int64, i int) string { return fmt.Sprintf("t%d/%s", epoch, trioKeys[i]) }

func trioRequest(in trioInput) Request {
	prefix := fmt.Sprintf("t%d/", in.epoch)
	switch in.op {
	case txnPut:
		return Request{Method: http.MethodPut, Path: "/v1/kv/" + trioKey(in.epoch, in.key) + "?timeout=1s", Body: in.value}
	case txnDelete:
		return Request{Method: http.MethodDelete, Path: "/v1/kv/" + trioKey(in.epoch, in.key) + "?timeout=1s"}
	case txnClear:
		return Request{Method: http.MethodDelete, Path: "/v1/kv?timeout=1s&prefix=" + url.QueryEscape(prefix)}
	case txnRead:
		return Request{Method: http.MethodGet, Path: "/v1/kv?timeout=1s&prefix=" + url.QueryEscape(prefix)}
	}
	cond := map[string]any{"key": trioKey(in.epoch, in.key), "exists": false}
	if in.cond != "" {
		cond = map[string]any{"key": trioKey(in.epoch, in.key), "value": map[string]any{"eq": in.cond}}
	}
	put := func(i int, v string) map[string]any {
		return map[string]any{"put": map[string]any{"key": trioKey(in.epoch, i%3), "value": v}}
	}
	all := map[string]any{"range": map[string]any{"prefix": prefix}}
	body, err := json.Marshal(map[string]any{
		"if": []any{cond}, "then": []any{put(in.key+1, in.value), put(in.key+2, in.value+"'"), all}, "else": []any{all},
	})
	if err != nil {
		panic(err)
	}
	return Request{Method: http.MethodPost, Path: "/v1/txn?timeout=1s", Body: string(body)}
}

type itemsJSON struct {
	Items []struct{ Key, Value string }
}

func (j itemsJSON) trio() (s trio) {
	for _, it := range j.Items {
		for i, k := range trioKeys {
			if strings.HasSuffix(it.Key, "/"+k) {
				s[i] = it.Value
			}
		}
	}
	return s
}

// judgeTrio turns an answer into an output; counts is false for what surely did nothing.
func judgeTrio(in trioInput, a Answer, err error) (out trioOutput, counts bool) {
	decode := func(v any) {
		if err := json.Unmarshal(a.Body, v); err != nil {
			panic(fmt.Sprintf("%+v: %d %q: %v", in, a.Status, a.Body, err))
		}
	}
	switch {
	case err != nil:
		return trioOutput{unknown: true}, in.op != txnRead
	case a.Status == 404 && in.op == txnDelete:
		return trioOutput{}, true
	case a.Status < 300:
	case in.op == txnRead || strings.Contains(string(a.Body), `"outcome":"not-applied"`):
		return trioOutput{}, false
	default:
		return trioOutput{unknown: true}, true
	}
	switch in.op {
	case txnDelete:
		out.succeeded = true
	case txnClear:
		var v struct{ Deleted int }
		decode(&v)
		out.deleted = v.Deleted
	case txnRead:
		var v itemsJSON
		decode(&v)
		out.values = v.trio()
	case txnMove:
		var v struct {
			Succeeded bool
			Results   []struct{ Range *itemsJSON }
		}
		decode(&v)
		out.succeeded, out.values = v.Succeeded, v.Results[len(v.Results)-1].Range.trio()
	}
	return out, true
}

// trioEpoch is how many operations one set of keys sees.
const trioEpoch = 120

// TrioWorker is one client that works on three keys at a time, until ctx ends.
func (r *Recorder) TrioWorker(ctx context.Context, c Cluster, rng *rand.Rand, number *atomic.Int64) {
	client := int(number.Add(1))
	var seen trio
	epoch := int64(-1)
	for n := 0; ctx.Err() == nil; n++ {
		if now := r.Done.Load() / trioEpoch; now != epoch {
			epoch, seen = now, trio{}
		}
		in := trioInput{epoch: epoch, key: rng.IntN(3), value: fmt.Sprintf("c%d-%d", client, n)}
		switch p := rng.IntN(100); {
		case p < 20:
			in.op = txnPut
		case p < 28:
			in.op = txnDelete
		case p < 32:
			in.op = txnClear
		case p < 62:
			in.op, in.cond = txnMove, seen[in.key]
		default:
			in.op = txnRead
		}
		rctx, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
		call := time.Since(r.start)
		a, err := c.Do(rctx, rng.IntN(c.Nodes), trioRequest(in))
		cancel()
		out, counts := judgeTrio(in, a, err)
		if !counts {
			continue
		}
		r.add(porcupine.Operation{ClientId: client, Input: in, Output: out, Call: int64(call)}, out.unknown)
		if out.unknown {
			client = int(number.Add(1))
		}
		if in.op == txnRead || in.op == txnMove && !out.unknown {
			seen = out.values
		}
	}
}
