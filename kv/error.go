package kv

import (
	"errors"
	"fmt"
	"time"
)

// Code is the machine-readable kind of an error, as the HTTP API spells it.
type Code string

// The codes.
const (
	CodeInvalidArgument    Code = "invalid-argument"
	CodeUnauthenticated    Code = "unauthenticated"
	CodeForbidden          Code = "forbidden"
	CodeNotFound           Code = "not-found"
	CodeMethodNotAllowed   Code = "method-not-allowed"
	CodeConflict           Code = "conflict"
	CodeCompacted          Code = "compacted"
	CodePreconditionFailed Code = "precondition-failed"
	CodeTooLarge           Code = "too-large"
	CodeOverloaded         Code = "overloaded"
	CodeOutcomeUnknown     Code = "outcome-unknown"
	CodeTimeout            Code = "timeout"
	CodeNoLeader           Code = "no-leader"
	CodeNotReady           Code = "not-ready"
	CodeDiskFull           Code = "disk-full"
	CodeInternal           Code = "internal"
	CodeCorruption         Code = "corruption"
)

// Outcome is what became of a write that did not succeed.
type Outcome string

// The outcomes. OutcomeNone is for reads.
const (
	OutcomeNone       Outcome = ""
	OutcomeNotApplied Outcome = "not-applied"
	OutcomeUnknown    Outcome = "unknown"
)

// Error is the one error type that crosses package and process boundaries. Msg is
// for people and says what to do next; Err is the internal cause, logged but never
// sent to a client.
type Error struct {
	Code    Code
	Outcome Outcome
	Msg     string
	Err     error

	// CurrentRevision goes with CodePreconditionFailed, OldestRevision with CodeCompacted.
	CurrentRevision Revision
	OldestRevision  Revision
	// Applied goes with a bulk load that ended early: how many of its lines stand. Line is
	// the bad one, from 1; 0 if it was no line that ended it.
	Line, Applied uint64
	// RetryAfter, if not zero, is when trying again makes sense.
	RetryAfter time.Duration
	// Leader is the id of the leader, if known.
	Leader string
	// Final says that trying again at the same node can't help. It does not travel.
	Final bool
}

// Error implements error.
func (e *Error) Error() string {
	s := string(e.Code)
	if e.Msg != "" {
		s += ": " + e.Msg
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the internal cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is match on the code, against the sentinels below.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Msg == "" && t.Err == nil && t.Code == e.Code
}

// Sentinels for errors.Is: each matches every Error of its code.
var (
	ErrInvalidArgument    = &Error{Code: CodeInvalidArgument}
	ErrNotFound           = &Error{Code: CodeNotFound}
	ErrConflict           = &Error{Code: CodeConflict}
	ErrCompacted          = &Error{Code: CodeCompacted}
	ErrPreconditionFailed = &Error{Code: CodePreconditionFailed}
	ErrTooLarge           = &Error{Code: CodeTooLarge}
	ErrOverloaded         = &Error{Code: CodeOverloaded}
	ErrOutcomeUnknown     = &Error{Code: CodeOutcomeUnknown}
	ErrTimeout            = &Error{Code: CodeTimeout}
	ErrNoLeader           = &Error{Code: CodeNoLeader}
	ErrNotReady           = &Error{Code: CodeNotReady}
	ErrDiskFull           = &Error{Code: CodeDiskFull}
	ErrInternal           = &Error{Code: CodeInternal}
	ErrCorruption         = &Error{Code: CodeCorruption}
)

// ErrUnknownVersion is in the chain of errors about data in a format that this version
// of sett does not know. Such data is not damaged: a newer version wrote it.
var ErrUnknownVersion = errors.New("written by a newer version of sett: start it with that version or a later one")

// Errorf makes an Error with a formatted message and no outcome.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// NotApplied makes an Error that promises that nothing was applied.
func NotApplied(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Outcome: OutcomeNotApplied, Msg: fmt.Sprintf(format, args...)}
}

// Unknown makes the error of a write whose fate is not known.
func Unknown(cause error, format string, args ...any) *Error {
	return &Error{Code: CodeOutcomeUnknown, Outcome: OutcomeUnknown, Msg: fmt.Sprintf(format, args...), Err: cause}
}

// AsError returns err as an Error: itself if it is one (anywhere in its chain),
// else an internal error that wraps it.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: CodeInternal, Msg: "internal error; see the node's log", Err: err}
}
