package histories

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
)

// The operations of the history.
const (
	opPut = iota
	opCAS
	opDelete
	opGet
)

type input struct {
	op    int
	key   string
	value string
	rev   uint64 // CAS: the revision expected
}

type output struct {
	unknown bool
	ok      bool   // CAS: it happened; get and delete: there was a key
	value   string // get
	rev     uint64 // put, CAS: the new revision; get: the key's
}

// cell is the model's state of one key.
type cell struct {
	present bool
	value   string
	rev     uint64
}

// Registers is a specification: each key is a register with a revision. A write
// whose fate is unknown may have happened or not.
var Registers = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range history {
			k := as[input](o.Input).key
			byKey[k] = append(byKey[k], o)
		}
		var parts [][]porcupine.Operation
		for _, p := range byKey {
			parts = append(parts, p)
		}
		return parts
	},
	Init: func() []any { return []any{cell{}} },
	Step: func(state, in, out any) []any {
		s, i, o := as[cell](state), as[input](in), as[output](out)
		// written is the key after a write; its revision is not known if the answer was
		// lost, and then every revision that is read later is possible.
		written := cell{present: true, value: i.value, rev: o.rev}
		switch i.op {
		case opPut:
			if o.unknown {
				return []any{s, written}
			}
			if o.rev <= s.rev {
				return nil
			}
			return []any{written}
		case opCAS:
			matches := s.present && (s.rev == i.rev || s.rev == 0)
			switch {
			case o.unknown && matches:
				return []any{s, written}
			case o.unknown:
				return []any{s}
			case o.ok && matches && o.rev > i.rev:
				return []any{written}
			case !o.ok && (!matches || s.rev == 0):
				return []any{s}
			}
			return nil
		case opDelete:
			switch {
			case o.unknown:
				return []any{s, cell{}}
			case o.ok == s.present:
				return []any{cell{}}
			}
			return nil
		case opGet:
			if o.ok != s.present || (o.ok && o.value != s.value) {
				return nil
			}
			if o.ok && s.rev != 0 && s.rev != o.rev {
				return nil
			}
			if o.ok {
				s.rev = o.rev // a write with a lost answer has shown its revision
			}
			return []any{s}
		}
		return nil
	},
	Equal: func(a, b any) bool { return as[cell](a) == as[cell](b) },
	DescribeOperation: func(in, out any) string {
		return fmt.Sprintf("%+v -> %+v", in, out)
	},
}

// RegisterWorker is one client that writes and reads single keys, until ctx ends. After an unknown outcome it goes on under a new number, for
// its old self may still be writing.
func (r *Recorder) RegisterWorker(ctx context.Context, c Cluster, rng *rand.Rand, number *atomic.Int64) {
	client := int(number.Add(1))
	seen := map[string]uint64{} // revisions for CAS
	for n := 0; ctx.Err() == nil; n++ {
		in := input{key: fmt.Sprintf("k%d", rng.IntN(8)), value: fmt.Sprintf("c%d-%d", client, n)}
		method, path, header := http.MethodPut, "/v1/kv/"+in.key+"?timeout=1s", http.Header{}
		switch p := rng.IntN(100); {
		case p < 35:
			in.op = opPut
		case p < 50 && seen[in.key] != 0:
			in.op, in.rev = opCAS, seen[in.key]
			header.Set("If-Match", strconv.Quote(strconv.FormatUint(in.rev, 10)))
		case p < 56:
			in.op, method = opDelete, http.MethodDelete
		default:
			in.op, method = opGet, http.MethodGet
		}
		body := ""
		if method == http.MethodPut {
			body = in.value
		}
		rctx, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
		call := time.Since(r.start)
		a, err := c.Do(rctx, rng.IntN(c.Nodes), Request{method, path, header, body})
		cancel()
		out, counts := judge(in, a, err)
		if !counts {
			continue
		}
		r.add(porcupine.Operation{ClientId: client, Input: in, Output: out, Call: int64(call)}, out.unknown)
		if out.unknown {
			client = int(number.Add(1))
		}
		if out.rev != 0 {
			seen[in.key] = out.rev
		}
	}
}

// judge turns an answer into an output; counts is false for what surely did nothing.
func judge(in input, a Answer, err error) (out output, counts bool) {
	if err != nil {
		// The request may have arrived.
		return output{unknown: true}, in.op != opGet
	}
	rev := func(name string) uint64 {
		v, err := strconv.ParseUint(string(bytes.Trim([]byte(a.Header.Get(name)), `"`)), 10, 64)
		if err != nil {
			panic(fmt.Sprintf("%s: %q in an answer %d to %+v", name, a.Header.Get(name), a.Status, in))
		}
		return v
	}
	switch {
	case a.Status == 200 && in.op == opGet:
		return output{ok: true, value: string(a.Body), rev: rev("ETag")}, true
	case a.Status == 404 && in.op == opGet:
		return output{}, true
	case a.Status == 201 || a.Status == 204:
		if in.op == opDelete {
			return output{ok: true}, true
		}
		return output{ok: true, rev: rev("ETag")}, true
	case a.Status == 404 && in.op == opDelete, a.Status == 412:
		return output{}, true
	case in.op == opGet || bytes.Contains(a.Body, []byte(`"outcome":"not-applied"`)):
		return output{}, false
	}
	return output{unknown: true}, true
}
