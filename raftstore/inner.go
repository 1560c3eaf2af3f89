package raftstore

import (
	"errors"
	"reflect"

	raftbadger "github.com/BBVA/raft-badger"
	badger "github.com/dgraph-io/badger/v2"
	"github.com/hashicorp/raft"
)

// inner is what this layer uses of a raftbadger.BadgerStore. Tests put faults in between.
type inner interface {
	FirstIndex() (uint64, error)
	LastIndex() (uint64, error)
	GetLog(index uint64, log *raft.Log) error
	StoreLogs(logs []*raft.Log) error
	DeleteRange(lo, hi uint64) error
	Set(key, val []byte) error
	Get(key []byte) ([]byte, error)
	Close() error
}

// openInner opens raft-badger on opt. Its own value-log collector stays off: the goroutine never ends,
// keeps the database reachable after Close, and can read tables that Close has unmapped.
func openInner(opt badger.Options) (inner, *badger.DB, error) {
	private := opt // New writes into the options it is given
	store, err := raftbadger.New(raftbadger.Options{
		Path:          opt.Dir,
		BadgerOptions: &private,
		NoSync:        false, // Invariant 2
		ValueLogGC:    false,
	})
	if err != nil {
		return nil, nil, err
	}
	db, err := handle(store)
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	return store, db, nil
}

// handle reads the database handle that raft-badger keeps to itself, which is the only way to collect
// the value log from outside without a changed copy of the library. The field is checked by name and
// type, so another version of the library fails here, at every open, and not in some odd way later. It
// is used for RunValueLogGC only, never to read or write entries.
func handle(store *raftbadger.BadgerStore) (*badger.DB, error) {
	f := reflect.ValueOf(store).Elem().FieldByName("conn")
	if !f.IsValid() || f.Type() != reflect.TypeFor[*badger.DB]() || f.IsNil() {
		return nil, errors.New("this version of raft-badger keeps its database elsewhere: no value-log collection is possible")
	}
	return (*badger.DB)(f.UnsafePointer()), nil
}
