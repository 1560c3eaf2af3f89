package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/settkv/sett/kv"
)

// Exit codes: a promise to scripts.
const (
	exitDone           = 0
	exitOther          = 1
	exitUsage          = 2
	exitNotFound       = 3
	exitPrecondition   = 4
	exitUnavailable    = 5
	exitOutcomeUnknown = 6
)

// usageError is an error in how a command was called.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// exitCode is the one table from error to exit code.
func exitCode(err error) int {
	var usage *usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	var e *kv.Error
	if !errors.As(err, &e) {
		return exitOther
	}
	if e.Outcome == kv.OutcomeUnknown {
		return exitOutcomeUnknown
	}
	switch e.Code {
	case kv.CodeInvalidArgument:
		return exitUsage
	case kv.CodeNotFound:
		return exitNotFound
	case kv.CodePreconditionFailed:
		return exitPrecondition
	case kv.CodeNoLeader, kv.CodeNotReady, kv.CodeTimeout, kv.CodeOverloaded:
		return exitUnavailable
	case kv.CodeOutcomeUnknown:
		return exitOutcomeUnknown
	}
	return exitOther
}

// errorLine is what a person reads: one line, the cause inside a node left out.
func errorLine(err error) string {
	text := err.Error()
	var e *kv.Error
	if errors.As(err, &e) {
		text = e.Msg
		if text == "" {
			text = strings.ReplaceAll(string(e.Code), "-", " ")
		}
		if e.Code == kv.CodePreconditionFailed && !strings.Contains(text, "revision") {
			text += fmt.Sprintf(" (the key's revision is %d)", e.CurrentRevision)
		}
		if e.Line != 0 && !strings.Contains(text, "loaded") {
			text += fmt.Sprintf("; lines loaded before it: %d", e.Applied)
		}
		if e.Code == kv.CodeCompacted && !strings.Contains(text, "revision") {
			text += fmt.Sprintf(" (the oldest revision is %d)", e.OldestRevision)
		}
	}
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
