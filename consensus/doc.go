// Package consensus owns the *raft.Raft of a node: proposing, the read gate,
// leadership, membership changes, snapshots' timing, and the transport below it.
// It is a room of its own so that hashicorp/raft has one door.
//
// It does not know what a command means: fsm encodes and applies (through
// Config.Envelope and Config.FSM), cluster decides who should be a server, node
// assembles. It does not forward: a call that needs the leader fails with
// kv.CodeNoLeader on any other node.
//
// What holds (numbers as in the rules of the project):
//
//   - 10a: no entry exceeds MaxEntryBytes; proposals in flight are bounded in bytes
//     (Config.MaxInflightBytes), and so is one AppendEntries message.
//   - 20: while a follower installs a snapshot, the log it will need next is kept.
//   - 21: every heartbeat goes through raft's main loop (raft #695).
//   - 22: one RPC in flight per follower (raft #612).
//   - 23: a read index is confirmed by a quorum of voters with messages sent after
//     the read arrived, in a term whose own entry was applied.
//   - 24: only three errors of raft mean "not applied"; everything else is unknown;
//     every wait has a deadline.
//
// Connections between servers begin with a handshake that names the cluster, the
// sender and the receiver (handshake.go), so that a stranger's or a misdirected
// message never reaches raft. Votes are recorded for server ids, not addresses.
//
// Every method of Consensus is safe for concurrent use. The read path is described
// in docs/adr/0003-read-path.md.
package consensus
