package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"

	badger "github.com/dgraph-io/badger/v2"
)

// stableStore implements raft.StableStore: raft's term and vote.
//
// The values are kept twice, because a server that forgets one votes twice in a term, and Badger forgets in
// silence: what it cannot read at the end of its log it cuts off, and what is gone it does not miss. Each
// write goes to the file of votes first and to Badger then. So the file is never behind Badger, whatever
// moment a crash hits: a value that only the file has was written and perhaps acknowledged, and one that
// only Badger has says that the file is not the newest one.
type stableStore struct {
	db   *database
	file votesFile
	log  *slog.Logger

	// fileWritten, if set, is called between the two writes of a Set and may fail it, for tests.
	fileWritten func() error

	// current is what is on stable storage in both places. Written under db.writeMu.
	current atomic.Pointer[votes]
}

// Set stores val under key, durably and twice, before it returns nil (Invariant 2). Every error is final,
// except for a value over 64 KiB or too many of them, which are refused.
func (s *stableStore) Set(key, val []byte) error {
	if len(key)+len(val) > maxStableValueBytes {
		return fmt.Errorf("stable value of %d bytes is over the limit of %d", len(key)+len(val), maxStableValueBytes)
	}
	s.db.writeMu.Lock()
	defer s.db.writeMu.Unlock()
	next := s.current.Load().with(key, val)
	content := next.encode()
	if len(content) > maxVotesBytes {
		return fmt.Errorf("stable values of %d bytes are over the limit of %d", len(content), maxVotesBytes)
	}
	if err := s.db.write("set", func(in inner) error {
		if !mutantSingleVoteCopy {
			if err := s.file.write(content); err != nil {
				return err
			}
			if s.fileWritten != nil {
				if err := s.fileWritten(); err != nil {
					return err
				}
			}
		}
		return in.Set(key, val)
	}); err != nil {
		return err
	}
	s.current.Store(&next)
	return nil
}

// Get is the value of key, the caller's to keep, or ErrNotFound. It reads memory only.
func (s *stableStore) Get(key []byte) ([]byte, error) {
	if err := s.db.alive(); err != nil {
		return nil, err
	}
	val, ok := s.current.Load().values[string(key)]
	if !ok {
		return nil, ErrNotFound
	}
	return slices.Clone(val), nil
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

// open opens the database, compares it with the file and makes both equal. The file is the truth, since it
// is never behind: what Badger lacks is written into it again, all of it if its files are damaged. An error
// matches ErrCorrupt if votes may be lost: without a sound file nobody can say which ones.
func (s *stableStore) open() error {
	file, found, err := s.file.read()
	if mutantSingleVoteCopy {
		file, found, err = votes{}, false, nil
	}
	if err != nil {
		return fmt.Errorf("votes: %w", err)
	}
	var inBadger stableScan
	err = s.db.recover(func(db *badger.DB) (err error) {
		inBadger, err = scanStable(db)
		return err
	})
	if errors.Is(err, ErrCorrupt) && found {
		s.log.Warn("raft's stable values are damaged in the database and sound in the file of votes: the database is made anew",
			slog.String("database", s.db.opt.Dir), slog.Any("damage", err))
		inBadger = stableScan{}
		err = s.db.discard()
	}
	if err != nil {
		return err
	}
	switch {
	case mutantSingleVoteCopy:
		file.values = inBadger.values
	case !found && inBadger.any():
		return fmt.Errorf("%w: %s is gone and %s holds values: they may be older than the last vote", ErrCorrupt, s.file.path(), s.db.opt.Dir)
	case !found:
		// Nothing was ever voted here, as far as this package can know.
	default:
		if err := inBadger.newerThan(file); err != nil {
			return fmt.Errorf("%w: %s is older than the database: %w", ErrCorrupt, s.file.path(), err)
		}
	}
	if err := s.db.open(); err != nil {
		return err
	}
	if err := s.repair(file, inBadger); err != nil {
		return errors.Join(err, s.db.close())
	}
	s.current.Store(&file)
	return nil
}

// repair writes into Badger what it lacks or has otherwise.
func (s *stableStore) repair(file votes, has stableScan) error {
	for _, key := range slices.Sorted(maps.Keys(file.values)) {
		val := file.values[key]
		if old, ok := has.values[key]; ok && bytes.Equal(old, val) {
			continue
		}
		s.log.Warn("a stable value of raft was lost or behind in the database and is taken from the file of votes",
			slog.String("key", key), slog.Uint64("sequence", file.seq))
		s.db.writeMu.Lock()
		err := s.db.write("repair", func(in inner) error { return in.Set([]byte(key), val) })
		s.db.writeMu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// stablePrefix is the first byte of raft-badger's keys of stable values.
const stablePrefix = 0x01

// stableScan is what Badger holds.
type stableScan struct {
	values     map[string][]byte
	unreadable int
}

func (s stableScan) any() bool { return len(s.values) > 0 || s.unreadable > 0 }

// scanStable reads all stable values.
func scanStable(db *badger.DB) (stableScan, error) {
	s := stableScan{values: make(map[string][]byte)}
	err := db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{stablePrefix}})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			val, err := it.Item().ValueCopy(nil)
			if err != nil {
				s.unreadable++ // a long value whose place in the value log is damaged
				continue
			}
			s.values[string(it.Item().Key()[1:])] = val
		}
		return nil
	})
	return s, err
}

// newerThan says how Badger is ahead of the file, which no crash can do: it has a key that the file lacks,
// or one of raft's numbers, which only grow, is higher. The one step back there is, from term 1 to 0 when a
// bootstrap that was cut off is undone, may have been cut off itself; nobody votes in term 1 before it.
func (s stableScan) newerThan(file votes) error {
	for _, key := range slices.Sorted(maps.Keys(s.values)) {
		val, ok := file.values[key]
		if !ok {
			return fmt.Errorf("it lacks the value %q", key)
		}
		if key != "CurrentTerm" && key != "LastVoteTerm" || len(val) != 8 || len(s.values[key]) != 8 {
			continue
		}
		inFile, inBadger := binary.BigEndian.Uint64(val), binary.BigEndian.Uint64(s.values[key])
		undone := key == "CurrentTerm" && inFile == 0 && inBadger == 1
		if inBadger > inFile && !undone {
			return fmt.Errorf("the value %q is %d in it and was %d", key, inFile, inBadger)
		}
	}
	return nil
}
