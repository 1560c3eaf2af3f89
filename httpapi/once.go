package httpapi

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/settkv/sett/kv"
)

const (
	headerIdempotencyKey = "Idempotency-Key"
	headerReplayed       = "Sett-Replayed"
)

// parseOnce reads the Idempotency-Key of a write that takes one, or refuses it.
func (x *exchange) parseOnce(takes bool) error {
	key, ok, err := singleHeader(x.r.Header, headerIdempotencyKey)
	switch {
	case err != nil || !ok:
		return err
	case !takes:
		return kv.Errorf(kv.CodeInvalidArgument, "this request takes no Idempotency-Key; leave the header out")
	case key == "" || len(key) > kv.MaxOnceKeyBytes:
		return kv.Errorf(kv.CodeInvalidArgument, "an Idempotency-Key has 1 to %d bytes", kv.MaxOnceKeyBytes)
	}
	x.onceKey = key
	return nil
}

// once names the request with this body for the state machine.
func (x *exchange) once(body []byte) kv.Once {
	if x.onceKey == "" {
		return kv.Once{}
	}
	return kv.Once{Key: x.onceKey, Request: x.requestHash(body)}
}

// requestHash is over all that makes the request what it is, and nothing that may
// differ between two attempts: how long to wait, whom to ask, what to measure.
func (x *exchange) requestHash(body []byte) [sha256.Size]byte {
	fields := [][]byte{[]byte(x.r.Method), []byte(x.r.URL.EscapedPath())}
	common := commonParams()
	for _, name := range slices.Sorted(maps.Keys(x.params)) {
		if !slices.Contains(common, name) {
			fields = append(fields, []byte(url.QueryEscape(name)+"="+url.QueryEscape(x.params[name])))
		}
	}
	for _, name := range []string{"Content-Type", "If-Match", "If-None-Match"} {
		fields = append(fields, []byte(name+": "+strings.Trim(strings.Join(x.r.Header.Values(name), ","), " \t")))
	}
	return digest(append(fields, body)...)
}

// digest hashes fields, none of which can be taken for a part of another.
func digest(fields ...[]byte) [sha256.Size]byte {
	h := sha256.New()
	var n [8]byte
	for _, f := range fields {
		binary.BigEndian.PutUint64(n[:], uint64(len(f)))
		h.Write(n[:])
		h.Write(f)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// transact does a transaction on the leader: here, by sending it there if it is small, or
// by forwarding the request with body. build makes it; it may be called more than once.
// relayed reports that the leader's answer has been passed on.
//
// With an idempotency key an attempt whose fate is unknown is made again, as long as
// there is time; the state machine sees to it that only one of them counts.
func (x *exchange) transact(ctx context.Context, body []byte, build func() (kv.Txn, error)) (result kv.TxnResult, relayed bool, err error) {
	once := x.once(body)
	call := leaderCall{body: body, repeat: once.Key != ""}
	call.local = func(ctx context.Context) error {
		result = kv.TxnResult{}
		t, err := build()
		if err != nil {
			return err
		}
		t.Once = once
		result, err = x.s.cfg.Store.Txn(ctx, t, &x.timing)
		return err
	}
	if x.s.cfg.Relay != nil && len(body) <= relayBytes && !x.s.cfg.Cluster.IsLeader() {
		t, err := build()
		if err != nil {
			return kv.TxnResult{}, false, err
		}
		if t.Once = once; relayable(&t) {
			call.relay = func(ctx context.Context, addr string) (err error) {
				result, err = x.s.cfg.Relay.Relay(ctx, addr, t, &x.timing)
				return err
			}
		}
	}
	relayed, err = x.onLeader(ctx, &call)
	if relayed {
		return result, true, nil
	}
	if err == nil || result.Revision != 0 {
		x.setRevision(result.Revision)
	} else {
		err = call.settle(err)
	}
	if result.Replayed {
		x.Header().Set(headerReplayed, "true")
	}
	return result, false, err
}

// decidedCode reports whether the state machine has decided, if the answer to a
// transaction has this code.
func decidedCode(c kv.Code) bool {
	switch c {
	case kv.CodeNotFound, kv.CodeConflict, kv.CodePreconditionFailed, kv.CodeTooLarge:
		return true
	}
	return false
}

// settle is what may be said of a call that ended with err. If the fate of an earlier
// attempt is unknown, then an attempt that was certainly not applied changes nothing
// about that: only a decision of the state machine, which knows of both, does.
func (c *leaderCall) settle(err error) error {
	if err == nil || !c.unsure || mutantForgetDoubt {
		return err
	}
	if e := kv.AsError(err); decidedCode(e.Code) || (e.Outcome == kv.OutcomeUnknown && e.Code != kv.CodeOutcomeUnknown) {
		return err
	}
	return kv.Unknown(err, "the write may have been applied and its answer was lost; repeat the request with the same Idempotency-Key to learn what became of it")
}

// inDoubt reports whether err leaves open what became of a write.
func inDoubt(err error) bool {
	var e *kv.Error
	return errors.As(err, &e) && e.Code == kv.CodeOutcomeUnknown
}

// lastWord reports whether e, the leader's answer to a call, is what the client is to
// be told. While no attempt is in doubt, every answer is that says what became of it.
func (c *leaderCall) lastWord(e *kv.Error) bool {
	switch {
	case !c.repeat:
		return true
	case c.unsure:
		return decidedCode(e.Code)
	}
	return e.Outcome != kv.OutcomeUnknown
}
