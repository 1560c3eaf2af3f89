package histories

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
)

// Request is an HTTP request to a node.
type Request struct {
	Method, Path string
	Header       http.Header
	Body         string
}

// Answer is an HTTP answer read to its end.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// as is v as what it must be: porcupine's models know no types.
func as[T any](v any) T {
	t, ok := v.(T)
	if !ok {
		panic("histories: a value of another type")
	}
	return t
}

// Cluster is what the workers work on.
type Cluster struct {
	Nodes int
	// Do makes one request to a node, once. An error leaves open whether it arrived.
	Do func(ctx context.Context, node int, r Request) (Answer, error)
}

// Recorder collects a history. It is safe for concurrent use.
type Recorder struct {
	// Done counts operations with a known outcome.
	Done atomic.Int64

	start time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
}

// NewRecorder makes a recorder, whose time begins now.
func NewRecorder() *Recorder { return &Recorder{start: time.Now()} }

// Operations returns what was recorded.
func (r *Recorder) Operations() []porcupine.Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ops
}

// add records an operation of a client that was called at a time since the start. One
// whose outcome is unknown may happen at any time after its call.
func (r *Recorder) add(o porcupine.Operation, unknown bool) {
	o.Return = int64(time.Since(r.start))
	if unknown {
		o.Return = 1 << 62
	} else {
		r.Done.Add(1)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, o)
}
