package client

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/settkv/sett/kv"
)

// problem is RFC 9457 with Sett's members.
type problem struct {
	Title           string      `json:"title"`
	Detail          string      `json:"detail"`
	Code            kv.Code     `json:"code"`
	Outcome         kv.Outcome  `json:"outcome"`
	Leader          string      `json:"leader"`
	CurrentRevision kv.Revision `json:"current_revision"`
	OldestRevision  kv.Revision `json:"oldest_revision"`
	Line            uint64      `json:"line"`
	Applied         uint64      `json:"applied"`
}

// problemError is the error that the server had, as far as it travels.
func (p *problem) problemError() *kv.Error {
	e := &kv.Error{
		Code: p.Code, Outcome: p.Outcome, Msg: p.Detail, Leader: p.Leader,
		CurrentRevision: p.CurrentRevision, OldestRevision: p.OldestRevision,
		Line: p.Line, Applied: p.Applied,
	}
	if e.Msg == "" {
		e.Msg = p.Title
	}
	return e
}

// problemType is the media type of every error of a node.
const problemType = "application/problem+json"

// statusCodes is the server's table from code to status, the other way round, for
// answers without a body that can be read. It is the same for 500 and 503 up to
// which of their two codes it was.
var statusCodes = map[int]kv.Code{
	http.StatusBadRequest:            kv.CodeInvalidArgument,
	http.StatusUnauthorized:          kv.CodeUnauthenticated,
	http.StatusForbidden:             kv.CodeForbidden,
	http.StatusNotFound:              kv.CodeNotFound,
	http.StatusMethodNotAllowed:      kv.CodeMethodNotAllowed,
	http.StatusConflict:              kv.CodeConflict,
	http.StatusGone:                  kv.CodeCompacted,
	http.StatusPreconditionFailed:    kv.CodePreconditionFailed,
	http.StatusRequestEntityTooLarge: kv.CodeTooLarge,
	http.StatusTooManyRequests:       kv.CodeOverloaded,
	http.StatusServiceUnavailable:    kv.CodeNotReady,
	http.StatusGatewayTimeout:        kv.CodeTimeout,
	http.StatusInsufficientStorage:   kv.CodeDiskFull,
	http.StatusInternalServerError:   kv.CodeInternal,
}

// answerError turns an answer that is not 2xx into the error that the server had.
func answerError(a *answer, write bool) *kv.Error {
	kind, _, _ := mime.ParseMediaType(a.header.Get("Content-Type"))
	var p problem
	if kind != problemType || json.Unmarshal(a.body, &p) != nil || p.Code == "" {
		return strangeAnswer(a, write, kind)
	}
	e := p.problemError()
	e.RetryAfter = retryAfter(a.header)
	return e
}

// strangeAnswer is for an answer that no handler of a node wrote: a proxy's, another
// server's, or what the HTTP library refuses by itself.
func strangeAnswer(a *answer, write bool, kind string) *kv.Error {
	said := fmt.Sprintf("%s answered %d %s", a.endpoint, a.status, http.StatusText(a.status))
	if a.status >= 500 {
		if write {
			// It may have been passed on before it failed.
			return kv.Unknown(nil, "%s, which is not a node's own answer: read the key to see whether the write was applied", said)
		}
		code, ok := statusCodes[a.status]
		if !ok {
			code = kv.CodeNotReady
		}
		e := kv.Errorf(code, "%s, which is not a node's own answer: look at what stands between", said)
		e.RetryAfter = retryAfter(a.header)
		return e
	}
	code := kv.CodeInternal
	if a.status == http.StatusBadRequest || a.status == http.StatusRequestHeaderFieldsTooLarge {
		code = kv.CodeInvalidArgument
	}
	e := kv.Errorf(code, "%s (%s): is this endpoint a Sett node?", said, kind)
	if write {
		e.Outcome = kv.OutcomeNotApplied
	}
	return e
}

func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}
