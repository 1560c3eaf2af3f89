package relay

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/settkv/sett/kv"
)

const (
	// protocol is the name of what the streams speak, in the Upgrade header.
	protocol = "sett-proposals/1"

	// MaxCommandBytes bounds a command that is relayed: a big one would hold up others.
	MaxCommandBytes = 64 << 10
	// maxProposalBytes bounds a proposal's frame, maxAnswerBytes an answer's.
	maxProposalBytes = MaxCommandBytes + 64
	maxAnswerBytes   = 256 << 10

	bufferBytes = 64 << 10
	// maxBudget bounds how long the leader may be asked to try.
	maxBudget = time.Hour
)

var (
	errFrame       = errors.New("malformed frame")
	errFrameLength = errors.New("a frame is longer than any may be")
)

// The kinds of answers.
const (
	kindResult byte = iota + 1
	kindError
)

// Answer is what became of a proposal that was decided.
type Answer struct {
	// Result is what the state machine answered, encoded; an error that it decided is one.
	Result []byte
	// Timing is the leader's part.
	Timing kv.Timing
}

// appendFrame appends the frame of what body appends.
func appendFrame(b []byte, body func([]byte) []byte) []byte {
	const room = 3 // the length of a uvarint of up to 2 MiB
	start := len(b)
	b = body(append(b, make([]byte, room)...))
	n := uint32(len(b) - start - room)
	// A uvarint of a fixed size: its bytes before the last say that more follow.
	b[start], b[start+1], b[start+2] = byte(n)|0x80, byte(n>>7)|0x80, byte(n>>14)
	return b
}

func appendProposal(b []byte, id uint64, budget time.Duration, cmd []byte) []byte {
	return appendFrame(b, func(b []byte) []byte {
		b = binary.AppendUvarint(b, id)
		b = binary.AppendUvarint(b, uint64(max(1, budget.Milliseconds())))
		return append(b, cmd...)
	})
}

func parseProposal(b []byte) (id uint64, budget time.Duration, cmd []byte, err error) {
	id, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, 0, nil, errFrame
	}
	b = b[n:]
	ms, n := binary.Uvarint(b)
	if n <= 0 || ms > uint64(maxBudget/time.Millisecond) {
		return 0, 0, nil, errFrame
	}
	return id, time.Duration(ms) * time.Millisecond, b[n:], nil
}

// wireError is a kv.Error on its way.
type wireError struct {
	Code            kv.Code       `json:"code"`
	Outcome         kv.Outcome    `json:"outcome,omitempty"`
	Msg             string        `json:"msg"`
	CurrentRevision kv.Revision   `json:"current_revision,omitempty"`
	OldestRevision  kv.Revision   `json:"oldest_revision,omitempty"`
	RetryAfter      time.Duration `json:"retry_after,omitempty"` // nanoseconds
	Leader          string        `json:"leader,omitempty"`
}

func appendAnswer(b []byte, id uint64, a Answer, err error) []byte {
	return appendFrame(b, func(b []byte) []byte {
		b = binary.AppendUvarint(b, id)
		if err != nil {
			e := kv.AsError(err)
			// A struct of plain fields: it can always be encoded.
			j, _ := json.Marshal(wireError{e.Code, e.Outcome, e.Msg, e.CurrentRevision, e.OldestRevision, e.RetryAfter, e.Leader})
			return append(append(b, kindError), j...)
		}
		b = append(b, kindResult)
		for _, d := range []time.Duration{a.Timing.Queue, a.Timing.Replicate, a.Timing.Apply} {
			b = binary.AppendUvarint(b, uint64(max(0, d)))
		}
		return append(b, a.Result...)
	})
}

// parseAnswer parses an answer's frame. refusal is the leader's error, err one of the frame.
func parseAnswer(b []byte) (id uint64, a Answer, refusal *kv.Error, err error) {
	id, n := binary.Uvarint(b)
	if n <= 0 || len(b) < n+1 {
		return 0, Answer{}, nil, errFrame
	}
	kind, b := b[n], b[n+1:]
	switch kind {
	case kindError:
		var w wireError
		if err := json.Unmarshal(b, &w); err != nil || w.Code == "" {
			return 0, Answer{}, nil, errFrame
		}
		return id, Answer{}, &kv.Error{
			Code: w.Code, Outcome: w.Outcome, Msg: w.Msg, CurrentRevision: w.CurrentRevision,
			OldestRevision: w.OldestRevision, RetryAfter: w.RetryAfter, Leader: w.Leader,
		}, nil
	case kindResult:
		for _, d := range []*time.Duration{&a.Timing.Queue, &a.Timing.Replicate, &a.Timing.Apply} {
			v, n := binary.Uvarint(b)
			if n <= 0 {
				return 0, Answer{}, nil, errFrame
			}
			*d, b = time.Duration(min(v, uint64(maxBudget))), b[n:]
		}
		a.Result = b
		return id, a, nil, nil
	}
	return 0, Answer{}, nil, errFrame
}

// readFrame reads one frame of at most limit bytes into memory of its own.
func readFrame(r *bufio.Reader, limit uint64) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, errFrameLength
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r, b)
	return b, err
}
