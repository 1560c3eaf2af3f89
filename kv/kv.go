package kv

import "time"

// Revision is the store's clock: 0 for an empty store, increased by exactly one by
// every transaction that changes at least one key. It never goes back.
type Revision uint64

// Item is one key as it was at some revision. Key and Value are arbitrary bytes;
// Value must not be modified by the receiver.
type Item struct {
	Key            string
	Value          []byte
	CreateRevision Revision
	ModRevision    Revision
	// Version is 1 at creation, increased by one by each change, and starts again
	// after a delete.
	Version     uint64
	ContentType string
	// ExpiresAt is the cluster time at which the key ends, in UTC with millisecond
	// resolution; the zero time means never.
	ExpiresAt time.Time
}

// OpKind says what an Op does.
type OpKind uint8

// The kinds of operation. The numbers are part of the command format.
const (
	OpPut    OpKind = 1
	OpDelete OpKind = 2
	OpIncr   OpKind = 3
	OpAppend OpKind = 4
	OpTouch  OpKind = 5
	OpGet    OpKind = 6
	// OpRange reads, and OpDeleteRange deletes, the keys of a range.
	OpRange       OpKind = 7
	OpDeleteRange OpKind = 8
)

// String returns the operation's name as the HTTP API spells it.
func (k OpKind) String() string {
	switch k {
	case OpPut:
		return "put"
	case OpDelete:
		return "delete"
	case OpIncr:
		return "incr"
	case OpAppend:
		return "append"
	case OpTouch:
		return "touch"
	case OpGet:
		return "get"
	case OpRange:
		return "range"
	case OpDeleteRange:
		return "delete"
	}
	return "invalid"
}

// MaxRangeLimit bounds the limit of a read of a range.
const MaxRangeLimit = 10_000

// MaxTouchedKeys is how many keys one transaction may change or read.
const MaxTouchedKeys = 100_000

// Op is one operation of a transaction. Which fields count depends on Kind.
type Op struct {
	Kind        OpKind
	Key         string        // not of a range
	Range       Range         // range, delete range
	Limit       int           // range: 1 to MaxRangeLimit; delete range: 0 (all of it, or the transaction fails) or how many at most
	Reverse     bool          // range
	KeysOnly    bool          // range
	Value       []byte        // put, append
	ContentType string        // put
	TTL         time.Duration // put (0: never expires), touch (required)
	ExpiresAt   time.Time     // put, instead of TTL: when it ends, in cluster time and whole milliseconds; at once if that is over
	By          int64         // incr
	// Previous asks for the item as it was before the operation.
	Previous bool
}

// CondTarget says which property of a key a Cond compares.
type CondTarget uint8

// The targets of a condition. The numbers are part of the command format.
const (
	CondModRevision    CondTarget = 1
	CondCreateRevision CondTarget = 2
	CondVersion        CondTarget = 3
	CondExists         CondTarget = 4 // Number is 1 (exists) or 0
	CondValue          CondTarget = 5 // equality with Value
)

// CondOp is the comparison of a Cond. The numbers are part of the command format.
type CondOp uint8

// The comparisons.
const (
	CmpEqual        CondOp = 1
	CmpNotEqual     CondOp = 2
	CmpLess         CondOp = 3
	CmpGreater      CondOp = 4
	CmpLessEqual    CondOp = 5
	CmpGreaterEqual CondOp = 6
)

// Cond is a condition on one key. An absent key compares as revision 0 and
// version 0, and no value equals it.
type Cond struct {
	Key    string
	Target CondTarget
	Op     CondOp
	Number uint64
	Value  []byte
}

// Txn is an atomic write: if every condition of If holds, the operations of Then
// are done in order, else those of Else. A later operation sees the earlier ones.
// One failing operation fails the whole, changing nothing. A single put is a Txn
// of one operation.
type Txn struct {
	If   []Cond
	Then []Op
	Else []Op
	// Once, if its key is not empty, makes the transaction happen at most once.
	Once Once
}

// MaxOnceKeyBytes bounds an idempotency key.
const MaxOnceKeyBytes = 128

// Once names a write, so that a repeat of it is answered as the first one was and
// changes nothing. The state machine remembers the outcome for OnceWindow.
type Once struct {
	// Key is the idempotency key, of 1 to MaxOnceKeyBytes bytes beside what sets the
	// keys of different callers apart.
	Key string
	// Request is a hash of all that makes the request what it is: the same key with
	// another request is a conflict.
	Request [32]byte
}

