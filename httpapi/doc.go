// Package httpapi is the HTTP face of a node: routes, parsing, limits, forwarding
// to the leader, problem+json, metrics. It knows the kv vocabulary and nothing of
// raft or of the storage engine: what it needs from the rest of the node it
// declares as small interfaces (Store, Cluster, Health), which package node
// implements.
//
// It does not decide anything about data: a write becomes one kv.Txn (a bulk load and
// a delete in pages become several), a read one Store.Get or Store.Scan, a watch one
// Store.Watch, and the answer of each is mapped to a status exactly once.
//
// The way of a request:
//
//	connection cap → request id → strict query → limits before bytes are read
//	→ admission (bytes in flight) → body, with a minimum pace → kv operation
//	→ here, or forwarded to the leader → answer, with a write deadline
//
// Invariants kept here:
//   - A forwarded request is never forwarded again (invariant 25).
//   - A write whose bytes may have reached a leader is never sent a second time, unless
//     the state machine knows it again by an idempotency key; if its answer is lost the
//     caller is told outcome-unknown, and no later refusal takes that back (invariants
//     24, 25).
//   - Nothing is held in memory whole but what is admitted: bodies, pages, batches.
//     Streams and watches hold a piece.
//   - A forward carries the cluster id and strangers are refused (invariant 28).
//   - Every error leaves through one function and one code→status table, and the
//     internal cause of an error is logged but never sent.
//
// Keys are byte strings. A key in a path is what follows /v1/kv/ in the escaped
// path, percent-decoded once; nothing is cleaned, merged or redirected.
package httpapi
