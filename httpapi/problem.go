package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/settkv/sett/kv"
)

// retryAfterDefault is what a 429 or 503 advises when its error doesn't say.
const retryAfterDefault = time.Second

// statusOf is the table of codes: the status and the title of each.
func statusOf(c kv.Code) (status int, title string) {
	switch c {
	case kv.CodeInvalidArgument:
		return http.StatusBadRequest, "Invalid argument"
	case kv.CodeUnauthenticated:
		return http.StatusUnauthorized, "Unauthenticated"
	case kv.CodeForbidden:
		return http.StatusForbidden, "Forbidden"
	case kv.CodeNotFound:
		return http.StatusNotFound, "Not found"
	case kv.CodeMethodNotAllowed:
		return http.StatusMethodNotAllowed, "Method not allowed"
	case kv.CodeConflict:
		return http.StatusConflict, "Conflict"
	case kv.CodeCompacted:
		return http.StatusGone, "History compacted"
	case kv.CodePreconditionFailed:
		return http.StatusPreconditionFailed, "Precondition failed"
	case kv.CodeTooLarge:
		return http.StatusRequestEntityTooLarge, "Too large"
	case kv.CodeOverloaded:
		return http.StatusTooManyRequests, "Overloaded"
	case kv.CodeOutcomeUnknown:
		return http.StatusGatewayTimeout, "Outcome unknown"
	case kv.CodeTimeout:
		return http.StatusGatewayTimeout, "Timeout"
	case kv.CodeNoLeader:
		return http.StatusServiceUnavailable, "No leader"
	case kv.CodeNotReady:
		return http.StatusServiceUnavailable, "Not ready"
	case kv.CodeDiskFull:
		return http.StatusInsufficientStorage, "Disk full"
	case kv.CodeCorruption:
		return http.StatusInternalServerError, "Corruption"
	}
	return http.StatusInternalServerError, "Internal error"
}

// rangeError is an unsatisfiable Range: the one answer whose status is HTTP's own
// (416) and not the code's, because RFC 9110 fixes it.
type rangeError struct{ size int }

func (e *rangeError) Error() string { return "range not satisfiable" }

// methodError is a method that the route does not have.
type methodError struct{ allow string }

func (e *methodError) Error() string { return "method not allowed" }

// problem is the body of every error, RFC 9457. The pointers are there for the
// codes that the fields belong to.
type problem struct {
	Type            string       `json:"type"`
	Title           string       `json:"title"`
	Status          int          `json:"status"`
	Detail          string       `json:"detail,omitempty"`
	Instance        string       `json:"instance,omitempty"`
	Code            kv.Code      `json:"code"`
	Outcome         kv.Outcome   `json:"outcome,omitempty"`
	RequestID       string       `json:"request_id,omitempty"`
	Leader          string       `json:"leader,omitempty"`
	CurrentRevision *kv.Revision `json:"current_revision,omitempty"`
	OldestRevision  *kv.Revision `json:"oldest_revision,omitempty"`
	Line            uint64       `json:"line,omitempty"`
	Applied         *uint64      `json:"applied,omitempty"`
}

// kvError is the error that p was made of, as far as it travels.
func (p *problem) kvError() *kv.Error {
	e := &kv.Error{Code: p.Code, Outcome: p.Outcome, Msg: p.Detail, Leader: p.Leader}
	if p.CurrentRevision != nil {
		e.CurrentRevision = *p.CurrentRevision
	}
	if p.OldestRevision != nil {
		e.OldestRevision = *p.OldestRevision
	}
	return e
}

// detailed is e with what p says of a bulk load.
func (p *problem) detailed(e *kv.Error) error {
	if p.Applied == nil {
		return e
	}
	return &loadError{err: e, line: p.Line, applied: *p.Applied}
}

// loadError is why a bulk load ended, and how far it came.
type loadError struct {
	err     error
	line    uint64 // the bad line, from 1; 0 if it is not a line that is bad
	applied uint64 // lines that stand
}

func (e *loadError) Error() string { return e.err.Error() }
func (e *loadError) Unwrap() error { return e.err }

// maxInstanceBytes bounds how much of a path an error repeats.
const maxInstanceBytes = 512