// Operation is what the cluster has noted of something that a leader does under an idempotency key and that is
// none of the state machine's, such as a change of members.
type Operation struct {
	// Term is that of the leader which began it first.
	Term uint64 `json:"term"`
	// Began is the log index at which it was begun first; it names the operation.
	Began uint64 `json:"began"`
	// Member says that the member it is about was one before.
	Member bool `json:"member,omitempty"`
	// Tries is how often it was begun.
	Tries int `json:"tries"`
	// Status is the HTTP status of its answer, 0 as long as no answer is noted.
	Status int `json:"status,omitempty"`
	// Body is that of its answer.
	Body []byte `json:"body,omitempty"`
}

// Ending is how an Operation ended: with an HTTP status and a body, or with status 0 if the first try was refused
// and nothing was done.
type Ending struct {
	Once   Once
	Began  uint64 // the operation's
	Status int
	Body   []byte
}

// OnceWindow is how long the outcome of a write with an idempotency key is remembered
// at least, by the cluster clock.
const OnceWindow = 10 * time.Minute

// TxnResult is what the state machine decided about a Txn.
type TxnResult struct {
	// Succeeded says whether the conditions held.
	Succeeded bool
	// Revision is the transaction's own, if it changed a key, else the revision at
	// which it was decided.
	Revision Revision
	// FailedRevision is the mod revision (0: absent) of the key of the first
	// condition that did not hold; meaningful when Succeeded is false.
	FailedRevision Revision
	// Ops has one result for each operation that was done, in order.
	Ops []OpResult
	// Replayed says that this is the remembered outcome of an earlier transaction with
	// the same idempotency key, and nothing was changed now. It is set beside an error,
	// too.
	Replayed bool
}

// OpResult is the result of one Op.
type OpResult struct {
	Kind OpKind
	// Created says that a put, incr or append made the key.
	Created bool
	// ModRevision is the key's revision after the operation.
	ModRevision Revision
	// Deleted is the number of keys that a delete or delete range removed.
	Deleted uint64
	// Number is the value after an incr.
	Number int64
	// Item is the answer of a get, nil if the key is absent.
	Item *Item
	// Items is the answer of a range.
	Items []Item
	// More says that a range, or a limited delete range, has more keys than its limit.
	More bool
	// Previous is the item before the operation, nil if absent; set only if asked.
	Previous *Item
}

// Consistency is how fresh a read must be.
type Consistency uint8

// The consistency levels.
const (
	// Linearizable reads see every write that was acknowledged before they began.
	Linearizable Consistency = iota
	// Leader reads see the leader's state under its lease, with no quorum round.
	Leader
	// Stale reads see the asked node's own state.
	Stale
)

// ParseConsistency reads a level as the HTTP API spells it; "" is Linearizable.
func ParseConsistency(s string) (Consistency, bool) {
	switch s {
	case "", "linearizable":
		return Linearizable, true
	case "leader":
		return Leader, true
	case "stale":
		return Stale, true
	}
	return Linearizable, false
}

// String returns the level as the HTTP API spells it.
func (c Consistency) String() string {
	switch c {
	case Linearizable:
		return "linearizable"
	case Leader:
		return "leader"
	case Stale:
		return "stale"
	}
	return "invalid"
}

// ReadOptions says how a read is served.
type ReadOptions struct {
	Consistency Consistency
	// Revision reads the past; 0 reads the newest.
	Revision Revision
	// MinRevision waits until the serving node has reached it; 0 does not wait.
	MinRevision Revision
	// MaxStaleness refuses a Stale read from a node that may lag more; 0 is no bound.
	MaxStaleness time.Duration
}

// Timing collects how long the stages of a request took; nil-safe by its users.
type Timing struct {
	Forward   time.Duration
	Queue     time.Duration
	Replicate time.Duration
	Apply     time.Duration
	Read      time.Duration
}

// Pin holds history back from compaction: revisions from Revision on stay readable
// until ExpiresAt, a cluster time.
type Pin struct {
	ID        string
	Revision  Revision
	ExpiresAt time.Time
}

// MaxPinTTL bounds how long a pin holds history.
const MaxPinTTL = 24 * time.Hour

// Compaction is the answer to a request to compact history.
type Compaction struct {
	// To is the oldest revision that is kept now.
	To Revision
	// HeldBy has the ids of the pins that kept it below what was asked for.
	HeldBy []string
}
