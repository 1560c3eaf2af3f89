// Package client is the Go client of Sett: single keys, ranges, transactions, bulk loads,
// watches, history, the cluster and its members, over the HTTP API of any node.
//
// A Client knows some endpoints. Reads go to each in turn, what the leader does goes to
// the leader once it is known, and an endpoint that failed is asked last for a while.
// Errors are *kv.Error, made from the server's problem+json, so that a remote error
// equals a local one and errors.Is works with the sentinels of package kv.
//
// What is retried, until the context or Config.Timeout ends: everything that never
// left this machine; what a server promised not to have applied because it has no
// leader, is not ready or is overloaded; reads after any failure of the transport; and
// writes of keys, transactions and deletes of ranges whatever happened to their answer.
// For that each carries an idempotency key, under which the cluster does it once. What
// the fate of such a write is when time runs out, nobody may know: it is returned with
// kv.OutcomeUnknown and the key under which to ask again. Writes without a key (bulk
// loads, compaction, pins, changes of the cluster) are never sent again in that case.
//
// A Scanner and a Watcher are streams: they resume by themselves and take an idle
// connection for a lost one. They hold no goroutine.
//
// The package does no discovery: endpoints are given, not learned.
package client