// normalise makes err what the caller is told: a kv.Error whose code and outcome
// keep the contract's promises.
//
// Invariant 24: only what is known not to be applied says so; a write that ended in
// any other way is of unknown outcome. A read has no outcome.
func normalise(err error, write bool) *kv.Error {
	e := new(kv.Error)
	var method *methodError
	var rng *rangeError
	var known *kv.Error
	switch {
	case errors.As(err, &known):
		*e = *known
	case errors.As(err, &method):
		*e = kv.Error{Code: kv.CodeMethodNotAllowed, Msg: "this resource takes " + method.allow}
	case errors.As(err, &rng):
		*e = kv.Error{Code: kv.CodeInvalidArgument, Msg: "the range lies outside the value, which has " + strconv.Itoa(rng.size) + " bytes"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		*e = kv.Error{Code: kv.CodeTimeout, Msg: "the request was not finished within its timeout; try again, or give it a longer timeout parameter", Err: err}
	default:
		*e = *kv.AsError(err)
	}
	if !write {
		e.Outcome = kv.OutcomeNone
		if e.Code == kv.CodeOutcomeUnknown {
			e.Code = kv.CodeTimeout
		}
		return e
	}
	if e.Outcome == kv.OutcomeNone {
		e.Outcome = impliedOutcome(e.Code)
	}
	if e.Code == kv.CodeTimeout && e.Outcome == kv.OutcomeUnknown {
		e.Code = kv.CodeOutcomeUnknown
		e.Msg = "the write was proposed and its fate is not known; read the key before trying again"
	}
	return e
}

// impliedOutcome is the outcome of a failed write whose error doesn't name it.
func impliedOutcome(c kv.Code) kv.Outcome {
	switch c {
	case kv.CodeInternal, kv.CodeCorruption, kv.CodeTimeout, kv.CodeOutcomeUnknown:
		return kv.OutcomeUnknown
	}
	return kv.OutcomeNotApplied
}

// problemOf makes err a problem, and what it was made of.
func (x *exchange) problemOf(err error) (*problem, *kv.Error) {
	e := normalise(err, x.write)
	status, title := statusOf(e.Code)
	var load *loadError
	isLoad := errors.As(err, &load)
	if isLoad && e.Outcome != kv.OutcomeUnknown {
		e.Outcome = kv.OutcomeNone // a part of it was applied
	}
	p := &problem{
		Type: "urn:sett:problem:" + string(e.Code), Title: title, Status: status, Detail: e.Msg,
		Instance: x.r.URL.EscapedPath(), Code: e.Code, Outcome: e.Outcome, RequestID: x.id, Leader: e.Leader,
	}
	if isLoad {
		p.Line, p.Applied = load.line, &load.applied
	}
	if len(p.Instance) > maxInstanceBytes {
		p.Instance = p.Instance[:maxInstanceBytes]
	}
	if p.Leader == "" {
		p.Leader, _, _ = x.s.cfg.Cluster.Leader()
	}
	switch e.Code {
	case kv.CodePreconditionFailed:
		p.CurrentRevision = &e.CurrentRevision
	case kv.CodeCompacted:
		p.OldestRevision = &e.OldestRevision
	}
	var rng *rangeError
	if errors.As(err, &rng) {
		p.Status, p.Title = http.StatusRequestedRangeNotSatisfiable, "Range not satisfiable"
	}
	return p, e
}

// writeProblem answers with err. With problemOf it is the only place where an error
// becomes a status and a body.
func (x *exchange) writeProblem(err error) {
	p, e := x.problemOf(err)
	h := x.Header()
	for _, name := range []string{"Content-Length", "Content-Encoding", "Content-Range", "Etag", "Vary", "Accept-Ranges"} {
		h.Del(name)
	}
	var rng *rangeError
	if errors.As(err, &rng) {
		h.Set("Content-Range", "bytes */"+strconv.Itoa(rng.size))
	}
	var method *methodError
	if errors.As(err, &method) {
		h.Set("Allow", method.allow)
	}
	if p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable {
		after := e.RetryAfter
		if after <= 0 {
			after = retryAfterDefault
		}
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(after.Seconds()))))
	}
	if x.body.unread() {
		x.refuseBody()
	}
	x.logProblem(e, p.Status)

	body, err := json.Marshal(p)
	if err != nil { // strings and numbers always marshal
		body = []byte(`{}`)
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	x.WriteHeader(p.Status)
	_, _ = x.Write(append(body, '\n'))
}

// logProblem logs what a person should know of, once: the cause stays here.
func (x *exchange) logProblem(e *kv.Error, status int) {
	level := slog.LevelDebug
	if e.Code == kv.CodeInternal || e.Code == kv.CodeCorruption {
		level = slog.LevelError
	}
	x.s.log.Log(context.Background(), level, "request failed",
		"request_id", x.id, "route", x.route, "method", x.r.Method, "status", status, "code", string(e.Code),
		"outcome", string(e.Outcome), "error", e)
}
