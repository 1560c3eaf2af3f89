package httpapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/settkv/sett/kv"
)

// Names of the headers of Sett's own.
const (
	headerRevision       = "Sett-Revision"
	headerNode           = "Sett-Node"
	headerServedBy       = "Sett-Served-By"
	headerLeader         = "Sett-Leader"
	headerRequestID      = "Sett-Request-Id"
	headerCreateRevision = "Sett-Create-Revision"
	headerVersion        = "Sett-Version"
	headerExpiresAt      = "Sett-Expires-At"
	// Between nodes only.
	headerForwarded = "Sett-Forwarded"  // id of the node that was asked
	headerClusterID = "Sett-Cluster-Id" // its cluster
	headerBudget    = "Sett-Timeout-Ms" // what is left of its request's timeout
)

const maxRequestIDBytes = 128

// exchange is one request and its answer. It is the http.ResponseWriter that
// handlers write to: the headers that every answer carries are added when the
// status is written, and nobody can forget them. It belongs to the goroutine that
// serves the request.
type exchange struct {
	http.ResponseWriter
	s     *Server
	r     *http.Request
	ctl   *http.ResponseController
	start time.Time

	route    string // name in the route table, "none" if there is none
	id       string
	write    bool // the method changes something: errors carry an outcome
	params   params
	timing   kv.Timing
	deadline time.Time
	timeout  time.Duration // from start to deadline
	// onceKey is the request's idempotency key, or empty.
	onceKey string
	// forwardedBy is the node that forwarded the request here, or empty.
	forwardedBy string
	grant       grant
	body        bodyState
	refused     bool // the answer was given before the body was read

	// revision goes into Sett-Revision once known; until then it's the node's own.
	revision      kv.Revision
	revisionKnown bool
	// servedBy is the node that did the work, if not this one.
	servedBy string
	// passed says that the answer is the leader's: its headers are kept.
	passed bool
	// paused says that the answer may rest for longer than a write may take.
	paused bool
	armed  bool // the write deadline was moved and nothing was written since

	status int
	sent   int64
}

// Unwrap lets http.ResponseController find the connection.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// serve wraps the router: it makes the exchange, and sees to panics, metrics and
// the access log.
func (s *Server) serve(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := &exchange{
			ResponseWriter: w, s: s, r: r, ctl: http.NewResponseController(w), start: time.Now(),
			route: "none", id: requestID(r), write: !safeMethod(r.Method),
			grant: grant{a: s.admission},
		}
		x.body.init(x)
		defer x.finish()
		defer x.onPanic()
		next.ServeHTTP(x, r)
	})
}

func (x *exchange) finish() {
	x.grant.release()
	if x.refused {
		x.linger()
	}
	status := x.status
	if status == 0 {
		status = http.StatusOK
	}
	took := time.Since(x.start)
	x.s.metrics.observe(x.route, x.r.Method, status, took)
	if x.s.log.Enabled(context.Background(), slog.LevelDebug) {
		x.s.log.Debug("request", "request_id", x.id, "method", x.r.Method, "path", x.r.URL.EscapedPath(), "route", x.route,
			"status", status, "bytes", x.sent, "took", took, "remote", x.r.RemoteAddr, "forwarded_by", x.forwardedBy)
	}
}

// onPanic turns a panic into a 500 that names the request id under which the stack
// was logged. An answer that was begun can only be broken off.
func (x *exchange) onPanic() {
	p := recover()
	if p == nil {
		return
	}
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(p)
	}
	x.s.metrics.panics.Inc()
	x.s.log.Error("handler panicked", "request_id", x.id, "route", x.route, "panic", p, "stack", string(debug.Stack()))
	if x.status != 0 {
		panic(http.ErrAbortHandler)
	}
	x.writeProblem(kv.Errorf(kv.CodeInternal, "internal error; the node's log has it under this request id"))
}

func safeMethod(m string) bool {
	return m == http.MethodGet || m == http.MethodHead || m == http.MethodOptions
}

// requestID is the caller's, if it sent one that is fit to be repeated and logged.
func requestID(r *http.Request) string {
	if v := r.Header.Values(headerRequestID); len(v) == 1 && visibleASCII(v[0], maxRequestIDBytes) {
		return v[0]
	}
	return rand.Text()
}

func visibleASCII(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func (x *exchange) setRevision(r kv.Revision) { x.revision, x.revisionKnown = r, true }

// WriteHeader implements http.ResponseWriter.
func (x *exchange) WriteHeader(status int) {
	if x.status != 0 {
		return
	}
	x.status = status
	h := x.Header()
	cl := x.s.cfg.Cluster
	self := cl.Self()
	h.Set(headerNode, self)
	h.Set(headerRequestID, x.id)
	h.Set("X-Content-Type-Options", "nosniff")
	if x.s.cfg.Version != "" {
		h.Set("Server", "sett/"+x.s.cfg.Version)
	}
	if !x.passed {
		if !x.revisionKnown {
			x.revision = x.s.cfg.Store.Revision()
		}
		h.Set(headerRevision, strconv.FormatUint(uint64(x.revision), 10))
		h.Set(headerServedBy, cmp.Or(x.servedBy, self))
		if leader, _, ok := cl.Leader(); ok {
			h.Set(headerLeader, leader)
		}
	}
	if x.params.flag("timing") {
		h.Set("Server-Timing", serverTiming(x.timing))
	}
	x.extendWrite()
	x.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter. A client has Config.ProgressTimeout for each
// ProgressBytes: one that stops reading loses its connection instead of holding a
// value in memory for ever.
func (x *exchange) Write(p []byte) (int, error) {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	done := 0
	for {
		piece := p[done:min(len(p), done+ProgressBytes)]
		if !x.armed {
			x.extendWrite()
		}
		x.armed = false
		n, err := x.ResponseWriter.Write(piece)
		done += n
		x.sent += int64(n)
		if err != nil || done == len(p) {
			x.rest()
			return done, err
		}
	}
}

// rest takes the write deadline back while nothing is written, if the answer pauses:
// over HTTP/2 a deadline ends a stream even if nobody writes to it.
func (x *exchange) rest() {
	if x.paused {
		x.armed = false
		_ = x.ctl.SetWriteDeadline(time.Time{}) // as extendWrite
	}
}

// flush sends what was written, within the time that a write may take.
func (x *exchange) flush() error {
	x.extendWrite()
	err := x.ctl.Flush()
	x.rest()
	return err
}

// extendWrite moves the write deadline. Not every ResponseWriter has one (a test's
// recorder); over a connection it can only fail because that is gone.
func (x *exchange) extendWrite() {
	_ = x.ctl.SetWriteDeadline(time.Now().Add(x.s.cfg.ProgressTimeout))
	x.armed = true
}

// writeBytes answers with a whole body.
func (x *exchange) writeBytes(status int, contentType string, body []byte) error {
	h := x.Header()
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		_, _ = x.Write(body) // the client is gone: nobody is left to tell
	}
	return nil
}
