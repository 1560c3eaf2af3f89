package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"

	raftbadger "github.com/BBVA/raft-badger"
)

// stableStore implements raft.StableStore: raft's term and vote.
type stableStore struct{ db *database }

// Set stores val under key, durably, before it returns nil (Invariant 2). Every error is final, except
// for a value over 64 KiB, which is refused.
func (s *stableStore) Set(key, val []byte) error {
	if len(key)+len(val) > maxStableValueBytes {
		return fmt.Errorf("stable value of %d bytes is over the limit of %d", len(key)+len(val), maxStableValueBytes)
	}
	s.db.writeMu.Lock()
	defer s.db.writeMu.Unlock()
	return s.db.write("set", func(in inner) error { return in.Set(key, val) })
}

// Get is the value of key, the caller's to keep, or ErrNotFound.
func (s *stableStore) Get(key []byte) ([]byte, error) {
	var val []byte
	err := s.db.read(func(in inner) (err error) {
		val, err = in.Get(key)
		return err
	})
	switch {
	case errors.Is(err, raftbadger.ErrKeyNotFound):
		return nil, ErrNotFound
	case err == nil, errors.Is(err, ErrClosed), errors.Is(err, ErrFailed):
		return val, err
	default:
		return nil, s.db.latch.trip(fmt.Errorf("%w: read stable value: %w", ErrCorrupt, err))
	}
}

// SetUint64 is Set with a number of eight bytes, high byte first.
func (s *stableStore) SetUint64(key []byte, val uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, val))
}

// GetUint64 is the number under key, or ErrNotFound, or ErrCorrupt for a value of another length, which
// the bare library panics over.
func (s *stableStore) GetUint64(key []byte) (uint64, error) {
	val, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(val) != 8 {
		return 0, fmt.Errorf("%w: stable number %q has %d bytes", ErrCorrupt, key, len(val))
	}
	return binary.BigEndian.Uint64(val), nil
}
