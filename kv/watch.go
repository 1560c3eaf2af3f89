package kv

import (
	"sync/atomic"
	"time"
)

// EventType says what happened to a key.
type EventType uint8

// The types of event.
const (
	EventPut    EventType = 1
	EventDelete EventType = 2
	EventExpire EventType = 3
)

// String returns the type as the HTTP API spells it.
func (t EventType) String() string {
	switch t {
	case EventPut:
		return "put"
	case EventDelete:
		return "delete"
	case EventExpire:
		return "expire"
	}
	return "invalid"
}

// Event is one change of one key. It is shared by all who watch and must not be
// modified.
type Event struct {
	Type     EventType
	Revision Revision
	// Item is the key after a put; after a delete or an expiry only its Key is set.
	Item Item
	// Previous is the key before the change, nil if there was none. It may be there for a
	// watcher that did not ask for it, since events are shared, and means nothing then.
	Previous *Item

	memos [EventMemos]atomic.Pointer[[]byte]
}

// EventMemos is how many different memos an event can keep.
const EventMemos = 2

// Memo returns what derive makes of the event. It is made about once and then shared:
// a thousand watchers of one key need not render its event a thousand times. The
// result must not be modified. slot is below EventMemos and names the derivation.
func (e *Event) Memo(slot int, derive func(*Event) []byte) []byte {
	if b := e.memos[slot].Load(); b != nil {
		return *b
	}
	b := derive(e)
	e.memos[slot].Store(&b)
	return b
}

// Watch says which changes are to be followed.
type Watch struct {
	Range Range
	// From is the first revision wanted; 0 is the one after the store's newest when the
	// watch begins.
	From Revision
	// Previous asks for the item before each change.
	Previous bool
	// Progress is how often a watch that has nothing to tell tells how far it is;
	// 0 is never.
	Progress time.Duration
}

// WatchBatch is what a watch tells at once: events in the order in which they happened,
// or none; and the revision up to which all was told now.
type WatchBatch struct {
	Events   []*Event
	Revision Revision
	// Partial says that the revision of the last event is not whole: the next batch goes on
	// with it. Only one too big for memory is told in parts.
	Partial bool
}
