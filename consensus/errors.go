package consensus

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/kv"
)

// retryAfter is the hint that goes with errors that pass by themselves.
const retryAfter = time.Second

// proposalError says what an error of a raft future means for the client.
//
// Invariant 24: only ErrNotLeader, ErrEnqueueTimeout and
// ErrLeadershipTransferInProgress mean that nothing was appended. Everything else,
// a shutdown or a store error included, may still be committed later.
func proposalError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return noLeader(err, "this node does not lead the cluster")
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return noLeader(err, "the leader is too slow to take the write; try again")
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return noLeader(err, "leadership is being handed over; try again")
	}
	return kv.Unknown(err, "the write was proposed, but whether it was committed is not known; read before trying again, or repeat it with its idempotency key")
}

// noLeader is the error of a request that found no leader here and changed nothing.
func noLeader(cause error, msg string) error {
	e := kv.NotApplied(kv.CodeNoLeader, "%s", msg)
	e.Err, e.RetryAfter = cause, retryAfter
	return e
}

// readError makes the error of a read, which has no outcome.
func readError(code kv.Code, cause error, msg string) error {
	e := kv.Errorf(code, "%s", msg)
	e.Err, e.RetryAfter = cause, retryAfter
	return e
}

// isNotApplied says whether err promises that nothing was appended.
func isNotApplied(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrEnqueueTimeout) ||
		errors.Is(err, raft.ErrLeadershipTransferInProgress)
}

var errStopping = errors.New("consensus is shutting down")
