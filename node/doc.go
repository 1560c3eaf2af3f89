// Package node is one Sett process put together from a configuration. The order in
// which things start and stop lives here and nowhere else.
//
// Start: lock the data folder, read the identity, open the log store, the data
// store and the state machine; decide whether they fit each other (a node whose log
// lost entries never votes again under its old identity); then the listeners,
// consensus, gossip and the HTTP API. Stop goes the other way: not ready, drain
// HTTP, hand leadership over, raft, gossip, state machine, log store (Invariant 30).
//
// It also does the leader's chores (expiry, compaction of history, the cluster
// clock) and answers what the HTTP API asks of a node. It holds no data itself.
package node
