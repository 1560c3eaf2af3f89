package client

import (
	"crypto/rand"
	"net/http"
	"time"

	"github.com/settkv/sett/kv"
)

const (
	headerIdempotencyKey = "Idempotency-Key"
	headerReplayed       = "Sett-Replayed"
)

// onceBudget is how long after an attempt whose fate is unknown the write is sent again
// at most. It is less than the cluster remembers outcomes, by more than clocks drift
// in that time: a repeat that came later could be done a second time.
const onceBudget = kv.OnceWindow - 2*time.Minute

// OnceOptions are those of changes that take no others.
type OnceOptions struct {
	// IdempotencyKey is as in WriteOptions.
	IdempotencyKey string
}

// setOnce gives r an idempotency key, a random one if key is empty.
func (r *request) setOnce(key string) {
	if key == "" {
		key = rand.Text()
	}
	if r.header == nil {
		r.header = http.Header{}
	}
	r.header.Set(headerIdempotencyKey, key)
	r.once = key
}

func replayed(a *answer) bool { return a != nil && a.header.Get(headerReplayed) == "true" }

// decided reports whether an error with this code is what the state machine decided,
// which knows of earlier attempts with the same idempotency key. Anything else that was
// not applied says nothing about them.
func decided(c kv.Code) bool {
	switch c {
	case kv.CodeNotFound, kv.CodeConflict, kv.CodePreconditionFailed, kv.CodeTooLarge:
		return true
	}
	return false
}

// settle is what may be said of a write that ended with e. unsure says that the fate of
// an earlier attempt, or of this one, is unknown.
func settle(e *kv.Error, r *request, unsure bool) *kv.Error {
	if !unsure || mutantClientForgetsDoubt || decided(e.Code) && e.Outcome != kv.OutcomeUnknown {
		return e
	}
	text := "the write may have been applied and its answer was lost"
	if e.Msg != "" {
		text += " (last: " + e.Msg + ")"
	}
	u := kv.Unknown(e.Err, "%s: repeat it with the idempotency key %s within 10 minutes to learn what became of it", text, r.once)
	u.Leader = e.Leader
	return u
}
