package raftstore

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
)

// latch remembers the first failure of either database, for good.
//
// Invariant 7: Badger acknowledges synced writes after a failed one although they are lost at the next
// start, so after the first error nothing may be acknowledged, not even by a call that was under way.
type latch struct {
	log     *slog.Logger
	onFatal func(error)
	once    sync.Once
	cause   atomic.Pointer[error]
}

// err is nil while the store is sound, else an error that matches ErrFailed and the cause.
func (l *latch) err() error {
	if p := l.cause.Load(); p != nil {
		return *p
	}
	return nil
}

// trip latches the store with cause, if it is the first, and returns what callers get from then on.
func (l *latch) trip(cause error) error {
	failed := fmt.Errorf("%w: %w", ErrFailed, cause)
	if mutantNoLatch {
		return failed
	}
	l.once.Do(func() {
		l.cause.Store(&failed)
		l.log.Error("raft store failed, the process has to end", slog.Any("error", cause))
		l.onFatal(failed)
	})
	return l.err()
}
