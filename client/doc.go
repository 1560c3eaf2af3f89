// Package client is the Go client of Sett: single keys, the cluster and its members,
// over the HTTP API of any node.
//
// A Client knows some endpoints, remembers which one answered last and which one is
// the leader, and fails over. Errors are *kv.Error, made from the server's
// problem+json, so that a remote error equals a local one and errors.Is works with
// the sentinels of package kv.
//
// What is retried, until the context or Config.Timeout ends: everything that never
// left this machine; what a server promised not to have applied because it has no
// leader, is not ready or is overloaded; and reads after any failure of the
// transport. A write whose fate is not known is never sent again: it is returned
// with kv.OutcomeUnknown, and the caller decides.
//
// The package does no discovery: endpoints are given, not learned.
package client
